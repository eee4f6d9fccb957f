"""Instructions: what text is taken, and which instruction is open, pending or queued.

A text becomes pending and is shown to the policy; it becomes the open one only when the policy accepts it. A text
that the policy refuses, or does not judge within 2 s, changes nothing: the open instruction goes on.
"""

from __future__ import annotations

import unicodedata
from collections import deque
from dataclasses import dataclass

from vla_ros.core.errors import Refused

TEXT_MAX = 256  # msg/Instruction
VERDICT_TIMEOUT_S = 2.0  # choice: tokenising and judging takes milliseconds, a busy policy some hundred
SHOW_AGAIN_S = 0.4  # choice: a pending instruction is repeated, judging it twice does no harm
QUEUE_MAX = 8
MODE_REPLACE, MODE_QUEUE = 0, 1  # srv/Instruct


def normalise_text(text: str | bytes) -> str:
    """NFC, one line, printable, 1 to 256 characters. Raises `Refused`; nothing is cut or repaired silently (D8)."""
    if isinstance(text, (bytes, bytearray)):
        if len(text) > 4 * TEXT_MAX:  # before decoding: a 5 MB string must cost nothing
            raise Refused(f"text is too long: {len(text)} bytes, allowed: 1 to {TEXT_MAX} characters")
        try:
            text = bytes(text).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused(f"text is not UTF-8: {error.reason} at byte {error.start}") from error
    if len(text) > 4 * TEXT_MAX:
        raise Refused(f"text is too long: {len(text)} characters, allowed: 1 to {TEXT_MAX}")
    text = unicodedata.normalize("NFC", text).strip(" ")
    for position, character in enumerate(text):
        if character != " " and not character.isprintable():
            # Control characters, line breaks, and the marks that turn the direction of writing (category Cf):
            # what a person reads must be what the policy reads.
            name = unicodedata.name(character, f"U+{ord(character):04X}")
            raise Refused(f"text has a character that is not printable at position {position + 1}: {name}")
    if not text:
        raise Refused(f"text is empty, allowed: 1 to {TEXT_MAX} characters")
    if not len(text) <= TEXT_MAX:
        raise Refused(f"text is too long: {len(text)} characters, allowed: 1 to {TEXT_MAX}")
    return text


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer to one request of an operator. `token` is whatever the shell used to find the request again."""

    token: object
    accepted: bool
    instruction_id: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Pending:
    token: object
    instruction_id: int
    text: str
    deadline_s: float


class InstructionBook:
    """Pure bookkeeping. `replies` and `publish` collect what the shell must send; `take` hands them over."""

    def __init__(self) -> None:
        self.open_id = 0  # 0: none
        self.open_text = ""
        self.judged = False  # the policy has accepted the open one; a person works on what it has not
        self._pending: _Pending | None = None
        self._queue: deque[tuple[int, str]] = deque()
        self._last_id = 0
        self._shown_s = -1e9
        self._replies: list[Reply] = []
        self._publish: tuple[int, str] | None = None

    @property
    def pending(self) -> bool:
        return self._pending is not None

    def take(self) -> tuple[tuple[Reply, ...], tuple[int, str] | None]:
        """(replies, instruction to publish or None), once."""
        taken = (tuple(self._replies), self._publish)
        self._replies, self._publish = [], None
        return taken

    def request(self, now_s: float, token: object, text: str | bytes, mode: int, by_hand: bool = False) -> bool:
        """`by_hand`: a person will do it, whatever the policy knows. True when it is open at once."""
        try:
            clean = normalise_text(text)
            if mode not in (MODE_REPLACE, MODE_QUEUE):
                raise Refused(f"mode is {mode}, allowed: 0 (replace) or 1 (queue)")
            if mode == MODE_QUEUE and len(self._queue) >= QUEUE_MAX:
                raise Refused(f"the queue is full: {QUEUE_MAX} instructions wait")
            if mode == MODE_QUEUE and by_hand:
                raise Refused("mode is 1 (queue), allowed during teleoperation: 0 (replace)")
        except Refused as refusal:
            self._replies.append(Reply(token, False, 0, refusal.reason))
            return False
        self._last_id += 1
        if mode == MODE_QUEUE and (self.open_id or self._pending is not None):
            self._queue.append((self._last_id, clean))
            self._replies.append(Reply(token, True, self._last_id))
            return False
        self._refuse_pending("a newer instruction took its place")
        if mode == MODE_REPLACE:
            self._queue.clear()  # the operator changed their mind about what comes next
        if not by_hand:
            self._show(now_s, token, self._last_id, clean)
            return False
        self.open_id, self.open_text, self.judged = self._last_id, clean, False
        self._publish = (self.open_id, clean)
        self._replies.append(Reply(token, True, self.open_id))
        return True

    def _show(self, now_s: float, token: object, instruction_id: int, text: str) -> None:
        self._pending = _Pending(token, instruction_id, text, now_s + VERDICT_TIMEOUT_S)
        self._shown_s, self._publish = now_s, (instruction_id, text)

    def verdict(self, instruction_id: int, accepted: bool, reason: str) -> bool:
        """The policy's judgement. True when the open instruction changed."""
        if self._pending is not None and self._pending.instruction_id == instruction_id:
            if not accepted:
                self._refuse_pending(reason or "the policy refused it")
                return False
            self.open_id, self.open_text, self.judged = instruction_id, self._pending.text, True
            self._reply_pending(True, "")
            return True
        if instruction_id and instruction_id == self.open_id and self.judged and not accepted:  # a new one knows less
            self.close()
            return True
        return False

    def tick(self, now_s: float) -> None:
        pending = self._pending
        if pending is None:
            return
        if not now_s < pending.deadline_s:
            self._refuse_pending(f"no answer from the policy within {VERDICT_TIMEOUT_S:g} s")
            self._publish = (self.open_id, self.open_text)  # should it answer late, it must not work on that text
        elif now_s - self._shown_s >= SHOW_AGAIN_S and self._publish is None:  # a subscriber that was not matched yet
            self._shown_s, self._publish = now_s, (pending.instruction_id, pending.text)

    def seen(self, instruction_id: int) -> None:
        """An id that a policy remembers, of this supervisor or of one before it: ids are never used twice."""
        self._last_id = max(self._last_id, instruction_id)

    def close(self, reason: str = "cancelled") -> None:
        """Close what is open or pending and forget the queue: after a cancel nothing starts by itself."""
        if self.open_id or self._pending is not None:
            self._publish = (0, "")
        self._refuse_pending(reason)
        self._queue.clear()
        self.open_id, self.open_text = 0, ""

    def finish(self, now_s: float) -> None:
        """The open instruction is done; the next of the queue is shown to the policy."""
        self.open_id, self.open_text = 0, ""
        self._publish = (0, "")
        if self._queue and self._pending is None:
            instruction_id, text = self._queue.popleft()
            self._show(now_s, None, instruction_id, text)

    def show_again(self) -> None:
        """A policy that started anew does not know the open instruction (volatile topic)."""
        if self.open_id and self._pending is None and self._publish is None:
            self._publish = (self.open_id, self.open_text)

    def _refuse_pending(self, reason: str) -> None:
        self._reply_pending(False, reason)

    def _reply_pending(self, accepted: bool, reason: str) -> None:
        if self._pending is None:
            return
        if self._pending.token is not None:  # queued ones were answered when they were queued
            instruction_id = self._pending.instruction_id if accepted else 0
            self._replies.append(Reply(self._pending.token, accepted, instruction_id, reason))
        self._pending = None
