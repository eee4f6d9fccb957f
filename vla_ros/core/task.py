"""What is being worked on: the open instruction, what its policy says about it, and when it counts as done."""

from __future__ import annotations

import math

from vla_ros.core.chunks import ChunkExecutor
from vla_ros.core.instructions import InstructionBook

DONE_ABOVE, DONE_FOR_S = 0.9, 0.5
SETTLED_FOR_S = 0.2  # choice: so long must arm and gripper have been still


class Task:
    """Owned by the supervisor. Closing or changing the instruction always forgets its chunks as well."""

    def __init__(self, executor: ChunkExecutor) -> None:
        self.book = InstructionBook()
        self._executor = executor
        self.first_chunk_missing = False  # the open instruction has not had a chunk yet
        self.home_asked = False
        self.retreat_until_s = -math.inf  # a retreat was asked for, and may begin until then
        self.finishing = self.done = False
        self.done_id = 0
        self.done_probability = 0.0
        self._done_since_s = math.inf  # since when the policy has said done without a break

    @property
    def is_open(self) -> bool:
        return self.book.open_id != 0

    @property
    def needs_chunks(self) -> bool:
        """Open and not about to end: a chunk is welcome."""
        return self.is_open and not self.finishing

    def close(self, now_s: float, reason: str = "cancelled") -> None:
        self._executor.flush(now_s)
        self.book.close(reason)
        self._forget()

    def opened(self, now_s: float) -> None:
        """The policy has accepted another text, or refused the open one."""
        self._executor.flush(now_s)
        self._forget()
        self.first_chunk_missing = self.is_open

    def chunk_lost(self, now_s: float) -> None:
        """The executor failed: a new chunk is needed before anything moves."""
        self._executor.flush(now_s)
        self.first_chunk_missing = self.is_open

    def taken_over(self, now_s: float) -> None:
        """Somebody else proposes motion from now on: what was under way ends, the open instruction stays."""
        self.chunk_lost(now_s)
        self.finishing = self.home_asked = False
        self._done_since_s, self.retreat_until_s = math.inf, -math.inf

    def chunk_taken(self, now_s: float, done_probability: float) -> None:
        self.first_chunk_missing = False
        self.done_probability = done_probability
        if not done_probability > DONE_ABOVE:
            self._done_since_s = math.inf
        elif math.isinf(self._done_since_s):
            self._done_since_s = now_s

    def judge_done(self, now_s: float, holding: bool, at_rest: bool, unsettled_s: float) -> None:
        """Done: the policy says so for 0.5 s, then the arm brakes, then arm and gripper are seen to be still."""
        if self.needs_chunks and now_s - self._done_since_s >= DONE_FOR_S:
            self.finishing = not holding
        if self.finishing and at_rest and now_s - unsettled_s >= SETTLED_FOR_S:
            self._executor.flush(now_s)
            self.done_id = self.book.open_id
            self.book.finish(now_s)
            probability = self.done_probability
            self._forget()
            self.done, self.done_probability = True, probability

    def _forget(self) -> None:
        """After the open instruction was closed or changed: nothing of the old one counts."""
        self.first_chunk_missing = self.finishing = self.done = self.home_asked = False
        self.done_probability, self._done_since_s, self.retreat_until_s = 0.0, math.inf, -math.inf
