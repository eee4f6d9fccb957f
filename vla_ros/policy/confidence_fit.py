"""How honest is a run's confidence? Prints the reliability curve on validation data and fits the temperature.

    python -m vla_ros.policy.confidence_fit RUN --data DEMONSTRATIONS [--write]

With `--write` the temperature is kept in the run's policy.json; an export then puts it into the manifest, and the
runtime applies it. One half of the data fits, the other half judges.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vla_ros.core import contract as contracts
from vla_ros.core.contract import Contract
from vla_ros.core.errors import VlaError
from vla_ros.policy import confidence
from vla_ros.policy.features import StateFeatures
from vla_ros.policy.manifest import PolicyInvalid
from vla_ros.policy.model import Policy
from vla_ros.policy.tokenizer import Tokenizer
from vla_ros.policy.torch_runtime import DESCRIPTION, read_run
from vla_ros.training.dataset import Dataset
from vla_ros.training.losses import SURE_WITHIN_M, WHERE_SCALE_M

SAMPLES, BATCH = 4096, 64


@torch.inference_mode()
def predictions(
    model: Policy, data: Dataset, tokenizer: Tokenizer, samples: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """What the policy said about itself and whether it was so: (n,) probabilities, (n,) named object found to 2 cm."""
    rng = np.random.default_rng(0)
    picks = data.validation[rng.permutation(len(data.validation))[:samples]]
    said, true = [], []
    for i in range(0, len(picks), BATCH):
        batch = data.batch(picks[i : i + BATCH], rng, tokenizer, None)
        images, ids = torch.from_numpy(batch.images[batch.picture]), torch.from_numpy(batch.ids)
        pooled = model.observe(images, ids, torch.from_numpy(batch.state)).pooled
        off = model.where_object(pooled) * WHERE_SCALE_M - torch.from_numpy(batch.aux[:, :3])  # (B, 3) m
        said.append(model.sure(pooled)[:, 0].sigmoid().numpy())
        true.append((off.norm(dim=1) < SURE_WITHIN_M).numpy())
    return np.concatenate(said).astype(np.float64), np.concatenate(true)


def judge(said: NDArray[np.float64], true: NDArray[np.bool_]) -> dict[str, Any]:
    """Temperature from one half, figures of the other. Raises ValueError where nothing can be fitted."""
    temperature = confidence.fit_temperature(said[::2], true[::2])
    facts: dict[str, Any] = {
        "samples": len(said),
        "came_true": float(true.mean()),
        "temperature": round(temperature, 4),
    }
    for name, p in (("before", said[1::2]), ("after", confidence.scaled(said[1::2], temperature))):
        curve = confidence.reliability(p, true[1::2])
        facts[name] = {
            "ece": round(confidence.calibration_error(curve), 4),
            "surprise_nat": round(confidence.surprise(p, true[1::2]), 4),
            "curve": [dataclasses.asdict(b) for b in curve],
        }
    return facts


def table(facts: dict[str, Any]) -> str:
    """The reliability curve in Markdown."""
    lines = ["| | said | n | came true |", "|---|---|---|---|"]
    for name in ("before", "after"):
        for b in facts[name]["curve"]:
            lines.append(
                f"| {name} {b['low']:.1f} to {b['high']:.1f} | {b['said']:.2f} | {b['n']} | {b['came_true']:.2f} |"
            )
    ece = f"{facts['before']['ece']:.3f} before, {facts['after']['ece']:.3f} after"
    return "\n".join(lines) + f"\n\nExpected calibration error {ece}; temperature {facts['temperature']:.3f}."


def fit(run: Path, folders: Sequence[Path], contract: Contract, samples: int, write: bool) -> dict[str, Any]:
    """Figures of one run; with `write` its description says the temperature from now on. Raises PolicyInvalid."""
    model, description = read_run(run)
    data = Dataset(folders, contract.hash, StateFeatures(contract).of_states)
    tokenizer = Tokenizer(tuple(description["vocabulary"]), model.config.text_tokens)
    try:
        facts = judge(*predictions(model, data, tokenizer, samples))
    except ValueError as error:
        raise PolicyInvalid(f"{run}: the confidence cannot be calibrated: {error}") from error
    if write:
        aside = run / f".{DESCRIPTION}"
        aside.write_text(json.dumps(description | {"confidence_temperature": facts["temperature"]}, indent=1))
        os.replace(aside, run / DESCRIPTION)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="run folder of `vla train`, or one of its snapshots")
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="demonstrations: their validation part")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--robot", default="panda")
    parser.add_argument("--write", action="store_true", help="keep the temperature in the run's policy.json")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    try:
        facts = fit(a.run, a.data, contracts.load(a.robot), a.samples, a.write)
    except (VlaError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(json.dumps(facts) if a.json else table(facts))


if __name__ == "__main__":
    main()
