"""Where the things were in a recorded episode, read afterwards from what the gripper did.

The simulator knows where the named object and its destination are, and a policy learns from that where to look. A
recording does not, but it ends well: the object was where the fingers closed on it, its destination where they let go
(relabelling in hindsight, as goals in 1707.01495).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLOSED_BELOW = 0.5  # of the opening that the gripper was told: columns of a chunk are 0 or 1
HOLDS_ABOVE = 0.05  # of the measured opening: fingers that close further hold nothing (panda: 4 mm)
FloatArray = NDArray[np.float32]


def places(tool_m: FloatArray, told: FloatArray, opening: FloatArray) -> FloatArray:
    """tool_m (f, 3) base frame; told and measured opening (f,), 0 to 1 -> (f, 7) as `label_aux` of `dataset.ARRAYS`.

    A thing that was gripped again counts where it was gripped next; the destination is where it was let go last. NaN
    where nothing was ever gripped: something was pushed or pressed, or nobody can tell."""
    aux = np.full((len(told), 7), np.nan, dtype=np.float32)
    closed = told < CLOSED_BELOW  # (f,)
    grips = [grip for grip in _grips(closed) if np.median(opening[slice(*grip)]) > HOLDS_ABOVE]
    if not grips:
        return aux
    end = grips[-1][1]
    thing = np.repeat(tool_m[min(end, len(told) - 1)][None], len(told), axis=0)  # (f, 3) where it lay in the end
    for begin, released in reversed(grips):
        thing[:begin] = tool_m[begin]
        thing[begin:released] = tool_m[begin:released]  # it moves with the tool
    aux[:, :3], aux[:, 3:] = thing - tool_m, 0.0
    if end < len(told):
        aux[:, 3:6], aux[:, 6] = tool_m[end] - tool_m, 1.0
    return aux


def _grips(closed: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(first frame told to close, first frame told to open again or the number of frames), one after the other.

    Fingers that were closed when the recording began had not closed on anything that it shows."""
    change = np.diff(closed.astype(np.int8))
    begins, ends = np.flatnonzero(change == 1) + 1, np.flatnonzero(change == -1) + 1
    return [(int(begin), int(min(ends[ends > begin], default=len(closed)))) for begin in begins]
