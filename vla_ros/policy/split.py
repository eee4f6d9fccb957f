"""An exported graph -> the part that reads the sentence alone, and the rest.

Text encoder, questions to the pictures and FiLM are the same for every chunk of an instruction. The runtime computes
them when the instruction changes (`runtime.OnnxGraph`); what they give are further inputs of the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TEXT_INPUT = "text"


def split(source: Path, rest: Path, text: Path, ids: NDArray[np.int64]) -> list[str]:
    """Write both parts of an ONNX file; returns the names of the tensors between them. `ids` (1, L): any sentence, to
    learn their shapes. Raises ValueError for a graph without an input `text`, or one in which nothing is cut."""
    import onnx
    import onnxruntime
    from onnx import helper

    model = onnx.load(str(source))
    graph = model.graph
    if TEXT_INPUT not in {i.name for i in graph.input}:
        raise ValueError(f"{source}: no input {TEXT_INPUT!r}")
    of_text, between = _cut(graph)
    if not between:
        raise ValueError(f"{source}: nothing depends on the sentence alone")
    parts = [[n for k, n in enumerate(graph.node) if (k in of_text) == early] for early in (True, False)]

    def write(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> None:
        used = {name for node in nodes for name in node.input} | {o.name for o in outputs}
        constants = [i for i in graph.initializer if i.name in used]
        ends = {value.name for value in (*inputs, *outputs)}
        within = {name for node in nodes for name in node.output} - ends
        shapes = [value for value in graph.value_info if value.name in within]
        part = helper.make_graph(nodes, graph.name, inputs, outputs, constants, value_info=shapes)
        made = helper.make_model(part, opset_imports=list(model.opset_import), ir_version=model.ir_version)
        onnx.save(made, str(path))

    unknown = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in between]
    inputs = {True: [i for i in graph.input if i.name == TEXT_INPUT]}
    inputs[False] = [i for i in graph.input if i.name != TEXT_INPUT]
    write(text, parts[0], inputs[True], unknown)
    session = onnxruntime.InferenceSession(str(text), providers=["CPUExecutionProvider"])
    shapes = [value.shape for value in session.run(between, {TEXT_INPUT: ids})]
    known = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in zip(between, shapes, strict=True)
    ]
    write(text, parts[0], inputs[True], known)
    write(rest, parts[1], inputs[False] + known, list(graph.output))
    return between


def _cut(graph: Any) -> tuple[set[int], list[str]]:
    """Of an onnx.GraphProto, in its topological order: which nodes need nothing but the sentence, and which of the
    tensors that they make are read by others."""
    given = {i.name for i in graph.input} - {i.name for i in graph.initializer} - {TEXT_INPUT}
    said, nodes, made = {TEXT_INPUT}, set(), set()
    for k, node in enumerate(graph.node):
        names = set(node.input)
        if names & given:
            given |= set(node.output)
        elif names & said:
            said |= set(node.output)
            made |= set(node.output)
            nodes.add(k)
        # A node of constants alone has neither: it stays with the rest.
    late = {name for k, node in enumerate(graph.node) if k not in nodes for name in node.input}
    constants = {name for k, node in enumerate(graph.node) if k not in nodes for name in node.output} - given
    for k in sorted(nodes):
        if constants & set(graph.node[k].input):
            raise ValueError(f"{graph.node[k].name}: reads a tensor made of constants; fold constants first")
    return nodes, sorted(made & late)
