"""The int8 graph: the same function as the model, in the precision it says, and not shipped unless it behaves."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from vla_ros.policy import PolicyInvalid, gate, load
from vla_ros.policy.manifest import FILE_NAME
from vla_ros.policy.onnx_graph import INT8_OPERATORS
from vla_ros.training.scores import Episode, paired

pytestmark = pytest.mark.unit
TINY = {
    "vocabulary": 24,
    "text_tokens": 18,
    "width": 32,
    "heads": 2,
    "layers": 2,
    "mlp_ratio": 2,
    "action_queries": 2,
    "stem": (8, 8, 8, 8),
    "keypoints": 4,
    "keypoint_tokens": 2,
    "patch_grid": 2,
    "steps": 2,
}


# ------------------------------------------------------------------------------------------------ the fused form


@pytest.fixture(scope="module")
def fused_and_model():
    torch = pytest.importorskip("torch")
    from vla_ros.policy.fused import fuse
    from vla_ros.policy.model import ModelConfig, Policy

    torch.manual_seed(1)
    model = Policy(ModelConfig(**TINY)).eval()
    for block in model.head.blocks:  # a trained head's modulation is not zero, a fresh one's is
        torch.nn.init.normal_(block.modulation.weight, std=0.3)
        torch.nn.init.constant_(block.gate, 0.7)
    torch.nn.init.normal_(model.head.leave.weight, std=0.1)
    return fuse(model), model


def sample(model, rows_given: int, words: int):
    import torch

    c = model.config
    generator = torch.Generator().manual_seed(rows_given)
    images = torch.randint(0, 256, (1, c.cameras, c.image_px, c.image_px, 3), generator=generator).to(torch.uint8)
    ids = torch.zeros(1, c.text_tokens, dtype=torch.int64)
    ids[0, :words] = torch.arange(2, 2 + words)
    state, noise, prefix = (
        torch.randn(1, *shape, generator=generator) for shape in ((c.state_dim,), (c.rows, c.cols), (c.rows, c.cols))
    )
    return images, ids, state, noise, prefix * 0.01, torch.tensor([rows_given])


@pytest.mark.parametrize("rows_given, words", [(0, 3), (4, 18)])
def test_the_fused_form_computes_what_the_model_computes(fused_and_model, rows_given, words):
    import torch

    fused, model = fused_and_model
    given = sample(model, rows_given, words)
    with torch.inference_mode():
        ours, theirs = fused(*given), model(*given)
    assert float(((ours[0] - theirs[0]) / model.action_std).abs().max()) < 1e-4
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours[1:], theirs[1:], strict=True))


def test_fusing_leaves_the_model_alone(fused_and_model):
    from vla_ros.policy.fused import fuse

    _, model = fused_and_model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fuse(model)
    assert all((before[name] == value).all() for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------------ the graph


def test_what_is_chosen_runs_in_int8_and_the_heads_attention_does_not(policy_folder):
    precision = json.loads((policy_folder / FILE_NAME).read_text())["precision"]
    ran = precision["operators"]
    small = sum(o["kind"] in INT8_OPERATORS for o in ran)
    assert small == precision["int8_ran"] and 0.8 * precision["int8_nodes"] <= small <= precision["int8_nodes"]
    head = [o for o in ran if o["node"].startswith("/head/")]
    assert head and all(o["precision"] != "int8" for o in head)
    assert any(o["kind"] == "MultiHeadAttention" for o in head)
    # Where a keypoint is: softmax weights times the cells' coordinates.
    read = [o for o in ran if "/cameras." in o["node"] and "/MatMul" in o["node"]]
    assert read and not INT8_OPERATORS & {o["kind"] for o in read}


def test_zero_points_are_zero_for_both_engines(policy_folder, demonstrations, contract, trained, tmp_path):
    import onnx

    from vla_ros.policy.export import export
    from vla_ros.policy.quantize import nonzero_zero_points

    assert nonzero_zero_points(policy_folder / "policy.int8.onnx") == 0
    export(trained, tmp_path / "all", [demonstrations], contract, "tiny", extra=("fp16", "tensorrt"))
    path = tmp_path / "all" / "policy.int8.tensorrt.onnx"
    graph = onnx.load(str(path)).graph
    assert nonzero_zero_points(path) == 0 and {node.domain for node in graph.node} <= {"", "ai.onnx"}
    zero_points = {n.input[2] for n in graph.node if n.op_type == "QuantizeLinear"}
    types = {i.data_type for i in graph.initializer if i.name in zero_points}
    assert types == {onnx.TensorProto.INT8}, "TensorRT takes no unsigned integers"
    half = load(tmp_path / "all", contract, "policy.fp16.onnx")
    assert half.precision.startswith(("fp16", "fp32"))  # ONNX Runtime has few fp16 kernels for x86; what ran is said


def test_a_policy_folder_makes_itself_again(policy_folder, demonstrations, contract, observation, tmp_path):
    from vla_ros.policy.export import export

    manifest = export(policy_folder, tmp_path / "again", [demonstrations], contract)
    assert manifest.precision["int8_nodes"] > 0
    ours, theirs = (load(folder, contract) for folder in (tmp_path / "again", policy_folder))
    a, b = (p.infer(observation, "pick up the red cube", np.random.default_rng(0)).data for p in (ours, theirs))
    assert np.abs((a - b) / np.asarray(manifest.action_std)).max() < 0.5


def test_a_graph_with_another_output_than_the_manifest_says_is_refused(policy_folder, contract, tmp_path):
    import shutil

    import onnx

    from vla_ros.policy.manifest import entry

    folder = shutil.copytree(policy_folder, tmp_path / "policy")
    path = folder / "policy.int8.onnx"
    model = onnx.load(str(path))
    model.graph.output[0].name = "actions"
    for node in model.graph.node:
        node.output[:] = ["actions" if name == "chunk" else name for name in node.output]
    onnx.save(model, str(path))
    text = json.loads((folder / FILE_NAME).read_text())
    text["files"][path.name] = entry(path).model_dump()
    (folder / FILE_NAME).write_text(json.dumps(text))
    with pytest.raises(PolicyInvalid, match=r"output 'actions' is .* the manifest says there is none"):
        load(folder, contract)


# ------------------------------------------------------------------------------------------------ the two parts


def test_the_text_part_runs_once_for_a_sentence_and_again_for_another(policy_folder, contract, observation):
    policy = load(policy_folder, contract)
    sentence, counted = policy._graph._sentence, []
    compute = sentence._compute
    sentence._compute = lambda ids: counted.append(1) or compute(ids)

    def chunk(text: str) -> np.ndarray:
        return policy.infer(observation, text, np.random.default_rng(0)).data

    red = chunk("pick up the red cube")
    again = chunk("pick up the red cube")
    blue = chunk("push the blue ball to the left")
    assert len(counted) == 2 and (red == again).all() and (red != blue).any()
    assert (chunk("pick up the red cube") == red).all(), "an old sentence must not stick"


def test_a_text_part_of_another_export_is_refused(policy_folder, contract, tmp_path):
    import shutil

    import onnx

    from vla_ros.policy.manifest import entry

    folder = shutil.copytree(policy_folder, tmp_path / "policy")
    path = folder / "policy.int8.text.onnx"
    model = onnx.load(str(path))
    old = model.graph.output[0].name
    model.graph.output[0].name = "other"
    for node in model.graph.node:
        node.output[:] = ["other" if name == old else name for name in node.output]
    onnx.save(model, str(path))
    text = json.loads((folder / FILE_NAME).read_text())
    text["files"][path.name] = entry(path).model_dump()
    (folder / FILE_NAME).write_text(json.dumps(text))
    with pytest.raises(PolicyInvalid, match=r"does not fit its text part: .*other"):
        load(folder, contract)


def test_a_folder_without_its_fp32_graph_makes_it_of_its_weights(
    policy_folder, contract, observation, tmp_path, monkeypatch
):
    import shutil

    from vla_ros.policy import export
    from vla_ros.policy.runtimes import open_policy

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = shutil.copytree(policy_folder, tmp_path / "policy")
    monkeypatch.setattr(export, "POLICY_MAX_BYTES", 1)
    export.slim(folder)
    assert not (folder / "policy.fp32.onnx").exists()
    ours, theirs = (open_policy(f, contract, "fp32") for f in (folder, policy_folder))
    a, b = (p.infer(observation, "pick up the red cube", np.random.default_rng(0)).data for p in (ours, theirs))
    assert ours.precision.startswith("fp32") and np.abs(a - b).max() < 1e-6
    (folder / "policy.safetensors").write_bytes(b"")
    with pytest.raises(PolicyInvalid, match=r"policy\.safetensors"):
        open_policy(folder, contract, "fp32")


# ------------------------------------------------------------------------------------------------ the gate

FINE = {
    "position_rmse_mm": 0.5,
    "position_p99_mm": 1.0,
    "rotation_rmse_rad": 0.001,
    "gripper_flips": 0.0,
    "gripper_shift_s": 0.0,
}


def episodes(n: int, failures: int, jerk: float = 100.0) -> list[Episode]:
    plain = Episode(0, "pick", "pick up the red cube", True, False, True, 3.0, "", jerk_mean_rad_s3=jerk)
    return [dataclasses.replace(plain, seed=k, success=k >= failures) for k in range(n)]


def verdict(reference, quantized, difference=FINE):
    only = paired([e.success for e in quantized], [e.success for e in reference])
    return gate.judge(reference, quantized, difference, only)


def failed(result) -> list[str]:
    return [c.name for c in result.criteria if not c.passed]


def test_a_policy_that_behaves_as_its_float_form_passes():
    assert verdict(episodes(200, 4), episodes(200, 8, 104.0)).passed


@pytest.mark.parametrize(
    "quantized, name",
    [
        (episodes(200, 9), "loss of success"),
        (episodes(200, 4, 106.0), "mean jerk, ratio"),
        (episodes(200, 4, float("nan")), "mean jerk, ratio"),
        (episodes(200, 3) + [dataclasses.replace(episodes(1, 0)[0], violations=["jerk"])], "paired episodes"),
        ([dataclasses.replace(e, violations=["jerk 5 above its limit"]) for e in episodes(200, 4)], "episodes with"),
    ],
)
def test_a_policy_that_behaves_worse_is_refused(quantized, name):
    reference = episodes(200, 4)
    result = gate.judge(reference, quantized, FINE, (0, 0, 1.0))
    assert not result.passed and any(c.startswith(name) for c in failed(result))


@pytest.mark.parametrize("key", ["position_rmse_mm", "rotation_rmse_rad", "gripper_flips", "gripper_shift_s"])
@pytest.mark.parametrize("value", [10.0, float("nan")])
def test_actions_that_are_far_off_or_not_numbers_are_refused(key, value):
    assert len(failed(verdict(episodes(200, 4), episodes(200, 4), FINE | {key: value}))) == 1


def test_too_few_episodes_prove_nothing():
    assert failed(verdict(episodes(199, 0), episodes(199, 0))) == ["paired episodes"]


def test_the_gripper_shift_is_the_time_between_the_two_changes_of_mind():
    chunks = np.ones((3, 16, 7))
    late = chunks.copy()
    chunks[0, 5:, -1], late[0, 7:, -1] = 0.0, 0.0  # two rows apart; the others never change
    found = gate.differences(chunks, late, dt_s=0.05)
    assert found["gripper_shift_s"] == pytest.approx(0.1) and found["gripper_flips"] == pytest.approx(2 / 48)
    assert found["position_rmse_mm"] == 0.0


def test_the_report_names_every_criterion_and_operator():
    result = verdict(episodes(200, 4), episodes(200, 9))
    precision = {
        "scheme": "static",
        "int8_nodes": 1,
        "int8_ran": 1,
        "calibration_samples": 64,
        "float_nodes": {"small": 2},
        "operators": [{"node": "/a/Conv", "kind": "QLinearConv", "precision": "int8"}],
    }
    text = gate.markdown("tiny", precision, result)
    assert "refused" in text and "QLinearConv" in text and all(c.name in text for c in result.criteria)
