"""Is a camera worth looking at? Frozen (A2) and blind (A5) pictures pass every check of their format."""

from __future__ import annotations

import hashlib

from vla_ros.core.types import ByteArray

BAD_FRAMES = 5  # A2, A5
MOVING_RAD_S = 0.05  # A2: a camera of a resting arm may well see the same picture again
DARK, BRIGHT, FLAT = 4.0, 251.0, 2.0  # A5: mean below, mean above, standard deviation below
STRIDE_PX = 4  # a sixteenth of the pixels judges brightness as well as all of them


class ImageWatch:
    """One camera. One thread."""

    def __init__(self) -> None:
        self._block = b""
        self._same = self._blind = 0

    def take(self, rgb: ByteArray, arm_moves: bool) -> None:
        """(H, W, 3) uint8, as it came. Any live camera has noise, so equal means frozen, once the arm moves."""
        block = hashlib.blake2b(rgb.tobytes(), digest_size=8).digest()
        self._same = self._same + arm_moves if block == self._block else 1  # only another picture clears it
        self._block = block
        pixels = rgb[::STRIDE_PX, ::STRIDE_PX]
        seen = DARK <= float(pixels.mean()) <= BRIGHT and float(pixels.std()) >= FLAT
        self._blind = 0 if seen else self._blind + 1

    @property
    def verdict(self) -> str:
        """A reason of the supervisor, or empty."""
        if self._blind >= BAD_FRAMES:
            return "image_blind"
        return "image_frozen" if self._same >= BAD_FRAMES else ""
