"""The supervisor's view of perception: what it says about its cameras, and whether it says anything at all."""

from __future__ import annotations

import math

from vla_ros.core.contract import Contract
from vla_ros.core.rules import Findings, Reason
from vla_ros.core.types import PerceptionStatus

VERDICTS = (Reason.IMAGE_STALE, Reason.IMAGE_FROZEN, Reason.IMAGE_BLIND)


def judge_perception(now_s: float, contract: Contract, status: PerceptionStatus | None, bad: Findings) -> None:
    """Adds to `bad`. None means that the caller has no perception to watch; silence is a camera that stopped (A1)."""
    bad.update(dict.fromkeys(VERDICTS, False))
    if status is None:
        return
    if not now_s - status.reported_at_s <= contract.timeouts.image_s:
        bad[Reason.IMAGE_STALE] = True
    elif status.reason:
        known = [reason for reason in VERDICTS if reason.value == status.reason]
        bad[known[0] if known else Reason.IMAGE_STALE] = True  # a verdict that is not understood is not a good one
    if math.isfinite(status.reported_at_s) and status.contract_hash != contract.hash:
        bad[Reason.CONTRACT_MISMATCH] = True  # A10: other cameras than ours
