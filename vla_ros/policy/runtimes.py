"""The ways to run a policy, by name. What is run is one of the graphs of a policy folder, or a training run's weights.

All of them are the same `PolicyRuntime` around another `Graph`: observations are checked and outputs bounded in one
place, whatever computes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vla_ros.core.contract import Contract
from vla_ros.policy.manifest import PolicyInvalid, read
from vla_ros.policy.runtime import PolicyRuntime, load

HALF_GRAPH = "policy.fp16.onnx"


def _quantized(path: Path, contract: Contract) -> PolicyRuntime:
    return load(path, contract)


def _float(path: Path, contract: Contract) -> PolicyRuntime:
    graph = read(path, contract.hash).float_graph
    if graph is None:
        raise PolicyInvalid(f"{path}: has no fp32 graph; export it again without --no-float")
    return load(path, contract, graph)


def _half(path: Path, contract: Contract) -> PolicyRuntime:
    return load(path, contract, HALF_GRAPH)


def _openvino(path: Path, contract: Contract) -> PolicyRuntime:
    from vla_ros.policy.openvino_runtime import load_openvino

    return load_openvino(path, contract)


def _torch(path: Path, contract: Contract) -> PolicyRuntime:
    from vla_ros.policy.torch_runtime import load_run

    return load_run(path, contract)


def _torch_bf16(path: Path, contract: Contract) -> PolicyRuntime:
    from vla_ros.policy.torch_runtime import load_run

    return load_run(path, contract, precision="bf16")


RUNTIMES: dict[str, Callable[[Path, Contract], PolicyRuntime]] = {
    "int8": _quantized,
    "fp32": _float,
    "fp16": _half,
    "openvino": _openvino,
    "torch": _torch,
    "torch-bf16": _torch_bf16,
}
OF_RUNS = ("torch", "torch-bf16")  # take the folder of a training run


def open_policy(path: str | Path, contract: Contract, runtime: str = "int8") -> PolicyRuntime:
    """Load a policy folder (or a run, see OF_RUNS) on one of RUNTIMES. Raises PolicyInvalid."""
    if runtime not in RUNTIMES:
        raise PolicyInvalid(f"runtime is {runtime!r}, allowed: {', '.join(RUNTIMES)}")
    return RUNTIMES[runtime](Path(path), contract)
