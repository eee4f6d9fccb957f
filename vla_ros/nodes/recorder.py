"""Recorder: everything that is said in the graph, in one rosbag2 folder per episode. It says nothing itself.

Start and stop by the service `record`; the supervisor asks for it for every goal of the action `execute`.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping
from concurrent.futures import TimeoutError as NoAnswer
from pathlib import Path
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.serialization import deserialize_message

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid, Refused
from vla_ros.data.bag_writer import Topic
from vla_ros.data.episode import HASH, PART, REASON_MAX, SHORT_MAX, TEXT_MAX, Episode, State, one_line
from vla_ros.data.images import Coding
from vla_ros.data.recording import Recording, Stream
from vla_ros.data.session import Settings, Status
from vla_ros.msg import Instruction, PolicyStatus, SafetyState
from vla_ros.nodes import qos
from vla_ros.nodes.desk import Desk
from vla_ros.nodes.figures import Threshold
from vla_ros.nodes.recorded_topics import kind_name, sources
from vla_ros.nodes.runtime import NAMESPACE, ShellNode, run
from vla_ros.srv import Record

ANSWER_TIMEOUT_S = 10.0  # our choice: a disk or a machine that is slower than this has stalled
THRESHOLDS = (
    Threshold("drops", 1.0, 1000.0),  # a lost message is worth a look, a second of all topics is a broken recording
    Threshold("closed_early", 1.0, 1.0),  # an episode that ended because of the disk
)


class RecorderNode(ShellNode):
    def __init__(self) -> None:
        super().__init__("recorder")
        self.watch(*THRESHOLDS)
        self.parameter("folder", "episodes", "where episodes are put; relative to where the node was started")
        self.parameter(
            "images", "jpeg 90", "how cameras are stored: jpeg with a quality of 1 to 100, or png (lossless)"
        )
        self.parameter("free_min_mb", 500, "no recording while the disk has less free space [MB]")
        self.parameter("ring_s", 30.0, "the last seconds are held in memory for `vla record last`; 0: not held [s]")
        self.parameter("ring_max_mb", 256, "memory for these seconds at most [MB]")
        self.parameter("queue_max_mb", 64, "memory for messages that wait for the disk at most [MB]")
        self.parameter(
            "execute", True, "record every goal of the action `execute`, unless something is recorded already"
        )
        self._recording: Recording | None = None
        self._note = ""
        self._desk = Desk("recorder_desk", NAMESPACE)
        self.serve(Record, "record", self._on_record, lambda reason: Record.Response(reason=reason[:512]), self._desk)
        self._desk.start()

    def configure(self, contract: Contract) -> None:
        self._contract = contract
        self._contract_text = Path(contract.source).read_text(encoding="utf-8")
        self._coding = Coding.parse(str(self.value("images")))
        self._settings = Settings(
            folder=Path(str(self.value("folder"))).expanduser().absolute(),
            free_min_bytes=int(self.value("free_min_mb")) * 1_000_000,
            ring_s=float(self.value("ring_s")),
            ring_max_bytes=int(self.value("ring_max_mb")) * 1_000_000,
            queue_max_bytes=int(self.value("queue_max_mb")) * 1_000_000,
        )
        self._settings.validate()
        self._sources = sources(contract, self._coding)
        self._index = {source.name: i for i, source in enumerate(self._sources)}
        self._instruction = (0, "")  # id and text of the newest one heard in the open episode
        self._asked = Record.Request()  # by which it was started
        for i, source in enumerate(self._sources):
            self._endpoints.append(
                self.create_subscription(
                    source.kind,
                    source.name,
                    self.guarded(source.name, functools.partial(self._heard, i)),
                    qos.recorded(source.stream),
                    raw=True,
                    event_callbacks=SubscriptionEventCallbacks(
                        incompatible_qos=functools.partial(self._misfit, source.name),
                        message_lost=functools.partial(self._lost, i),
                    ),
                )
            )

    def activate(self) -> None:
        streams = [
            Stream(
                Topic(
                    self.resolve_topic_name(source.name) + source.suffix,
                    kind_name(source.stored or source.kind),
                    qos.described(source.stream),
                ),
                source.change,
                newest=qos.TABLE[source.stream].latched or source.stream == "camera_info",
            )
            for source in self._sources
        ]
        self._recording = Recording(streams, self._settings, self.ros_now_ns, self._broken)
        self._recording.begin()

    def deactivate(self) -> None:
        if self._recording is not None:
            self._recording.end()

    def close(self) -> None:
        self._desk.close()

    def _broken(self, error: BaseException) -> None:
        self.fail(f"recording: {type(error).__name__}: {error}")

    # ------------------------------------------------------------------------------------------ messages

    def _heard(self, source: int, serialised: bytes) -> None:
        if not self.active or self._recording is None:
            return
        self._recording.offer(source, serialised, self.ros_now_ns())
        if self._sources[source].kind is Instruction:
            message = deserialize_message(serialised, Instruction)
            if message.instruction_id:
                self._instruction = (message.instruction_id, message.text)

    def _lost(self, source: int, event: Any) -> None:
        if self.active and self._recording is not None:
            self._recording.lost(source, event.total_count_change)

    def _misfit(self, topic: str, event: Any) -> None:
        self.count(f"incompatible QoS {topic}")
        self.log_slowly(f"QoS {topic}", f"{topic}: a publisher does not offer what is asked for; it is not recorded")

    # ------------------------------------------------------------------------------------------ service

    def _on_record(self, request: Record.Request) -> Record.Response:
        recording = self._recording
        if not self.active or recording is None:
            raise Refused(f"the recorder is not active. {self.failure}".strip())
        if request.command == Record.Request.STATUS:
            return answer(recording.status())
        commands = {
            Record.Request.START: lambda: self._start(recording, request),
            Record.Request.STOP: recording.stop,
            Record.Request.KEEP: lambda: self._keep(recording, request),
            Record.Request.DISCARD: recording.discard,
            Record.Request.LAST: lambda: recording.last(
                request.name, request.seconds, functools.partial(self._describe, request)
            ),
        }
        if request.command not in commands:
            raise Invalid("command", request.command, f"0 to {max(commands)}, see srv/Record")
        try:
            status = commands[request.command]().result(timeout=ANSWER_TIMEOUT_S)
        except NoAnswer:
            waiting = f"{recording.waiting_bytes / 1e6:.1f} MB wait to be written"
            raise Refused(f"not done within {ANSWER_TIMEOUT_S:g} s, {waiting}; it goes on") from None
        return answer(status)

    def _start(self, recording: Recording, request: Record.Request) -> Any:
        if request.automatic:
            if not self.value("execute"):
                raise Refused("goals are not recorded: the recorder's parameter execute is false")
            if self._asked.automatic and recording.status().state is State.RECORDING:
                ended = recording.keep(outcome="replaced", outcome_reason="another goal began")
                ended.result(timeout=ANSWER_TIMEOUT_S)
        state = self._newest(SafetyState, "safety_state")
        self._instruction = (state.instruction_id, state.text) if state is not None else (0, "")
        started = recording.start(request.name, functools.partial(self._describe, request))
        if started.exception(timeout=ANSWER_TIMEOUT_S) is None:
            self._asked = request
        return started

    def _keep(self, recording: Recording, request: Record.Request) -> Any:
        folder = recording.status().folder
        if request.name and (folder is None or folder.name.removesuffix(PART) != request.name):
            raise Refused(f"{request.name} is not the open episode")
        return recording.keep(**judged(request))

    def _describe(self, request: Record.Request) -> Episode:
        """What is known now of the episode that `request` asked for."""
        policy = self._newest(PolicyStatus, "policy_status")
        instruction_id, text = self._instruction
        return Episode(
            text=one_line(request.text or text, TEXT_MAX),
            instruction_id=instruction_id,
            contract=self._contract.name,
            contract_hash=self._contract.hash,
            contract_text=self._contract_text,
            policy_hash=policy.checkpoint_hash if policy is not None and HASH.fullmatch(policy.checkpoint_hash) else "",
            operator=one_line(request.operator_name, SHORT_MAX),
            images=str(self._coding),
            recorder=importlib.metadata.version("vla_ros"),
        )

    def _newest(self, kind: type, name: str) -> Any:
        serialised = self._recording.newest(self._index[name]) if self._recording is not None else None
        return None if serialised is None else deserialize_message(serialised, kind)

    def health(self) -> Mapping[str, object]:
        recording = self._recording
        if recording is None:
            return {}
        drops, status = recording.drops(), recording.status()
        if status.note and status.note != self._note:
            self.get_logger().error(status.note)
        self._note = status.note
        return {
            "recording": status.state.name.lower(),
            "episode": status.folder.name if status.folder is not None else "",
            "closed_early": int(bool(status.note)),
            "note": status.note,
            "drops": sum(drops.values()),
            **{f"drops {topic}": n for topic, n in drops.items()},
        }


def judged(request: Record.Request) -> dict[str, Any]:
    """Fields of the Episode that a KEEP sets."""
    if request.success not in (Record.Request.NOT_JUDGED, Record.Request.FAILED, Record.Request.SUCCEEDED):
        raise Invalid("success", request.success, "-1 (not judged), 0 (failed) or 1 (succeeded)")
    given: dict[str, Any] = {
        "outcome": request.outcome,
        "outcome_reason": one_line(request.outcome_reason, REASON_MAX),
    }
    if request.instruction_id:
        given["instruction_id"] = request.instruction_id
    if request.success != Record.Request.NOT_JUDGED:
        given["success"] = request.success == Record.Request.SUCCEEDED
    return given


def answer(status: Status) -> Record.Response:
    return Record.Response(
        accepted=True,
        reason=status.note[:512],
        uri=status.folder.as_uri()[:1024] if status.folder is not None else "",
        state=int(status.state),
        duration=status.duration_s,
        messages=status.messages,
        drops=status.drops,
        size=status.size_bytes,
    )


def main() -> None:
    run(RecorderNode, shared_memory=True)  # raw images


if __name__ == "__main__":
    main()
