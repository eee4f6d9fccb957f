"""The fp32 graph on OpenVINO, one thread. Optional: `pip install vla_ros[openvino]`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_ros.core.contract import Contract
from vla_ros.policy.manifest import PolicyInvalid, read, text_part
from vla_ros.policy.onnx_graph import OUTPUTS, Sentence, join_shapes
from vla_ros.policy.runtime import PolicyRuntime, check_shapes, self_test


class OpenVinoGraph:
    def __init__(self, path: Path, text: Path | None = None) -> None:
        try:
            import openvino
        except ImportError as error:
            raise PolicyInvalid(
                f"runtime openvino: {error}; install it with `pip install vla_ros[openvino]`"
            ) from error
        # f32: on processors with bfloat16 OpenVINO would otherwise compute in that by itself.
        settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        core = openvino.Core()
        model = core.compile_model(str(path), "CPU", settings)
        self.shapes = {i.any_name: tuple(i.shape) for i in model.inputs}
        # A tensor may have several names, the exporter's among them.
        self._ports = {next((n for n in OUTPUTS if n in o.names), o.any_name): o for o in model.outputs}
        self.outputs = {name: tuple(port.shape) for name, port in self._ports.items()}
        self._request = model.create_infer_request()
        self._sentence = Sentence(lambda ids: {"text": ids})
        if text is not None:
            early = core.compile_model(str(text), "CPU", settings)
            given = {o.any_name: o for o in early.outputs}
            self.shapes = join_shapes(path, self.shapes, {name: tuple(o.shape) for name, o in given.items()})
            self.shapes |= {i.any_name: tuple(i.shape) for i in early.inputs}
            request = early.create_infer_request()

            def compute(ids: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
                found = request.infer({"text": ids})
                return {name: np.array(found[port]) for name, port in given.items()}

            self._sentence = Sentence(compute)

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
        found = self._request.infer(feed)
        chunk, done, sure = (np.array(found[self._ports[name]]) for name in OUTPUTS)
        return chunk, float(done[0]), float(sure[0])


def load_openvino(path: str | Path, contract: Contract) -> PolicyRuntime:
    """A policy folder's fp32 graph. Raises PolicyInvalid."""
    folder = Path(path)
    manifest = read(folder, contract.hash)
    if manifest.float_graph is None:
        raise PolicyInvalid(f"{folder}: has no fp32 graph")
    said = text_part(manifest.float_graph)
    graph = OpenVinoGraph(folder / manifest.float_graph, folder / said if said in manifest.files else None)
    check_shapes(folder / manifest.float_graph, manifest, graph.shapes, graph.outputs)
    self_test(folder / manifest.self_test, manifest, graph)
    sha256 = manifest.files[manifest.float_graph].sha256
    return PolicyRuntime(manifest, contract, graph, "fp32 (OpenVINO)", sha256)
