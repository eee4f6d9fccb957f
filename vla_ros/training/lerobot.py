"""Recorded demonstrations (a LeRobot data set) as a shard beside the simulator's.

Where the named things are is what the gripper told (`hindsight`), NaN where it told nothing; where they are in the
pictures only the simulator knows: invisible here, and the losses leave it out. Sentences are taught as they were said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_ros.core.contract import Contract
from vla_ros.policy.features import OPENING_COLUMN, TOOL_COLUMNS
from vla_ros.sim.tasks import COLOURS, SHAPES, parse
from vla_ros.training import hindsight
from vla_ros.training.actions import ActionLabels
from vla_ros.training.dataset import DatasetInvalid, Shard

NO_TASK = (-1, -1, -1, -1)  # codes of a sentence that belongs to no family of the simulator


class Episode(Protocol):
    """What `vla_ros.data.lerobot_reader` yields: f frames of one sentence."""

    text: str
    images: NDArray[np.uint8]  # (f, K, P, P, 3)
    state: NDArray[np.float32]  # (f, n + 1): q [rad], gripper width [m]
    chunk: NDArray[np.float32]  # (f, R, A) as in msg/ActionChunk
    done: NDArray[np.uint8]  # (f,)
    human: NDArray[np.uint8]  # (f,): a person drove
    success: bool


def episodes(folder: Path, contract: Contract) -> Iterable[Episode]:
    """All episodes of a folder. Raises DatasetInvalid without the reader, and its own errors."""
    try:
        from vla_ros.data.lerobot_reader import read_episodes
    except ModuleNotFoundError as error:
        raise DatasetInvalid(f"{folder}: is a LeRobot data set; to read it, install {error.name}") from error
    return read_episodes(folder, contract)


def as_shard(
    name: str,
    recorded: Iterable[Episode],
    features: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    actions: ActionLabels | None,
) -> tuple[Shard, list[str]]:
    """One shard of all episodes that succeeded, and what was left out. Raises DatasetInvalid where nothing is left."""
    good, skipped = [], []
    for number, episode in enumerate(recorded):
        if episode.success:
            good.append(episode)
        else:
            skipped.append(f"{name}: episode {number} did not succeed ({episode.text!r})")
    if not good:
        raise DatasetInvalid(f"{name}: no episode that succeeded")
    texts = tuple(episode.text for episode in good for _ in episode.done)
    codes = {text: NO_TASK if (task := parse(text)) is None else task.codes() for text in set(texts)}
    state = np.concatenate([episode.state for episode in good]).astype(np.float32)  # (m, n + 1)
    chunk = np.concatenate([episode.chunk for episode in good]).astype(np.float32)  # (m, R, A)
    images = np.concatenate([episode.images for episode in good])  # (m, K, P, P, 3)
    m, K = images.shape[:2]
    seen = [features(episode.state) for episode in good]  # (f, S) each
    aux = [
        hindsight.places(f[:, TOOL_COLUMNS], told=episode.chunk[:, 0, -1], opening=f[:, OPENING_COLUMN])
        for f, episode in zip(seen, good, strict=True)
    ]
    shard = Shard(
        name=name,
        images=images,
        features=np.concatenate(seen),
        frame=np.arange(m, dtype=np.int32),
        task=np.array([codes[text] for text in texts], dtype=np.int8),
        chunk=chunk if actions is None else actions(state, chunk),
        done=np.concatenate([episode.done for episode in good]).astype(np.uint8),
        aux=np.concatenate(aux),
        point=np.zeros((m, K, 2, 3), dtype=np.float32),
        texts=texts,
        corrected=np.concatenate([corrections(episode.human) for episode in good]),
    )
    return shard, skipped


def corrections(human: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(f,): a person drove, in an episode in which a policy drove, too. Who drove all the time has corrected nobody."""
    by_hand = np.asarray(human, dtype=np.bool_)
    return by_hand & (not by_hand.all())


def describe(shard: Shard, contract: Contract) -> dict[str, Any]:
    """The entries of a meta.json that the trainer reads."""
    return {
        "seed": None,
        "git_revision": "recorded",
        "families": [],
        "colours": list(COLOURS),
        "shapes": list(SHAPES),
        "rows": contract.action.rows,
        "cols": contract.action.cols,
        "frames": len(shard.features),
    }
