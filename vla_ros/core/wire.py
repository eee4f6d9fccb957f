"""What the fields of our messages mean, whoever has decoded them: rclpy in the running graph, rosbags in a recording.

One place, so that a replayed supervisor is told what the live one was told. Fields are those of msg/*.msg; what does
not make a whole object raises `Invalid`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_ros.core.errors import Invalid
from vla_ros.core.types import ActionSpace, ArmStatus, Chunk, PerceptionStatus, Source


def chunk(message: Any, observed_at_s: float, source: Source) -> Chunk:
    """msg/ActionChunk; `observed_at_s`: its stamp, on the receiver's clock. Shape and space are needed to build one;
    everything else is judged by the chunk executor."""
    if len(message.data) != message.rows * message.cols or not len(message.data):
        raise Invalid(
            "chunk.data", len(message.data), f"rows * cols = {message.rows} * {message.cols}, not empty", reason="shape"
        )
    try:
        space = ActionSpace(message.space)
    except ValueError:
        raise Invalid("chunk.space", message.space, "1 (tool delta) or 2 (joint position)", reason="space") from None
    return Chunk(
        observed_at_s=observed_at_s,
        writer_id=message.writer_id,
        instruction_id=message.instruction_id,
        sequence=message.sequence,
        contract_hash=message.contract_hash,
        space=space,
        dt_s=decimal(message.dt),
        data=np.array(message.data, dtype=np.float64).reshape(message.rows, message.cols),
        committed_rows=message.committed_rows,
        inference_s=float(message.inference_time),
        confidence=float(message.confidence),
        done_probability=float(message.done_probability),
        source=source,
    )


def arm_status(message: Any, received_at_s: float) -> ArmStatus:
    """msg/ArmState."""
    return ArmStatus(message.ready, message.latched, message.reason, message.rearm_counter, received_at_s)


def perception_status(message: Any, received_at_s: float) -> PerceptionStatus:
    """msg/PerceptionStatus."""
    return PerceptionStatus(message.reason, message.contract_hash, received_at_s)


def decimal(single: float) -> float:
    """float32 0.05 is 0.0500000007 in float64; what was meant has at most six digits."""
    return round(float(single), 6)
