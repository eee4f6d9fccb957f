"""The rows of `bars.py`: what a set of episodes says about each bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vla_ros.training.scores import Episode, report, wilson

LIVE = "live"
HEADER = ("what", "bar", "found", "95 % interval (Wilson)", "episodes", "reached")
ROWS = ("rows 1", "rows 4", "rows 8", "rows 16")


@dataclass(frozen=True)
class Row:
    what: str
    bar: str
    found: str
    interval: str
    episodes: str
    reached: bool


Played = dict[str, list[Episode]]


def rows(played: Played, facts: dict[str, Any], training: dict[str, Any]) -> list[Row]:
    """One row for every bar whose episodes are there."""
    made: list[Row | None] = [
        _share(played, "normal", "overall success, six families", lambda e: e.success, 0.97),
        *_families(played),
        _within(played, "normal", "phrasings", "held-out phrasings against trained ones", 0.02),
        _share(played, "pairs", "held-out colour-shape pairs", lambda e: e.success, 0.90),
        _share(
            played,
            "normal",
            "wrong object or wrong direction",
            lambda e: e.wrong_object or e.wrong_direction,
            at_most=0.01,
        ),
        _swap(played),
        _live(played, facts),
        _within(played, "normal", "prefix 4", "delay of 4 rows against 0, prefix chunking", 0.03),
        _within(played, "naive 0", "naive 4", "the same, naive (beside it, no bar)", None),
        _rate(played),
        *_done(played),
        *_bench(facts),
    ]
    minutes = training.get("seconds", 0) / 60
    took = f"{training.get('step', 0)} steps, {training.get('samples', 0)} samples, {minutes:.0f} min"
    made.append(Row("training from nothing (this run)", "commands and wall time stated", took, "", "", bool(training)))
    return [row for row in made if row is not None]


def _interval(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{low:.1%} to {high:.1%}"


def _share(
    played: Played,
    name: str,
    what: str,
    counts: Callable[[Episode], bool],
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row | None:
    episodes = played.get(name, [])
    if not episodes:
        return None
    hits, n = sum(bool(counts(e)) for e in episodes), len(episodes)
    bar = f">= {at_least:.0%}" if at_least is not None else f"<= {at_most:.0%}"
    reached = hits / n >= at_least if at_least is not None else hits / n <= (at_most or 0.0)
    return Row(what, bar, f"{hits / n:.1%}", _interval(hits, n), str(n), reached)


def _families(played: Played) -> list[Row | None]:
    episodes = played.get("normal", [])
    names = dict.fromkeys(e.family for e in episodes)
    own = {name: {"normal": [e for e in episodes if e.family == name]} for name in names}
    return [_share(own[name], "normal", f"... {name}", lambda e: e.success, 0.94) for name in names]


def _within(played: Played, reference: str, name: str, what: str, loss: float | None) -> Row | None:
    """Episodes on the same seeds, where both were played."""
    there, here = ({e.seed: e.success for e in played.get(k, [])} for k in (reference, name))
    seeds = [seed for seed in here if seed in there]
    if not seeds:
        return None
    n, before, after = len(seeds), sum(there[s] for s in seeds), sum(here[s] for s in seeds)
    found = f"{after / n:.1%} against {before / n:.1%}"
    interval = f"{_interval(after, n)}; {_interval(before, n)}"
    bar = f"loss <= {loss * 100:.0f} points" if loss is not None else ""
    return Row(what, bar, found, interval, str(n), loss is None or (before - after) / n <= loss)


def _swap(played: Played) -> Row | None:
    episodes = played.get("swap", [])
    went = [e.obeyed for e in episodes if e.obeyed is not None]
    if not went:
        return None
    found = f"{sum(went) / len(went):.1%} ({len(episodes) - len(went)} went nowhere)"
    interval = _interval(sum(went), len(went))
    return Row(
        "language swap: goes where told", ">= 99%", found, interval, str(len(went)), sum(went) / len(went) >= 0.99
    )


def _live(played: Played, facts: dict[str, Any]) -> Row | None:
    live = facts.get(LIVE)
    if not live:
        return None
    n = live["episodes"]
    same = played.get("normal", [])[:n]
    if len(same) < n:
        return None
    wins, here = round(live["success"] * n), sum(e.success for e in same)
    found = f"{wins / n:.1%} against {here / n:.1%}"
    interval = f"{_interval(wins, n)}; {_interval(here, n)}"
    what = "through the live ROS graph, against in process"
    return Row(what, "within 3 points", found, interval, str(n), abs(wins - here) / n <= 0.03)


def _rate(played: Played) -> Row | None:
    """The bar is about all four; what is missing is not guessed."""
    there = {name: played[name] for name in ROWS if played.get(name)}
    if not there:
        return None
    wins = {name: sum(e.success for e in episodes) for name, episodes in there.items()}
    shares = {name: wins[name] / len(there[name]) for name in there}
    found = ", ".join(f"{name.split()[1]}: {share:.1%}" for name, share in shares.items())
    interval = "; ".join(_interval(wins[name], len(there[name])) for name in there)
    reached = len(there) == len(ROWS) and max(shares.values()) - min(shares.values()) <= 0.05
    n = str(min(len(episodes) for episodes in there.values()))
    return Row("rows executed per inference 1, 4, 8, 16", "all within 5 points", found, interval, n, reached)


def _done(played: Played) -> list[Row]:
    episodes = played.get("normal", [])
    wins = sum(e.success for e in episodes)
    if not wins:
        return []
    facts, n = report(episodes), len(episodes)
    wrong, recall = facts["false_done"], facts["done_recall"]
    recalled, false = (sum(e.done and e.success is truth for e in episodes) for truth in (True, False))
    return [
        Row("false `done`", "<= 3%", f"{wrong:.1%}", _interval(false, n), str(n), wrong <= 0.03),
        Row("... recall", ">= 95%", f"{recall:.1%}", _interval(recalled, wins), str(wins), recall >= 0.95),
    ]  # fmt: skip


def _bench(facts: dict[str, Any]) -> list[Row]:
    bench = facts.get("bench")
    if not bench:
        return []
    int8 = bench["runtimes"]["int8"]
    took = int8["latency_ms"]
    found = f"p50 {took['p50']} ms, p99 {took['p99']} ms"
    fast = took["p50"] <= 12 and took["p99"] <= 25
    made = [Row("chunk latency, one core, int8", "p50 <= 12 ms, p99 <= 25 ms", found, "", f"{int8['n']} chunks", fast)]
    speed = bench.get("int8_speedup")
    if speed:
        text = ", ".join(f"{value} ({kind.removesuffix('_ms')})" for kind, value in speed.items())
        enough = min(speed.values()) >= 1.5
        made.append(Row("... faster than fp32 on ONNX Runtime", ">= 1.5 times", text, "", "", enough))
    resident = int8["memory_mb"]["after inference"]["rss"]
    return [*made, Row("policy process memory", "<= 250 MB", f"{resident:.0f} MB resident", "", "", resident <= 250)]


def markdown(table: Sequence[Row]) -> str:
    lines = [HEADER, ("---",) * len(HEADER)]
    lines += [(*list(asdict(row).values())[:-1], "yes" if row.reached else "**no**") for row in table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_json(header: dict[str, Any], table: Sequence[Row]) -> dict[str, Any]:
    return {**header, "rows": [asdict(row) for row in table]}
