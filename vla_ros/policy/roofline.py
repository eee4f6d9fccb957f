"""What a graph must compute and move for one chunk, and the least time that takes on other machines: an estimate.

A roofline (Williams et al. 2009): per operator the larger of operations / peak and bytes / bandwidth, summed. Nothing
was run on these machines; launches, transfers and kernels that miss the peak come on top, for a model this small most
of the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Machine:
    name: str
    bandwidth_gb_s: float
    fp16_tflop_s: float  # dense, tensor cores
    int8_top_s: float  # dense, GPU alone
    source: str


# Orin Nano: read in the data sheet (40 TOPS sparse, 20 dense). The others: from texts that quote the documents named.
# Thor agrees with 20 SMs x 4 tensor cores x 2048 dense FP16 operations a clock x 1.57 GHz.
# NVIDIA publishes integer and FP4 peaks with 2:4 sparsity, which these weights do not have: halved; fp16 runs at half
# the rate of int8. Deep learning accelerators beside the GPU are left out. Thor: FP4 sparse / 4 = FP8 dense, which
# stands for its int8, / 2 = fp16.
MACHINES = (
    Machine("Jetson Orin Nano 8 GB", 68.0, 10.0, 20.0, "NVIDIA, Jetson Orin Nano Series data sheet: 40 TOPS sparse"),
    Machine(
        "Jetson Orin Nano Super",
        102.0,
        17.0,
        33.0,
        "NVIDIA, developer.nvidia.com/blog/nvidia-jetson-orin-nano-developer-kit-gets-a-super-boost: 67 TOPS sparse",
    ),
    Machine(
        "Jetson AGX Orin 64 GB", 204.8, 42.5, 85.0, "NVIDIA, Jetson AGX Orin technical brief: GPU 170 INT8 TOPS sparse"
    ),
    Machine("Jetson Thor T5000", 273.0, 258.0, 517.0, "NVIDIA, Jetson Thor data sheet: 2070 FP4 TFLOPS sparse"),
)
FREE = {"Constant", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Shape", "QuantizeLinear", "DequantizeLinear"}
WIDTH_BYTES = {"fp16": 2, "int8": 1}


@dataclass(frozen=True)
class Work:
    """Of one operator: multiplications and additions, elements read and written, and whether it multiplies matrices."""

    operations: int
    elements: int
    heavy: bool


def work(path: Path) -> list[Work]:
    """One entry per operator of an ONNX file that computes or moves anything. Raises ImportError without `onnx`."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    graph = model.graph
    shapes: dict[str, tuple[int, ...]] = {i.name: tuple(i.dims) for i in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    found = []
    for node in graph.node:
        if node.op_type in FREE:
            continue
        elements = sum(math.prod(shapes.get(name, ())) for name in (*node.input, *node.output) if name)
        operations = _operations(node, shapes)
        found.append(Work(operations, elements, operations > 0))
    return found


def _operations(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """2 for every multiply-add of the operators that are worth counting, else 0."""
    given = [shapes.get(name, ()) for name in node.input]
    if node.op_type == "Conv":
        return 2 * math.prod(shapes.get(node.output[0], ())) * math.prod(given[1][1:])
    if node.op_type in ("Gemm", "MatMul") and len(given[0]) >= 2:
        flipped = any(a.name == "transA" and a.i for a in node.attribute)
        return 2 * math.prod(shapes.get(node.output[0], ())) * given[0][-2 if flipped else -1]
    if node.op_type == "MultiHeadAttention":
        keys = given[1][-2]  # (1, M, C) or (1, H, M, E)
        return 4 * math.prod(given[0]) * keys  # scores and sums: 2 products of N x M x C
    return 0


def estimate(path: Path) -> dict[str, Any]:
    """Operations and bytes of one chunk, and the roofline's least time per machine and precision [ms].

    `int8` assumes that the matrix products run in int8 and the rest in fp16."""
    todo = work(path)
    result: dict[str, Any] = {
        "label": "estimate: a lower bound from published peaks, nothing was run on these machines",
        "operators": len(todo),
        "gflop_per_chunk": sum(w.operations for w in todo) / 1e9,
        "mbyte_per_chunk": {p: sum(w.elements for w in todo) * WIDTH_BYTES["fp16"] / 1e6 for p in ("fp16",)},
        "machines": {},
    }
    result["mbyte_per_chunk"]["int8"] = sum(w.elements * (1 if w.heavy else 2) for w in todo) / 1e6
    for machine in MACHINES:
        least_ms = {}
        for precision, peak in (("fp16", machine.fp16_tflop_s), ("int8", machine.int8_top_s)):
            seconds = 0.0
            for w in todo:
                width = WIDTH_BYTES[precision] if w.heavy else WIDTH_BYTES["fp16"]
                seconds += max(w.operations / (peak * 1e12), w.elements * width / (machine.bandwidth_gb_s * 1e9))
            least_ms[precision] = seconds * 1e3
        result["machines"][machine.name] = {"least_ms": least_ms, "source": machine.source}
    return result
