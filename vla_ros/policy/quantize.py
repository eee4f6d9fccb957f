"""fp32 ONNX -> int8 ONNX: static QDQ, weights symmetric per channel, every zero point 0.

Two engines, one set of rules:
* `onnxruntime`: what a ReLU gives is unsigned, everything else signed. An unsigned zero point of 0 is ReLU's own clamp,
  so the ReLU costs nothing; and where a tensor has two readers ONNX Runtime does not turn int8 into the unsigned type
  that its VNNI kernels take: such convolutions ran in fp32, and matrix products eight times slower than their like.
* `tensorrt`: signed throughout, the only eight-bit integer that TensorRT's parser takes.

Selective, after QuantVLA (2602.20309): quantization breaks the attention of an action head first. Here the whole head
stays in float, and so do the map that the keypoints are read from and small layers; the convolutions and the fusion
transformer are int8.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENGINES = ("onnxruntime", "tensorrt")
# Node names as the exporter writes them: module path, with _1, _2, ... on the further calls of a module, which are the
# unrolled denoising steps. First match decides why a node stays in float.
KEEP_FLOAT = (
    (r"^/head/", "action head: precision of the motion, and 16 rows are too few for int8 to pay"),
    (r"^/(kv_near|kv_raw)(_\d+)?/", "keys and values of the head's attention"),
    (r"/(peaks|keypoint_tokens|place|ask|ask_word)/|/cameras\.\d+/MatMul", "keypoints: a fraction of a cell matters"),
    (r"^/(done|sure)/|/expect\.\d+/|/(state|film|pool|roles|text|patch_tokens)/|/film/", "small layers, no gain"),
)
HEAVY = ("Conv", "MatMul", "Gemm")
KEEPS_BYTES = ("Gather", "Pad", "Transpose", "Reshape", "Squeeze", "Slice", "Unsqueeze")  # moves them, no more


class Calibration:
    """Feeds the calibrator; ONNX Runtime asks for one at a time."""

    def __init__(self, samples: Iterable[dict[str, NDArray[Any]]]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._samples, None)


def choose(graph: Any) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the nodes of an onnx.GraphProto that become int8; and of those that do not, by reason."""
    constants = {i.name for i in graph.initializer}
    chosen: list[str] = []
    kept: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type not in HEAVY:
            continue
        why = next((reason for pattern, reason in KEEP_FLOAT if re.search(pattern, node.name)), None)
        if why is None and node.input[1] not in constants:
            why = "product of two activations"
        if why is None:
            chosen.append(node.name)
        else:
            kept.setdefault(why, []).append(node.name)
    return chosen, kept


def quantize(
    source: Path, target: Path, samples: Sequence[dict[str, NDArray[Any]]], engine: str = "onnxruntime"
) -> dict[str, Any]:
    """Write the int8 graph for one of ENGINES. Returns the plan: how many heavy nodes are int8, why others are not."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}, allowed: {', '.join(ENGINES)}")
    unsigned = engine == "onnxruntime"
    with tempfile.TemporaryDirectory(prefix="vla_ros_quantize_") as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
        onnx.save(model, str(prepared))
        chosen, kept = choose(model.graph)
        options: dict[str, Any] = {
            "ActivationSymmetric": not unsigned,
            "WeightSymmetric": True,
            "MatMulConstBOnly": True,
            # A tensor that is also read in float keeps its float form for that reader.
            "DedicatedQDQPair": True,
            # A linear layer gives float: what follows reads float, so the pair behind it was only rounding.
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
        }
        if unsigned:
            picked = set(chosen)
            positive = {o for node in model.graph.node if node.op_type == "Relu" for o in node.output}
            touched = {
                name
                for node in model.graph.node
                if node.name in picked
                for name in (node.input[0], *(node.output if node.op_type == "Conv" else ()))
            }
            options["TensorQuantOverrides"] = {
                name: [{"quant_type": QuantType.QInt8, "symmetric": True}] for name in sorted(touched - positive)
            }
            one, zero = np.array([1], np.float32), np.array([0], np.uint8)
            whole = {"quant_type": QuantType.QUInt8, "scale": one, "zero_point": zero}
            options["TensorQuantOverrides"] |= {node.output[0]: [whole] for node in _bytes(model.graph, picked)}
            # A convolution whose only reader is a ReLU is quantized behind it.
            chosen += _activations(model.graph, picked)
        quantize_static(
            str(prepared),
            str(target),
            Calibration(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=chosen,
            op_types_to_quantize=[*HEAVY, "Relu"],
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=options,
        )
        if unsigned:
            _hand_bytes_on(target, _bytes(model.graph, picked))
    zero_points = nonzero_zero_points(target)
    if zero_points:
        raise ValueError(f"{target}: {zero_points} quantizers have a zero point other than 0")
    return {
        "scheme": f"static QDQ int8 for {engine}, zero points 0, weights per channel",
        "engine": engine,
        "calibration_samples": len(samples),
        "int8_nodes": sum(node in set(choose(model.graph)[0]) for node in chosen),
        "float_nodes": {why: len(names) for why, names in kept.items()},
    }


def _activations(graph: Any, chosen: set[str]) -> list[str]:
    """Names of the ReLUs that read a chosen convolution."""
    outputs = {o for node in graph.node if node.name in chosen and node.op_type == "Conv" for o in node.output}
    return [node.name for node in graph.node if node.op_type == "Relu" and node.input[0] in outputs]


def _bytes(graph: Any, chosen: set[str]) -> list[Any]:
    """Casts that give a chosen convolution the bytes of a picture: those are quantized already, with a scale of 1."""
    read = {node.input[0] for node in graph.node if node.name in chosen and node.op_type == "Conv"}
    made = {name: node for node in graph.node for name in node.output}
    pictures = {i.name for i in graph.input if i.type.tensor_type.elem_type == 2}  # TensorProto.UINT8
    found = []
    for node in graph.node:
        if node.op_type != "Cast" or node.output[0] not in read:
            continue
        source = node.input[0]
        while source in made and made[source].op_type in KEEPS_BYTES:
            source = made[source].input[0]
        if source in pictures:
            found.append(node)
    return found


def _hand_bytes_on(path: Path, bytes_cast: list[Any]) -> None:
    """bytes -> Cast -> QuantizeLinear with a scale of 1 is bytes: leaves both out."""
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    source = {cast.output[0]: cast.input[0] for cast in bytes_cast}
    for node in [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] in source]:
        for reader in graph.node:
            for k, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[k] = source[node.input[0]]
        graph.node.remove(node)
    for cast in [n for n in graph.node if n.op_type == "Cast" and n.output[0] in source]:
        graph.node.remove(cast)
    onnx.save(model, str(path))


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
