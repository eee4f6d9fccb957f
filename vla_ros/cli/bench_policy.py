"""Latency of the policy alone."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from vla_ros import paths
from vla_ros.cli.stream import percentiles
from vla_ros.core import contract as contracts
from vla_ros.core.types import Observation
from vla_ros.policy.runtime import load

WARM_UP = 5


def run(n: int, *, robot: str, policy: str) -> dict[str, Any]:
    """Time of one chunk in process, on synthetic images; one thread, as the node runs it."""
    contract = contracts.load(robot)
    runtime = load(paths.policy_folder(policy), contract)
    rng = np.random.default_rng(0)
    joints = contract.n_joints
    taken: list[float] = []
    for k in range(n + WARM_UP):
        images = {c.name: rng.integers(0, 255, (c.policy_px, c.policy_px, 3), dtype=np.uint8) for c in contract.cameras}
        seen = Observation(
            k + 1, k + 1, contract.hash, images, contract.poses.ready_rad, np.zeros(joints), contract.gripper.open_m
        )
        started_s = time.monotonic()
        runtime.infer(seen, "pick up the red cube", rng)
        taken.append(time.monotonic() - started_s)
    return {
        "n": n,
        "latency_ms": percentiles(taken[WARM_UP:]),
        "precision": runtime.precision,
        "checkpoint": runtime.checkpoint_hash,
    }
