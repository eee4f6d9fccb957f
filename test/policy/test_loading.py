"""Loading and running a policy folder: what is accepted, what is refused and how it says so."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vla_ros.core.errors import Invalid, Refused
from vla_ros.policy import PolicyInvalid, load
from vla_ros.policy.manifest import FILE_NAME

pytestmark = pytest.mark.unit
TEXT = "pick up the red cube"


@pytest.fixture
def copy(policy_folder, tmp_path) -> Path:
    return shutil.copytree(policy_folder, tmp_path / "policy")


@pytest.fixture(scope="module")
def runtime(policy_folder, contract):
    return load(policy_folder, contract)


def edit_manifest(folder: Path, **changes) -> None:
    path = folder / FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ------------------------------------------------------------------------------------------------ running


def test_a_chunk_has_the_contracts_shape_and_is_finite(runtime, contract, observation):
    output = runtime.infer(observation, TEXT, np.random.default_rng(0))
    assert output.data.shape == (contract.action.rows, 7) and output.data.dtype == np.float64
    assert np.isfinite(output.data).all()
    assert (output.data[:, 6] >= 0).all() and (output.data[:, 6] <= 1).all()
    assert 0 <= output.done_probability <= 1 and 0 <= output.confidence <= 1 and output.inference_s > 0


def test_the_same_noise_gives_the_same_chunk_and_other_noise_another(runtime, observation):
    a, b, c = (runtime.infer(observation, TEXT, np.random.default_rng(seed)).data for seed in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_a_committed_prefix_is_kept(runtime, observation):
    prefix = np.full((3, 7), 0.02)
    data = runtime.infer(observation, TEXT, np.random.default_rng(0), prefix).data
    assert np.allclose(data[:3], prefix, atol=1e-4)


def test_int8_graph_agrees_with_the_float_graph_and_says_what_it_runs(policy_folder, runtime, contract, observation):
    reference = load(policy_folder, contract, "policy.fp32.onnx")
    assert reference.precision.startswith("fp32") and runtime.precision.startswith("int8 (QDQ): ")
    assert len(runtime.precision) <= 128 and runtime.checkpoint_hash != reference.checkpoint_hash
    difference = [p.infer(observation, TEXT, np.random.default_rng(0)).data for p in (runtime, reference)]
    std = np.asarray(runtime.manifest.action_std)
    assert np.abs((difference[0] - difference[1]) / std).max() < 0.2


def test_exported_graph_agrees_with_torch(policy_folder, trained, contract, observation):
    from vla_ros.policy.torch_runtime import load_run

    reference, graph = load_run(trained, contract), load(policy_folder, contract, "policy.fp32.onnx")
    for prefix in (None, np.full((4, 7), 0.01)):
        a, b = (p.infer(observation, TEXT, np.random.default_rng(3), prefix) for p in (reference, graph))
        assert np.allclose(a.data, b.data, atol=1e-4)
        assert abs(a.done_probability - b.done_probability) < 1e-4 and abs(a.confidence - b.confidence) < 1e-4


def test_quantizers_have_zero_points_of_zero(policy_folder):
    from vla_ros.policy.quantize import nonzero_zero_points

    assert nonzero_zero_points(policy_folder / "policy.int8.onnx") == 0


def test_sentences_are_judged_by_the_manifests_lexicon(runtime):
    runtime.judge(TEXT)
    with pytest.raises(Refused, match="kettle"):
        runtime.judge("lift the kettle")


@pytest.mark.parametrize(
    "change",
    [
        {"contract_hash": "0" * 64},
        {"images": {}},
        {"images": {"scene": np.zeros((64, 64, 3), np.uint8), "wrist": np.zeros((112, 112, 3), np.uint8)}},
        {"q_rad": np.full(7, np.nan)},
        {"gripper_width_m": float("nan")},
    ],
)
def test_an_observation_that_does_not_fit_is_refused(runtime, observation, change):
    with pytest.raises(Invalid):
        runtime.infer(dataclasses.replace(observation, **change), TEXT, np.random.default_rng(0))


@pytest.mark.parametrize("prefix", [np.zeros((7, 7)), np.zeros((2, 3)), np.full((2, 7), np.nan), np.zeros(7)])
def test_a_prefix_that_does_not_fit_is_refused(runtime, observation, prefix):
    with pytest.raises(Invalid, match="prefix"):
        runtime.infer(observation, TEXT, np.random.default_rng(0), prefix)


# ------------------------------------------------------------------------------------------------ refusing


def refused(folder, contract, *words: str) -> None:
    with pytest.raises(PolicyInvalid) as error:
        load(folder, contract)
    for word in words:
        assert word in str(error.value)


def test_a_folder_that_is_missing_or_empty_is_refused(tmp_path, contract):
    refused(tmp_path / "nothing", contract, "no such folder")
    refused(tmp_path, contract, FILE_NAME, "missing")


@pytest.mark.parametrize("name", ["policy.int8.onnx", "policy.fp32.onnx", "self_test.npz"])
def test_a_truncated_file_is_refused(copy, contract, name):
    with (copy / name).open("r+b") as file:
        file.truncate((copy / name).stat().st_size // 2)
    refused(copy, contract, name, "truncated or altered")


@pytest.mark.parametrize("name", ["policy.int8.onnx", "self_test.npz"])
def test_an_altered_file_is_refused(copy, contract, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    refused(copy, contract, name, "SHA-256")


def test_a_missing_file_is_refused(copy, contract):
    (copy / "self_test.npz").unlink()
    refused(copy, contract, "self_test.npz", "missing")


def test_a_policy_of_another_contract_is_refused(copy, contract):
    edit_manifest(copy, contract_hash="ab" * 32)
    refused(copy, contract, "contract_hash", "another body")


def test_a_manifest_that_is_not_one_is_refused(copy, contract):
    (copy / FILE_NAME).write_text("{")
    refused(copy, contract, FILE_NAME, "JSON")
    (copy / FILE_NAME).write_bytes(b"x" * 3_000_000)
    refused(copy, contract, FILE_NAME, "at most")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"rows": 0},
        {"unheard_of": 1},
        {"graph": "other.onnx"},
        {"files": {}},
        {"files": {"../policy.onnx": {"sha256": "0" * 64, "bytes": 1}}},
        {"files": {"weights.pt": {"sha256": "0" * 64, "bytes": 1}}},
    ],
)
def test_a_manifest_with_a_wrong_entry_is_refused(copy, contract, changes):
    edit_manifest(copy, **changes)
    refused(copy, contract, FILE_NAME, *list(changes)[:1] if "format" in changes else ())


def test_a_pickle_is_refused_by_name_and_by_content_and_never_opened(copy, contract, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "boom"),))

    for name in ("weights.pt", "weights.safetensors"):
        (copy / name).write_bytes(pickle.dumps(Bomb()))
        refused(copy, contract, name, "pickle")
        (copy / name).unlink()
    assert not (tmp_path / "boom").exists()
    load(copy, contract)


def test_what_only_looks_like_a_pickle_is_not_refused_and_archives_are_opened(tmp_path):
    import zipfile

    import torch
    from safetensors.numpy import save_file

    from vla_ros.policy.manifest import is_pickle

    weights = tmp_path / "weights.safetensors"
    for size in range(500, 700):  # until the header is 0x0280 long, as PROTO 2 begins
        save_file({"x" * size: np.zeros(3, dtype=np.float32)}, weights)
        if weights.read_bytes()[:2] == b"\x80\x02":
            break
    assert weights.read_bytes()[:2] == b"\x80\x02" and not is_pickle(weights)
    np.savez_compressed(tmp_path / "plain.npz", a=np.arange(3), b=np.zeros((2, 2)))
    assert not is_pickle(tmp_path / "plain.npz")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    torch.save({"a": torch.zeros(1)}, tmp_path / "renamed.onnx")
    with zipfile.ZipFile(tmp_path / "archive.npz", "w") as archive:
        archive.writestr("a.npy", pickle.dumps({"a": 1}))
    for name in ("objects.npz", "renamed.onnx", "archive.npz"):
        assert is_pickle(tmp_path / name), name


def test_a_graph_that_differs_from_its_manifest_is_refused(copy, contract):
    edit_manifest(copy, rows=8, action_std=[[1.0] * 7] * 8, action_mean=[[0.0] * 7] * 8)
    refused(copy, contract, "policy.int8.onnx", "the manifest says")


def test_a_graph_that_answers_differently_than_when_it_was_exported_is_refused(copy, contract):
    from vla_ros.policy.manifest import entry

    with np.load(copy / "self_test.npz") as stored:
        data = dict(stored)
    np.savez_compressed(copy / "self_test.npz", **data | {"chunk": data["chunk"] + 1.0})
    files = json.loads((copy / FILE_NAME).read_text())["files"]
    edit_manifest(copy, files=files | {"self_test.npz": entry(copy / "self_test.npz").model_dump()})
    refused(copy, contract, "self_test.npz", "self-test is off")


def test_the_runtime_needs_no_torch(policy_folder):
    program = f"""
import sys
sys.modules["torch"] = None  # an import of it fails
import numpy as np
from vla_ros.core import contract as contracts
from vla_ros.core.types import Observation
from vla_ros.policy import load
c = contracts.load("panda")
policy = load({str(policy_folder)!r}, c)
images = {{k.name: np.zeros((k.policy_px, k.policy_px, 3), np.uint8) for k in c.cameras}}
o = Observation(1, 1, c.hash, images, c.poses.ready_rad, np.zeros(7), 0.08)
policy.judge({TEXT!r})
print(policy.infer(o, {TEXT!r}, np.random.default_rng(0)).data.shape)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "(16, 7)"
