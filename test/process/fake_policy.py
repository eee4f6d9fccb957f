"""A policy node with a runtime that obeys words about itself, run as a process by the tests. Never shipped."""

import ctypes
import time
from types import SimpleNamespace

import numpy as np

from vla_ros.core.errors import Refused
from vla_ros.nodes.policy import PolicyNode
from vla_ros.nodes.runtime import run

WORDS = ("sway", "slowly", "late", "hang", "emit", "nan", "then", "raise", "finish")
NOW_AND_THEN = 12  # calls
SPEED_M_S = 0.10
HALF_SWAY_S = 1.5


class Runtime:
    """`sway`: the tool goes up and down. `slowly`: 300 ms a chunk. `late`, `hang`: now and then 800 ms a chunk, or
    3 s without letting go of the interpreter. `nan`, `raise`, `finish`: what they say."""

    precision = "fake"
    checkpoint_hash = "0" * 64

    def __init__(self, contract):
        self._action = contract.action
        self._open_m = contract.gripper.open_m
        self.manifest = SimpleNamespace(contract_hash=contract.hash, prefix_max=0)
        self._calls = 0

    def judge(self, text):
        unknown = [word for word in text.split() if word not in WORDS]
        if unknown:
            raise Refused(f"unknown words: {', '.join(unknown)}; known: {', '.join(WORDS)}")

    def infer(self, observation, text, rng, prefix=None):
        self._calls += 1
        if "raise" in text:
            raise RuntimeError("asked to")
        if "slowly" in text:
            time.sleep(0.3)
        if "late" in text and self._calls % NOW_AND_THEN == 0:
            time.sleep(0.8)
        if "hang" in text and self._calls % NOW_AND_THEN == 0:
            ctypes.PyDLL(None).sleep(3)  # a PyDLL call keeps the lock: no thread of this process runs
        rows = self._action.rows
        data = np.zeros((rows, self._action.cols))  # (rows, 7)
        seconds = observation.stamp_ns * 1e-9 + self._action.dt_s * (1 + np.arange(rows))
        height = SPEED_M_S * HALF_SWAY_S * _triangle(seconds / HALF_SWAY_S)
        now = SPEED_M_S * HALF_SWAY_S * _triangle(np.array([observation.stamp_ns * 1e-9 / HALF_SWAY_S]))
        data[:, 2] = height - now
        data[:, 6] = 1.0
        if "nan" in text:
            data[rows // 2, 1] = np.nan
        if "finish" in text:
            data[:, :6] = 0.0
        return SimpleNamespace(
            data=data, confidence=1.0, done_probability=1.0 if "finish" in text else 0.0, inference_s=0.0
        )


def _triangle(x):
    """0 to 1 and back, period 2."""
    return np.abs((x % 2.0) - 1.0)


class FakePolicyNode(PolicyNode):
    def load(self, path, contract):
        return Runtime(contract)


if __name__ == "__main__":
    run(FakePolicyNode)
