"""`vla quantize`: a run or a policy folder -> an int8 policy that has passed the gate, or a report of why not."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vla_ros.cli.report import CliError
from vla_ros.core import contract as contracts
from vla_ros.policy import gate
from vla_ros.policy.manifest import FILE_NAME

Say = Callable[[str], None]


def make(source: Path, data: Sequence[Path], out: Path, robot: str, name: str, extra: Sequence[str]) -> Any:
    """The complete policy folder, not yet gated; returns its manifest."""
    try:
        from vla_ros.policy import export
    except ImportError as error:
        raise CliError(f"quantizing needs {error.name}: install with `pip install vla_ros[train]`") from error
    return export.export(source, out, data, contracts.load(robot), name, extra=extra)


def play(folder: Path, robot: str, episodes: int, seed: int, workers: int, say: Say) -> tuple[list[Any], list[Any]]:
    """The same seeds with the float form and with the int8 form."""
    from vla_ros.training.evaluate import evaluate, trials

    played = []
    for runtime in ("fp32", "int8"):
        say(f"{episodes} episodes in {runtime}")
        planned = trials(episodes, seed)
        played.append(evaluate(planned, robot=robot, policy=str(folder), runtime=runtime, workers=workers))
    return played[0], played[1]


def run(
    source: Path,
    data: Sequence[Path],
    out: Path,
    *,
    robot: str,
    name: str,
    extra: Sequence[str],
    episodes: int,
    seed: int,
    workers: int,
    say: Say,
    play: Callable[..., tuple[list[Any], list[Any]]] = play,
) -> dict[str, Any]:
    """Quantize, gate, and put the folder at `out` only if it passed. Raises CliError if it did not, leaving it at
    `<out>.refused` to be looked at: `vla eval` plays it, `vla policy install` does not take it. Nothing is
    overwritten."""
    from vla_ros.policy.export import slim
    from vla_ros.training.scores import paired, wilson

    refused = out.with_name(out.name + ".refused")
    for path in (out, refused):
        if os.path.lexists(path):
            raise CliError(f"{path}: exists; nothing is overwritten, give another --out or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch) / out.name
        manifest = make(source, data, folder, robot, name, extra)
        say(f"{manifest.precision['int8_nodes']} nodes in int8; comparing in closed loop")
        reference, quantized = play(folder, robot, episodes, seed, workers, say)
        ours, theirs = ([e.success for e in form] for form in (quantized, reference))
        verdict = gate.judge(reference, quantized, manifest.precision["against_fp32"], paired(ours, theirs))
        for form, wins in (("float", theirs), ("int8", ours)):
            verdict.facts.setdefault("wilson", {})[form] = wilson(sum(wins), len(wins))
        report = verdict.as_dict() | {"seed": seed, "sha256": manifest.files[manifest.graph].sha256}
        text = gate.markdown(manifest.name, manifest.precision, verdict)
        facts = {"passed": verdict.passed, "out": str(out), "gate": report, "precision": manifest.precision}
        gated = manifest.model_copy(update={"precision": manifest.precision | {"gate": report}})
        (folder / FILE_NAME).write_text(gated.model_dump_json(indent=1))
        (folder / "quantization.md").write_text(text, encoding="utf-8")
        (folder / "quantization.json").write_text(json.dumps(facts | {"out": out.name}, indent=1), encoding="utf-8")
        slim(folder)
        kept = out if verdict.passed else refused
        shutil.move(str(folder), str(kept))
    if not verdict.passed:
        failed = [f"{c.name} {c.value:.4g}, {c.limit}" for c in verdict.criteria if not c.passed]
        raise CliError(f"refused by the gate: {'; '.join(failed)}. Report: {kept / 'quantization.md'}", **facts)
    return facts


def summary(facts: dict[str, Any]) -> str:
    gated = facts["gate"]
    rows = [f"{c['name']}: {c['value']:.4g} ({c['limit']})" for c in gated["criteria"]]
    low, high = gated["facts"]["wilson"]["int8"]
    rows.append(f"int8 success {low:.1%} to {high:.1%} (Wilson), McNemar p = {gated['facts']['mcnemar_p']:.3g}")
    return "\n".join([*rows, f"passed: {facts['out']}"])
