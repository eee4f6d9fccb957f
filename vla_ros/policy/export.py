"""A training run -> the policy folder that ships: ONNX graphs in fp32 and int8, self-test, manifest.

    python -m vla_ros.policy.export RUN --out resource/policies/tabletop --data DEMONSTRATIONS

The denoising steps are unrolled and physical units are inside the graph: whoever runs it needs numpy and ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vla_ros.core import contract as contracts
from vla_ros.core.contract import Contract
from vla_ros.core.errors import VlaError
from vla_ros.policy import manifest as manifests
from vla_ros.policy.features import StateFeatures
from vla_ros.policy.manifest import PolicyInvalid
from vla_ros.policy.model import Policy
from vla_ros.policy.quantize import quantize
from vla_ros.policy.runtime import OnnxGraph, load
from vla_ros.policy.tokenizer import Tokenizer
from vla_ros.policy.torch_runtime import describe, read_run
from vla_ros.training.dataset import Batch, Dataset

OPSET = 17
PARITY_MAX = 1e-3  # deviations of the action between torch and fp32 ONNX; measured about 1e-5
POLICY_MAX_BYTES = 15_000_000
CALIBRATION_SAMPLES = 64
COMPARE_SAMPLES = 128
FLOAT_GRAPH, INT8_GRAPH, SELF_TEST = "policy.fp32.onnx", "policy.int8.onnx", "self_test.npz"
INPUTS = ("images", "text", "state", "noise", "prefix", "prefix_rows")
OUTPUTS = ("chunk", "done", "confidence")

Feed = dict[str, NDArray[Any]]


def feeds(model: Policy, batch: Batch, rng: np.random.Generator) -> list[Feed]:
    """One feed per sample of a batch. Every second one has a committed prefix, so that both ways are calibrated."""
    c = model.config
    result = []
    for b in range(len(batch.ids)):
        seen = batch.picture[b]
        rows = int(rng.integers(0, c.prefix_max + 1)) if b % 2 else 0
        prefix = np.zeros((1, c.rows, c.cols), dtype=np.float32)
        prefix[0, :rows] = batch.chunk[b, :rows]
        result.append(
            {
                "images": batch.images[seen : seen + 1],
                "text": batch.ids[b : b + 1],
                "state": batch.state[b : b + 1],
                "noise": rng.standard_normal((1, c.rows, c.cols), dtype=np.float32),
                "prefix": prefix,
                "prefix_rows": np.array([rows], dtype=np.int64),
            }
        )
    return result


def write_graph(model: Policy, feed: Feed, path: Path) -> None:
    """Trace the model with the feed's shapes (batch 1), then fold what is constant, such as the time conditioning."""
    import onnxruntime

    raw = path.with_name("." + path.name)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracer warns about Python numbers, which are the constants we want
        torch.onnx.export(
            model,
            tuple(torch.from_numpy(feed[k]) for k in INPUTS),
            str(raw),
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            dynamo=False,
        )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # standard operators only
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(raw), options, providers=["CPUExecutionProvider"])
    raw.unlink()


def run(graph: OnnxGraph, feed: Feed) -> NDArray[np.float32]:
    return graph(*(feed[k] for k in INPUTS))[0]


def parity(model: Policy, graph: OnnxGraph, samples: list[Feed]) -> float:
    """Largest difference between torch and the graph, in deviations of the action."""
    worst = 0.0
    for feed in samples:
        with torch.inference_mode():
            chunk = model(*(torch.from_numpy(feed[k]) for k in INPUTS))[0].numpy()
        worst = max(worst, float(np.abs((chunk - run(graph, feed)) / model.action_std.numpy()).max()))
    return worst


def compare(reference: OnnxGraph, other: OnnxGraph, samples: list[Feed]) -> dict[str, float]:
    """How far the int8 graph is from fp32 on the same noise. Small numbers here do not prove that the arm behaves."""
    difference = np.concatenate([run(reference, feed) - run(other, feed) for feed in samples])  # (m, R, A)
    spread = np.concatenate([run(reference, feed) for feed in samples])
    distance = np.linalg.norm(difference[..., :3], axis=-1) * 1000
    return {
        "position_rmse_mm": float(np.sqrt(np.mean(distance**2))),
        "position_p99_mm": float(np.percentile(distance, 99)),
        "rotation_rmse_rad": float(np.sqrt(np.mean(difference[..., 3:6] ** 2))),
        "gripper_flips": float(np.mean((spread[..., -1] > 0.5) != ((spread - difference)[..., -1] > 0.5))),
    }


def export(
    run_folder: Path,
    out: Path,
    data_folders: Sequence[Path],
    contract: Contract,
    name: str = "tabletop",
    metrics: dict[str, Any] | None = None,
    keep_float: bool = True,
) -> manifests.Manifest:
    """Make the complete folder, load it as a robot would, and return its manifest. Raises PolicyInvalid."""
    model, description = read_run(run_folder)
    if description["contract_hash"] != contract.hash:
        raise PolicyInvalid(
            f"{run_folder}: trained for contract {description['contract_hash'][:12]}, loaded is {contract.hash[:12]}"
        )
    tokenizer = Tokenizer(tuple(description["vocabulary"]), model.config.text_tokens)
    data = Dataset(
        data_folders, contract.hash, StateFeatures(contract).of_states
    )  # refuses another contract's calibration set
    rng = np.random.default_rng(0)
    picks = data.validation[rng.permutation(len(data.validation))[:COMPARE_SAMPLES]]
    samples = feeds(model, data.batch(picks, rng, tokenizer, None), rng)
    seen = data.training_batch(0, CALIBRATION_SAMPLES, 12345, tokenizer, None)
    calibration = feeds(model, seen, rng)

    out.mkdir(parents=True, exist_ok=True)
    for old in (manifests.FILE_NAME, FLOAT_GRAPH, INT8_GRAPH, SELF_TEST):
        (out / old).unlink(missing_ok=True)
    write_graph(model, samples[0], out / FLOAT_GRAPH)
    float_graph = OnnxGraph(out / FLOAT_GRAPH)
    worst = parity(model, float_graph, samples[:8])
    if not worst <= PARITY_MAX:
        raise PolicyInvalid(f"{out / FLOAT_GRAPH}: differs from torch by {worst:.2e} deviations, allowed {PARITY_MAX}")
    report = quantize(out / FLOAT_GRAPH, out / INT8_GRAPH, calibration)
    int8_graph = OnnxGraph(out / INT8_GRAPH)
    report["against_fp32"] = compare(float_graph, int8_graph, samples)
    test = samples[0]
    np.savez_compressed(
        out / SELF_TEST, **{k: test[k] for k in ("images", "text", "state", "noise")}, chunk=run(int8_graph, test)
    )
    names = [INT8_GRAPH, SELF_TEST] + ([FLOAT_GRAPH] if keep_float else [])
    if not keep_float:
        (out / FLOAT_GRAPH).unlink()
    files = {n: manifests.entry(out / n) for n in names}
    size = sum(f.bytes for f in files.values())
    if size > POLICY_MAX_BYTES:
        raise PolicyInvalid(
            f"{out}: {size} bytes, at most {POLICY_MAX_BYTES} ship; leave out the fp32 graph (--no-float)"
        )
    manifest = describe(
        model,
        description,
        contract,
        name,
        files,
        INT8_GRAPH,
        SELF_TEST,
        float_graph=FLOAT_GRAPH if keep_float else None,
        precision=report,
        metrics={"validation": description["validation"], "torch_parity": worst} | (metrics or {}),
    )
    (out / manifests.FILE_NAME).write_text(manifest.model_dump_json(indent=1))
    load(out, contract)
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="run folder of vla_ros.training.train, or one of its snapshots")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="demonstrations, to calibrate and compare")
    parser.add_argument("--robot", default="panda")
    parser.add_argument("--name", default="tabletop")
    parser.add_argument("--metrics", type=Path, help="JSON of a closed-loop evaluation, put into the manifest")
    parser.add_argument("--no-float", action="store_true", help="do not ship the fp32 graph")
    arguments = parser.parse_args()
    try:
        metrics = {"closed_loop": json.loads(arguments.metrics.read_text())} if arguments.metrics else None
        manifest = export(
            arguments.run,
            arguments.out,
            arguments.data,
            contracts.load(arguments.robot),
            arguments.name,
            metrics,
            not arguments.no_float,
        )
    except (VlaError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(
        json.dumps(
            {
                "files": {n: f.bytes for n, f in manifest.files.items()},
                "precision": manifest.precision,
                "metrics": manifest.metrics,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
