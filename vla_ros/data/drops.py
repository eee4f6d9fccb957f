"""How many messages were lost, of which topic, and when."""

from __future__ import annotations

import threading
from collections import Counter, deque


class Drops:
    """Messages lost, by topic and by second. Several threads."""

    def __init__(self, span_s: float) -> None:
        self._lock = threading.Lock()
        self._total: Counter[int] = Counter()
        self._seconds: deque[tuple[float, Counter[int]]] = deque(maxlen=max(round(span_s) + 1, 2))

    def add(self, topic: int, n: int, now_s: float) -> None:
        with self._lock:
            self._total[topic] += n
            if not self._seconds or now_s - self._seconds[-1][0] >= 1.0:
                self._seconds.append((now_s, Counter()))
            self._seconds[-1][1][topic] += n

    def total(self) -> Counter[int]:
        with self._lock:
            return self._total.copy()

    def since(self, at_s: float) -> Counter[int]:
        """To the second, and not longer ago than the span."""
        with self._lock:
            return sum((count for begun_s, count in self._seconds if begun_s >= at_s - 1.0), Counter())
