"""A training run -> the policy folder that ships: ONNX graphs in fp32 and int8, self-test, manifest.

The fp32 graph has standard operators alone, so that every engine takes it; the int8 graph is made for ONNX Runtime from
the fused form of the model (`fused.py`).

    python -m vla_ros.policy.export RUN --out resource/policies/tabletop --data DEMONSTRATIONS

The denoising steps are unrolled and physical units are inside the graph: whoever runs it needs numpy and ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
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
from vla_ros.policy.fused import fuse
from vla_ros.policy.gate import differences
from vla_ros.policy.manifest import Manifest, PolicyInvalid
from vla_ros.policy.model import Policy
from vla_ros.policy.quantize import quantize
from vla_ros.policy.runtime import INT8_OPERATORS, OUTPUTS, OnnxGraph, load, operators
from vla_ros.policy.runtimes import HALF_GRAPH
from vla_ros.policy.tokenizer import Tokenizer
from vla_ros.policy.torch_runtime import describe, read_run
from vla_ros.training.dataset import Batch, Dataset

OPSET = 17
PARITY_MAX = 1e-3  # deviations of the action between torch and fp32 ONNX; measured about 1e-5
POLICY_MAX_BYTES = 20_000_000
CALIBRATION_SAMPLES = 64
COMPARE_SAMPLES = 128
FLOAT_GRAPH, INT8_GRAPH, SELF_TEST = "policy.fp32.onnx", "policy.int8.onnx", "self_test.npz"
INPUTS = ("images", "text", "state", "noise", "prefix", "prefix_rows")
TENSORRT_GRAPH = "policy.int8.tensorrt.onnx"

Feed = dict[str, NDArray[Any]]


def feeds(rows: int, cols: int, prefix_max: int, batch: Batch, rng: np.random.Generator) -> list[Feed]:
    """One feed per sample of a batch. Every second one has a committed prefix, so that both ways are calibrated."""
    result = []
    for b in range(len(batch.ids)):
        seen = batch.picture[b]
        count = int(rng.integers(0, prefix_max + 1)) if b % 2 else 0
        prefix = np.zeros((1, rows, cols), dtype=np.float32)
        prefix[0, :count] = batch.chunk[b, :count]
        result.append(
            {
                "images": batch.images[seen : seen + 1],
                "text": batch.ids[b : b + 1],
                "state": batch.state[b : b + 1],
                "noise": rng.standard_normal((1, rows, cols), dtype=np.float32),
                "prefix": prefix,
                "prefix_rows": np.array([count], dtype=np.int64),
            }
        )
    return result


def recorded(
    data_folders: Sequence[Path], contract: Contract, tokenizer: Tokenizer, rows: int, cols: int, prefix_max: int
) -> tuple[list[Feed], list[Feed]]:
    """Recorded observations: to compare graphs on (held out), and to calibrate with. Refuses another contract's."""
    data = Dataset(data_folders, contract.hash, StateFeatures(contract).of_states)
    rng = np.random.default_rng(0)
    picks = data.validation[rng.permutation(len(data.validation))[:COMPARE_SAMPLES]]
    held_out = feeds(rows, cols, prefix_max, data.batch(picks, rng, tokenizer, None), rng)
    seen = data.training_batch(0, CALIBRATION_SAMPLES, 12345, tokenizer, None)
    return held_out, feeds(rows, cols, prefix_max, seen, rng)


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
            custom_opsets={"com.microsoft": 1},
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


def compare(reference: OnnxGraph, other: OnnxGraph, samples: list[Feed], dt_s: float) -> dict[str, float]:
    """How far the int8 graph is from fp32 on the same noise. Small numbers here do not prove that the arm behaves."""
    chunks = [np.concatenate([run(graph, feed) for feed in samples]) for graph in (reference, other)]  # 2 x (m, R, A)
    return differences(*chunks, dt_s)


def profile(path: Path, feed: Feed) -> list[dict[str, Any]]:
    """Every operator of one inference, and the precision that it really ran in."""
    with tempfile.TemporaryDirectory(prefix="vla_ros_profile_") as scratch:
        graph = OnnxGraph(path, scratch)
        run(graph, feed)
        return [{k: v for k, v in asdict(o).items() if k != "duration_us"} for o in operators(graph.end_profile())]


def write_int8(
    source: Path, folder: Path, held_out: list[Feed], calibration: list[Feed], dt_s: float
) -> dict[str, Any]:
    """The int8 graph and the self-test of a folder that has its fp32 graph. Returns the manifest's `precision`."""
    report = quantize(source, folder / INT8_GRAPH, calibration)
    graph = OnnxGraph(folder / INT8_GRAPH)
    report["against_fp32"] = compare(OnnxGraph(folder / FLOAT_GRAPH), graph, held_out, dt_s)
    report["operators"] = profile(folder / INT8_GRAPH, held_out[0])
    report["int8_ran"] = sum(o["kind"] in INT8_OPERATORS for o in report["operators"])
    test = held_out[0]
    np.savez_compressed(
        folder / SELF_TEST, **{k: test[k] for k in ("images", "text", "state", "noise")}, chunk=run(graph, test)
    )
    return report


def write_half(source: Path, target: Path) -> None:
    """fp32 graph -> fp16, inputs and outputs as they were."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(onnx.load(str(source)), keep_io_types=True)
    onnx.save(half, str(target))


def list_files(folder: Path) -> dict[str, manifests.FileEntry]:
    """The folder's graphs and self-test, for its manifest. Raises PolicyInvalid for more than may ship."""
    names = [n for n in (INT8_GRAPH, SELF_TEST, FLOAT_GRAPH, HALF_GRAPH, TENSORRT_GRAPH) if (folder / n).is_file()]
    files = {n: manifests.entry(folder / n) for n in names}
    size = sum(f.bytes for f in files.values())
    if size > POLICY_MAX_BYTES:
        raise PolicyInvalid(f"{folder}: {size} bytes, at most {POLICY_MAX_BYTES} ship; leave out a graph (--no-float)")
    return files


def export(
    run_folder: Path,
    out: Path,
    data_folders: Sequence[Path],
    contract: Contract,
    name: str = "tabletop",
    metrics: dict[str, Any] | None = None,
    keep_float: bool = True,
    extra: Sequence[str] = (),
) -> Manifest:
    """Make the complete folder, load it as a robot would, and return its manifest. Raises PolicyInvalid.

    extra: `fp16` and `tensorrt` add those graphs."""
    model, description = read_run(run_folder)
    c = model.config
    if description["contract_hash"] != contract.hash:
        raise PolicyInvalid(
            f"{run_folder}: trained for contract {description['contract_hash'][:12]}, loaded is {contract.hash[:12]}"
        )
    tokenizer = Tokenizer(tuple(description["vocabulary"]), c.text_tokens)
    held_out, calibration = recorded(data_folders, contract, tokenizer, c.rows, c.cols, c.prefix_max)

    out.mkdir(parents=True, exist_ok=True)
    for old in (manifests.FILE_NAME, FLOAT_GRAPH, INT8_GRAPH, HALF_GRAPH, TENSORRT_GRAPH, SELF_TEST):
        (out / old).unlink(missing_ok=True)
    write_graph(model, held_out[0], out / FLOAT_GRAPH)
    with tempfile.TemporaryDirectory(prefix="vla_ros_export_") as scratch:
        fused = Path(scratch) / "fused.onnx"
        write_graph(fuse(model), held_out[0], fused)
        worst = max(parity(model, OnnxGraph(path), held_out[:8]) for path in (out / FLOAT_GRAPH, fused))
        if not worst <= PARITY_MAX:
            raise PolicyInvalid(f"{out}: the graphs differ from torch by {worst:.2e} deviations, allowed {PARITY_MAX}")
        report = write_int8(fused, out, held_out, calibration, contract.action.dt_s)
    if "fp16" in extra:
        write_half(out / FLOAT_GRAPH, out / HALF_GRAPH)
    if "tensorrt" in extra:
        report["tensorrt"] = quantize(out / FLOAT_GRAPH, out / TENSORRT_GRAPH, calibration, "tensorrt")
    if not keep_float:
        (out / FLOAT_GRAPH).unlink()
    manifest = describe(
        model,
        description,
        contract,
        name,
        list_files(out),
        INT8_GRAPH,
        SELF_TEST,
        float_graph=FLOAT_GRAPH if keep_float else None,
        precision=report,
        metrics={"validation": description["validation"], "torch_parity": worst} | (metrics or {}),
    )
    (out / manifests.FILE_NAME).write_text(manifest.model_dump_json(indent=1))
    load(out, contract)
    return manifest


def requantize(folder: Path, out: Path, data_folders: Sequence[Path], contract: Contract) -> Manifest:
    """A policy folder's fp32 graph, quantized anew with these observations. Raises PolicyInvalid."""
    manifest = manifests.read(folder, contract.hash)
    if manifest.float_graph is None:
        raise PolicyInvalid(f"{folder}: has no fp32 graph to quantize; give the training run instead")
    tokenizer = Tokenizer(manifest.vocabulary, manifest.text_tokens)
    sizes = (manifest.rows, manifest.cols, manifest.prefix_max)
    held_out, calibration = recorded(data_folders, contract, tokenizer, *sizes)
    out.mkdir(parents=True, exist_ok=True)
    (out / FLOAT_GRAPH).write_bytes((folder / manifest.float_graph).read_bytes())
    report = write_int8(out / FLOAT_GRAPH, out, held_out, calibration, contract.action.dt_s)
    changes = {
        "files": list_files(out),
        "graph": INT8_GRAPH,
        "float_graph": FLOAT_GRAPH,
        "self_test": SELF_TEST,
        "precision": report,
    }
    manifest = Manifest.model_validate(manifest.model_dump() | changes)
    (out / manifests.FILE_NAME).write_text(manifest.model_dump_json(indent=1))
    load(out, contract)
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="run folder of `vla train`, or one of its snapshots")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="demonstrations, to calibrate and compare")
    parser.add_argument("--robot", default="panda")
    parser.add_argument("--name", default="tabletop")
    parser.add_argument("--metrics", type=Path, help="JSON of a closed-loop evaluation, put into the manifest")
    parser.add_argument("--no-float", action="store_true", help="do not ship the fp32 graph")
    parser.add_argument("--extra", nargs="*", default=[], choices=["fp16", "tensorrt"], help="further graphs")
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
            arguments.extra,
        )
    except (VlaError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(
        json.dumps(
            {
                "files": {n: f.bytes for n, f in manifest.files.items()},
                "precision": {k: v for k, v in manifest.precision.items() if k != "operators"},
                "metrics": manifest.metrics,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
