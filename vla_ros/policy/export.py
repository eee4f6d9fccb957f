"""A training run, or a policy folder with weights -> a policy folder: ONNX graphs, weights, self-test, manifest.

The fp32 graph has standard operators alone, so that every engine takes it; the int8 graph is made for ONNX Runtime from
the fused form of the model (`fused.py`). Both come in two parts (`split.py`). The denoising steps are unrolled and
physical units are inside the graphs: whoever runs one needs numpy and ONNX Runtime.

`vla quantize RUN --data DEMONSTRATIONS --out FOLDER` does this, then the gate. Without the gate:

    python -m vla_ros.policy.export RUN --out FOLDER --data DEMONSTRATIONS
"""

from __future__ import annotations

import argparse
import json
import shutil
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
from vla_ros.policy.feeds import Feed, recorded
from vla_ros.policy.fused import fuse
from vla_ros.policy.gate import differences
from vla_ros.policy.manifest import Manifest, PolicyInvalid, text_part
from vla_ros.policy.model import Policy
from vla_ros.policy.onnx_graph import INPUTS, INT8_OPERATORS, OUTPUTS, OnnxGraph, operators
from vla_ros.policy.quantize import quantize
from vla_ros.policy.runtime import load
from vla_ros.policy.runtimes import FLOAT_GRAPH, HALF_GRAPH
from vla_ros.policy.split import split
from vla_ros.policy.tokenizer import Tokenizer
from vla_ros.policy.torch_runtime import WEIGHTS, describe, read_run
from vla_ros.training.checkpoint import read_start

OPSET = 17
PARITY_MAX = 1e-3  # deviations of the action between torch and fp32 ONNX; measured about 1e-5
FUSED_PARITY_MAX = 1e-2  # of the fused form: half a grey level in the frame of a picture; measured 1.2e-3
POLICY_MAX_BYTES = 20_000_000
INT8_GRAPH, SELF_TEST = "policy.int8.onnx", "self_test.npz"
TENSORRT_GRAPH = "policy.int8.tensorrt.onnx"
FLOAT_PARTS = (FLOAT_GRAPH, text_part(FLOAT_GRAPH))
GRAPHS = (INT8_GRAPH, FLOAT_GRAPH, HALF_GRAPH, TENSORRT_GRAPH)


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


def write_parts(whole: Path, path: Path, feed: Feed) -> None:
    """`path` and its text part, of a whole graph."""
    split(whole, path, path.with_name(text_part(path.name)), feed["text"])


def opened(path: Path, profile_folder: str | None = None) -> OnnxGraph:
    """A graph that this module wrote, with its text part."""
    text = path.with_name(text_part(path.name))
    return OnnxGraph(path, text if text.is_file() else None, profile_folder)


def heard(path: Path, samples: list[Feed]) -> list[Feed]:
    """The feeds of a graph without its text part: what that gives, in place of the text."""
    import onnxruntime

    text = path.with_name(text_part(path.name))
    session = onnxruntime.InferenceSession(str(text), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return [
        {k: v for k, v in feed.items() if k != "text"}
        | dict(zip(names, session.run(names, {"text": feed["text"]}), strict=True))
        for feed in samples
    ]


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
        graph = opened(path, scratch)
        run(graph, feed)
        return [{k: v for k, v in asdict(o).items() if k != "duration_us"} for o in operators(graph.end_profile())]


def write_int8(
    source: Path, folder: Path, held_out: list[Feed], calibration: list[Feed], dt_s: float
) -> dict[str, Any]:
    """The int8 graph, its text part and the self-test of a folder that has its fp32 graph. `source`: the fused form, in
    parts. Returns the manifest's `precision`."""
    target = folder / INT8_GRAPH
    report = quantize(source, target, heard(source, calibration))
    shutil.copyfile(source.with_name(text_part(source.name)), folder / text_part(INT8_GRAPH))
    graph = opened(target)
    report["against_fp32"] = compare(opened(folder / FLOAT_GRAPH), graph, held_out, dt_s)
    report["operators"] = profile(target, held_out[0])
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
    """The folder's graphs, weights and self-test, for its manifest."""
    names = [name for graph in GRAPHS for name in (graph, text_part(graph))] + [WEIGHTS, SELF_TEST]
    return {name: manifests.entry(folder / name) for name in names if (folder / name).is_file()}


def size(folder: Path, without: Sequence[str] = ()) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name not in without)


def slim(folder: Path) -> None:
    """Leave the fp32 graph out of a folder that is larger than may ship: its weights hold the same
    (`runtimes.float_folder`)."""
    manifest = Manifest.model_validate_json((folder / manifests.FILE_NAME).read_bytes())
    if size(folder) > POLICY_MAX_BYTES and manifest.float_graph is not None:
        for name in FLOAT_PARTS:
            (folder / name).unlink()
        manifest = manifest.model_copy(update={"files": list_files(folder), "float_graph": None})
        (folder / manifests.FILE_NAME).write_text(manifest.model_dump_json(indent=1))


def read_source(folder: Path, contract: Contract) -> tuple[Policy, dict[str, Any]]:
    """Model and description of a training run, a snapshot, or a policy folder with weights. Raises PolicyInvalid."""
    if not (folder / manifests.FILE_NAME).is_file():
        return read_run(folder)
    model, _ = read_start(folder, contract.hash)
    manifest = manifests.read(folder, contract.hash)
    kept = ("model", "contract_hash", "data", "training", "confidence_temperature")
    description = {key: getattr(manifest, key) for key in kept}
    more = {"vocabulary": list(manifest.vocabulary), "validation": manifest.metrics.get("validation", {})}
    return model, description | more


def export(
    source: Path,
    out: Path,
    data_folders: Sequence[Path],
    contract: Contract,
    name: str = "tabletop",
    metrics: dict[str, Any] | None = None,
    extra: Sequence[str] = (),
) -> Manifest:
    """Make the complete folder, load it as a robot would, and return its manifest. Raises PolicyInvalid.

    source: see `read_source`. extra: `fp16` and `tensorrt` add those graphs."""
    model, description = read_source(source, contract)
    c = model.config
    if description["contract_hash"] != contract.hash:
        raise PolicyInvalid(
            f"{source}: trained for contract {description['contract_hash'][:12]}, loaded is {contract.hash[:12]}"
        )
    tokenizer = Tokenizer(tuple(description["vocabulary"]), c.text_tokens)
    held_out, calibration = recorded(data_folders, contract, tokenizer, c.rows, c.cols, c.prefix_max)

    out.mkdir(parents=True, exist_ok=True)
    for old in (manifests.FILE_NAME, *list_files(out)):
        (out / old).unlink(missing_ok=True)
    shutil.copyfile(source / WEIGHTS, out / WEIGHTS)
    with tempfile.TemporaryDirectory(prefix="vla_ros_export_") as scratch:
        standard, fused = Path(scratch) / "standard.onnx", Path(scratch) / "fused.onnx"
        write_graph(model, held_out[0], standard)
        write_parts(standard, out / FLOAT_GRAPH, held_out[0])
        write_graph(fuse(model), held_out[0], fused)
        write_parts(fused, fused.with_name("parts.onnx"), held_out[0])
        for path, allowed in ((fused, FUSED_PARITY_MAX), (out / FLOAT_GRAPH, PARITY_MAX)):
            worst = parity(model, opened(path), held_out[:8])
            if not worst <= allowed:
                raise PolicyInvalid(f"{out}: {path.name} is {worst:.2e} deviations from torch, allowed {allowed}")
        report = write_int8(fused.with_name("parts.onnx"), out, held_out, calibration, contract.action.dt_s)
        if "fp16" in extra:
            write_half(standard, out / HALF_GRAPH)
        if "tensorrt" in extra:
            report["tensorrt"] = quantize(standard, out / TENSORRT_GRAPH, calibration, "tensorrt")
    manifest = describe(
        model,
        description,
        contract,
        name,
        list_files(out),
        INT8_GRAPH,
        SELF_TEST,
        float_graph=FLOAT_GRAPH,
        precision=report,
        metrics={"validation": description["validation"], "torch_parity": worst} | (metrics or {}),
    )
    (out / manifests.FILE_NAME).write_text(manifest.model_dump_json(indent=1))
    load(out, contract)
    if size(out, FLOAT_PARTS) > POLICY_MAX_BYTES:
        raise PolicyInvalid(f"{out}: {size(out, FLOAT_PARTS)} bytes, at most {POLICY_MAX_BYTES} ship; a smaller model")
    return manifest


def write_float(folder: Path, out: Path, contract: Contract) -> None:
    """A policy folder without its fp32 graph -> one at `out` that runs it. Raises PolicyInvalid."""
    manifest = manifests.read(folder, contract.hash)
    model, _ = read_source(folder, contract)
    with np.load(folder / manifest.self_test, allow_pickle=False) as stored:
        feed = {k: stored[k] for k in ("images", "text", "state", "noise")}
    feed["prefix"] = np.zeros((1, manifest.rows, manifest.cols), dtype=np.float32)
    feed["prefix_rows"] = np.zeros(1, dtype=np.int64)
    shutil.copyfile(folder / manifest.self_test, out / SELF_TEST)
    with tempfile.TemporaryDirectory(prefix="vla_ros_export_") as scratch:
        write_graph(model, feed, Path(scratch) / "standard.onnx")
        write_parts(Path(scratch) / "standard.onnx", out / FLOAT_GRAPH, feed)
    changes = {"files": list_files(out), "graph": FLOAT_GRAPH, "float_graph": FLOAT_GRAPH, "self_test": SELF_TEST}
    (out / manifests.FILE_NAME).write_text(manifest.model_copy(update=changes).model_dump_json(indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="run folder of `vla train`, or one of its snapshots")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="demonstrations, to calibrate and compare")
    parser.add_argument("--robot", default="panda")
    parser.add_argument("--name", default="tabletop")
    parser.add_argument("--metrics", type=Path, help="JSON of a closed-loop evaluation, put into the manifest")
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
            arguments.extra,
        )
        slim(arguments.out)
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
