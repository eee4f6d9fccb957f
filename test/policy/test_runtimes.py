"""Every way to run a policy gives the same answer; what it costs is counted, not guessed."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from vla_ros.policy import PolicyInvalid, load
from vla_ros.policy.runtimes import RUNTIMES, open_policy

pytestmark = pytest.mark.unit
TEXT = "pick up the red cube"


def answer(runtime, observation):
    return runtime.infer(observation, TEXT, np.random.default_rng(0))


@pytest.mark.parametrize("name, tolerance", [("fp32", 1e-4), ("int8", 0.5), ("torch-bf16", 0.5)])
def test_runtimes_agree_with_torch_in_fp32(trained, policy_folder, contract, observation, name, tolerance):
    reference = open_policy(trained, contract, "torch")
    other = open_policy(trained if name.startswith("torch") else policy_folder, contract, name)
    ours, theirs = answer(other, observation), answer(reference, observation)
    std = np.asarray(reference.manifest.action_std)
    assert np.abs((ours.data - theirs.data) / std)[:, :-1].max() < tolerance  # the gripper is cut to 0..1
    assert ours.done_probability == pytest.approx(theirs.done_probability, abs=tolerance)
    assert other.precision != reference.precision


def test_openvino_agrees_with_onnxruntime(policy_folder, contract, observation):
    pytest.importorskip("openvino")
    ours, theirs = (answer(open_policy(policy_folder, contract, name), observation) for name in ("openvino", "fp32"))
    assert np.abs(ours.data - theirs.data).max() < 1e-4


def test_a_runtime_that_is_unknown_or_absent_says_what_to_do(policy_folder, contract):
    with pytest.raises(PolicyInvalid, match="allowed: int8, fp32"):
        open_policy(policy_folder, contract, "tensorrt")
    with pytest.raises(PolicyInvalid, match=r"policy\.fp16\.onnx"):
        open_policy(policy_folder, contract, "fp16")
    if "openvino" not in sys.modules:
        try:
            import openvino  # noqa: F401
        except ImportError:
            with pytest.raises(PolicyInvalid, match="pip install"):
                open_policy(policy_folder, contract, "openvino")
    assert set(RUNTIMES) >= {"int8", "fp32", "fp16", "torch", "torch-bf16", "openvino"}


def test_the_roofline_counts_what_a_known_graph_does(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    from vla_ros.policy.roofline import MACHINES, estimate

    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [10, 64])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [10, 32])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [64, 32], np.zeros(64 * 32, np.float32))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [given], [result], [weight])
    onnx.save(helper.make_model(graph), str(tmp_path / "g.onnx"))
    facts = estimate(tmp_path / "g.onnx")
    elements = 10 * 64 + 64 * 32 + 10 * 32
    assert facts["gflop_per_chunk"] == pytest.approx(2 * 10 * 64 * 32 / 1e9)
    assert facts["mbyte_per_chunk"] == pytest.approx({"fp16": 2 * elements / 1e6, "int8": elements / 1e6})
    nano = MACHINES[0]
    least_ms = facts["machines"][nano.name]["least_ms"]["fp16"]
    assert least_ms == pytest.approx(2 * elements / (nano.bandwidth_gb_s * 1e9) * 1e3), "bound by bandwidth"
    assert "estimate" in facts["label"]


def test_a_runtime_is_measured_alone_in_its_process(policy_folder):
    command = [sys.executable, "-m", "vla_ros.policy.measure", str(policy_folder), "--runtime", "int8", "-n", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    steps = [step["rss"] for step in facts["memory_mb"].values()]
    assert facts["n"] == 3 and 0 < facts["processor_ms"]["min"] <= facts["latency_ms"]["p99"]
    assert 0 < steps[0] < steps[-1] and "int8" in facts["precision"]


def test_measuring_what_is_not_there_fails_with_one_line(tmp_path):
    command = [sys.executable, "-m", "vla_ros.policy.measure", str(tmp_path / "none"), "--runtime", "int8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "no such folder" in done.stderr and "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------ vla quantize


def played(failures: int):
    from vla_ros.training.scores import Episode

    def play(*_):
        plain = [Episode(k, "pick", TEXT, True, False, True, 3.0, "", jerk_mean_rad_s3=9.0) for k in range(200)]
        worse = [
            Episode(k, "pick", TEXT, k >= failures, False, True, 3.0, "", jerk_mean_rad_s3=9.0) for k in range(200)
        ]
        return plain, worse

    return play


def quantize(source, demonstrations, out, failures):
    from vla_ros.cli.quantize import run

    return run(
        source,
        [demonstrations],
        out,
        robot="panda",
        name="tiny",
        extra=[],
        episodes=200,
        seed=0,
        workers=1,
        say=lambda line: None,
        play=played(failures),
    )


def test_quantize_writes_a_gated_policy_that_can_be_installed(policy_folder, demonstrations, contract, tmp_path):
    from vla_ros.cli.report import CliError
    from vla_ros.policy.install import Installed, Smoke

    out = tmp_path / "new"
    facts = quantize(policy_folder, demonstrations, out, failures=2)
    assert facts["passed"] and "QLinearConv" in (out / "quantization.md").read_text()
    assert json.loads((out / "quantization.json").read_text())["gate"]["facts"]["only_float"] == 2
    Installed(tmp_path / "policies", contract).install(out, lambda _: Smoke(6, 6, 0))
    with pytest.raises(CliError, match="nothing is overwritten"):
        quantize(policy_folder, demonstrations, out, failures=0)


def test_quantize_refuses_what_lost_success_and_keeps_it_where_nothing_installs_it(
    policy_folder, demonstrations, contract, tmp_path
):
    from vla_ros.cli.report import CliError
    from vla_ros.policy.install import Installed, Smoke

    with pytest.raises(CliError, match="loss of success"):
        quantize(policy_folder, demonstrations, tmp_path / "new", failures=9)
    assert [p.name for p in tmp_path.iterdir()] == ["new.refused"]
    assert "loss of success" in (tmp_path / "new.refused" / "quantization.md").read_text()
    assert load(tmp_path / "new.refused", contract).precision.startswith("int8")
    with pytest.raises(PolicyInvalid, match="refused for loss of success"):
        Installed(tmp_path / "policies", contract).install(tmp_path / "new.refused", lambda _: Smoke(6, 6, 0))


def test_a_calibration_set_of_another_contract_is_refused(policy_folder, demonstrations, tmp_path):
    import shutil

    other = shutil.copytree(demonstrations, tmp_path / "other")
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"contract_hash": "0" * 64}))
    with pytest.raises(Exception, match="contract"):
        quantize(policy_folder, other, tmp_path / "new", failures=0)
    assert not (tmp_path / "new").exists()
