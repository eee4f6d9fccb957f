"""Guidance at inference time: where it pulls, how much, and that the rest stays free."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vla_ros.policy.guided import load_run_guided, overlap_weights, sample_guided  # noqa: E402
from vla_ros.policy.manifest import PolicyInvalid  # noqa: E402

pytestmark = pytest.mark.unit
TEXT = "pick up the red cube"


def test_weights_are_one_where_executed_then_fall_and_end_with_the_overlap():
    weight = overlap_weights(16, 10, 4)
    assert (weight[:4] == 1.0).all() and (weight[10:] == 0.0).all()
    assert (np.diff(weight[3:11]) < 0.0).all() and 0.0 < weight[9] < 0.1
    # The paper's formula at the first row that may change: c = 6 / 7.
    assert weight[4] == pytest.approx(6 / 7 * np.expm1(6 / 7) / np.expm1(1.0))
    assert (overlap_weights(16, 3, 8) == [1.0] * 3 + [0.0] * 13).all()


class Straight:
    """A head that always flows to the same chunk, whatever it starts from."""

    config = type("Config", (), {"steps": 5})

    def __init__(self, goal):
        self.goal = goal

    def head(self, x, tau, memory, prefix=None):
        return (self.goal - x) / (1.0 - tau[..., None, None])


def test_without_weight_the_chunk_is_the_policys_own():
    goal = torch.ones(1, 1, 16, 7)
    noise = torch.randn(1, 16, 7, generator=torch.Generator().manual_seed(0))
    chunk = sample_guided(Straight(goal), None, noise, torch.zeros(1, 16, 7), torch.zeros(16))
    assert torch.allclose(chunk, goal[:, 0], atol=1e-5)


def test_guided_chunk_begins_like_the_running_one_more_than_an_unguided_one(trained, contract, observation):
    policy = load_run_guided(trained, contract)
    model = policy._graph._model
    # The tiny model has hardly learned: let its head depend on the noise as a trained one's depends on the data.
    with torch.no_grad():
        model.head.leave.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    mean, std = model.action_mean.numpy(), model.action_std.numpy()
    overlap = (mean + 0.5 * std)[:10]
    free = policy.infer(observation, TEXT, np.random.default_rng(0)).data
    guided = policy.infer_guided(observation, TEXT, np.random.default_rng(0), overlap, 4)
    off = [np.abs((data - mean - 0.5 * std) / std)[:4, :6].mean() for data in (free, guided.data)]
    assert off[1] < 0.5 * off[0]
    again = policy.infer(observation, TEXT, np.random.default_rng(0)).data
    assert np.array_equal(free, again), "guidance of one call does not reach the next"
    none = policy.infer_guided(observation, TEXT, np.random.default_rng(0), np.zeros((0, 7)), 4).data
    assert np.array_equal(none, free)


def test_guidance_needs_flow(trained, contract, monkeypatch):
    from vla_ros.policy import torch_runtime

    read = torch_runtime.read_run

    def read_l1(folder):
        model, description = read(folder)
        model.config = dataclasses.replace(model.config, objective="l1")
        return model, description

    monkeypatch.setattr(torch_runtime, "read_run", read_l1)
    with pytest.raises(PolicyInvalid, match="flow"):
        load_run_guided(trained, contract)
