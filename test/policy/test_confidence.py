"""A probability that is said should come true as often as it says."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest

from vla_ros.policy import confidence

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def overconfident():
    """(said, true): outcomes of a policy whose logits are three times too large."""
    rng = np.random.default_rng(0)
    logit = rng.normal(0.5, 1.5, 20_000)
    true = rng.random(len(logit)) < 1 / (1 + np.exp(-logit))
    return 1 / (1 + np.exp(-3.0 * logit)), true


def test_temperature_undoes_what_made_the_policy_overconfident(overconfident):
    said, true = overconfident
    temperature = confidence.fit_temperature(said, true)
    assert temperature == pytest.approx(3.0, rel=0.05)
    errors = [confidence.calibration_error(confidence.reliability(p, true))
              for p in (said, confidence.scaled(said, temperature))]  # fmt: skip
    assert errors[0] > 0.1 and errors[1] < 0.015
    assert confidence.surprise(confidence.scaled(said, temperature), true) < confidence.surprise(said, true)


def test_curve_counts_every_prediction_once_also_zero_and_one():
    curve = confidence.reliability([0.0, 0.05, 0.5, 0.99, 1.0], [False, True, True, True, True])
    assert [b.n for b in curve] == [2, 1, 2] and sum(b.n for b in curve) == 5
    assert [b.came_true for b in curve] == [0.5, 1.0, 1.0]
    assert confidence.calibration_error(curve) == pytest.approx((2 * 0.475 + 0.5 + 2 * 0.005) / 5)
    assert confidence.calibration_error([]) == 0.0


def test_order_is_kept_one_changes_nothing_and_nan_stays_nan():
    said = np.array([0.0, 0.2, 0.5, 0.9, 1.0])
    for temperature in (0.05, 0.5, 20.0):
        after = [confidence.calibrated(float(p), temperature) for p in said]
        assert all(0.0 <= p <= 1.0 for p in after) and sorted(after) == after
        np.testing.assert_allclose(after, confidence.scaled(said, temperature))
        assert after[2] == pytest.approx(0.5)
    assert [confidence.calibrated(float(p), 1.0) for p in said] == list(said)
    assert math.isnan(confidence.calibrated(math.nan, 2.0)) and math.isnan(confidence.calibrated(math.nan, 1.0))


@pytest.mark.parametrize(
    ("said", "true"),
    [([], []), ([0.5], [True, False]), ([0.5, math.nan], [True, False]), ([0.5, 0.6], [True, True])],
    ids=["nothing", "lengths", "nan", "all alike"],
)
def test_what_cannot_be_fitted_is_refused(said, true):
    with pytest.raises(ValueError, match="outcomes"):
        confidence.fit_temperature(said, true)


def test_temperature_of_the_manifest_is_applied_to_the_confidence_alone(policy_folder, contract, observation, tmp_path):
    from vla_ros.policy.manifest import PolicyInvalid
    from vla_ros.policy.runtime import load

    folder = shutil.copytree(policy_folder, tmp_path / "policy")
    facts = json.loads((folder / "manifest.json").read_text())
    assert facts.pop("confidence_temperature") == 1.0
    outputs = []
    for change in ({}, {"confidence_temperature": 4.0}):  # without the field: a manifest of before
        (folder / "manifest.json").write_text(json.dumps(facts | change))
        outputs.append(load(folder, contract).infer(observation, "pick up the red cube", np.random.default_rng(0)))
    plain, mild = outputs
    assert mild.confidence == pytest.approx(confidence.calibrated(plain.confidence, 4.0))
    assert abs(mild.confidence - 0.5) < abs(plain.confidence - 0.5)
    assert mild.done_probability == plain.done_probability and np.array_equal(mild.data, plain.data)
    for wrong in (0.0, 100.0, "warm"):
        (folder / "manifest.json").write_text(json.dumps(facts | {"confidence_temperature": wrong}))
        with pytest.raises(PolicyInvalid, match="confidence_temperature"):
            load(folder, contract)


def test_fit_writes_the_temperature_where_the_export_reads_it(trained, demonstrations, contract, tmp_path, monkeypatch):
    from vla_ros.policy import confidence_fit
    from vla_ros.policy.torch_runtime import load_run

    run = shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr(confidence_fit, "predictions", _half_true(confidence_fit.predictions))
    facts = confidence_fit.fit(run, [demonstrations], contract, 16, write=False)
    assert load_run(run, contract).manifest.confidence_temperature == 1.0
    assert confidence_fit.fit(run, [demonstrations], contract, 16, write=True) | facts
    assert load_run(run, contract).manifest.confidence_temperature == pytest.approx(
        json.loads((run / "policy.json").read_text())["confidence_temperature"]
    )
    assert "Expected calibration error" in confidence_fit.table(facts)


def _half_true(predictions):
    """A tiny model after eight steps finds nothing; let half of it have come true."""

    def predict(*arguments):
        said, true = predictions(*arguments)
        assert said.shape == true.shape and ((said > 0.0) & (said < 1.0)).all()
        return said, (np.arange(len(said)) // 2) % 2 == 0

    return predict
