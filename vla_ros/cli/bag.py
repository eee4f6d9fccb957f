"""`vla bag`: look at, judge, rebuild, replay and cut recorded episodes. Nothing that exists is overwritten."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.markup import escape
from rich.table import Table

from vla_ros.cli import report
from vla_ros.cli.options import Json, Policy, Robot, fail_unless

app = typer.Typer(no_args_is_help=True, help="Recorded episodes: look at them, judge, rebuild, replay, cut.")
BagFolder = Annotated[Path, typer.Argument(help="Folder of a bag.")]
Out = Annotated[Path, typer.Option(help="Folder of the new bag; it must not exist.")]


@app.command()
def info(bag: BagFolder, as_json: Json = False) -> None:
    """What was recorded: the episode, its topics, their rates."""
    from vla_ros.data.bag_reader import Bag

    with report.errors(as_json):
        opened = Bag.open(bag)
        facts = _facts(opened)
        report.result(as_json, facts)
        if not as_json:
            report.stdout.print(_episode_table(facts))
            report.stdout.print(_topic_table(facts))


def _facts(bag: Any) -> dict[str, Any]:
    seconds = bag.duration_s
    return {
        "bag": str(bag.folder),
        "start": datetime.datetime.fromtimestamp(bag.start_ns / 1e9, datetime.timezone.utc).isoformat(),
        "duration_s": round(seconds, 3),
        "size_mb": round(bag.size_bytes / 1e6, 3),
        "messages": bag.messages_total,
        "episode": {k: v for k, v in bag.custom_data.items() if k != "contract_text" and v},
        "topics": {
            t.name: {
                "type": t.kind,
                "messages": t.count,
                "rate_hz": round((t.count - 1) / seconds, 2) if t.count > 1 and seconds > 0.0 else 0.0,
            }
            for t in bag.topics.values()
        },
    }


def _episode_table(facts: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    rows = {
        "bag": facts["bag"],
        "start": facts["start"],
        "length": f"{facts['duration_s']:.1f} s, {facts['messages']} messages, {facts['size_mb']:.1f} MB",
        **facts["episode"],
    }
    for key, value in rows.items():
        table.add_row(key.replace("_", " "), value)
    return table


def _topic_table(facts: dict[str, Any]) -> Table:
    table = Table("topic", "type")
    for column in ("messages", "per second"):
        table.add_column(column, justify="right")
    for name, topic in facts["topics"].items():
        table.add_row(name, topic["type"], str(topic["messages"]), f"{topic['rate_hz']:.1f}")
    return table


@app.command()
def recover(bag: BagFolder, out: Out, as_json: Json = False) -> None:
    """Rebuild a bag that was cut off or damaged. Exit code 1 if not one message could be saved."""
    from vla_ros.data import recover as recovery

    with report.errors(as_json):
        done = recovery.recover(bag, out)
        facts = done.facts()
        fail_unless(done.messages > 0, f"{bag}: no message could be saved; {out} is an empty bag", **facts)
        lines = [
            f"{done.target}: {done.messages} messages, {done.duration_s:.2f} s; {done.chunks_whole} chunks whole, "
            f"{done.chunks_partial} cut or damaged",
            "nothing was missing" if done.complete else f"{done.bytes_lost} of {done.bytes_total} bytes were lost",
        ]
        if done.unverified or done.undecodable:
            lines.append(
                f"{done.unverified} messages are from chunks with a wrong checksum, {done.undecodable} were left out"
            )
        lines += [f"damaged between {start:.2f} and {end:.2f} s" for start, end in done.holes_s] + done.notes
        report.result(as_json, facts, "\n".join(lines))


@app.command()
def audit(
    bags: Annotated[list[Path], typer.Argument(help="Folders of bags.")],
    robot: Robot = "panda",
    least: Annotated[
        str, typer.Option("--least", help="Exit code 1 for a bag with a worse grade: A, B, C or D.")
    ] = "C",
    as_json: Json = False,
) -> None:
    """Judge episodes: rates, gaps, frozen and black cameras, clocks, contract. A nothing found, D not to be used."""
    from vla_ros.core import contract as contracts
    from vla_ros.data.audit import audit_folder

    with report.errors(as_json):
        fail_unless(least in ("A", "B", "C", "D"), f"least is {least!r}, allowed: A, B, C, D")
        contract = contracts.load(robot)
        results = [audit_folder(bag, contract) for bag in bags]
        facts = {"bags": [result.facts() for result in results]}
        worse = [result.bag for result in results if result.grade > least]
        if not as_json:
            for result in results:
                report.stdout.print(
                    f"[bold]{result.grade}[/] {result.bag}: {len(result.findings)} findings", soft_wrap=True
                )
                if result.findings:
                    report.stdout.print(_findings_table(result.findings))
        fail_unless(not worse, f"graded worse than {least}: {', '.join(worse)}", **facts)
        report.result(as_json, facts)


def _findings_table(findings: list[Any]) -> Table:
    table = Table("weight", "kind", "topic", "at", "value", "allowed", "what")
    for f in findings:
        value = f"{f.value:.4g}" if isinstance(f.value, float) else str(f.value)
        row = (f.weight.name.lower(), f.kind.value, f.topic, f"{f.at_s:.2f} s", value, str(f.threshold), f.text)
        table.add_row(*(escape(cell) for cell in row))
    return table


@app.command()
def replay(
    bag: BagFolder,
    policy: Policy = "",
    robot: Robot = "panda",
    seed: Annotated[int, typer.Option(min=0, help="Seed that the policy node had.")] = 0,
    baseline: Annotated[Optional[Path], typer.Option(help="Compare with this file, not with the recording.")] = None,  # noqa: UP045
    write_baseline: Annotated[Optional[Path], typer.Option(help="Store what comes out; it must not exist.")] = None,  # noqa: UP045
    recorded_chunks: Annotated[
        bool,
        typer.Option("--recorded-chunks", help="The supervisor gets the recorded chunks, not the policy's new ones."),
    ] = False,
    as_json: Json = False,
) -> None:
    """The bag as a regression test: perception, policy and supervisor again, offline. Exit code 1 on a difference."""
    from vla_ros import paths
    from vla_ros.core import contract as contracts
    from vla_ros.data import replay as replays
    from vla_ros.data.bag_reader import Bag
    from vla_ros.policy.runtime import load

    with report.errors(as_json):
        contract = contracts.load(robot)
        before = None if baseline is None else replays.read_baseline(baseline, contract)
        runtime = load(paths.policy_folder(policy), contract)
        now, recorded = replays.replay(Bag.open(bag), contract, runtime, seed, recorded_chunks)
        if write_baseline is not None:
            replays.write_baseline(write_baseline, now)
        other = recorded if before is None else before
        tolerances = replays.AGAINST_RECORDING if before is None else replays.AGAINST_BASELINE
        result = replays.compare(now, other, tolerances, contract)
        facts = {
            "bag": str(bag),
            "against": "recording" if baseline is None else str(baseline),
            "same_policy": other.policy_hash == now.policy_hash,
            **result.figures,
            "notes": now.notes,
            "differences": result.differences,
        }
        lines = [f"{key.replace('_', ' ')}: {value}" for key, value in result.figures.items()] + now.notes
        if not facts["same_policy"]:
            lines.append("another policy than then")
        elif result.differences and baseline is None and not recorded_chunks:
            lines.append(f"the noise was drawn with seed {seed}: `--seed` says with which the graph was started")
        if not as_json:
            report.stdout.print("\n".join(lines), markup=False, soft_wrap=True)
        fail_unless(not result.differences, "different: " + "; ".join(result.differences), **facts)
        report.result(as_json, facts, f"the same as the {'recording' if baseline is None else 'baseline'}")


@app.command()
def trim(
    bag: BagFolder,
    out: Out,
    start: Annotated[Optional[float], typer.Option(min=0.0, help="Seconds from the first message.")] = None,  # noqa: UP045
    end: Annotated[Optional[float], typer.Option(min=0.0, help="Seconds from the first message.")] = None,  # noqa: UP045
    phase: Annotated[bool, typer.Option("--phase", help="From the instruction to its outcome.")] = False,
    as_json: Json = False,
) -> None:
    """Cut an episode, by time or from its instruction to its outcome. The source stays as it is."""
    from vla_ros.data import trim as cutting
    from vla_ros.data.bag_reader import Bag

    with report.errors(as_json):
        given = start is not None or end is not None
        fail_unless(phase != given, "say either --phase, or --start and/or --end")
        opened = Bag.open(bag)
        span = cutting.phase(opened) if phase else (start or 0.0, opened.duration_s if end is None else end)
        facts = cutting.trim(opened, out, *span).facts()
        cut = f"{facts['start_s']:.2f} to {facts['end_s']:.2f} s, {facts['messages']} of {facts['of']} messages"
        text = f"{facts['bag']}: {cut}"
        report.result(as_json, facts, text)
