"""The ways to run a policy, by name. What is run is one of the graphs of a policy folder, or a training run's weights.

All of them are the same `PolicyRuntime` around another `Graph`: observations are checked and outputs bounded in one
place, whatever computes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from vla_ros import paths
from vla_ros.core.contract import Contract
from vla_ros.policy.manifest import WEIGHTS, PolicyInvalid, read
from vla_ros.policy.runtime import PolicyRuntime, load

FLOAT_GRAPH, HALF_GRAPH = "policy.fp32.onnx", "policy.fp16.onnx"


def _quantized(path: Path, contract: Contract) -> PolicyRuntime:
    return load(path, contract)


def float_folder(path: Path, contract: Contract) -> Path:
    """A folder that runs the policy's fp32 graph: `path`, or one that is made of its weights, once, in the user's
    cache. Raises PolicyInvalid."""
    manifest = read(path, contract.hash)
    if manifest.float_graph is not None:
        return path
    if WEIGHTS not in manifest.files:
        raise PolicyInvalid(f"{path}: has neither an fp32 graph nor {WEIGHTS} to make it of; export it again")
    made = paths.cached_policies() / f"{manifest.name}-fp32-{manifest.files[WEIGHTS].sha256[:12]}"
    if not made.is_dir():
        try:
            from vla_ros.policy.export import write_float
        except ImportError as error:
            raise PolicyInvalid(
                f"{path}: making its fp32 graph needs {error.name}: pip install 'vla_ros[train]'"
            ) from error
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=made.parent) as scratch:
            fresh = Path(scratch) / made.name
            fresh.mkdir()
            write_float(path, fresh, contract)
            if not made.is_dir():  # another process may have been faster
                fresh.rename(made)
    return made


def _float(path: Path, contract: Contract) -> PolicyRuntime:
    folder = float_folder(path, contract)
    return load(folder, contract, read(folder, contract.hash).float_graph)


def _half(path: Path, contract: Contract) -> PolicyRuntime:
    return load(path, contract, HALF_GRAPH)


def _openvino(path: Path, contract: Contract) -> PolicyRuntime:
    from vla_ros.policy.openvino_runtime import load_openvino

    return load_openvino(float_folder(path, contract), contract)


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
