"""An exported graph on ONNX Runtime, and what really ran in it.

A graph may come in two parts (`split.py`): what depends on the sentence alone runs when the sentence changes, the rest
for every chunk.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_ros.policy.manifest import PolicyInvalid

INT8_OPERATORS = frozenset(
    {
        "QLinearConv",
        "ConvInteger",
        "QGemm",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
    }
)
HEAVY_OPERATORS = INT8_OPERATORS | {
    *("Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MultiHeadAttention")
}
PRECISIONS = {"float": "fp32", "float16": "fp16", "int8": "int8", "uint8": "int8"}  # of a tensor, as a profile says it
INPUTS = ("images", "text", "state", "noise", "prefix", "prefix_rows")
OUTPUTS = ("chunk", "done", "confidence")

Said = dict[str, NDArray[np.float32]]


class Sentence:
    """What the text part gives for the sentence that is being worked on."""

    def __init__(self, compute: Callable[[NDArray[np.int64]], Said]) -> None:
        self._compute = compute
        self._ids: NDArray[np.int64] | None = None
        self._said: Said = {}

    def __call__(self, ids: NDArray[np.int64]) -> Said:
        if self._ids is None or not np.array_equal(ids, self._ids):
            self._said, self._ids = self._compute(ids), ids.copy()
        return self._said


def join_shapes(
    path: Path, rest: dict[str, tuple[int, ...]], said: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Inputs of both parts together. Raises PolicyInvalid if the rest does not read what the text part gives."""
    between = {name: shape for name, shape in rest.items() if name not in INPUTS}
    if between != said:
        wrong = sorted(name for name in between.keys() | said.keys() if between.get(name) != said.get(name))
        raise PolicyInvalid(f"{path}: does not fit its text part: {', '.join(wrong)} differ; export it again")
    return {name: shape for name, shape in rest.items() if name in INPUTS}


class OnnxGraph:
    """A graph on ONNX Runtime, one thread that does not spin. `profile_folder`: everything is profiled until
    `end_profile`."""

    def __init__(self, path: Path, text: Path | None = None, profile_folder: str | None = None) -> None:
        self._session = _session(path, profile_folder)
        self.shapes = {i.name: tuple(i.shape) for i in self._session.get_inputs()}
        self.outputs = {o.name: tuple(o.shape) for o in self._session.get_outputs()}
        self._sessions, self._sentence = [self._session], Sentence(lambda ids: {"text": ids})
        if text is not None:
            early = _session(text, profile_folder)
            given = {o.name: tuple(o.shape) for o in early.get_outputs()}
            self.shapes = join_shapes(path, self.shapes, given)
            self.shapes |= {i.name: tuple(i.shape) for i in early.get_inputs()}
            names = list(given)
            self._sentence = Sentence(lambda ids: dict(zip(names, early.run(names, {"text": ids}), strict=True)))
            self._sessions.insert(0, early)

    def __call__(
        self,
        images: NDArray[np.uint8],
        ids: NDArray[np.int64],
        state: NDArray[np.float32],
        noise: NDArray[np.float32],
        prefix: NDArray[np.float32],
        prefix_rows: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], float, float]:
        feed = {
            "images": images,
            **self._sentence(ids),
            "state": state,
            "noise": noise,
            "prefix": prefix,
            "prefix_rows": prefix_rows,
        }
        chunk, done, sure = self._session.run(OUTPUTS, feed)
        return chunk, float(done[0]), float(sure[0])

    def end_profile(self) -> list[dict[str, Any]]:
        """Stops profiling; the events of what ran until now."""
        events: list[dict[str, Any]] = []
        for session in self._sessions:
            events += json.loads(Path(session.end_profiling()).read_text())
        return events


def _session(path: Path, profile_folder: str | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if profile_folder is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(profile_folder) / path.stem)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise PolicyInvalid(
            f"{path}: ONNX Runtime does not take the graph ({type(error).__name__}: {error}); export it again"
        ) from error


@dataclass(frozen=True, slots=True)
class Operator:
    """One kernel that ran, as ONNX Runtime's profile saw it."""

    node: str
    kind: str
    precision: str  # int8 where int8 is multiplied; otherwise the type of what comes out
    duration_us: int


def operators(events: list[dict[str, Any]]) -> list[Operator]:
    """What ran, from a profile of one inference, in the order in which it ran."""
    found = []
    for event in events:
        arguments, name = event.get("args", {}), str(event.get("name", ""))
        kind = arguments.get("op_name")
        if event.get("cat") != "Node" or not name.endswith("_kernel_time") or not kind:
            continue
        types = [key for shape in arguments.get("output_type_shape") or [] for key in shape]
        precision = "int8" if kind in INT8_OPERATORS else PRECISIONS.get(types[0] if types else "", "other")
        found.append(Operator(name.removesuffix("_kernel_time"), kind, precision, int(event.get("dur", 0))))
    return found


def describe_precision(ran: list[Operator]) -> str:
    """'int8 (QDQ): 20 of 57 Conv/MatMul/Gemm/attention; rest fp32'."""
    heavy = [operator for operator in ran if operator.kind in HEAVY_OPERATORS]
    counts = {p: sum(o.precision == p for o in heavy) for p in ("int8", "fp16", "fp32")}
    rest = " and ".join(p for p in ("fp16", "fp32") if counts[p]) or "none"
    what = "Conv/MatMul/Gemm/attention"
    if counts["int8"]:
        return f"int8 (QDQ): {counts['int8']} of {len(heavy)} {what}; rest {rest}"
    if counts["fp16"]:
        return f"fp16: {counts['fp16']} of {len(heavy)} {what}; rest {'fp32' if counts['fp32'] else 'none'}"
    return f"fp32: all {len(heavy)} {what}"
