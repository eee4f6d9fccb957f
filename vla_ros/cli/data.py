"""`vla data`: episodes are scripted, become a data set, are judged, are summed up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from vla_ros.cli import report
from vla_ros.cli.options import Json, Means, Ray, Robot, Seed, fail_unless, sigterm_as_interrupt

app = typer.Typer(
    no_args_is_help=True, help="Data sets: make one of recorded episodes, judge these, look at statistics."
)
Bags = Annotated[list[Path], typer.Argument(help="Bags, or folders of bags.")]
Workers = Annotated[int, typer.Option(min=1, max=256, help="Processes; with --ray local, CPUs.")]


def _require_libraries() -> None:
    """They are large, and only data sets need them."""
    try:
        import av  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise report.CliError(f"{error.name} is not installed; `pip install 'vla_ros[data]'` brings it") from error


@app.command()
def export(
    bags: Bags,
    out: Annotated[Path, typer.Option(help="Folder of the new data set; it must not exist.")],
    robot: Robot = "panda",
    lossless: Annotated[
        bool, typer.Option("--lossless", help="PNG images in the tables instead of MP4: every pixel as it was seen.")
    ] = False,
    success: Annotated[str, typer.Option(help="yes: fulfilled episodes; no: the others; any.")] = "yes",
    outcome: Annotated[list[str] | None, typer.Option(help="Only this outcome; may be given again.")] = None,
    grade: Annotated[str, typer.Option(help="At least this grade of `vla bag audit`.")] = "",
    max_events: Annotated[
        int | None, typer.Option(help="Vetoes in one episode: SafetyEvents of what was rejected, held or stopped.")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="No SafetyEvent of this rule; may be given again.")] = None,
    judged: Annotated[
        str, typer.Option(help="Worst verdict of the judge that is taken: fits, doubtful, wrong.")
    ] = "wrong",
    max_gap: Annotated[
        float | None, typer.Option(help="Longest gap between frames [s]; default: image timeout.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out bags that cannot be used.")] = False,
    workers: Workers = 1,
    ray: Ray = "",
    as_json: Json = False,
) -> None:
    """Make a LeRobot data set (v3.0) of bags, through the code that makes live observations."""
    with sigterm_as_interrupt(), report.errors(as_json):
        _require_libraries()
        from vla_ros.data import export as exporting

        wanted = {"yes": True, "no": False, "any": None}
        fail_unless(success in wanted, f"success is {success!r}, allowed: {', '.join(wanted)}")
        selection = exporting.Selection(
            success=wanted[success],
            outcomes=tuple(outcome or ()),
            grade=grade,
            events_max=max_events,
            without=tuple(without or ()),
            judged=_verdict(judged),
        )
        options = exporting.Options(robot, lossless, max_gap, selection)
        facts = exporting.export(bags, out, options, workers, ray, skip_bad, quiet=as_json)
        text = f"[bold green]{facts['out']}[/]: {facts['episodes']} episodes, {facts['frames']} frames"
        if facts["live"]:
            text += f"; {facts['equal']} of {facts['live']} live observations made again, joints bit for bit"
        for bag, why in facts["left_out"].items():
            text += f"\nleft out {bag}: {why}"
        report.result(as_json, facts, text)


def _verdict(name: str) -> Any:
    from vla_ros.data.judge import Verdict

    known = {verdict.name.lower(): verdict for verdict in Verdict}
    fail_unless(name in known, f"judged is {name!r}, allowed: {', '.join(known)}")
    return known[name]


@app.command()
def demonstrate(
    text: Annotated[str, typer.Argument(help="A sentence, or a template with {colour}, {shape}, {target}.")],
    out: Annotated[Path, typer.Option(help="Folder of the episodes; those that it holds are not played again.")],
    means: Means = "",
    episodes: Annotated[int, typer.Option(min=1, max=100_000)] = 30,
    seed: Seed = 0,
    pairs: Annotated[str, typer.Option(help="Colours and shapes to name: trained, or heldout.")] = "trained",
    images: Annotated[str, typer.Option(help="How pictures are stored: png, or jpeg with a quality.")] = "jpeg 95",
    robot: Robot = "panda",
    workers: Workers = 1,
    ray: Ray = "",
    as_json: Json = False,
) -> None:
    """Have the scripted expert do it in the simulator, and record each episode as a bag."""
    with sigterm_as_interrupt(), report.errors(as_json):
        from vla_ros.training import scripted
        from vla_ros.training.evaluate import SETS

        fail_unless(pairs in SETS, f"pairs is {pairs!r}, allowed: {', '.join(SETS)}")
        facts = scripted.demonstrate(
            out,
            text,
            means,
            episodes,
            seed,
            robot,
            images,
            workers,
            ray,
            None if as_json else report.stderr,
            pairs == "heldout",
        )
        shown = f"[bold green]{facts['out']}[/]: {facts['episodes']} episodes, {facts['played']} of them new"
        report.result(as_json, facts, f"{shown}; {facts['succeeded']} of these succeeded ({facts['seconds']} s)")


@app.command()
def judge(bags: Bags, robot: Robot = "panda", as_json: Json = False) -> None:
    """Does the sentence of each episode describe what happened? A heuristic. Exit code 1 if one is wrong."""
    with report.errors(as_json):
        _require_libraries()
        from vla_ros.core import contract as contracts
        from vla_ros.data.bag_reader import Bag
        from vla_ros.data.export import find_bags
        from vla_ros.data.judge import Verdict, facts
        from vla_ros.data.judge import judge as judge_episode

        contract = contracts.load(robot)
        rows = []
        for path in find_bags(bags):
            bag = Bag.open(path)
            episode = bag.episode()
            found = judge_episode(episode, facts(bag, contract))
            rows.append(
                {
                    "bag": str(path),
                    "text": episode.text,
                    "verdict": found.verdict.name.lower(),
                    "score": round(found.score, 3),
                    "basis": found.basis,
                    "reasons": list(found.reasons),
                }
            )
        wrong = [row["bag"] for row in rows if row["verdict"] == Verdict.WRONG.name.lower()]
        if not as_json:
            report.stdout.print(_table(["bag", "text", "verdict", "score", "basis", "reasons"], rows))
        fail_unless(not wrong, f"{len(wrong)} of {len(rows)} sentences do not fit: {', '.join(wrong)}", episodes=rows)
        report.result(as_json, {"episodes": rows, "wrong": wrong})


@app.command()
def stats(
    folder: Annotated[Path, typer.Argument(help="Folder of a LeRobot data set.")],
    as_json: Json = False,
) -> None:
    """Size and statistics of a data set."""
    with report.errors(as_json):
        from vla_ros.data.lerobot_format import INFO, STATS, DatasetError

        try:
            info, found = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (INFO, STATS))
        except (OSError, ValueError) as error:
            raise DatasetError(f"{folder}: no LeRobot data set ({error})") from error
        counts = {key: info[key] for key in ("total_episodes", "total_frames", "total_tasks", "fps", "robot_type")}
        report.result(as_json, {**counts, "statistics": found})
        if not as_json:
            report.stdout.print(", ".join(f"{key.removeprefix('total_')} {value}" for key, value in counts.items()))
            rows = [
                {"feature": key, **{name: _short(values[name]) for name in ("mean", "std", "min", "max")}}
                for key, values in found.items()
                if key.startswith(("observation", "action"))
            ]
            report.stdout.print(_table(["feature", "mean", "std", "min", "max"], rows))


def _short(values: Any) -> str:
    while isinstance(values[0], list) and len(values[0]) == 1:  # pictures: (3, 1, 1)
        values = [value[0] for value in values]
    return " ".join(f"{value:.3g}" for value in values)


def _table(columns: list[str], rows: list[dict[str, Any]]) -> Table:
    table = Table(*columns)
    for row in rows:
        cells = [row[column] for column in columns]
        table.add_row(*("; ".join(cell) if isinstance(cell, list) else str(cell) for cell in cells))
    return table
