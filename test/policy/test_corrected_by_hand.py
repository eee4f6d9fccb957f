"""From a person's take-over to a policy that learns from it: recorded, exported with labels, drawn as asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("torch")
pytest.importorskip("pyarrow")

from typer.testing import CliRunner

from vla_ros.cli.main import app
from vla_ros.policy.torch_runtime import load_run
from vla_ros.training import train as training

pytestmark = pytest.mark.unit
SHARE = 0.8  # of what is drawn from the recording
TAKEN_S = (0.8, 1.8)  # the person lifts the tool and hands back


@pytest.fixture
def bags(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "data"))
    import bags

    return bags


def command(*words: object) -> None:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"


def test_what_a_person_corrected_is_taught_as_often_as_asked(
    bags, contract, trained, demonstrations, training_file, tmp_path, monkeypatch
):
    bags.make(tmp_path, "corrected", content=bags.closed_loop(2.6, taken_s=TAKEN_S), instruction_id=1)
    command("data", "export", tmp_path / "corrected", "--out", tmp_path / "dataset", "--lossless")
    config = tmp_path / "tiny.yaml"
    config.write_text(
        yaml.safe_dump(yaml.safe_load(training_file.read_text()) | {"threads": 1, "steps": 2, "human_share": SHARE})
    )
    trainers, run = [], training.run
    monkeypatch.setattr(training, "run", lambda trainer, *given: (trainers.append(trainer), run(trainer, *given)))
    data = ["--data", tmp_path / "dataset", "--old-data", demonstrations]
    command("train", config, "--from", trained, *data, "--out", tmp_path / "run")
    load_run(tmp_path / "run", contract).judge("pick up the red cube")

    (trainer,) = trainers
    recording = trainer.data.shards[0]
    seconds = np.arange(len(recording.features)) / contract.cameras[0].rate_hz
    driven = recording.corrected
    middle = (seconds > TAKEN_S[0] + 0.3) & (seconds < TAKEN_S[1] - 0.3)
    assert driven[middle].all() and not driven[seconds < TAKEN_S[0] - 0.3].any() and not driven[-3:].any()
    assert recording.chunk[driven, -1, 2].max() > 0.01, "up, as the person led it"

    drawn = [trainer.data.training_batch(step, 50, 1, trainer.tokenizer, None) for step in range(20)]
    state = np.concatenate([batch.state for batch in drawn])
    by_hand, by_policy = (
        (state[:, None] == recording.features[rows]).all(2).any(1).sum() for rows in (driven, ~driven)
    )
    assert by_hand + by_policy > 200  # the rest is old: one standard deviation is at most 0.028
    assert abs(by_hand / (by_hand + by_policy) - SHARE) < 0.1
