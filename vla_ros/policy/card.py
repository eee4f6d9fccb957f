"""MODEL_CARD.md of a policy folder: written from its manifest and from what was measured, never by hand.

Sections as in "Model Cards for Model Reporting" (Mitchell et al. 2019, 1810.03993).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_ros.policy.manifest import WEIGHTS, Manifest, PolicyInvalid

NAME = "MODEL_CARD.md"
LIMITS = (
    "Trained and measured in one simulated table-top alone; no camera or arm of the real world was seen.",
    "Knows the sentences of its families (`manifest.json`, `lexicon`); others are refused, with the nearest known.",
    "Made for one contract (arm, cameras, rates); for another body it is refused at loading.",
    "Is not a safety function: limits, collisions and stops are the supervisor's and the arm controller's work.",
)


def results(path: Path, found: dict[str, Any], manifest: Manifest) -> list[str]:
    """The table of a results file: `benchmarks/policy/bars.py --json`, or `vla eval --json`. Raises PolicyInvalid."""
    if "rows" in found:
        if found.get("policy") != manifest.files[manifest.graph].sha256:
            raise PolicyInvalid(f"{path}: is about another graph than this folder's {manifest.graph}; measure it again")
        rows = [
            (r["what"], r["bar"], r["found"], r["interval"], r["episodes"], "yes" if r["reached"] else "**no**")
            for r in found["rows"]
        ]
        title = f"Runtime {found['runtime']}, seeds from {found['seed']}."
        return [title, "", *table(("what", "bar", "found", "95 % interval (Wilson)", "n", "reached"), rows)]
    if "families" not in found:
        raise PolicyInvalid(f"{path}: neither `vla eval --json` nor `bars.py --json` wrote this")
    families = {**found["families"], "all": {**found, "n": found["episodes"]}}
    rows = [
        (name, f"{row['success']:.1%}", f"{row['wilson'][0]:.1%} to {row['wilson'][1]:.1%}", str(row["n"]))
        for name, row in families.items()
    ]
    return table(("family", "success", "95 % interval (Wilson)", "n"), rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]


def card(manifest: Manifest, measured: Sequence[tuple[Path, dict[str, Any]]], machine: str = "") -> str:
    """Markdown. `measured`: results files and what is in them; `machine`: what it was trained on."""
    m, data, training = manifest, manifest.data, manifest.training
    model = m.model
    gated = m.precision.get("gate")
    sources = ", ".join(
        f"seed {s.get('seed')} ({str(s.get('git_revision', ''))[:12]})" for s in data.get("sources", [])
    )
    steps = f"{training.get('step', '?')} steps, {training.get('samples', '?')} samples"
    minutes = f"{training.get('seconds', 0) / 60:.0f} min"
    started = training.get("started_from")
    lines = [
        f"# {m.name}",
        "",
        "A vision-language-action policy: two camera pictures, joint state and a sentence to a chunk of "
        f"{m.rows} actions ({m.action_space}, {m.dt_s * 1e3:.0f} ms apart).",
        "",
        "## Model",
        "",
        f"Backbone `{model.get('backbone', 'nano')}`, objective `{model.get('objective')}` in {model.get('steps')} "
        f"steps, width {model.get('width')}, {model.get('layers')} layers, {m.image_px} px, {len(m.vocabulary)} words. "
        f"Contract `{m.contract_name}` ({m.contract_hash[:12]}). Precision: {m.precision.get('scheme', 'fp32')}; "
        f"{m.precision.get('int8_ran', 0)} layers ran in int8.",
        "",
        *table(("file", "MB"), [(name, f"{entry.bytes / 1e6:.2f}") for name, entry in m.files.items()]),
        "",
        f"`vla train CONFIG --from DIR` goes on from `{WEIGHTS}`." if WEIGHTS in m.files else "",
        "",
        "## Data",
        "",
        f"{data.get('frames', '?')} pictures with {data.get('labels', '?')} labels, made by the simulator's expert: "
        f"{sources}. Families: {', '.join(data.get('families', []))}. Held out of it: a third of the phrasings, some "
        "pairs of colour and shape, some regions of the table.",
        "",
        "## Training",
        "",
        f"{steps}, {minutes} on {training.get('threads', '?')} threads{f' of {machine}' if machine else ''} "
        f"(PyTorch {training.get('torch', '?')}), seed "
        f"{training.get('config', {}).get('seed', '?')}, revision {str(training.get('git_revision', '?'))[:12]}"
        + (f", started from: {_started(started)}." if started else ", from nothing."),
        "",
        "## Measured",
        "",
    ]
    for path, found in measured:
        lines += [*results(path, found, m), ""]
    if not measured:
        lines += ["Nothing was measured in closed loop for this card.", ""]
    validation = ", ".join(f"{k} {v:.4g}" for k, v in m.metrics.get("validation", {}).items())
    lines += [f"On held-out demonstrations: {validation}.", ""]
    if gated:
        verdict = "passed" if gated["passed"] else "**refused**"
        facts = gated["facts"]["successes"]
        lines += [
            f"Quantization gate: {verdict}; of {gated['criteria'][0]['value']:.0f} paired episodes float solved "
            f"{facts['float']}, int8 {facts['int8']}.",
            "",
        ]
    lines += ["## Limits", "", *(f"* {limit}" for limit in LIMITS)]
    lines += [f"* Not reached: {row}" for row in _missed(measured)]
    return "\n".join([*lines, ""])


def _started(record: Any) -> str:
    return f"a run of {record.get('step', '?')} steps" if isinstance(record, dict) else str(record)


def _missed(measured: Sequence[tuple[Path, dict[str, Any]]]) -> list[str]:
    rows = [row for _, found in measured for row in found.get("rows", [])]
    return [f"{row['what']}: {row['found']}, bar {row['bar']}" for row in rows if not row["reached"]]
