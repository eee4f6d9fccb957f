"""Loads a policy folder and runs it on ONNX Runtime, one thread. torch is not needed and not imported.

runtime = load(folder, contract)
runtime.judge("pick up the red cube")                     # returns, or raises Refused
output = runtime.infer(observation, text, rng)            # chunk in physical units
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid
from vla_ros.core.types import Observation
from vla_ros.policy.confidence import calibrated
from vla_ros.policy.features import StateFeatures
from vla_ros.policy.language import Language
from vla_ros.policy.manifest import TEXT_PART, Manifest, PolicyInvalid, read, text_part
from vla_ros.policy.onnx_graph import OUTPUTS, OnnxGraph, describe_precision, operators
from vla_ros.policy.tokenizer import Tokenizer

SELF_TEST_TOLERANCE = (
    0.25  # root mean square, in deviations of the action: another CPU may round int8 differently, no more
)


@dataclass(frozen=True, slots=True)
class PolicyOutput:
    """One inference. Not checked for range: judging it is the supervisor's work."""

    data: NDArray[np.float64]  # (rows, cols), units of msg/ActionChunk
    done_probability: float
    confidence: float  # probability that the named object is where the policy thinks, to 2 cm
    inference_s: float


class Graph(Protocol):
    """What computes: one call per observation."""

    def __call__(
        self,
        images: NDArray[np.uint8],
        ids: NDArray[np.int64],
        state: NDArray[np.float32],
        noise: NDArray[np.float32],
        prefix: NDArray[np.float32],
        prefix_rows: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], float, float]: ...


class PolicyRuntime:
    """A loaded policy. One thread at a time may call `infer`; `judge` may be called from any."""

    def __init__(
        self, manifest: Manifest, contract: Contract, graph: Graph, precision: str, checkpoint_hash: str
    ) -> None:
        self.manifest, self.precision, self.checkpoint_hash = manifest, precision, checkpoint_hash
        self._graph = graph
        self._features = StateFeatures(contract)
        self._tokenizer = Tokenizer(manifest.vocabulary, manifest.text_tokens)
        self._language = Language(manifest.lexicon, manifest.text_tokens)
        self._no_prefix = np.zeros((1, manifest.rows, manifest.cols), dtype=np.float32)

    def judge(self, text: str) -> None:
        """Raises Refused, with what is known, for a sentence that was never taught."""
        self._language.judge(text)

    def infer(
        self, observation: Observation, text: str, rng: np.random.Generator, prefix: NDArray[np.float64] | None = None
    ) -> PolicyOutput:
        """One chunk. `prefix` (d, cols): rows that will run anyway, relative to this observation's tool pose."""
        started_s = time.perf_counter()
        m = self.manifest
        if observation.contract_hash != m.contract_hash:
            raise Invalid(
                "contract_hash", observation.contract_hash, m.contract_hash, "the observation is of another body"
            )
        images = np.empty((1, len(m.cameras), m.image_px, m.image_px, 3), dtype=np.uint8)
        if set(observation.images) != set(m.cameras):
            raise Invalid("images", sorted(observation.images), f"the cameras {', '.join(m.cameras)}")
        for k, name in enumerate(m.cameras):
            image = observation.images[name]
            if image.shape != images.shape[2:] or image.dtype != np.uint8:
                raise Invalid(f"images[{name}]", (image.shape, str(image.dtype)), f"{images.shape[2:]} uint8")
            images[0, k] = image
        state = self._features(observation.q_rad, observation.gripper_width_m)[None]  # (1, S)
        if not np.isfinite(state).all():
            raise Invalid("state", state.tolist(), "finite numbers", reason="non_finite")
        noise = rng.standard_normal((1, m.rows, m.cols), dtype=np.float32)
        given, count = self._no_prefix, 0
        if prefix is not None:
            if (
                prefix.ndim != 2
                or prefix.shape[1] != m.cols
                or not 0 <= len(prefix) <= m.prefix_max
                or not np.isfinite(prefix).all()
            ):
                raise Invalid("prefix", prefix.shape, f"0 to {m.prefix_max} finite rows of {m.cols}")
            given, count = self._no_prefix.copy(), len(prefix)
            given[0, :count] = prefix
        chunk, done, sure = self._graph(
            images, self._tokenizer.encode(text)[None], state, noise, given, np.array([count], dtype=np.int64)
        )
        data = chunk[0].astype(np.float64)  # (R, A)
        data[:, -1] = np.clip(data[:, -1], 0.0, 1.0)  # opening; NaN stays NaN
        confidence = calibrated(_fraction(sure), m.confidence_temperature)
        return PolicyOutput(data, _fraction(done), confidence, time.perf_counter() - started_s)


def _fraction(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def expected_shapes(m: Manifest) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Inputs and outputs that a manifest's graphs must have."""
    inputs = {
        "images": (1, len(m.cameras), m.image_px, m.image_px, 3),
        "text": (1, m.text_tokens),
        "state": (1, m.state_dim),
        "noise": (1, m.rows, m.cols),
        "prefix": (1, m.rows, m.cols),
        "prefix_rows": (1,),
    }
    return inputs, dict(zip(OUTPUTS, ((1, m.rows, m.cols), (1,), (1,)), strict=True))


def check_shapes(path: Path, manifest: Manifest, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    """Raises PolicyInvalid, naming what differs, for a graph that is not the manifest's."""
    for side, found, expected in zip(("input", "output"), (inputs, outputs), expected_shapes(manifest), strict=True):
        for name in sorted(expected.keys() | found.keys()):
            if found.get(name) != expected.get(name):
                raise PolicyInvalid(
                    f"{path}: {side} {name!r} is {found.get(name, 'missing')}, the manifest says "
                    f"{expected.get(name, 'there is none')}; export it again"
                )


def load(path: str | Path, contract: Contract, graph: str | None = None) -> PolicyRuntime:
    """Check a policy folder, load its graph, and let it answer a stored observation. Raises PolicyInvalid.

    `graph`: another of the manifest's ONNX files, say `policy.fp32.onnx`.
    """
    folder = Path(path)
    manifest = read(folder, contract.hash)
    name = graph or manifest.graph
    graphs = [n for n in manifest.files if n.endswith(".onnx") and not n.endswith(TEXT_PART)]
    if name not in graphs:
        raise PolicyInvalid(f"{folder}: {name!r} is not one of its graphs: {', '.join(graphs)}")
    policy_cameras = {c.name: c.policy_px for c in contract.cameras}
    if policy_cameras != dict.fromkeys(manifest.cameras, manifest.image_px):
        raise PolicyInvalid(
            f"{folder}: made for cameras {manifest.cameras} at {manifest.image_px} px, "
            f"the contract has {policy_cameras}"
        )
    with tempfile.TemporaryDirectory(prefix="vla_ros_policy_") as scratch:
        said = text_part(name)
        onnx = OnnxGraph(folder / name, folder / said if said in manifest.files else None, scratch)
        check_shapes(folder / name, manifest, onnx.shapes, onnx.outputs)
        self_test(folder / manifest.self_test, manifest, onnx)
        precision = describe_precision(operators(onnx.end_profile()))
    return PolicyRuntime(manifest, contract, onnx, precision, manifest.files[name].sha256)


def self_test(path: Path, manifest: Manifest, graph: Graph) -> None:
    """The graph must repeat its stored answer to a stored observation, nearly."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            data = {key: stored[key] for key in ("images", "text", "state", "noise", "chunk")}
    except (OSError, ValueError, KeyError) as error:
        raise PolicyInvalid(f"{path}: not readable ({error}); export the policy again") from error
    prefix = np.zeros((1, manifest.rows, manifest.cols), dtype=np.float32)
    chunk, done, sure = graph(
        data["images"], data["text"], data["state"], data["noise"], prefix, np.zeros(1, dtype=np.int64)
    )
    if not (np.isfinite(chunk).all() and np.isfinite([done, sure]).all()):
        raise PolicyInvalid(f"{path}: the self-test gave non-finite actions; the weights are damaged")
    off = float(np.sqrt(np.mean(np.square((chunk - data["chunk"]) / np.asarray(manifest.action_std)))))
    if not off <= SELF_TEST_TOLERANCE:
        raise PolicyInvalid(
            f"{path}: the self-test is off by {off:.3f} deviations, allowed: {SELF_TEST_TOLERANCE}; "
            "this machine computes something else than the one that exported it"
        )
