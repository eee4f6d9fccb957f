"""fp32 ONNX -> int8 ONNX: static QDQ, symmetric (zero points 0), weights per channel: the layout that TensorRT expects.

Selective, after QuantVLA (2602.20309): quantization breaks the attention of an action head first. Here the whole head
stays in float, and so do the map that the keypoints are read from and small layers; the convolutions and the fusion
transformer are int8.
Measured: with the head's feed-forward layers in int8 a chunk took longer, since 16 rows are too little work per kernel.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Node names as the exporter writes them: module path, with _1, _2, ... on the further calls of a module, which are the
# unrolled denoising steps. First match decides why a node stays in float.
KEEP_FLOAT = (
    (r"^/head/", "action head: precision of the motion, and 16 rows are too few for int8 to pay"),
    (r"^/(kv_near|kv_raw)(_\d+)?/", "keys and values the action head reads"),
    (r"/(peaks|keypoint_tokens|place)/", "keypoints: a fraction of a cell matters"),
    (r"^/(done|sure)/|/(state|film|pool|text)/|/film/", "small layers, no gain"),
)


class Calibration:
    """Feeds the calibrator; ONNX Runtime asks for one at a time."""

    def __init__(self, samples: Iterable[dict[str, NDArray[Any]]]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._samples, None)


def quantize(source: Path, target: Path, samples: Sequence[dict[str, NDArray[Any]]]) -> dict[str, Any]:
    """Write the int8 graph. Returns the plan: how many heavy nodes are int8, and why the others are not."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory(prefix="vla_ros_quantize_") as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
        onnx.save(model, str(prepared))
        graph = model.graph
        constants = {i.name for i in graph.initializer}
        kept: dict[str, list[str]] = {}
        chosen = []
        for node in graph.node:
            if node.op_type not in ("Conv", "MatMul", "Gemm"):
                continue
            why = next((reason for pattern, reason in KEEP_FLOAT if re.search(pattern, node.name)), None)
            if why is None and node.input[1] not in constants:
                why = "product of two activations"
            if why is None:
                chosen.append(node.name)
            else:
                kept.setdefault(why, []).append(node.name)
        quantize_static(
            str(prepared),
            str(target),
            Calibration(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=chosen,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "MatMulConstBOnly": True},
        )
    zero_points = nonzero_zero_points(target)
    if zero_points:
        raise ValueError(f"{target}: {zero_points} quantizers have a zero point other than 0")
    return {
        "scheme": "static QDQ int8, symmetric, weights per channel",
        "calibration_samples": len(samples),
        "int8_nodes": len(chosen),
        "float_nodes": {why: len(names) for why, names in kept.items()},
    }


def nonzero_zero_points(path: Path) -> int:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    constants = {i.name: i for i in graph.initializer}
    used = {
        node.input[2]
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2
    }
    return sum(bool(np.any(numpy_helper.to_array(constants[name]))) for name in used if name in constants)
