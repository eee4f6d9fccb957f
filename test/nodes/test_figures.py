"""Figures of /diagnostics: what is counted, and when it becomes a warning or an error."""

import math

import pytest

pytest.importorskip("rclpy")

from vla_ros.core.errors import Invalid
from vla_ros.nodes.figures import (
    LATENESS_EDGES_MS,
    LOOP_THRESHOLDS,
    SUPERVISOR_THRESHOLDS,
    WINDOW_SEAMS,
    MotionFigures,
    Threshold,
    judge,
    lateness_bin,
    lateness_histogram,
)

pytestmark = pytest.mark.unit
JUMP = Threshold("jump", 1.0, 2.0)


@pytest.mark.parametrize(
    ("value", "level"), [("0.99", 0), ("1.0", 1), ("1.99", 1), ("2.0", 2), ("nan", 2), ("inf", 2), (0, 0)]
)
def test_figure_warns_and_errs_from_its_thresholds_on(value, level):
    got, text = judge([JUMP], {"jump": value})
    assert got == level
    assert ("jump is" in text) == (level > 0)


def test_worst_figure_wins_and_a_figure_that_is_not_there_yet_is_no_warning():
    other = Threshold("other", 1.0, 1.0)
    assert judge([JUMP, other], {"jump": 1.5, "other": 3.0})[1].startswith("other is 3")
    assert judge([JUMP, other], {}) == (0, "")


@pytest.mark.parametrize(("warn", "error"), [(math.nan, 1.0), (1.0, math.inf), (0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_threshold_that_makes_no_sense_is_refused_with_its_parameter_named(warn, error):
    with pytest.raises(Invalid, match=r"(warn|error)\.jump"):
        Threshold("jump", warn, error).validate()


def test_shipped_thresholds_are_valid_and_their_figures_exist():
    figures = MotionFigures()
    figures.tick(1, (0.1, 0.2, 3), 0.1, True)
    for threshold in SUPERVISOR_THRESHOLDS:
        threshold.validate()
        assert threshold.figure in figures.values()
    for threshold in LOOP_THRESHOLDS:
        threshold.validate()


def test_hand_over_is_counted_once_however_many_ticks_follow_it():
    figures = MotionFigures()
    assert figures.values() == {}
    for chunk, seam in ((1, (0.01, 0.1, 2)), (2, (0.05, 0.3, 4))):
        for k in range(10):
            figures.tick(chunk, seam, 0.1 + 0.01 * k, limited=chunk == 2)
    values = figures.values()
    assert values["seam_jump_rad"] == "0.0500"
    assert values["seam_jump_rad_p50"] == "0.0300"
    assert values["seam_jump_rad_s"] == "0.3000"
    assert (values["rows_skipped"], values["rows_skipped_mean"]) == ("4", "3.00")
    assert values["observation_age_ms"] == "190"
    assert values["limiter_ratio"] == "0.500"


def test_window_forgets():
    figures = MotionFigures()
    figures.tick(1, (9.0, 9.0, 9), 0.1, False)
    for k in range(WINDOW_SEAMS):
        figures.tick(2 + k, (0.1, 0.1, 1), 0.1, False)
    assert figures.values()["seam_jump_rad"] == "0.1000"


@pytest.mark.parametrize(("delay_ms", "k"), [(0.0, 0), (0.1, 0), (0.3, 1), (10.0, 5), (11.0, 6), (1e6, 8)])
def test_lateness_falls_into_its_bin(delay_ms, k):
    assert lateness_bin(delay_ms * 1e-3) == k


def test_lateness_is_shown_with_its_edges():
    text = lateness_histogram(range(len(LATENESS_EDGES_MS) + 1))
    assert text.startswith("<=0.1:0 <=0.5:1") and text.endswith(">50:8")
