"""One episode in one process, in fake time, as fast as the machine allows.

The same observation builder, supervisor and arm controller as in the live graph run here; only the messages between
them are left out, and the delays that messages, rendering and inference cause are added as numbers. The policy gets
images, joint state and text. The world's truth is used for the verdict alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from vla_ros.arm.controller import ArmController
from vla_ros.core.contract import Contract
from vla_ros.core.errors import Refused
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.observation import ObservationBuilder
from vla_ros.core.rules import Reason
from vla_ros.core.supervisor import Decision, Inputs, Supervisor
from vla_ros.core.types import Chunk, Command, FloatArray, JointSample, Observation, Severity
from vla_ros.policy.committed import DEFAULT_CHUNKING, Committed
from vla_ros.policy.ensemble import KINDS, Ensemble
from vla_ros.policy.runtime import PolicyOutput, PolicyRuntime
from vla_ros.sim import choices, verdict
from vla_ros.sim.scene import TIMESTEP_S
from vla_ros.sim.tasks import Task, parse, sentence
from vla_ros.sim.world import World
from vla_ros.training.scores import Episode

if TYPE_CHECKING:
    from vla_ros.policy.guided import GuidedRuntime  # needs torch

TIME_LIMIT_S = 15.0  # of one episode
LINGER_S = 4.0  # a task that stays fulfilled this long ends the episode even if the policy never says so
CHUNK_DELAY_S = 0.060  # from the shutter to the supervisor: rendering, two hops, inference; measured in the live graph
COMMAND_DELAY_TICKS = 1  # supervisor -> arm controller -> servo
START_S = 1.0e3  # fake steady clock at the start of an episode; anything positive
REARM_TICK, INSTRUCT_TICK = 2, 6  # the arm controller must have seen a command before the rearm
WRITER_ID = 1
CHUNKINGS = ("prefix", "naive", *KINDS, "guided")


@dataclass(frozen=True)
class Execution:
    """How chunks are asked for and joined. Plain data: it goes to another process.

    delay_steps: every chunk arrives this many rows later than the live graph's do; the next observation does not wait
    for it, as when the delay lies in cameras and network. rows_per_inference: a chunk is asked for every so many rows
    instead of at the contract's policy rate; where the supervisor would then find chunks too old, its timeout is
    widened, here and nowhere else."""

    chunking: str = DEFAULT_CHUNKING
    delay_steps: int = 0
    rows_per_inference: int | None = None

    def validate(self, rows: int) -> None:
        if self.chunking not in CHUNKINGS:
            raise ValueError(f"chunking is {self.chunking!r}, allowed: {', '.join(CHUNKINGS)}")
        if not 0 <= self.delay_steps < rows:
            raise ValueError(f"delay_steps is {self.delay_steps}, allowed: 0 to {rows - 1}")
        if self.rows_per_inference is not None and not 1 <= self.rows_per_inference <= rows:
            raise ValueError(f"rows_per_inference is {self.rows_per_inference}, allowed: 1 to {rows}")

    def delay_s(self, contract: Contract) -> float:
        return CHUNK_DELAY_S + self.delay_steps * contract.action.dt_s

    def spacing_s(self, contract: Contract) -> float:
        """Between the observations that chunks are computed from."""
        if self.rows_per_inference is not None:
            return self.rows_per_inference * contract.action.dt_s
        frame_hz = contract.cameras[0].rate_hz
        return max(1, round(frame_hz / contract.rates.policy_hz)) / frame_hz

    def contract_for(self, contract: Contract) -> Contract:
        """The contract, with a chunk timeout that this way of asking can keep."""
        needed_s = self.spacing_s(contract) + self.delay_s(contract) + 2 * contract.period_s
        timeouts = dataclasses.replace(contract.timeouts, chunk_s=max(contract.timeouts.chunk_s, needed_s))
        return dataclasses.replace(contract, timeouts=timeouts) if self.rows_per_inference else contract


def command_violations(commands: Sequence[Command], contract: Contract) -> tuple[list[str], float]:
    """Check a recorded command stream against the contract: finite, position, velocity, acceleration and jerk.

    Differences are taken over the commands' own times, the way the limiter integrates them. Returns the violations,
    worst first, and the mean absolute jerk over all joints [rad/s^3].
    """
    if len(commands) < 4:
        return [], 0.0
    q = np.array([c.q_rad for c in commands])
    t = np.array([c.at_s for c in commands])
    if not np.isfinite(q).all():
        return ["a command is not finite"], math.nan
    dt = np.diff(t)[:, None]
    v = np.diff(q, axis=0) / dt
    a = np.diff(v, axis=0) / dt[1:]
    j = np.diff(a, axis=0) / dt[2:]
    limits = contract.limits
    found = []
    slack = 1e-6  # rounding of differences, relative
    outside = np.maximum(limits.q_lo_rad - q, q - limits.q_hi_rad).max()
    if outside > 1e-9:
        found.append(f"position {outside:.2e} rad outside the soft limits")
    for name, values, bound, rounding in (
        ("velocity", v, limits.v_max_rad_s, 1e-12 / dt.min()),
        ("acceleration", a, limits.a_max_rad_s2, 1e-12 / dt.min() ** 2),
        ("jerk", j, limits.j_max_rad_s3, 1e-12 / dt.min() ** 3),
    ):
        excess = (np.abs(values) - bound * (1 + slack) - rounding).max()
        if excess > 0:
            found.append(f"{name} {excess:.3g} above its limit")
    return found, float(np.abs(j).mean())


class Tape(Protocol):
    """Hears what a recorder beside the live graph would hear, every camera frame included. Stamps are ROS time [ns]."""

    tail_s: float  # how long an episode goes on after the instruction is done

    def frame(self, pictures: dict[str, np.ndarray], stamp_ns: int) -> None: ...

    def tick(self, joints: JointSample, chunks: Sequence[Chunk], decision: Decision, stamp_ns: int) -> None: ...


class Proposer:
    """Between observations and chunks, the way the policy node does it: asks the policy, and joins what it says."""

    def __init__(self, contract: Contract, policy: PolicyRuntime, execution: Execution, text: str) -> None:
        self._contract, self._policy, self._text = contract, policy, text
        self._delay_s, kind = execution.delay_s(contract), execution.chunking
        self._committed = Committed(contract, policy.manifest.prefix_max) if kind == "prefix" else None
        self._running = Committed(contract, contract.action.rows) if kind == "guided" else None
        self._ensemble = Ensemble(contract, kind) if kind in KINDS else None
        self._sequence = 0
        self.inference_s: list[float] = []
        self.prefix_rows: list[int] = []  # given to the policy

    def watch(self, decision: Decision) -> None:
        """What SafetyState tells the node."""
        for memory in (self._committed, self._running):
            if memory is not None:
                memory.watch(decision.severity, decision.phase)

    def propose(self, observation: Observation, rng: np.random.Generator, instruction_id: int, now_s: float) -> Chunk:
        stamp_ns, q_rad = observation.stamp_ns, observation.q_rad
        out, prefix = self._infer(observation, rng, instruction_id)
        data = out.data if self._ensemble is None else self._ensemble.mean(out.data, stamp_ns, q_rad)
        for memory in (self._committed, self._running):
            if memory is not None:
                memory.sent(data, stamp_ns, q_rad, instruction_id)
                memory.delay.add(self._delay_s)
        self._sequence += 1
        self.inference_s.append(out.inference_s)
        self.prefix_rows.append(len(prefix))
        action = self._contract.action
        return Chunk(
            observed_at_s=now_s,
            writer_id=WRITER_ID + 1,
            instruction_id=instruction_id,
            sequence=self._sequence,
            contract_hash=self._contract.hash,
            space=action.space,
            dt_s=action.dt_s,
            data=data,
            committed_rows=len(prefix),
            inference_s=out.inference_s,
            confidence=out.confidence,
            done_probability=out.done_probability,
        )

    def _infer(
        self, observation: Observation, rng: np.random.Generator, instruction_id: int
    ) -> tuple[PolicyOutput, FloatArray]:
        """The answer, and the rows that were committed in it."""
        stamp_ns, q_rad, text = observation.stamp_ns, observation.q_rad, self._text
        nothing = np.zeros((0, self._contract.action.space.cols(self._contract.n_joints)))
        if self._running is not None:
            overlap = self._running.overlap(stamp_ns, q_rad, instruction_id)
            guided = cast("GuidedRuntime", self._policy)
            return guided.infer_guided(observation, text, rng, overlap, self._running.executed_rows()), nothing
        if self._committed is None:
            return self._policy.infer(observation, text, rng), nothing
        prefix = self._committed.prefix(stamp_ns, q_rad, instruction_id)
        return self._policy.infer(observation, text, rng, prefix), prefix


class Rollout:
    """One robot, one policy, one world; `run` plays one episode."""

    def __init__(self, contract: Contract, policy: PolicyRuntime, execution: Execution | None = None) -> None:
        self._execution = execution or Execution()
        self._execution.validate(contract.action.rows)
        if self._execution.chunking == "guided" and not hasattr(policy, "infer_guided"):
            raise ValueError("chunking is guided: it needs a flow policy on the torch runtime (policy/guided.py)")
        self._contract = self._execution.contract_for(contract)
        self._policy = policy
        self.world = World(contract)
        self.cameras = contract.cameras

    def run(
        self,
        seed: int | tuple[int, ...],
        family: str | None = None,
        text: str | None = None,
        on_frame: Callable[[dict[str, np.ndarray]], None] | None = None,
        suitable: Callable[[World, Task], bool] = choices.with_trained_pairs,
        heldout_phrasing: bool = False,
        swap: int | None = None,
        means: str | None = None,
        tape: Tape | None = None,
    ) -> Episode:
        """`text` is a sentence; without it the world chooses one.

        suitable: which tasks may be drawn; swap, means: see `evaluate.Trial`; tape: hears what the graph would."""
        world, rng = self.world, np.random.default_rng([*np.atleast_1d(seed), 2])
        named = None if text is None else parse(means or text)
        world.reset(seed, family, named, suitable)
        rival: Task | None = None
        if swap is not None:
            others = choices.contrasting(world, world.task)
            rival = others[int(rng.integers(len(others)))]
            if swap:
                first = world.task
                world.set_task(rival)
                rival = first
        if text is not None and not swap:
            said = text
        elif heldout_phrasing or swap:
            said = sentence(world.task, rng, heldout_phrasing)
        else:
            said = world.instruction
        episode = Episode(seed, world.task.family, said, False, False, False, 0.0, "")
        try:
            self._policy.judge(said)
        except Refused as refusal:
            episode.detail = f"refused: {refusal}"
            return episode
        self._play(episode, np.random.default_rng([*np.atleast_1d(seed), 1]), on_frame, tape)
        end = world.outcome()
        episode.success, episode.wrong_object, episode.detail = end.success, end.wrong_object, end.detail
        episode.wrong_direction = end.wrong_direction
        if rival is not None:
            astray = end.wrong_object or end.wrong_direction or verdict.fulfilled(world, rival)
            episode.obeyed = not astray if end.success or astray else None
        return episode

    def _play(
        self,
        episode: Episode,
        rng: np.random.Generator,
        on_frame: Callable[[dict[str, np.ndarray]], None] | None,
        tape: Tape | None,
    ) -> None:
        contract, world = self._contract, self.world
        supervisor = Supervisor(contract, Kinematics(contract), writer_id=WRITER_ID)
        arm = ArmController(contract)
        builder = ObservationBuilder(contract)
        delay_s, spacing_s = self._execution.delay_s(contract), self._execution.spacing_s(contract)
        frame_s, frames = 1.0 / contract.cameras[0].rate_hz, 0
        proposer = Proposer(contract, self._policy, self._execution, episode.text)
        period = contract.period_s
        steps = round(period / TIMESTEP_S)
        pending: list[tuple[float, Chunk]] = []
        in_flight: list[Command | None] = [None] * COMMAND_DELAY_TICKS
        streams: list[list[Command]] = [[]]  # a stop after a tracking fault begins anew, from the measured state (C5)
        seams: list[float] = []
        rearms: tuple[int, ...] = ()
        instructs: tuple[tuple[int, str, int], ...] = ()
        verdicts: tuple[tuple[int, bool, str], ...] = ()
        instruction_id, looks, accepted = 0, 0, 0
        fulfilled_at: float | None = None
        over_at: float | None = None

        for tick in range(round(TIME_LIMIT_S / period)):
            elapsed = tick * period
            now = START_S + elapsed
            stamp_ns = round(now * 1e9)
            q, qd, width = world.joints()
            sample = JointSample(q, qd, width, now)
            builder.add_joints(sample, stamp_ns)
            look = elapsed + 1e-9 >= looks * spacing_s
            shown = tape is not None and elapsed + 1e-9 >= frames * frame_s  # a policy need not see every frame
            if look or shown:
                frames += 1
                pictures = {camera.name: world.render(camera.name) for camera in contract.cameras}
                if tape is not None:
                    tape.frame(pictures, stamp_ns)
            if look:
                looks += 1
                for name, picture in pictures.items():
                    builder.add_image(name, picture, stamp_ns, stamp_ns, now)
                if instruction_id:
                    chunk = proposer.propose(builder.build(now), rng, instruction_id, now)
                    pending.append((now + delay_s, chunk))
                if on_frame is not None:
                    on_frame(pictures)
            arrived = tuple(chunk for due, chunk in pending if due <= now)
            pending = [(due, chunk) for due, chunk in pending if due > now]
            decision = supervisor.update(
                now, Inputs(joints=sample, chunks=arrived, rearms=rearms, instructs=instructs, verdicts=verdicts)
            )
            proposer.watch(decision)
            if tape is not None:
                tape.tick(sample, arrived, decision, stamp_ns)
            if decision.counters.chunks_accepted > accepted:
                accepted = decision.counters.chunks_accepted
                seams.append(supervisor.executor.seam[0])
            elif accepted and decision.severity >= Severity.HOLD:
                episode.held_s += period
            # The arm controller must have seen the counter before the rearm, or it takes no command.
            rearms, verdicts = ((1,) if tick == REARM_TICK else ()), ()
            instructs = ((2, episode.text, 0),) if tick == INSTRUCT_TICK else ()
            if decision.publish_instruction is not None:
                instruction_id = decision.publish_instruction[0]
                verdicts = ((instruction_id, True, ""),) if instruction_id else ()
            episode.rejected = decision.counters.chunks_rejected
            if decision.raised(Reason.TRACKING):
                streams.append([])
            if decision.command is not None:
                streams[-1].append(decision.command)
            in_flight.append(decision.command)
            output = arm.update(now, in_flight.pop(0), sample, 0)
            if output is not None:
                world.command(output.q_rad, output.qd_rad_s)
                world.grip(output.gripper_width_m)
            world.step(steps)
            episode.duration_s = elapsed
            if decision.phase == "done":
                episode.done = True
                over_at = elapsed if over_at is None else over_at
                if elapsed - over_at >= (0.0 if tape is None else tape.tail_s):
                    break
            if world.outcome().success:
                fulfilled_at = elapsed if fulfilled_at is None else fulfilled_at
                if elapsed - fulfilled_at > LINGER_S:
                    break
            else:
                fulfilled_at = None
        judged = [command_violations(stream, contract) for stream in streams]
        episode.violations = [violation for found, _ in judged for violation in found]
        episode.jerk_mean_rad_s3 = judged[0][1]
        episode.inference_s = proposer.inference_s
        episode.seam_rad = float(np.mean(seams[1:])) if len(seams) > 1 else 0.0  # the first starts from rest
        episode.committed_rows = float(np.mean(proposer.prefix_rows)) if proposer.prefix_rows else 0.0
