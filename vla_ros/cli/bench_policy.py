"""`vla bench policy`: each runtime alone in a process, and a roofline estimate for machines that were not measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_ros import paths
from vla_ros.cli.report import CliError
from vla_ros.core import contract as contracts
from vla_ros.policy.manifest import read
from vla_ros.policy.runtimes import float_folder

RUNTIMES = ("int8", "fp32")  # measured unless others are named


def measure(folder: Path, runtime: str, robot: str, n: int) -> dict[str, Any]:
    """In a fresh process, so that memory is this runtime's alone."""
    command = [sys.executable, "-m", "vla_ros.policy.measure", str(folder), "--runtime", runtime]
    done = subprocess.run([*command, "--robot", robot, "-n", str(n)], capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise CliError(f"runtime {runtime}: {last[0]}")
    facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return facts


def run(
    n: int, *, robot: str, policy: str, runtimes: Sequence[str] = RUNTIMES, run_folder: Path | None = None
) -> dict[str, Any]:
    """Measured one after another. `run_folder`: of a training run, which the torch runtimes need."""
    folder, contract = paths.policy_folder(policy), contracts.load(robot)
    manifest = read(folder, contract.hash)
    measured = {}
    estimated = folder
    if {"fp32", "openvino"} & set(runtimes):
        estimated = float_folder(folder, contract)  # made here, not in the process that is measured
    for name in runtimes:
        if name.startswith("torch") and run_folder is None:
            raise CliError(f"runtime {name}: --run must name the folder of a training run")
        where = run_folder if name.startswith("torch") and run_folder is not None else folder
        measured[name] = measure(where, name, robot, n)
    first = measured[runtimes[0]]
    facts: dict[str, Any] = {
        "n": n,
        "policy": str(folder),
        "files_mb": {name: round(entry.bytes / 1e6, 2) for name, entry in manifest.files.items()},
        "runtimes": measured,
        **{key: first[key] for key in ("latency_ms", "precision", "checkpoint")},
        "roofline": roofline(estimated / (read(estimated, contract.hash).float_graph or manifest.graph)),
    }
    if {"int8", "fp32"} <= measured.keys():
        facts["int8_speedup"] = {
            kind: round(measured["fp32"][kind]["p50"] / measured["int8"][kind]["p50"], 2)
            for kind in ("latency_ms", "processor_ms")
        }
    return facts


def roofline(graph: Path) -> dict[str, Any]:
    try:
        from vla_ros.policy.roofline import estimate

        return estimate(graph)
    except ImportError as error:
        return {"label": f"not estimated: {error.name} is absent; install with `pip install vla_ros[train]`"}


def table(facts: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| runtime | p50 (ms) | p99 (ms) | own processor time p50 (ms) | chunks/s | memory PSS (MB) | what ran |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in facts["runtimes"].items():
        wall, own = row["latency_ms"], row["processor_ms"]
        lines.append(
            f"| {name} | {wall['p50']} | {wall['p99']} | {own['p50']} | {row['chunks_per_s']} "
            f"| {row['memory_mb']['after inference']['pss']:.0f} | {row['precision']} |"
        )
    estimated = facts["roofline"]
    lines += ["", f"Other machines: {estimated['label']}."]
    if "machines" in estimated:
        lines += [
            f"{estimated['gflop_per_chunk']:.2f} GFLOP and {estimated['mbyte_per_chunk']['fp16']:.0f} MB (fp16) "
            f"a chunk, {estimated['operators']} operators.",
            "",
            "| machine | fp16, at least (ms) | int8, at least (ms) | from |",
            "|---|---|---|---|",
            *(
                f"| {name} | {row['least_ms']['fp16']:.2f} | {row['least_ms']['int8']:.2f} | {row['source']} |"
                for name, row in estimated["machines"].items()
            ),
        ]
    return "\n".join(lines) + "\n"
