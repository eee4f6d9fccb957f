"""Forward and inverse kinematics of the contract's arm."""

from __future__ import annotations

import numpy as np
import pinocchio as pin
import pytest
from core_loop import panda, panda_kinematics

from vla_ros.core.types import ActionSpace

pytestmark = pytest.mark.unit
READY = panda().poses.ready_rad


def test_the_tool_looks_down_in_the_ready_pose_and_lies_in_the_workspace() -> None:
    R, p = panda_kinematics().tool_pose(READY)
    assert R[2, 2] == pytest.approx(-1.0, abs=1e-3)
    assert (p > panda().workspace.lower_m).all() and (p < panda().workspace.upper_m).all()


def test_the_jacobian_is_the_derivative_of_the_pose() -> None:
    kinematics, rng = panda_kinematics(), np.random.default_rng(0)
    for _ in range(5):
        q, qd = READY + rng.uniform(-0.3, 0.3, 7), rng.normal(size=7)
        R0, p0 = kinematics.tool_pose(q)
        R1, p1 = kinematics.tool_pose(q + 1e-6 * qd)
        velocity = kinematics.tool_jacobian(q) @ qd
        assert np.allclose(velocity[:3], (p1 - p0) / 1e-6, atol=1e-4)
        assert np.allclose(velocity[3:], pin.log3(R1 @ R0.T) / 1e-6, atol=1e-4)
        tool_and_elbow = (kinematics.points(q + 1e-6 * qd) - kinematics.points(q)) / 1e-6  # (2, 3)
        assert np.allclose(kinematics.points(q)[0], p0) and np.allclose(tool_and_elbow[0], velocity[:3], atol=1e-4)
        assert np.allclose(kinematics.point_jacobians(q) @ qd, tool_and_elbow, atol=1e-4)
        assert kinematics.speeds(q, qd) == pytest.approx(np.linalg.norm(tool_and_elbow, axis=1), abs=1e-3)


def test_inverse_kinematics_reaches_poses_over_the_table_inside_the_soft_limits() -> None:
    kinematics, rng, limits = panda_kinematics(), np.random.default_rng(0), panda().limits
    R_down = kinematics.tool_pose(READY)[0]
    reached = 0
    for _ in range(200):
        p = rng.uniform([0.3, -0.35, 0.03], [0.65, 0.35, 0.45])
        R = pin.exp3(np.array([0.0, 0.0, rng.uniform(-0.8, 0.8)])) @ R_down
        q, ok = kinematics.inverse(R, p, READY)
        assert (q >= limits.q_lo_rad).all() and (q <= limits.q_hi_rad).all()
        if ok:
            reached += 1
            R_q, p_q = kinematics.tool_pose(q)
            assert np.linalg.norm(p - p_q) <= 1e-4 and np.linalg.norm(pin.log3(R @ R_q.T)) <= 1e-3
    assert reached >= 197


def test_a_pose_out_of_reach_is_reported_and_the_answer_stays_finite() -> None:
    kinematics = panda_kinematics()
    q, ok = kinematics.inverse(np.eye(3), np.array([3.0, 0.0, 0.5]), READY)
    assert not ok and np.isfinite(q).all()


def test_a_tool_delta_is_added_in_base_axes_to_the_pose_at_the_observation() -> None:
    kinematics = panda_kinematics()
    data = np.zeros((4, 7))
    data[:, 0] = [0.01, 0.02, 0.03, 0.04]
    data[:, 5] = 0.1
    rows, ok = kinematics.rows_to_joints(data, ActionSpace.TOOL_DELTA, READY, READY)
    R0, p0 = kinematics.tool_pose(READY)
    R3, p3 = kinematics.tool_pose(rows[3])
    assert ok and np.allclose(p3, p0 + [0.04, 0.0, 0.0], atol=2e-4)
    assert np.allclose(R3, pin.exp3(np.array([0.0, 0.0, 0.1])) @ R0, atol=2e-3)


def test_joint_rows_pass_unchanged_without_the_gripper_column() -> None:
    data = np.hstack([np.tile(READY, (3, 1)), np.ones((3, 1))])
    rows, ok = panda_kinematics().rows_to_joints(data, ActionSpace.JOINT_POSITION, READY, READY)
    assert ok and (rows == data[:, :7]).all()


def test_the_elbow_drifts_back_to_the_ready_pose_while_the_tool_stays() -> None:
    kinematics = panda_kinematics()
    R, p = kinematics.tool_pose(READY)
    away, ok = kinematics.inverse(R, p, READY + np.array([0.4, 0.0, -0.4, 0.0, 0.0, 0.0, 0.0]))
    assert ok
    q = away
    for _ in range(200):
        q, ok = kinematics.inverse(R, p, q)
        assert ok
    assert np.abs(q - READY).max() < 0.3 * np.abs(away - READY).max()
