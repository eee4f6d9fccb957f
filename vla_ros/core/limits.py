"""Jerk-limited motion of the joints: the limiter that follows a moving reference, and the planned stop.

Everything here is a function of the last COMMANDED state; nothing measured enters (safety.md, section 3, rule 10).
All arrays are (n,) in contract order: q rad, v rad/s, a rad/s^2, jerk rad/s^3.

Commands are points of one curve with piecewise constant jerk, integrated exactly. So the braking distances
below are exact too, and differences of the command stream stay inside the same bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import ruckig

from vla_ros.core.contract import JointLimits
from vla_ros.core.errors import Invalid
from vla_ros.core.types import FloatArray, require_finite

# How far ahead the reference is read. Choice, measured with 20 Hz rows: no lag behind a moving reference, 6 rad/s^3 rms
# jerk at 1 mrad of noise; shorter follows the noise, longer cuts corners.
LOOK_AHEAD_S = 0.12
# Inside this distance the smooth request rules; outside it the arm must be able to stop short of the target.
TARGET_TOLERANCE_RAD = 0.001
CANDIDATES = 25  # jerks tried per joint and tick, beside the request itself
# No joint is ever taken into a state from which its stop would last longer: the commands of an interrupt end this much
# later. Choice: safety.md section 4 gives an interrupt 400 ms to standstill; reaction, two hops and the servo take up
# to 60 ms of them. At full speed (1 rad/s at 5 rad/s^2 and 50 rad/s^3) a stop lasts 300 ms, so what is given up is a
# hard acceleration at high speed, from which it would last 400 ms.
STOP_TIME_MAX_S = 0.31


@dataclass(frozen=True, slots=True)
class MotionState:
    """Last commanded state of the joints."""

    q: FloatArray
    v: FloatArray
    a: FloatArray

    @classmethod
    def at_rest(cls, q: FloatArray) -> MotionState:
        return cls(np.array(q, dtype=np.float64), np.zeros(q.size), np.zeros(q.size))

    @property
    def moving(self) -> bool:
        return bool(np.abs(self.v).max() > 1e-6 or np.abs(self.a).max() > 1e-6)


def stop_distance(v: FloatArray, a: FloatArray, a_max: FloatArray, j_max: FloatArray) -> FloatArray:
    """How far a joint still moves in the positive direction when it stops as fast as its limits allow. Broadcasts.

    Exact for `plan_stop` (safety.md, section 10), an upper bound when v <= 0.
    """
    # Moving back, but pulled forward so hard that it will move forward: start from where the speed crosses zero.
    pulled = np.sqrt(np.maximum(a * a + 2.0 * j_max * v, 0.0))
    a = np.where(v > 0.0, a, np.where(a > 0.0, pulled, 0.0))
    v = np.maximum(v, 0.0)
    # Braking harder than needed: the jerk releases the brake and the speed reaches zero on the way.
    deficit = a * a - 2.0 * j_max * v
    released = (a < 0.0) & (deficit >= 0.0)
    t = (-a - np.sqrt(np.maximum(deficit, 0.0))) / j_max
    released_distance = t * (v + t * (0.5 * a + t * (j_max / 6.0)))
    distance: FloatArray = np.where(released, released_distance, _brake_distance(v, a, a_max, j_max))
    return distance


def measured_state(limits: JointLimits, q: FloatArray, v: FloatArray) -> MotionState:
    """Where a stop begins that is anchored on the measured state (C5), brought inside the limits.

    A joint whose stop would leave its soft limits is taken as standing: its command must stay inside them.
    """
    q = np.clip(q, limits.q_lo_rad, limits.q_hi_rad)
    v = np.clip(v, -limits.v_max_rad_s, limits.v_max_rad_s)
    ahead, behind = stop_distance(np.stack([v, -v]), np.zeros((2, q.size)), limits.a_max_rad_s2, limits.j_max_rad_s3)
    stays = (q + ahead <= limits.q_hi_rad) & (q - behind >= limits.q_lo_rad)
    return MotionState(q, np.where(stays, v, 0.0), np.zeros(q.size))


def stop_displacement(state: MotionState, limits: JointLimits) -> FloatArray:
    """(n,) rad, signed: from here to where the arm would stand if it braked now, each joint as fast as it can."""
    A, J = limits.a_max_rad_s2, limits.j_max_rad_s3
    # What is braked is the speed once the acceleration is taken back: mirrored so that it is positive.
    side = np.copysign(1.0, state.v + state.a * np.abs(state.a) / (2.0 * J))
    displacement: FloatArray = side * _brake_distance(side * state.v, side * state.a, A, J)
    return displacement


def _brake_distance(v: FloatArray, a: FloatArray, a_max: FloatArray, j_max: FloatArray) -> FloatArray:
    """Way of brake jerk, full brake and release, for a speed that is >= 0 once the acceleration is taken back."""
    peak = np.minimum(a_max, np.sqrt(np.maximum(j_max * v + 0.5 * a * a, 0.0)))
    peak = np.maximum(peak, 1e-12)  # at rest: avoids 0 / 0 below
    t1 = np.maximum((a + peak) / j_max, 0.0)
    t2 = np.maximum((v + (a * a - 2.0 * peak * peak) / (2.0 * j_max)) / peak, 0.0)
    return (
        t1 * (v + t1 * (0.5 * a - t1 * (j_max / 6.0)))
        + (v + t1 * (a - 0.5 * j_max * t1)) * t2
        - 0.5 * peak * t2 * t2
        + peak**3 / (6.0 * j_max * j_max)
    )


class Limiter:
    """Follows a reference inside position, velocity, acceleration and jerk limits, never farther than STOP_TIME_MAX_S
    from rest. Holds no state."""

    def __init__(self, limits: JointLimits, period_s: float) -> None:
        self._limits = limits
        self._dt_max_s = 2.0 * period_s
        self._fractions = np.linspace(0.0, 1.0, CANDIDATES)[:, None]  # (K, 1)
        # Room for the ticks in which the jerk of a stop changes sign: it can only change at a tick. Measured on
        # random references with random ticks of 0.5 ms to two periods: the envelope is passed by at most
        # 1.2 J dt^3 when a jerk phase lasts a single tick, by nothing with the shipped limits.
        margin = 2.0 * limits.j_max_rad_s3 * self._dt_max_s**3
        self._lo = limits.q_lo_rad + margin
        self._hi = limits.q_hi_rad - margin
        # STOP_TIME_MAX_S as a bound of the settled speed s at acceleration a: the release takes |a| / J, the brake then
        # s / B + B / J at any peak B that reaches it, so s <= B (T - B / J) - B / J |a|. Exact where the full brake is
        # reached, as with the shipped limits; lower, so never longer, where the jerk does not give that much time.
        brake = np.minimum(limits.a_max_rad_s2, 0.5 * limits.j_max_rad_s3 * STOP_TIME_MAX_S)
        self._stoppable = brake * (STOP_TIME_MAX_S - brake / limits.j_max_rad_s3)
        self._stoppable_loss_s = brake / limits.j_max_rad_s3
        self.v_top_rad_s = np.minimum(limits.v_max_rad_s, self._stoppable)
        # Farther than this from both limits no state inside the speed bound can reach one: its stop, and one tick.
        a = np.linspace(0.0, 1.0, 50)[:, None] * limits.a_max_rad_s2  # (50, n)
        v = np.maximum(limits.v_max_rad_s - a * a / (2.0 * limits.j_max_rad_s3), 0.0)
        farthest = stop_distance(v, a, limits.a_max_rad_s2, limits.j_max_rad_s3).max(axis=0)
        self._reach = 1.05 * farthest + limits.v_max_rad_s * self._dt_max_s

    def clamp_dt(self, dt_s: float) -> float:
        """Measured time since the last command, at most two periods: a late tick must not become a leap (E10)."""
        if not dt_s > 0.0:  # also NaN
            raise Invalid("dt_s", dt_s, "> 0", reason="clock")
        return min(dt_s, self._dt_max_s)

    def step(self, state: MotionState, q_ref: FloatArray, v_ref: FloatArray, dt_s: float) -> MotionState:
        """The next commanded state. `q_ref`, `v_ref`: where the reference will be LOOK_AHEAD_S after that state."""
        require_finite("q_ref", q_ref)
        require_finite("v_ref", v_ref)
        dt = self.clamp_dt(dt_s)
        A, J = self._limits.a_max_rad_s2, self._limits.j_max_rad_s3
        q, v, a = state.q, state.v, state.a

        # The wish: the minimum-jerk curve from here to the reference.
        T = LOOK_AHEAD_S + dt
        wish = 60.0 * (q_ref - q) / T**3 - (36.0 * v + 24.0 * v_ref) / T**2 - 9.0 * a / T  # (n,)

        # Candidates keep |a'| <= A by construction; the wish, clipped, is one of them.
        j_lo = np.maximum(-J, (-A - a) / dt)
        j_hi = np.maximum(np.minimum(J, (A - a) / dt), j_lo)
        wish = np.minimum(np.maximum(wish, j_lo), j_hi)
        following, cost = self._judge(state, wish, wish, q_ref, v_ref, dt)
        if cost.any():  # in one tick of five; where the wish breaks nothing no other candidate costs less
            grid = np.concatenate([j_lo + self._fractions * (j_hi - j_lo), wish[None]])  # (K + 1, n)
            tried, cost = self._judge(state, grid, wish, q_ref, v_ref, dt)
            pick = (np.argmin(cost, axis=0), np.arange(q.size))
            following = MotionState(tried.q[pick], tried.v[pick], tried.a[pick])
        require_finite("command", following.q)
        return following

    def _judge(
        self, state: MotionState, jerk: FloatArray, wish: FloatArray, q_ref: FloatArray, v_ref: FloatArray, dt: float
    ) -> tuple[MotionState, FloatArray]:
        """Where jerks (..., n) lead within `dt`, and what each costs: 0 for the wish when it breaks no bound."""
        limits, q, v, a = self._limits, state.q, state.v, state.a
        A, J, V = limits.a_max_rad_s2, limits.j_max_rad_s3, limits.v_max_rad_s
        a1 = a + jerk * dt
        v1 = v + dt * (a + 0.5 * dt * jerk)
        q1 = q + dt * (v + dt * (0.5 * a + (dt / 6.0) * jerk))

        # In the frame of the target, mirrored so that the target always lies ahead.
        target = q_ref - v_ref * (LOOK_AHEAD_S + dt)
        side = np.where(q <= target, 1.0, -1.0)
        u1 = side * (v1 - v_ref)
        past = side * (q1 - target - v_ref * dt) + stop_distance(u1, side * a1, A, J) - TARGET_TOLERANCE_RAD
        outside: FloatArray | float = 0.0
        if ((q + self._reach > self._hi) | (q - self._reach < self._lo)).any():
            forward, backward = stop_distance(np.stack([v1, -v1]), np.stack([a1, -a1]), A, J)  # (..., n) each
            outside = np.maximum(q1 + forward - self._hi, self._lo - q1 + backward)

        # In the direction of the acceleration: the speed once it is taken back, and what stops in time from there.
        # Against it: the speed itself. And the mean speed of this tick: it may peak within.
        rate = np.abs(a1)
        gaining = np.where(a1 < 0.0, -v1, v1)
        room = np.minimum(V, self._stoppable - self._stoppable_loss_s * rate)
        fast = np.maximum(gaining + a1 * a1 / (2.0 * J) - room, -gaining - self.v_top_rad_s)
        fast = np.maximum(fast, np.abs(q1 - q) / dt - V)

        # Lexicographic: speed, then position envelope, then stopping short of the target, then the wish.
        cost: FloatArray = (
            1e12 * np.maximum(fast, 0.0)
            + 1e8 * np.maximum(outside, 0.0)
            + 1e4 * np.maximum(past, 0.0)
            + np.abs(jerk - wish) / J
        )
        return MotionState(q1, v1, a1), cost


class PlannedMotion:
    """A motion planned as a whole: a stop, or a move from rest to rest. Ends with speed zero and stays there."""

    def __init__(
        self, limits: JointLimits, start: MotionState, goal_rad: FloatArray | None, speed_factor: float
    ) -> None:
        n = start.q.size
        plan = ruckig.InputParameter(n)
        plan.current_position = start.q.tolist()
        plan.current_velocity = start.v.tolist()
        plan.current_acceleration = np.clip(start.a, -limits.a_max_rad_s2, limits.a_max_rad_s2).tolist()
        plan.target_velocity = [0.0] * n
        plan.target_acceleration = [0.0] * n
        plan.max_velocity = (speed_factor * limits.v_max_rad_s).tolist()
        plan.max_acceleration = limits.a_max_rad_s2.tolist()
        plan.max_jerk = limits.j_max_rad_s3.tolist()
        if goal_rad is None:
            plan.control_interface = ruckig.ControlInterface.Velocity
            # Each joint stops as fast as it can: waiting for the slowest one would leave the braking envelope.
            plan.synchronization = ruckig.Synchronization.No
        else:
            plan.control_interface = ruckig.ControlInterface.Position
            plan.target_position = goal_rad.tolist()
        self._trajectory = ruckig.Trajectory(n)
        result = ruckig.Ruckig(n).calculate(plan, self._trajectory)
        if result not in (ruckig.Result.Working, ruckig.Result.Finished):
            raise Invalid("planned motion", str(result), "a plan", reason="plan")
        self.duration_s: float = self._trajectory.duration
        end, _, _ = self._trajectory.at_time(self.duration_s)
        self._end = MotionState.at_rest(np.array(end))

    def at(self, t_s: float) -> MotionState:
        """State `t_s` after the start; exactly at rest from the end on."""
        if not t_s < self.duration_s:
            return self._end
        q, v, a = self._trajectory.at_time(t_s)
        return MotionState(np.array(q), np.array(v), np.array(a))


def plan_stop(limits: JointLimits, start: MotionState) -> PlannedMotion:
    """The fastest stop inside the limits. A rate limiter towards v = 0 is no stop: it reverses and rings."""
    return PlannedMotion(limits, start, None, 1.0)


def plan_move(limits: JointLimits, start: MotionState, goal_rad: FloatArray, speed_factor: float) -> PlannedMotion:
    """From rest to rest, all joints arriving together, at a share (0, 1] of the joint speed."""
    return PlannedMotion(limits, start, goal_rad, speed_factor)
