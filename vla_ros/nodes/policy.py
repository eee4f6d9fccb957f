"""Policy: observations and an instruction in, chunks out. Inference runs in a worker; the newest observation wins.

Each chunk begins with the rows that will have been executed when it arrives (real-time chunking, policy/committed.py).
It may be slow, crash or hang: nothing about safety depends on this process. It must start with torch absent.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla_ros import paths
from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid, Refused
from vla_ros.core.types import Observation
from vla_ros.msg import ActionChunk, Instruction, PolicyStatus, SafetyState
from vla_ros.msg import Observation as ObservationMsg
from vla_ros.nodes import conversions
from vla_ros.nodes.loop import yield_this_thread
from vla_ros.nodes.runtime import ShellNode, run
from vla_ros.policy.committed import CHUNKINGS, DEFAULT_CHUNKING, Committed
from vla_ros.policy.hot_swap import HotSwap

if TYPE_CHECKING:
    from vla_ros.policy.runtime import PolicyRuntime

STATUS_PERIOD_S = 0.5
LATENCIES = 200  # msg/PolicyStatus
FAILURES_MAX = 3  # fault B11: consecutive exceptions in inference until the node falls silent
HOP_S = 0.005  # from publishing a chunk until the supervisor's next tick, on average half a control period
WARM_UP_CALLS = 2  # the first calls allocate; they are not latency that anybody will see again


class PolicyNode(ShellNode):
    def __init__(self) -> None:
        super().__init__("policy")
        self.parameter("policy_path", "", "folder of the policy; empty: the shipped one; installed: the installed one")
        self.parameter("seed", 0, "seed of the noise that the action head starts from")
        self.parameter("chunking", DEFAULT_CHUNKING, "prefix: a chunk continues the running one; naive: it does not")
        self.timer("status", STATUS_PERIOD_S, self._publish_status)
        self._ready = False
        self._worker: threading.Thread | None = None

    def load(self, path: Path, contract: Contract) -> PolicyRuntime:
        """Seam for tests: a node with another runtime overrides this."""
        from vla_ros.policy.runtime import load  # imports onnxruntime

        return load(path, contract)

    def configure(self, contract: Contract) -> None:
        self._contract = contract
        self._rng = np.random.default_rng(int(self.value("seed")))
        self._condition = threading.Condition()
        self._newest: Observation | None = None
        self._open: tuple[int, str] | None = None  # instruction id and text, once accepted
        self._verdict = (0, PolicyStatus.VERDICT_NONE, "")
        self._latencies_s: deque[float] = deque(maxlen=LATENCIES)
        self._sequence = 0
        self._running = False
        chunking = str(self.value("chunking"))
        if chunking not in CHUNKINGS:
            raise Invalid("chunking", chunking, " or ".join(CHUNKINGS))
        folder = paths.policy_folder(self.value("policy_path"), contract.name)
        # Watched from before the first loading, so that no change is missed.
        self._swap = HotSwap(folder, lambda fresh: self._load_and_try(fresh, contract))
        self._runtime = self._load_and_try(folder.resolve(), contract)
        # Guarded by the condition's lock, as all that callbacks and the worker share.
        self._committed = self._fresh_committed()
        self._status = self.publisher(PolicyStatus, "policy_status", "policy_status")
        self._chunks = self.publisher(ActionChunk, "action_chunk", "action_chunk")
        self.subscribe(Instruction, "instruction", "instruction", self._on_instruction)
        self.subscribe(ObservationMsg, "observation", "observation", self._on_observation)
        self.subscribe(SafetyState, "safety_state", "safety_state", self._on_state)
        self._ready = True

    def _fresh_committed(self) -> Committed:
        prefix = self.value("chunking") == "prefix"
        return Committed(self._contract, self._runtime.manifest.prefix_max if prefix else 0)

    def _load_and_try(self, folder: Path, contract: Contract) -> PolicyRuntime:
        """A policy that has answered. On the node's thread, or beside it where another one is running."""
        c, runtime = contract, self.load(folder, contract)
        images = {cam.name: np.zeros((cam.policy_px, cam.policy_px, 3), dtype=np.uint8) for cam in c.cameras}
        n = c.n_joints
        blank = Observation(1, 1, c.hash, images, c.poses.ready_rad, np.zeros(n), c.gripper.open_m)
        for _ in range(WARM_UP_CALLS):
            runtime.infer(blank, "", np.random.default_rng(0))
        return runtime

    def _swap_when_idle(self) -> None:
        """What was newly installed is loaded in the background and taken between two instructions."""
        self._swap.watch()
        if self._swap.problem:
            self.log_slowly("installed policy", self._swap.problem)
        with self._condition:
            fresh = self._swap.take(idle=self._open is None)
            if fresh is None:
                return
            self._runtime = fresh
            self._committed = self._fresh_committed()
        self.get_logger().info(f"policy {fresh.manifest.name} ({fresh.checkpoint_hash[:12]}) from now on")

    def activate(self) -> None:
        self._running = True
        self._worker = threading.Thread(target=self._work, name="inference", daemon=True)
        self._worker.start()
        self._publish_status()

    def deactivate(self) -> None:
        with self._condition:
            self._running = False
            self._condition.notify_all()
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join(timeout=1.0)

    def cleanup(self) -> None:
        self._ready = False

    # ------------------------------------------------------------------------------------------ callbacks

    def _on_instruction(self, message: Instruction) -> None:
        if message.instruction_id == 0:
            with self._condition:
                self._open = None
                self._committed.clear()
            return
        try:
            self._runtime.judge(message.text)
        except Refused as refusal:  # the open one goes on
            self._verdict = (message.instruction_id, PolicyStatus.VERDICT_REFUSED, refusal.reason[:512])
        else:
            self._verdict = (message.instruction_id, PolicyStatus.VERDICT_ACCEPTED, "")
            with self._condition:
                self._open = (message.instruction_id, message.text)
                self._committed.clear()
                self._condition.notify_all()
        self._publish_status()

    def _on_observation(self, message: ObservationMsg) -> None:
        observation = conversions.observation(message, self._contract.n_joints)
        with self._condition:
            self._newest = observation
            self._condition.notify_all()

    def _on_state(self, message: SafetyState) -> None:
        with self._condition:
            self._committed.watch(message.severity, message.phase)

    # ------------------------------------------------------------------------------------------ inference

    def _work(self) -> None:
        yield_this_thread()
        camera_s = 1.0 / max(camera.rate_hz for camera in self._contract.cameras)
        # Paced by stamps, half a frame early: 7.5 Hz of 15 Hz frames is every second frame, whatever the jitter.
        spacing_ns = round((1.0 / self._contract.rates.policy_hz - camera_s / 2.0) * 1e9)
        used_ns, used_id, failures = 0, 0, 0
        while True:
            with self._condition:
                while self._running and not self._due(used_ns, used_id, spacing_ns):
                    self._condition.wait()
                if not self._running:
                    return
                assert self._newest is not None and self._open is not None
                observation, (instruction_id, text) = self._newest, self._open
            used_ns, used_id = observation.stamp_ns, instruction_id
            try:
                self._infer(observation, instruction_id, text)
                failures = 0
            except Exception as error:  # noqa: BLE001 fault B11: no chunk, the node stays alive
                failures += 1
                self.count("inference failures")
                self.log_slowly(
                    "inference", f"inference: {type(error).__name__}: {error}; no chunk for this observation"
                )
                if failures >= FAILURES_MAX:
                    self.fail(f"inference failed {failures} times in a row: {type(error).__name__}: {error}")
                    return

    def _due(self, used_ns: int, used_id: int, spacing_ns: int) -> bool:
        if self._newest is None or self._open is None:
            return False
        waited_ns = self._newest.stamp_ns - used_ns
        return waited_ns > 0 and (waited_ns >= spacing_ns or self._open[0] != used_id)

    def _infer(self, observation: Observation, instruction_id: int, text: str) -> None:
        with self._condition:
            prefix = self._committed.prefix(observation.stamp_ns, observation.q_rad, instruction_id)
        started_s = time.monotonic()
        output = self._runtime.infer(observation, text, self._rng, prefix)
        taken_s = time.monotonic() - started_s
        self._latencies_s.append(taken_s)
        if not np.isfinite(output.data).all():
            self.count("chunks with non-finite actions")  # sent all the same: refusing it is the supervisor's record
        self._sequence += 1
        action = self._contract.action
        with self._condition:
            if self._open is not None and self._open[0] == instruction_id:
                self._committed.sent(output.data, observation.stamp_ns, observation.q_rad, instruction_id)
            sent_ns = self.get_clock().now().nanoseconds
            self._committed.delay.add((sent_ns - observation.stamp_ns) * 1e-9 + HOP_S)
        self._chunks.publish(
            conversions.chunk_message(
                output.data,
                stamp_ns=observation.stamp_ns,
                writer_id=self.writer_id,
                instruction_id=instruction_id,
                sequence=self._sequence,
                contract_hash=self._runtime.manifest.contract_hash,
                space=action.space,
                dt_s=action.dt_s,
                committed_rows=len(prefix),
                inference_s=taken_s,
                confidence=output.confidence,
                done_probability=output.done_probability,
            )
        )
        self.count("chunks")

    # ------------------------------------------------------------------------------------------ status

    def _latency_s(self) -> tuple[float, float]:
        latencies = list(self._latencies_s)
        if not latencies:
            return 0.0, 0.0
        p50, p99 = np.percentile(latencies, (50.0, 99.0))
        return float(p50), float(p99)

    def _publish_status(self) -> None:
        if not self._ready:
            return
        self._swap_when_idle()
        instruction_id, verdict, reason = self._verdict
        p50_s, p99_s = self._latency_s()
        self._status.publish(
            PolicyStatus(
                stamp=self.get_clock().now().to_msg(),
                writer_id=self.writer_id,
                ready=self.active and not self.failure,
                instruction_id=instruction_id,
                verdict=verdict,
                reason=reason,
                latency_p50=p50_s,
                latency_p99=p99_s,
                precision=self._runtime.precision[:128],
                checkpoint_hash=self._runtime.checkpoint_hash,
                contract_hash=self._runtime.manifest.contract_hash,
            )
        )

    def health(self) -> Mapping[str, object]:
        p50_s, p99_s = self._latency_s()
        return {
            "latency_p50_ms": f"{p50_s * 1e3:.1f}",
            "latency_p99_ms": f"{p99_s * 1e3:.1f}",
            "chunk_delay_ms": f"{(self._committed.delay.value_s or 0.0) * 1e3:.1f}",
            "precision": self._runtime.precision,
        }


def main() -> None:
    run(PolicyNode)


if __name__ == "__main__":
    main()
