"""The model, its runtimes, loading and tokenizing. `load` needs ONNX Runtime; torch is for training and export only."""

from vla_ros.policy.manifest import PolicyInvalid
from vla_ros.policy.runtime import PolicyOutput, PolicyRuntime, load

__all__ = ["PolicyInvalid", "PolicyOutput", "PolicyRuntime", "load"]
