"""Which chunks get in: a flood is cut, each is taken whole or not at all, and each refusal is an event."""

from __future__ import annotations

from collections import deque

from vla_ros.core.chunks import ROWS_A_TICK, ChunkExecutor
from vla_ros.core.contract import Contract
from vla_ros.core.decision import EventLog
from vla_ros.core.errors import Invalid
from vla_ros.core.joints import JointWatch
from vla_ros.core.motion import Mover
from vla_ros.core.rules import Findings, Reason
from vla_ros.core.task import Task
from vla_ros.core.types import Chunk, Source

BAD_CHUNK_COUNT, BAD_CHUNK_WINDOW_S = 3, 10.0  # B1
MAX_CHUNKS = 2  # looked at in one update, newest last: a flood must not cost the tick (E11)


class ChunkIntake:
    def __init__(
        self, contract: Contract, executor: ChunkExecutor, joints: JointWatch, task: Task, events: EventLog
    ) -> None:
        self._contract = contract
        self._executor = executor
        self._joints = joints
        self._task = task
        self._events = events
        self._bad_chunks_s: deque[float] = deque(maxlen=BAD_CHUNK_COUNT)
        self.accepted = self.rejected = self.cut = 0
        self.newest: Chunk | None = None  # accepted in the newest `take`
        self._source: Source | None = Source.POLICY
        self._told = False  # that the other source proposes motion, too

    def listen_to(self, source: Source | None) -> None:
        """Whose chunks count from now on (D10); None: nobody's."""
        self._source, self._told = source, source is None

    def take(self, now_s: float, chunks: tuple[Chunk, ...], mover: Mover | None, bad: Findings) -> bool:
        """True when one was accepted. `mover` is None while nothing may move: then every chunk is refused."""
        self.newest = None
        # A tick with a new chunk has enough to do: of the old one only what is read.
        self._extend(now_s, 0 if chunks else ROWS_A_TICK, bad)
        self.rejected += max(len(chunks) - MAX_CHUNKS, 0)
        for chunk in chunks[-MAX_CHUNKS:]:
            try:
                self._accept(now_s, chunk, mover)
            except Invalid as error:
                self.rejected += 1
                # A policy goes on proposing while a person drives: one event says so, and the counter how often.
                if error.reason != "other_source" or not self._told:
                    self._events.note(error, chunk.sequence)
                self._told = self._told or error.reason == "other_source"
                if error.reason == "non_finite":
                    self._bad_chunks_s.append(now_s)
                if error.reason == Reason.CONTRACT_MISMATCH.value:
                    bad[Reason.CONTRACT_MISMATCH] = True
            except Exception as error:  # noqa: BLE001 - E14: whatever a chunk does, the arm brakes and the loop lives
                self.rejected += 1
                self._internal(error, chunk.sequence, bad)
            else:
                self.accepted += 1
                self.newest = chunk
        full = len(self._bad_chunks_s) == BAD_CHUNK_COUNT
        if full and now_s - self._bad_chunks_s[0] <= BAD_CHUNK_WINDOW_S:
            bad[Reason.BAD_CHUNKS] = True
            self._bad_chunks_s.clear()
        return self.newest is not None

    def _extend(self, now_s: float, rows: int, bad: Findings) -> None:
        """A chunk whose later rows cannot be reached is cut before them."""
        try:
            self._executor.extend(now_s, rows)
        except Invalid as error:
            self.cut += 1
            self._events.note(error, self._executor.sequence)
        except Exception as error:  # noqa: BLE001 - E14, as below
            self._internal(error, self._executor.sequence, bad)

    def _internal(self, error: Exception, sequence: int, bad: Findings) -> None:
        bad[Reason.INTERNAL] = True
        self._events.note(Invalid("chunk executor", repr(error), "no exception", reason="internal"), sequence)

    def _accept(self, now_s: float, chunk: Chunk, mover: Mover | None) -> None:
        if mover is None:
            raise Invalid("severity", "STOP", "a rearmed arm", reason="stopped")
        if not self._task.needs_chunks:
            raise Invalid("instruction_id", chunk.instruction_id, "an open instruction", reason="instruction_closed")
        if chunk.source is not self._source:
            listened = self._source.name if self._source is not None else "none: the source is being changed"
            raise Invalid("source", chunk.source.name, listened, reason="other_source")
        chunk.validate(self._contract.n_joints)  # before its stamp is used
        self._executor.accept(
            now_s,
            chunk,
            self._task.book.open_id,
            self._joints.q_at(chunk.observed_at_s),
            mover.state.q,
            mover.reference_ahead(now_s),
        )
        if self._executor.clamped_rows:
            self._events.note(
                Invalid("rows at the workspace or joint bounds", self._executor.clamped_rows, "0", reason="clamped"),
                chunk.sequence,
            )
        self._task.chunk_taken(now_s, chunk.done_probability)
