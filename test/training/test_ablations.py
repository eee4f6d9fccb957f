"""The ablation scripts: every arm can be played, the same scenes are compared seed by seed, labels can be shortened."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

from vla_ros.policy.model import ModelConfig
from vla_ros.training.evaluate import Episode, check

pytestmark = pytest.mark.unit
FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "policy"


@pytest.fixture(scope="module")
def scripts():
    """(table, without training, with training)"""
    sys.path.insert(0, str(FOLDER))
    try:
        names = ("ablations_table", "ablations", "ablations_training")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(FOLDER))


def episodes(wins, **facts):
    return [Episode(k, "pick", "", bool(win), False, False, 1.0, "", **facts) for k, win in enumerate(wins)]


@pytest.mark.parametrize("runtime", ["int8", "torch"])
def test_every_arm_can_be_played_and_is_compared_with_one_of_its_study(scripts, runtime):
    for study in scripts.ablations.STUDIES.values():
        arms = study(runtime)
        labels = [arm.label for arm in arms]
        assert len(set(labels)) == len(labels)
        for arm in arms:
            check(arm.execution, runtime, "panda")
            assert arm.against is None or arm.against in labels
    delays = {arm.execution.delay_steps for arm in scripts.ablations.delays(runtime)}
    rows = {arm.execution.rows_per_inference for arm in scripts.ablations.rows(runtime)}
    assert delays == set(range(7)) and rows == {None, 1, 4, 8, 16}


def test_every_trained_arm_has_a_valid_model(scripts):
    for study in scripts.ablations_training.STUDIES.values():
        for setting in study:
            dataclasses.replace(ModelConfig(), **setting.model).validate()
    assert {s.rows for s in scripts.ablations_training.STUDIES["chunk"]} == {1, 4, 8, 16}


def test_table_pairs_seeds_and_says_how_sure_it_is(scripts):
    Arm = scripts.ablations_table.Arm
    arms = [Arm("old"), Arm("new", against="old"), Arm("never played", against="old")]
    played = {"old": episodes([1, 0, 0, 0, 0, 0]), "new": episodes([0, 1, 1, 1, 1, 1], seam_rad=0.002)}
    old, new = scripts.ablations_table.compare(arms, played)
    assert old[:2] == ("old", "1 of 6") and old[3:6] == ("", "", "")
    assert new[1:6] == ("5 of 6", "43.6% to 97.0%", "old", "5 / 1", "0.219") and new[7] == "2.0"
    text = scripts.ablations_table.markdown(scripts.ablations_table.HEADER, [old, new])
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_swap_table_counts_only_what_went_somewhere(scripts):
    played = {"prefix": [*episodes([1], obeyed=True), *episodes([0], obeyed=False), *episodes([0])]}
    assert scripts.ablations_table.swap_rows(played)[0] == ("prefix", "1 of 2", "9.5% to 90.5%", "2 of 3")


def test_later_rows_of_a_label_repeat_the_last_one_that_counts(scripts):
    @dataclasses.dataclass(frozen=True)
    class Shard:
        chunk: np.ndarray

    label = np.arange(2 * 16 * 7, dtype=np.float32).reshape(2, 16, 7)
    for rows in (1, 4, 16):
        data = SimpleNamespace(shards=[Shard(label)])
        scripts.ablations_training.repeat_rows(data, rows)
        chunk = data.shards[0].chunk
        assert np.array_equal(chunk[:, :rows], label[:, :rows])
        assert (chunk[:, rows:] == label[:, rows - 1 : rows]).all()


def test_the_same_weights_can_be_denoised_in_other_steps(scripts, tmp_path):
    (tmp_path / "policy.json").write_text('{"model": {"steps": 5, "rows": 16}}')
    (tmp_path / "policy.safetensors").write_bytes(b"weights")
    out = scripts.ablations_training.with_steps(tmp_path, 2)
    assert (out / "policy.json").read_text() == '{"model": {"steps": 2, "rows": 16}}'
    assert (out / "policy.safetensors").read_bytes() == b"weights"
