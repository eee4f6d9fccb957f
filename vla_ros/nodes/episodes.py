"""The supervisor's side of recording: each `execute` goal may become an episode. Best effort: no goal waits for long.

Used in threads of the desk only: the calls block.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from vla_ros.action import Execute
from vla_ros.data.episode import PART, one_line
from vla_ros.srv import Record

if TYPE_CHECKING:
    from vla_ros.nodes.desk import Desk

ANSWER_S = 1.0  # our choice: a recorder answers in tens of milliseconds
OUTCOMES = {
    Execute.Result.OUTCOME_DONE: "done",
    Execute.Result.OUTCOME_REFUSED: "refused",
    Execute.Result.OUTCOME_TIMEOUT: "timeout",
    Execute.Result.OUTCOME_CANCELLED: "cancelled",
    Execute.Result.OUTCOME_STOPPED: "stopped",
    Execute.Result.OUTCOME_REPLACED: "replaced",
}


class EpisodeRequests:
    """Client of the recorder, if there is one. A recorder that is absent, busy or unwilling changes nothing."""

    def __init__(self, desk: Desk) -> None:
        self._client = desk.node.create_client(Record, "record", callback_group=desk.group)

    def start(self, text: str) -> str:
        """Name of the episode that was begun for this goal; empty without one."""
        if not self._client.service_is_ready():
            return ""
        request = Record.Request(command=Record.Request.START, text=_line(text, 256), operator_name="execute")
        request.automatic = True
        folder = self._ask(request).uri.rpartition("/")[2]
        return str(folder.removesuffix(PART))

    def keep(self, name: str, result: Any) -> str:
        """With the outcome of an Execute result. Returns the URI of the episode; empty without one, and when another
        goal has begun, which ends this one's episode as replaced."""
        if not name:
            return ""
        request = Record.Request(command=Record.Request.KEEP, name=name, instruction_id=result.instruction_id)
        request.outcome, request.outcome_reason = OUTCOMES[result.outcome], _line(result.reason, 512)
        return str(self._ask(request).uri)

    def _ask(self, request: Record.Request) -> Record.Response:
        done = threading.Event()
        future = self._client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        return future.result() if done.wait(ANSWER_S) else Record.Response()


def _line(text: str, bytes_max: int) -> str:
    """What an episode's metadata take: printable, and bounded in bytes as the service's fields are."""
    return one_line(text, bytes_max).encode()[:bytes_max].decode(errors="ignore")
