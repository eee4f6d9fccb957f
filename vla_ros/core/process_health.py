"""What a process asks of itself before it works and while it does: matching QoS (E7), bounded memory (E12)."""

from __future__ import annotations

from vla_ros.core.errors import Invalid
from vla_ros.core.types import require_finite

RSS_MAX_MB = 2000.0  # choice: five times what the largest process, the policy, needs


class QosGate:
    """Collects incompatible-QoS events. Such a pair of endpoints exchanges no data at all, and says nothing."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def note(self, topic: str, policy: str) -> None:
        self._found.setdefault(topic, policy)

    def require(self) -> None:
        """Raises `Invalid` that names each topic and policy: the node must not become active."""
        if self._found:
            pairs = ", ".join(f"{topic} ({policy})" for topic, policy in sorted(self._found.items()))
            raise Invalid(
                "QoS", pairs, "profiles that match", "start both sides from the same release", reason="qos_incompatible"
            )


def require_memory(rss_mb: float, limit_mb: float = RSS_MAX_MB) -> None:
    """Raises `Invalid` above the limit: the process ends itself, and the arm brakes as if it had been killed."""
    require_finite("rss_mb", rss_mb)
    if not 0.0 < rss_mb <= limit_mb:
        raise Invalid("rss_mb", rss_mb, f"0 to {limit_mb:g}", reason="memory")
