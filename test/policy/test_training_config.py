"""The training file, the schedules, and which number format is chosen."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from vla_ros import paths  # noqa: E402
from vla_ros.cli.main import app  # noqa: E402
from vla_ros.training.config import ConfigInvalid, TrainConfig, learning_rate_factor, load_config  # noqa: E402
from vla_ros.training.precision import has_bfloat16  # noqa: E402

pytestmark = pytest.mark.unit


def test_every_wrong_entry_is_named_at_once(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "batch: 0\nsteps: many\nunheard_of: 1\ntune: some\nschedule: none\nweights: {action: -1}\n"
        "families: {juggle: 2}\n"
        "model: {objective: guess, width: 30, prefix_max: 99}\n"
    )
    with pytest.raises(ConfigInvalid) as error:
        load_config(path)
    for word in ("wrong.yaml", "batch", "steps", "unheard_of", "tune", "schedule", "weights.action", "juggle"):
        assert word in str(error.value), word
    for word in ("model.objective", "model.width", "model.prefix_max"):
        assert word in str(error.value), word


def test_a_file_that_is_no_yaml_is_refused_by_name(tmp_path):
    for name, text in (("broken.yaml", b"model: {"), ("binary.yaml", b"\xff\xfe\x00")):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(ConfigInvalid, match=name):
            load_config(tmp_path / name)
    with pytest.raises(ConfigInvalid, match="absent"):
        load_config(tmp_path / "absent.yaml")


def test_the_shipped_training_files_are_valid():
    folder = paths.config_dir() / "train"
    names = sorted(path.name for path in folder.glob("*.yaml"))
    assert names == ["finetune.yaml", "nano.yaml", "smolvlm.yaml"]
    for name in names:
        load_config(folder / name)


def test_a_bare_off_is_a_word_and_not_false(tmp_path):
    path = tmp_path / "off.yaml"
    path.write_text(yaml.safe_dump({"steps": 1}) + "mixed_precision: off\n")
    assert load_config(path).mixed_precision == "off"


def test_warm_up_stable_decay():
    config = TrainConfig(warmup_steps=10, decay_fraction=0.2, steps=100)
    factor = [learning_rate_factor(config, step, step / 100) for step in range(100)]
    assert np.allclose(factor[:10], np.arange(1, 11) / 10)
    assert np.allclose(factor[10:81], 1.0)
    assert np.all(np.diff(factor[80:]) < 0) and factor[99] == pytest.approx(0.05)


def test_warm_up_cosine():
    config = TrainConfig(warmup_steps=10, schedule="warmup_cosine", steps=100)
    assert learning_rate_factor(config, 50, 0.5) == pytest.approx(0.5)
    assert learning_rate_factor(config, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate_factor(config, 99, 1.0) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx2 avx512f avx512_bf16", True),
        ("flags : fpu amx_bf16 amx_tile", True),
        ("Features : fp asimd bf16", True),
        ("flags : fpu avx2 avx512f", False),
        ("", False),
    ],
)
def test_bfloat16_is_used_only_where_the_processor_has_it(tmp_path, flags, expected):
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\n" + flags + "\n")
    assert has_bfloat16(torch.device("cpu"), path) is expected


def test_the_command_refuses_what_is_wrong_in_one_message(tmp_path, training_file):
    settings = yaml.safe_load(training_file.read_text())
    settings["model"]["action_space"] = "joint_position"
    (tmp_path / "joints.yaml").write_text(yaml.safe_dump(settings))
    common = ["--data", str(tmp_path), "--out", str(tmp_path / "run")]
    for file, arguments, said in (
        (training_file, ["--tune", "some"], "full, head, lora"),
        (training_file, [], "meta.json"),
        (tmp_path / "joints.yaml", [], "says tool_delta"),
    ):
        result = CliRunner().invoke(app, ["train", str(file), *common, *arguments])
        assert result.exit_code == 1 and said in result.output, result.output
    assert not (tmp_path / "run").exists(), "nothing is written before everything is checked"
