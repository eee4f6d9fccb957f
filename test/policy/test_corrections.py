"""A policy drives, the expert writes down what it would have done."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("mujoco")

from vla_ros.policy.features import StateFeatures
from vla_ros.sim.demonstrations import STREAM as DEMONSTRATIONS
from vla_ros.sim.demonstrations import write_meta
from vla_ros.training import corrections, rollout
from vla_ros.training.dataset import Dataset

pytestmark = pytest.mark.sim


def test_what_an_untrained_policy_sees_becomes_a_data_set(trained, contract, tmp_path, monkeypatch):
    monkeypatch.setattr(corrections, "EPISODES_PER_SHARD", 1)
    monkeypatch.setattr(rollout, "TIME_LIMIT_S", 2.0)
    monkeypatch.setattr(corrections, "_ROLLOUT", None)
    results = corrections.make_shard(tmp_path, 3, 0, "panda", trained, ("pick",))
    corrections._ROLLOUT.world.close()
    write_meta(tmp_path, 3, contract.hash)
    data = Dataset([tmp_path], contract.hash, StateFeatures(contract).of_states, 0.2)
    shard = data.shards[0]
    assert results == [(False, False)] and corrections.STREAM != DEMONSTRATIONS
    assert 10 <= len(shard.features) <= 2.0 * contract.rates.policy_hz + 1
    assert len(np.unique(shard.frame)) == len(shard.features) and len(shard.frame) > 2 * len(shard.features)
    # The expert's motion, not the policy's: from the ready pose every chunk goes towards the named object.
    first = shard.frame == 0
    towards = shard.aux[first][:, :2]
    moved = shard.chunk[first][:, -1, :2]
    assert ((towards * moved).sum(1) > 0).all()


def test_a_policy_drives_as_on_a_robot_and_what_is_none_is_told(
    trained, policy_folder, contract, tmp_path, monkeypatch, capsys
):
    assert "PyTorch" in corrections.driver(trained, contract).precision
    assert "PyTorch" not in corrections.driver(policy_folder, contract).precision
    monkeypatch.setattr("sys.argv", ["corrections", "--policy", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        corrections.main()
    assert ended.value.code == 2 and str(tmp_path / "none") in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing is half written"
