"""What the supervisor commands: rest, a planned stop, a planned move, or following the chunk executor.

One curve through all of them: each starts from the last commanded position, speed and acceleration.
"""

from __future__ import annotations

import enum
import math

import numpy as np

from vla_ros.core.chunks import ChunkExecutor
from vla_ros.core.contract import Contract
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.limits import LOOK_AHEAD_S, Limiter, MotionState, PlannedMotion, plan_move, plan_stop, stop_distance
from vla_ros.core.types import FloatArray

SPEED_SHARE = 0.9  # the path is slowed to this share of a speed bound; the rest is room for catching up
SPEED_BRAKE_SHARE = 0.97  # above this share of the tool's cap the tick brakes instead
CATCH_UP_GAIN = 5.0 / 3.0  # steady speed of the limiter's wish per distance and look-ahead: 60 e/T^3 = 36 v/T^2
LAG_FREE_RAD, LAG_FULL_RAD = 0.05, 0.15  # below: full speed; above: the slowest
SCALE_MIN = 0.1  # never 0: the chunk must come to its end
SCALE_DOWN_1_S, SCALE_UP_1_S = 10.0, 2.0  # slew of the scale: a step of it would be a step of the speed
WORKSPACE_TOLERANCE_M = 0.003  # C2 allows 5 mm of overshoot at a face; the stop pose moves on while a tick passes
RETREAT_SLACK_M = 0.002  # choice: a tool outside may move this much farther out while it turns round
HOME_SPEED_FACTOR = 0.4  # choice: homing is unhurried


class Mode(enum.Enum):
    REST = "rest"
    STOPPING = "stopping"
    FOLLOWING = "following"
    PLANNED = "planned"


class Mover:
    """Owned by the supervisor. `dt_s` is the clamped time since the last command."""

    def __init__(
        self, contract: Contract, kinematics: Kinematics, executor: ChunkExecutor, q_start: FloatArray
    ) -> None:
        self._contract = contract
        self._kinematics = kinematics
        self._executor = executor
        self.limiter = Limiter(contract.limits, contract.period_s)
        self.state = MotionState.at_rest(q_start)
        self.mode = Mode.REST
        self._plan: PlannedMotion | None = None
        self._plan_s = 0.0
        self.scale = 1.0
        self.slow_by_speed = self.slow_by_lag = False

    def anchor(self, q: FloatArray) -> None:
        """Start anew from rest at `q`. Only while nothing is driven: before the first rearm or at one."""
        self.state, self.mode, self._plan = MotionState.at_rest(q), Mode.REST, None

    def stop(self) -> None:
        """Plan the fastest stop from the last command. Nothing to do when stopping or at rest already."""
        if self.mode in (Mode.FOLLOWING, Mode.PLANNED):
            self._begin(plan_stop(self._contract.limits, self.state), Mode.STOPPING)
        self.scale, self.slow_by_speed, self.slow_by_lag = 1.0, False, False

    def follow(self) -> None:
        self.mode, self._plan = Mode.FOLLOWING, None

    def move_to(self, q_goal: FloatArray) -> None:
        """Planned move from rest, slow enough that the tool stays below its speed cap."""
        factor = HOME_SPEED_FACTOR
        plan = plan_move(self._contract.limits, self.state, q_goal, factor)
        samples = [plan.at(t) for t in np.linspace(0.0, plan.duration_s, 50)]
        fastest = max(self._kinematics.tool_speed(s.q, s.v) for s in samples)
        if fastest > SPEED_SHARE * self._contract.speed.tool_m_s:
            factor *= SPEED_SHARE * self._contract.speed.tool_m_s / fastest
            plan = plan_move(self._contract.limits, self.state, q_goal, factor)
        self._begin(plan, Mode.PLANNED)

    def _begin(self, plan: PlannedMotion, mode: Mode) -> None:
        self._plan, self._plan_s, self.mode = plan, 0.0, mode

    def reference_ahead(self, now_s: float) -> tuple[float, FloatArray, FloatArray]:
        """(t, q, v) of what is being followed, where the limiter has read it last: a new chunk joins there."""
        t = now_s + LOOK_AHEAD_S * self.scale
        if self.mode is Mode.FOLLOWING and self._executor.active:
            return (t, *self._executor.reference(t))
        if self._plan is not None:
            ahead = self._plan.at(self._plan_s + LOOK_AHEAD_S)
            return t, ahead.q, ahead.v
        return t, self.state.q, np.zeros_like(self.state.q)

    def step(self, now_s: float, dt_s: float) -> MotionState:
        if self.mode is Mode.FOLLOWING:
            self.state = self._follow(now_s, dt_s)
        elif self._plan is not None:
            self._plan_s += dt_s
            self.state = self._plan.at(self._plan_s)
            if self._plan_s >= self._plan.duration_s:
                self._plan, self.mode = None, Mode.REST
        return self.state

    def _follow(self, now_s: float, dt_s: float) -> MotionState:
        executor, cap = self._executor, self._contract.speed.tool_m_s
        self._rescale(now_s, dt_s)
        executor.slow_down(dt_s, self.scale)
        q_ref, v_ref = executor.reference(now_s + LOOK_AHEAD_S * self.scale)
        v_ref = v_ref * self.scale
        # Catching up may not be faster than the tool's cap either: pull the target nearer, in its own direction.
        q, T = self.state.q, LOOK_AHEAD_S + dt_s
        gap = q_ref - v_ref * T - q
        J = self._kinematics.tool_jacobian(q)[:3]  # (3, n)
        share = _largest_share(J @ v_ref, J @ (CATCH_UP_GAIN / T * gap), SPEED_SHARE * cap)
        following = self.limiter.step(self.state, q + share * gap + v_ref * T, v_ref, dt_s)
        if float(np.linalg.norm(J @ following.v)) > SPEED_BRAKE_SHARE * cap:
            following = plan_stop(self._contract.limits, self.state).at(dt_s)
        return following

    def _rescale(self, now_s: float, dt_s: float) -> None:
        """Slow the chunk's clock where its speed is above a bound, or where the command lags behind it."""
        q_ref, v_ref = self._executor.reference(now_s + LOOK_AHEAD_S * self.scale)
        tool = self._kinematics.tool_speed(q_ref, v_ref)
        joints = float((np.abs(v_ref) / self._contract.limits.v_max_rad_s).max())
        by_speed = SPEED_SHARE / max(tool / self._contract.speed.tool_m_s, joints, SPEED_SHARE)
        lag = float(np.abs(self._executor.reference(now_s)[0] - self.state.q).max())
        by_lag = 1.0 - (lag - LAG_FREE_RAD) / (LAG_FULL_RAD - LAG_FREE_RAD)
        self.slow_by_speed, self.slow_by_lag = by_speed < 0.999, by_lag < 0.999
        wanted = min(max(min(by_speed, by_lag), SCALE_MIN), 1.0)
        self.scale = min(max(wanted, self.scale - SCALE_DOWN_1_S * dt_s), self.scale + SCALE_UP_1_S * dt_s)

    def tool_speed(self) -> float:
        return self._kinematics.tool_speed(self.state.q, self.state.v)

    def leaves_workspace(self) -> bool:
        """The tool would come to rest outside the box, and farther outside than it is: going back in is allowed."""
        limits, box = self._contract.limits, self._contract.workspace
        v, a = self.state.v, self.state.a
        ahead = stop_distance(np.stack([v, -v]), np.stack([a, -a]), limits.a_max_rad_s2, limits.j_max_rad_s3)  # (2, n)
        stop_p = self._kinematics.tool_pose(self.state.q + ahead[0] - ahead[1])[1]
        outside = _outside(stop_p, box.lower_m, box.upper_m)
        if not outside > WORKSPACE_TOLERANCE_M:
            return False
        now_p = self._kinematics.tool_pose(self.state.q)[1]
        return outside > _outside(now_p, box.lower_m, box.upper_m) + RETREAT_SLACK_M


def _outside(p: FloatArray, lower: FloatArray, upper: FloatArray) -> float:
    return float(np.maximum(np.maximum(lower - p, p - upper), 0.0).max())


def _largest_share(base: FloatArray, extra: FloatArray, cap: float) -> float:
    """Largest share s in [0, 1] with |base + s extra| <= cap (0 when base alone is above)."""
    a, b, c = float(extra @ extra), 2.0 * float(base @ extra), float(base @ base) - cap * cap
    if a + b + c <= 0.0:
        return 1.0
    if c >= 0.0 or a <= 0.0:
        return 0.0
    return min(max((-b + math.sqrt(b * b - 4.0 * a * c)) / (2.0 * a), 0.0), 1.0)
