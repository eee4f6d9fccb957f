"""What the supervisor commands: rest, a planned stop, a planned move, following the chunk executor, or the way back.

One curve through all of them: each starts from the last commanded position, speed and acceleration.
"""

from __future__ import annotations

import enum
import math

import numpy as np

from vla_ros.core.chunks import ChunkExecutor
from vla_ros.core.contract import Contract
from vla_ros.core.curve import Curve
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.limits import (
    LOOK_AHEAD_S,
    Limiter,
    MotionState,
    PlannedMotion,
    measured_state,
    plan_move,
    plan_stop,
)
from vla_ros.core.lookahead import LookAhead, Outlook
from vla_ros.core.retrace import ExecutedPath
from vla_ros.core.types import FloatArray

SPEED_SHARE = 0.9  # the path is slowed to this share of a speed bound; the rest is room for catching up
# What tool or elbow would reach on the way of a stop, above which share of their cap the tick brakes instead. The rest
# is room for what lies between two looks: at most 4 mm/s in 10,000 ticks of random stories.
SPEED_BRAKE_SHARE, SPEED_LOOK_S = 0.97, 0.02
SPEED_SURE_SHARE = 0.8  # below, by the Jacobian of now, nothing is looked at: on the way it grew by at most 9 % there
CATCH_UP_GAIN = 5.0 / 3.0  # steady speed of the limiter's wish per distance and look-ahead: 60 e/T^3 = 36 v/T^2
# So much before what is read of a chunk ends, its clock begins to slow down: the arm is nearly at rest on the last row,
# and a next chunk goes on from there. Full speed is lost at 3.3 rad/s^2. A policy that answers within the contract's
# timeout of chunks never gets here.
RUN_OUT_S = 0.15
LAG_FREE_RAD, LAG_FULL_RAD = 0.05, 0.15  # below: full speed; above: the slowest
SCALE_MIN = 0.1  # never 0: the chunk must come to its end
SCALE_DOWN_1_S, SCALE_UP_1_S = 10.0, 2.0  # slew of the scale: a step of it would be a step of the speed
HOME_SPEED_FACTOR = 0.4  # choice: homing is unhurried


class Mode(enum.Enum):
    REST = "rest"
    STOPPING = "stopping"
    FOLLOWING = "following"
    PLANNED = "planned"
    RETREATING = "retreating"


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
        self._goal: FloatArray | None = None  # of the planned move
        self._plan_s = 0.0  # since the plan, or the way back, began
        self._path = ExecutedPath()
        self._way_back: Curve | None = None
        self._look_ahead = LookAhead(contract, kinematics)
        self.outlook = Outlook()  # of the last command
        self.cap_m_s = contract.speed.tool_m_s  # of tool and elbow
        self.scale = self.scale_max = 1.0  # the supervisor lowers the second one (B9)
        self.slow_by_speed = self.slow_by_lag = self.slow_by_end = False

    def anchor(self, q: FloatArray) -> None:
        """Start anew from rest at `q`. Only while nothing is driven: before the first rearm or at one."""
        self.state, self.mode, self._plan = MotionState.at_rest(q), Mode.REST, None
        self._path.clear()  # the arm was moved by somebody else: the way back is not known

    @property
    def driven(self) -> bool:
        """Moves because somebody wants it to, not because it brakes."""
        return self.mode in (Mode.FOLLOWING, Mode.PLANNED, Mode.RETREATING)

    def look(self) -> Outlook:
        """Where the arm would come to rest from the last command."""
        self.outlook = self._look_ahead.look(self.state)
        return self.outlook

    def limit_speed(self, cap_m_s: float) -> None:
        """Of tool and elbow. A planned move under way is planned anew when it falls."""
        falls = cap_m_s < self.cap_m_s
        self.cap_m_s = cap_m_s
        if falls and self.mode is Mode.PLANNED and self._goal is not None:
            self.move_to(self._goal)

    def stop_from(self, q: FloatArray, v: FloatArray) -> None:
        """After a tracking fault (C5): the last command means nothing, brake from where the arm really is."""
        self._begin(plan_stop(self._contract.limits, measured_state(self._contract.limits, q, v)), Mode.STOPPING)

    def stop(self) -> None:
        """Plan the fastest stop from the last command. Nothing to do when stopping or at rest already."""
        if self.driven:
            self._begin(plan_stop(self._contract.limits, self.state), Mode.STOPPING)
        self.scale, self.slow_by_speed, self.slow_by_lag, self.slow_by_end = 1.0, False, False, False

    def fell_silent(self, missed_s: float) -> None:
        """No command went out for so long that the arm controller brakes by itself, from the last one and by the same
        plan. A stop that ended there meanwhile has ended here. One that has not goes on without a leap (E10)."""
        if self.mode is Mode.STOPPING and self._plan is not None and self._plan_s + missed_s >= self._plan.duration_s:
            self._plan_s = self._plan.duration_s
            self.state = self._plan.at(self._plan_s)

    def follow(self) -> None:
        self.mode, self._plan = Mode.FOLLOWING, None

    def move_to(self, q_goal: FloatArray) -> None:
        """Planned move, slow enough that tool and elbow stay below their cap."""
        factor = HOME_SPEED_FACTOR
        plan = plan_move(self._contract.limits, self.state, q_goal, factor)
        samples = [plan.at(t) for t in np.linspace(0.0, plan.duration_s, 50)]
        fastest = max(float(self._kinematics.speeds(s.q, s.v).max()) for s in samples)
        if fastest > SPEED_SHARE * self.cap_m_s:
            factor *= SPEED_SHARE * self.cap_m_s / fastest
            plan = plan_move(self._contract.limits, self.state, q_goal, factor)
        self._goal = q_goal
        self._begin(plan, Mode.PLANNED)

    @property
    def can_retreat(self) -> bool:
        return self._path.leads_away_from(self.state.q)

    def retreat(self) -> None:
        """Go back along the executed path, from rest and slowly. Stays where there is nothing to go back along."""
        if self.can_retreat:
            speed = SPEED_SHARE * min(self.cap_m_s, self._contract.speed.reduced_m_s)
            self._way_back = self._path.way_back(self.state.q, self._kinematics, speed)
            self._plan, self._plan_s, self.mode = None, 0.0, Mode.RETREATING

    def _begin(self, plan: PlannedMotion, mode: Mode) -> None:
        self._plan, self._plan_s, self.mode = plan, 0.0, mode

    def reference_ahead(self, now_s: float) -> tuple[float, FloatArray, FloatArray]:
        """(t, q, v) of what is being followed, where the limiter has read it last: a new chunk joins there."""
        t = now_s + LOOK_AHEAD_S * self.scale
        if self.mode is Mode.FOLLOWING and self._executor.active:
            return (t, *self._executor.reference(t))
        if self.mode is Mode.RETREATING and self._way_back is not None:
            return t, *self._way_back.at(self._plan_s + LOOK_AHEAD_S)
        if self._plan is not None:
            ahead = self._plan.at(self._plan_s + LOOK_AHEAD_S)
            return t, ahead.q, ahead.v
        return t, self.state.q, np.zeros_like(self.state.q)

    def step(self, now_s: float, dt_s: float) -> MotionState:
        self._plan_s += dt_s
        if self.mode is Mode.RETREATING and self._way_back is not None:
            self.state = self._chase(*self._way_back.at(self._plan_s + LOOK_AHEAD_S), dt_s)
            if self._plan_s >= self._way_back.end_s:
                self.stop()
        elif self.mode is Mode.FOLLOWING:
            self.state = self._follow(now_s, dt_s)
        elif self._plan is not None:
            self.state = self._plan.at(self._plan_s)
            if self._plan_s >= self._plan.duration_s:
                self._plan, self.mode = None, Mode.REST
        self._path.record(self.state.q)
        return self.state

    def _follow(self, now_s: float, dt_s: float) -> MotionState:
        before = self.scale
        q_ref, v_ref = self._executor.reference(now_s + LOOK_AHEAD_S * before)
        self._rescale(now_s, dt_s, q_ref, v_ref)
        if not self.scale == before == 1.0:  # at full speed the chunk's clock, and so the reference, is as it was
            self._executor.slow_down(dt_s, self.scale)
            q_ref, v_ref = self._executor.reference(now_s + LOOK_AHEAD_S * self.scale)
        return self._chase(q_ref, v_ref * self.scale, dt_s)

    def _chase(self, q_ref: FloatArray, v_ref: FloatArray, dt_s: float) -> MotionState:
        """One step towards a moving reference, tool and elbow below their cap."""
        limits, q = self._contract.limits, self.state.q
        # Catching up may not be faster than the cap either: pull the target nearer, in its own direction.
        T = LOOK_AHEAD_S + dt_s
        gap = q_ref - v_ref * T - q
        catch_up = CATCH_UP_GAIN / T * gap
        J = self._kinematics.point_jacobians(q)  # (2, 3, n): tool and elbow
        share = min(_largest_share(point @ v_ref, point @ catch_up, SPEED_SHARE * self.cap_m_s) for point in J)
        following = self.limiter.step(self.state, q + share * gap + v_ref * T, v_ref, dt_s)
        if not self._stays_below_cap(following, J):
            following = plan_stop(limits, self.state).at(dt_s)
        return following

    def _stays_below_cap(self, state: MotionState, J: FloatArray) -> bool:
        """Whether tool and elbow do, now and while the arm brakes from `state`: what it does if the next state may not
        be followed. Each joint stops by itself, so one that took speed away may stand before the others, and the
        Jacobian `J` (2, 3, n) changes on the way."""
        limits, cap = self._contract.limits, self.cap_m_s
        # Each joint goes from its speed to the one that it has when its acceleration is taken back, then to zero.
        settled = state.v + state.a * np.abs(state.a) / (2.0 * limits.j_max_rad_s3)
        low, high = np.minimum(np.minimum(state.v, settled), 0.0), np.maximum(np.maximum(state.v, settled), 0.0)
        worst = np.abs(J @ (0.5 * (low + high))) + np.abs(J) @ (0.5 * (high - low))  # (2, 3) m/s: of each axis
        if float((worst * worst).sum(axis=1).max()) <= (SPEED_SURE_SHARE * cap) ** 2:
            return True
        stop = plan_stop(limits, state)
        way = (stop.at(t) for t in np.arange(0.0, stop.duration_s, SPEED_LOOK_S))
        return all(float(self._kinematics.speeds(s.q, s.v).max()) <= SPEED_BRAKE_SHARE * cap for s in way)

    def _rescale(self, now_s: float, dt_s: float, q_ref: FloatArray, v_ref: FloatArray) -> None:
        """Slow the chunk's clock where its speed is above a bound, where the command lags behind it, and to run out."""
        fastest = float(self._kinematics.speeds(q_ref, v_ref).max())
        joints = float((np.abs(v_ref) / self.limiter.v_top_rad_s).max())
        by_speed = SPEED_SHARE / max(fastest / self.cap_m_s, joints, SPEED_SHARE)
        lag = float(np.abs(self._executor.reference(now_s)[0] - self.state.q).max())
        by_lag = 1.0 - (lag - LAG_FREE_RAD) / (LAG_FULL_RAD - LAG_FREE_RAD)
        by_end = math.sqrt(self._executor.left_s(now_s + LOOK_AHEAD_S * self.scale) / RUN_OUT_S)
        self.slow_by_speed, self.slow_by_lag, self.slow_by_end = by_speed < 0.999, by_lag < 0.999, by_end < 0.999
        wanted = min(max(min(by_speed, by_lag, by_end, self.outlook.scale, self.scale_max), SCALE_MIN), 1.0)
        self.scale = min(max(wanted, self.scale - SCALE_DOWN_1_S * dt_s), self.scale + SCALE_UP_1_S * dt_s)

    def tool_speed(self) -> float:
        return self._kinematics.tool_speed(self.state.q, self.state.v)


def _largest_share(base: FloatArray, extra: FloatArray, cap: float) -> float:
    """Largest share s in [0, 1] with |base + s extra| <= cap (0 when base alone is above)."""
    a, b, c = float(extra @ extra), 2.0 * float(base @ extra), float(base @ base) - cap * cap
    if a + b + c <= 0.0:
        return 1.0
    if c >= 0.0 or a <= 0.0:
        return 0.0
    return min(max((-b + math.sqrt(b * b - 4.0 * a * c)) / (2.0 * a), 0.0), 1.0)
