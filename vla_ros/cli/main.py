"""The `vla` command. Results go to stdout, everything else to stderr; `--json` prints one JSON object.

Modules that need ROS, the simulator or the model are imported by the commands that use them: `vla --help` is instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from vla_ros.cli import report
from vla_ros.cli.bag import app as bag_app
from vla_ros.cli.bench import app as bench_app
from vla_ros.cli.data import app as data_app
from vla_ros.cli.options import Json, Means, Namespace, Policy, Ray, Robot, Seed, fail_unless, say, sigterm_as_interrupt
from vla_ros.cli.policy import app as policy_app
from vla_ros.cli.record import app as record_app
from vla_ros.cli.train import train

if TYPE_CHECKING:
    from vla_ros.cli.client import GraphClient

app = typer.Typer(
    name="vla",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tell a robot arm what to do, and see what it does.",
)
app.add_typer(bench_app, name="bench")
app.add_typer(policy_app, name="policy")
app.command()(train)
app.add_typer(record_app, name="record")
app.add_typer(bag_app, name="bag")
app.add_typer(data_app, name="data")


def _client(namespace: str) -> GraphClient:
    from vla_ros.cli.client import GraphClient

    return GraphClient(namespace)


# ------------------------------------------------------------------------------------------------ the graph


@app.command(context_settings={"allow_extra_args": False})
def launch(
    file: Annotated[str, typer.Argument(help="A launch file, or the name of a shipped one: sim, real.")],
    arguments: Annotated[Optional[list[str]], typer.Argument(help="name:=value ...")] = None,  # noqa: UP045
    show_args: Annotated[bool, typer.Option("--show-args", "-s", help="List the arguments and leave.")] = False,
    as_json: Json = False,
) -> None:
    """Start a graph and stay with it until Ctrl-C. Uses ROS 2's own launch where it is installed."""
    from vla_ros.cli import launch_runner

    with report.errors(as_json):
        if show_args and as_json:
            known = launch_runner.known_arguments(launch_runner.find_launch_file(file))
            report.result(True, {"file": file, "arguments": known})
            return
        if as_json:
            path = launch_runner.find_launch_file(file)
            given = launch_runner.parse_arguments(arguments or [])
            code = launch_runner.run_subset(
                path, given, lambda name, line: report.stderr.print(f"[{name}] {line}", markup=False, soft_wrap=True)
            )
            report.result(True, {"file": str(path), "arguments": given, "exit_code": code})
        else:
            code = launch_runner.run(file, arguments or [], show_args=show_args)
    raise typer.Exit(code)


@app.command()
def status(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing it until Ctrl-C.")] = False,
    full_speed: Annotated[
        bool, typer.Option("--full-speed", help="With --follow: allow more than the reduced speed. Look at the arm.")
    ] = False,
    namespace: Namespace = "vla",
    as_json: Json = False,
) -> None:
    """What the graph is doing: nodes, phase, severity, policy. Exit code 0 only if every core node is active."""
    from vla_ros.cli import status as view

    with report.errors(as_json), _client(namespace) as client:
        if follow:
            view.follow(client, as_json, full_speed)
            return
        facts = view.snapshot(client)
        if not as_json:
            report.stdout.print(view.table(facts))
        inactive = [f"{name} is {state}" for name, state in facts["nodes"].items() if state != "active"]
        if not inactive:
            report.result(as_json, facts)
            return
        remedy = "start the graph with `vla launch sim`" if len(inactive) == len(facts["nodes"]) else "see its log"
        raise report.CliError(f"not ready: {', '.join(inactive)}; {remedy}", code=report.EXIT_UNREACHABLE, **facts)


# ------------------------------------------------------------------------------------------------ the operator


@app.command()
def instruct(
    text: Annotated[str, typer.Argument(help="What the arm is to do, 1 to 256 characters.")],
    queue: Annotated[bool, typer.Option("--queue", help="Start when the open instruction is done.")] = False,
    namespace: Namespace = "vla",
    as_json: Json = False,
) -> None:
    """Give an instruction. It is accepted or refused with a reason; exit code 0 only if it was accepted."""
    with report.errors(as_json), _client(namespace) as client:
        from vla_ros.srv import Instruct

        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # what the shell handed over was not UTF-8
            raise report.CliError("text is not UTF-8; allowed: 1 to 256 printable characters", accepted=False) from None
        answer = client.instruct(text, Instruct.Request.MODE_QUEUE if queue else Instruct.Request.MODE_REPLACE)
        facts = {
            "accepted": answer.accepted,
            "instruction_id": answer.instruction_id,
            "reason": answer.reason,
            "text": text,
        }
        fail_unless(answer.accepted, f"refused: {answer.reason}", **facts)
        state = client.wait_until(lambda: client.state, 1.0)
        hint = "" if state is None or not state.latched else " The arm is stopped: `vla rearm` lets it move."
        report.result(as_json, facts, f"accepted as instruction {answer.instruction_id}.{hint}")


@app.command()
def interrupt(namespace: Namespace = "vla", as_json: Json = False) -> None:
    """Stop the arm now. It brakes and stays until `vla rearm`. It is not a safety function."""
    with report.errors(as_json), _client(namespace) as client:
        client.interrupt(timeout_s=5.0)
        state = client.state
        facts = {"stopped": True, "reason": state.reason if state else "", "phase": state.phase if state else ""}
        report.result(as_json, facts, "stopped; `vla rearm` lets the arm move again")


@app.command()
def rearm(namespace: Namespace = "vla", as_json: Json = False) -> None:
    """Let the arm move again after a stop. Look at the arm first."""
    _trigger("rearm", "rearmed: the arm may move", namespace, as_json)


@app.command()
def home(namespace: Namespace = "vla", as_json: Json = False) -> None:
    """Move the arm slowly to its home pose."""
    _trigger("home", "moving to the home pose", namespace, as_json)


@app.command()
def retreat(namespace: Namespace = "vla", as_json: Json = False) -> None:
    """Move the arm back along the path it has come, slowly. The open instruction is closed."""
    _trigger("retreat", "moving back along the executed path", namespace, as_json)


def _trigger(name: str, done: str, namespace: str, as_json: bool) -> None:
    with report.errors(as_json), _client(namespace) as client:
        answer = client.trigger(name)
        facts = {"success": answer.success, "message": answer.message}
        fail_unless(answer.success, f"{name} was refused: {answer.message}", **facts)
        report.result(as_json, facts, done)


@app.command()
def teleop(
    text: Annotated[str, typer.Option(help="What you will show; Enter begins it. Without it you only correct.")] = "",
    take: Annotated[bool, typer.Option("--take", help="Take over at once, not with the key t.")] = False,
    joy: Annotated[bool, typer.Option("--joy", help="A gamepad alone will do: no terminal is needed.")] = False,
    robot: Robot = "panda",
    namespace: Namespace = "vla",
    as_json: Json = False,
) -> None:
    """Drive the arm by keys or gamepad: show a task, or take over from the policy and hand back. Ctrl-C leaves."""
    with report.errors(as_json):
        from vla_ros.cli import teleop as by_hand

        facts = by_hand.run(namespace, text, joy, robot, take)
        fail_unless(not facts["in_control"], "left, but the arm was not handed back: `vla interrupt` stops it", **facts)
        report.result(as_json, facts, f"left after {facts['chunks']} chunks; the policy has the arm")


# ------------------------------------------------------------------------------------------------ demo and eval


@app.command()
def demo(
    text: Annotated[Optional[str], typer.Option(help="A sentence; without it the scene suggests one.")] = None,  # noqa: UP045
    means: Means = "",
    seed: Seed = 0,
    video: Annotated[Path, typer.Option(help="Where the video of both cameras goes.")] = Path("vla_demo.mp4"),
    no_video: Annotated[bool, typer.Option("--no-video", help="Make no video.")] = False,
    timeout: Annotated[float, typer.Option(min=1.0, max=600.0, help="Seconds for the task.")] = 30.0,
    record: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Folder that gets the episode as a rosbag2 folder of its own; without it nothing is recorded."
        ),
    ] = None,
    policy: Policy = "",
    robot: Robot = "panda",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what the nodes print.")] = False,
    as_json: Json = False,
) -> None:
    """Start the simulated arm, give it a sentence, watch it work. Exit code 0 only if the world says it is done."""
    from vla_ros.cli import demo as demonstration

    with sigterm_as_interrupt(), report.errors(as_json):
        facts = demonstration.run(
            text=text,
            means=means,
            seed=seed,
            video=None if no_video else video,
            record=record,
            timeout_s=timeout,
            policy=policy,
            robot=robot,
            quiet=as_json,
            verbose=verbose,
        )
        ended = f"{facts['outcome']} after {facts['duration_s']:.1f} s" + (
            f" ({facts['reason']})" if facts["reason"] else ""
        )
        verdict = f"{facts['text']!r}: {ended}. The world says: {facts['detail'] or 'nothing moved'}."
        fail_unless(facts["success"], verdict, **facts)
        latency, loop = facts["policy_latency_ms"], facts["control_loop"]
        report.result(
            as_json,
            facts,
            f"[bold green]success[/] {verdict}\n"
            f"policy {latency['p50']} ms a chunk (p99 {latency['p99']}), control loop {loop['rate_hz']} Hz, "
            f"{loop['late_ticks']} of {loop['ticks']} ticks late"
            + (f"\nvideo: {facts['video']}" if facts["video"] else "")
            + (f"\nepisode: {facts['episode']}" if facts["episode"] else ""),
        )


@app.command(name="eval")
def evaluate(
    suite: Annotated[str, typer.Option(help="Set of tasks; there is one: tabletop.")] = "tabletop",
    episodes: Annotated[int, typer.Option(min=1, max=100_000)] = 20,
    seed: Seed = 0,
    family: Annotated[str, typer.Option(help="One task family; empty: all, in turn.")] = "",
    text: Annotated[str, typer.Option(help="A sentence, or a template with {colour}, {shape}, {target}.")] = "",
    means: Means = "",
    phrasings: Annotated[str, typer.Option(help="Sentences to use: trained, or heldout from training.")] = "trained",
    pairs: Annotated[str, typer.Option(help="Colours and shapes to name: trained, or heldout.")] = "trained",
    regions: Annotated[str, typer.Option(help="Where what is named lies: any, trained, or heldout.")] = "any",
    swap: Annotated[bool, typer.Option("--swap", help="Two contrasting sentences in each scene.")] = False,
    delay_steps: Annotated[int, typer.Option(min=0, max=15, help="Chunks come this many rows later.")] = 0,
    chunking: Annotated[str, typer.Option(help="prefix, naive, ensemble, adaptive; guided: runtime torch.")] = "",
    rows_per_inference: Annotated[
        int, typer.Option(min=0, max=64, help="Ask for a chunk every so many rows; 0: at the policy's rate.")
    ] = 0,
    runtime: Annotated[str, typer.Option(help="int8, fp32, fp16, openvino; of a run: torch, torch-bf16.")] = "int8",
    policy: Policy = "",
    robot: Robot = "panda",
    ros: Annotated[bool, typer.Option("--ros", help="Through the live graph, in real time.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes; in process only.")] = 1,
    ray: Ray = "",
    as_json: Json = False,
) -> None:
    """Success of a policy over fresh scenes, with 95 % intervals."""
    with sigterm_as_interrupt(), report.errors(as_json):
        from vla_ros.cli import episodes as evaluation
        from vla_ros.policy.committed import DEFAULT_CHUNKING
        from vla_ros.policy.runtimes import OF_RUNS
        from vla_ros.sim.tasks import FAMILIES
        from vla_ros.training.evaluate import CHUNKINGS, REGIONS, RUNTIMES, SETS, Execution, check, trials

        fail_unless(suite == "tabletop", f"suite is {suite!r}, allowed: tabletop")
        fail_unless(
            family in ("", *FAMILIES), f"family is {family!r}, allowed: {', '.join(FAMILIES)}, or empty for all"
        )
        _check_template(text)
        _check_template(means)
        for name, value, allowed in (
            ("phrasings", phrasings, SETS),
            ("pairs", pairs, SETS),
            ("regions", regions, REGIONS),
            ("chunking", chunking, ("", *CHUNKINGS)),
            ("runtime", runtime, RUNTIMES),
        ):
            fail_unless(value in allowed, f"{name} is {value!r}, allowed: {', '.join(allowed)}")
        fail_unless(runtime not in OF_RUNS or bool(policy), f"runtime is {runtime}: --policy must name a run's folder")
        plain = (phrasings, pairs, regions, swap, delay_steps, chunking, rows_per_inference, runtime) == (
            "trained", "trained", "any", False, 0, "", 0, "int8",
        )  # fmt: skip
        fail_unless((plain and not ray) or not ros, "--ros goes with --family, --text, --means and --policy only")
        execution = Execution(chunking or DEFAULT_CHUNKING, delay_steps, rows_per_inference or None)
        try:
            planned = trials(
                episodes,
                seed,
                family=family or None,
                text=text or None,
                phrasings=phrasings,
                pairs=pairs,
                regions=regions,
                swap=swap,
                means=means or None,
            )
            check(execution, runtime, robot)
        except ValueError as error:
            raise report.CliError(str(error)) from None

        def progress(episode: Any) -> None:
            mark = "ok  " if episode.success else "FAIL"
            say(
                f"{mark} seed {episode.seed} {episode.family}: {episode.text} "
                f"({episode.duration_s:.1f} s; {episode.detail})"
            )

        common = {"robot": robot, "policy": policy, "progress": progress}
        if ros:
            facts = evaluation.through_ros(planned, say=say, **common)
        else:
            facts = evaluation.in_process(
                planned, runtime=runtime, execution=execution, workers=workers, ray=ray, bar=not as_json, **common
            )
        report.result(as_json, facts)
        if not as_json:
            report.stdout.print(evaluation.table(facts))


def _check_template(text: str) -> None:
    from vla_ros.sim.tasks import SLOTS, slots_of

    try:
        known = slots_of(text) <= set(SLOTS)
    except ValueError:
        known = False
    slots = ", ".join(f"{{{slot}}}" for slot in SLOTS)
    fail_unless(known, f"text is {text!r}, allowed in braces: {slots}")


# ------------------------------------------------------------------------------------------------ policies


@app.command()
def quantize(
    source: Annotated[Path, typer.Argument(help="A training run, or a policy folder that has its fp32 graph.")],
    data: Annotated[list[Path], typer.Option(help="Demonstrations to calibrate and compare with.")],
    out: Annotated[Path, typer.Option(help="Where the policy goes if it passes the gate; must not exist.")],
    episodes: Annotated[int, typer.Option(min=1, max=100_000, help="Played with both forms; 200 at least pass.")] = 200,
    seed: Seed = 50_000,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes.")] = 1,
    extra: Annotated[str, typer.Option(help="Further graphs of a run: fp16, tensorrt.")] = "",
    name: Annotated[str, typer.Option(help="Name in the manifest, of a run.")] = "tabletop",
    robot: Robot = "panda",
    as_json: Json = False,
) -> None:
    """Quantize to int8 and compare with the float form in closed loop. Exit code 0 only if it passed the gate."""
    with sigterm_as_interrupt(), report.errors(as_json):
        from vla_ros.cli import quantize as quantizing

        further = [kind.strip() for kind in extra.split(",") if kind.strip()]
        fail_unless(set(further) <= {"fp16", "tensorrt"}, f"extra is {extra!r}, allowed: fp16, tensorrt")
        facts = quantizing.run(
            source,
            data,
            out,
            robot=robot,
            name=name,
            extra=further,
            episodes=episodes,
            seed=seed,
            workers=workers,
            say=say,
        )
        report.result(as_json, facts, quantizing.summary(facts))


def main() -> None:
    app()


if __name__ == "__main__":
    main()
