"""Faults at level S: the whole chain over MuJoCo, in fake time. What must happen, and how soon, is in `faults.py`."""

from __future__ import annotations

import numpy as np
import pytest
from faults import FAULTS, Fault
from harness import Bench
from injection import Injection

from vla_ros.core.rules import Reason
from vla_ros.core.tracking import FLOOR_RAD
from vla_ros.core.types import Severity

pytestmark = pytest.mark.sim
AFTER_S = 1.2  # how long the story goes on after the fault
BOX_M = 0.20  # from the tool to the obstacle of C6


def grasp(bench: Bench, width_m: float = 0.04) -> None:
    """Close on something `width_m` wide: the finger joints get a stop where its sides would be."""
    fingers = [j for j in range(bench.world.model.njnt) if bench.world.model.jnt_type[j] == 2]  # slides
    bench.world.model.jnt_limited[fingers] = 1
    bench.world.model.jnt_range[fingers] = [width_m / 2.0, 0.04]
    bench.opening = 0.0


def let_go(bench: Bench) -> None:
    fingers = [j for j in range(bench.world.model.njnt) if bench.world.model.jnt_type[j] == 2]
    bench.world.model.jnt_range[fingers] = [0.0, 0.04]
    bench.fault_s = bench.now_s


def lens(rgb: np.ndarray) -> np.ndarray:
    return np.full_like(rgb, 128)


def inject(*args, **kwargs):
    return lambda bench: bench.inject(Injection(*args, **kwargs))


def interrupted(bench: Bench) -> None:
    bench.fault_s = bench.now_s
    bench.tick(interrupts=1)


def jump(bench: Bench) -> None:
    bench.inject(Injection("garbage", "joints", duration_s=0.015))
    bench.streams["joints"]._corrupt = lambda sample, rng: type(sample)(
        sample.q_rad + 0.2, sample.qd_rad_s, sample.gripper_width_m, sample.measured_at_s
    )


def lock_a_joint(bench: Bench) -> None:
    bench.world.model.dof_damping[bench.dofs[0]] = 1e6
    while np.abs(bench.tick().command.q_rad - bench.q).max() < FLOOR_RAD + 0.015:  # what its speed explains is more
        assert len(bench.decisions) < 400
    bench.fault_s = bench.now_s


def block_the_fingers(bench: Bench) -> None:
    bench.world.model.dof_damping[bench.world.model.jnt_dofadr[bench.world.model.jnt_type == 2]] = 1e6
    bench.opening = 0.0
    while bench.tick().command.gripper_width_m > 0.0:
        assert len(bench.decisions) < 400
    bench.fault_s = bench.now_s


def shake(bench: Bench) -> None:
    def at_5_hz(data: np.ndarray, now_s: float) -> None:
        t = now_s + 0.05 * (1 + np.arange(len(data)))
        data[:, 1] += 0.04 * (np.sin(10.0 * np.pi * t) - np.sin(10.0 * np.pi * now_s))

    bench.distort = at_5_hz
    bench.goal_p = bench.kinematics.tool_pose(bench.q)[1]
    bench.fault_s = bench.now_s


def obstacle(bench: Bench) -> None:
    """The tray, on edge, across the tool's way."""
    model = bench.world.model
    tray = model.body("tray").id
    p = bench.kinematics.tool_pose(bench.q)[1]
    way = (bench.goal_p - p) / np.linalg.norm(bench.goal_p - p)
    yaw = np.arctan2(way[1], way[0])
    c, s = np.cos(yaw / 2), np.sin(yaw / 2)
    h = np.sqrt(0.5)
    model.body_quat[tray] = [c * h, -s * h, c * h, s * h]  # about y by 90 degrees, then about z
    model.body_pos[tray] = p + BOX_M * way
    while not bench.touches("tray"):
        assert bench.tick().severity < Severity.STOP
    bench.fault_s = bench.now_s


def drop(bench: Bench) -> None:
    grasp(bench)
    bench.run(1.3)
    let_go(bench)


def new_text(bench: Bench) -> None:
    """Chunks of the old text are on their way; the policy takes a while to answer to the new one."""
    bench.goal_p = np.array([0.5, -0.2, 0.3])
    bench.fault_s = bench.now_s
    bench.policy_on = False
    bench.instruct("put it down")
    bench.run(0.7)
    assert bench.decisions[-1].reason is Reason.INSTRUCTION_CHANGED
    bench.policy_on = True
    assert bench.run(0.3).phase == "moving"  # of the new text: invariant 8 knows which is which


def out_of_step(bench: Bench) -> None:
    """One camera's frames come two frames late: fresh enough each, but of another instant than the other's."""
    bench.inject(Injection("delayed", "camera", amount=0.13))
    del bench.streams["camera" + bench.contract.cameras[0].name]
    while "skew" not in bench.rejected:
        bench.tick()
        assert len(bench.decisions) < 400
    bench.fault_s = bench.builder._in_step_at_s  # the last good sample


EVENTS = {
    "A1": inject("off", "camera"),
    "A2": inject("stuck", "camera"),
    "A5": inject("garbage", "camera"),
    "A6": out_of_step,
    "A7": inject("off", "joints"),
    "A9": jump,
    "B7": inject("delayed", "policy", amount=0.8),
    "B9": shake,
    "C5": lock_a_joint,
    "C6": obstacle,
    "C8": block_the_fingers,
    "C9": drop,
    "D1": interrupted,
    "D7": new_text,
    "E1": inject("off", "bus"),
    "E9": inject("garbage", "clock", duration_s=0.015),
}


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.id in EVENTS], ids=lambda f: f.id)
def test_fault(fault: Fault, record_property) -> None:
    far = np.array([0.60, 0.42, 0.2]) if fault.id in ("C8", "C9") else None
    bench = Bench(goal_p=far, speed_m_s=0.25, effort=fault.id != "C5")  # torques would see a locked joint first
    bench.moving()
    assert bench.decisions[-1].severity is Severity.RUN, bench.decisions[-1].reason
    EVENTS[fault.id](bench)
    bench.run(max(AFTER_S, (fault.rest_ms or 0.0) * 1e-3 + 0.4))
    react_ms = round(bench.react_s(fault.severity) * 1e3, 6)  # times are sums of ticks
    # An arm that presses against something slides for a while after its command stands.
    rest_ms = (bench.command_rest_s() if fault.id == "C6" else bench.rest_s()) * 1e3
    record_property("react_ms", react_ms)
    record_property("rest_ms", rest_ms)
    since = [d for t, d in zip(bench.times, bench.decisions, strict=True) if t > bench.fault_s]
    for named in ({d.reason.value for d in since}, {event.rule for d in since for event in d.events}):
        assert fault.reason in named | {bench.arm_controller.reason}, named
    assert react_ms <= fault.react_ms and (fault.rest_ms is None or rest_ms <= fault.rest_ms)


def test_B4_two_policies_that_disagree_make_no_step() -> None:
    bench = Bench()
    bench.moving(0.3)
    turns = iter(range(1000))

    def alternate(data: np.ndarray, now_s: float) -> None:
        data[:, 1] += 0.1 if next(turns) % 2 else -0.1

    bench.distort = alternate
    accelerations = []
    for _ in range(150):
        bench.tick()
        accelerations.append(bench.world.data.qacc[bench.dofs].copy())
    assert all(d.severity < Severity.STOP for d in bench.decisions[-150:])
    assert np.abs(accelerations).max() <= 2.0 * bench.contract.limits.a_max_rad_s2.max()  # measured: the servo adds


def test_the_same_story_gives_the_same_trajectory() -> None:
    assert Bench().moving(0.5).fingerprint() == Bench().moving(0.5).fingerprint()


def test_ordinary_motion_with_real_pictures_trips_nothing() -> None:
    bench = Bench(rendered=True).moving(1.0)
    bench.speed_m_s, bench.goal_p = 0.05, np.array([0.45, 0.0, 0.3])
    bench.run(1.5)
    assert all(d.severity < Severity.HOLD for d in bench.decisions[-200:]), {d.reason for d in bench.decisions[-200:]}
    assert not bench.rejected and bench.decisions[-1].contact_monitored
