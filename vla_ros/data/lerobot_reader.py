"""Reads a LeRobot data set (format v3.0) for training: ours whole, another's as far as it names what is needed.

for episode in read_episodes(folder, contract):
    episode.images, episode.state, episode.chunk, episode.done, episode.text
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid
from vla_ros.core.kinematics import Kinematics
from vla_ros.data import images, lerobot_video
from vla_ros.data.labels import Track, chunks
from vla_ros.data.lerobot import numbers
from vla_ros.data.lerobot_format import (
    ACTION,
    CHUNK,
    DATA_PATH,
    DONE,
    HUMAN,
    INFO,
    OURS,
    STATE,
    TASKS,
    VERSION,
    VIDEO_PATH,
    DatasetError,
    camera_key,
)


@dataclass(frozen=True)
class TrainingEpisode:
    """f frames of one sentence, as `training/dataset.py` keeps them in a shard."""

    text: str
    images: NDArray[np.uint8]  # (f, cameras, P, P, 3), cameras in the contract's order
    state: NDArray[np.float32]  # (f, n + 1): joints [rad], gripper width [m]
    chunk: NDArray[np.float32]  # (f, rows, cols) as in msg/ActionChunk
    done: NDArray[np.uint8]  # (f,)
    human: NDArray[np.uint8]  # (f,): a person drove: a demonstration, or the correction of a policy
    success: bool


def read_info(folder: Path, contract: Contract) -> dict[str, Any]:
    """meta/info.json, checked against the contract. Raises DatasetError with what differs."""
    try:
        info: dict[str, Any] = json.loads((folder / INFO).read_text(encoding="utf-8"))
        version, features = info["codebase_version"], info["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{folder / INFO}: not readable ({error}); is it a LeRobot data set?") from error
    if version != VERSION:
        raise DatasetError(f"{folder / INFO}: codebase_version is {version!r}, allowed: {VERSION}")
    ours = folder / OURS
    if ours.is_file():
        theirs = json.loads(ours.read_text(encoding="utf-8"))["contract_hash"]
        if theirs != contract.hash:
            raise DatasetError(
                f"{ours}: contract_hash {theirs[:12]} is of another robot contract ({contract.hash[:12]} is loaded)"
            )
    for camera in contract.cameras:
        kind = features.get(camera_key(camera.name), {})
        wanted = [camera.policy_px, camera.policy_px, 3]
        if kind.get("dtype") not in ("video", "image") or list(kind.get("shape", [])) != wanted:
            key = camera_key(camera.name)
            raise DatasetError(f"{folder / INFO}: {key} is {kind or 'absent'}, allowed: pictures of shape {wanted}")
    for key in (STATE, ACTION):
        if list(features.get(key, {}).get("shape", [])) != [contract.n_joints + 1]:
            raise DatasetError(
                f"{folder / INFO}: {key} is {features.get(key)}, allowed: {contract.n_joints + 1} numbers"
            )
    return info


def read_episodes(folder: Path, contract: Contract, which: Sequence[int] | None = None) -> Iterator[TrainingEpisode]:
    """All episodes, or those of these indices, one after the other: a data set need not fit into memory.

    Chunks are read where the export wrote them (from every joint state); else they are made from the frames' states.
    Raises DatasetError for another contract, a damaged file, or values that are not finite.
    """
    info = read_info(folder, contract)
    tasks = pq.read_table(folder / TASKS)
    text_of = {int(i): str(t) for i, t in zip(tasks["task_index"].to_pylist(), _texts(tasks), strict=True)}
    rows = _episodes(folder)
    for row in rows:
        if which is None or row["episode_index"] in which:
            try:
                yield _episode(folder, contract, info, row, text_of)
            except (OSError, KeyError, pa.ArrowException, Invalid) as error:
                raise DatasetError(f"{folder}: episode {row['episode_index']}: {error}") from error


def _texts(tasks: pa.Table) -> list[str]:
    """LeRobot's tables have the sentence in pandas' index, named or not."""
    name = next(name for name in tasks.column_names if name != "task_index")
    return tasks[name].to_pylist()


def _episodes(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in sorted((folder / "meta/episodes").glob("*/*.parquet")):
        schema = pq.read_schema(path)
        found += pq.read_table(path, columns=[n for n in schema.names if not n.startswith("stats/")]).to_pylist()
    if not found:
        raise DatasetError(f"{folder}/meta/episodes: no episode")
    return sorted(found, key=lambda row: int(row["episode_index"]))


def _episode(
    folder: Path, contract: Contract, info: dict[str, Any], row: dict[str, Any], text_of: dict[int, str]
) -> TrainingEpisode:
    index, fps = int(row["episode_index"]), int(info["fps"])
    place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
    table = pq.read_table(
        folder / (info.get("data_path") or DATA_PATH).format(**place), filters=[("episode_index", "=", index)]
    )
    n = table.num_rows
    if n != int(row["length"]) or n == 0:
        raise Invalid("frames", n, f"{row['length']}, more than 0")
    state, action = (_finite(table, key) for key in (STATE, ACTION))
    pictures = [_pictures(folder, info, row, table, camera.name, fps) for camera in contract.cameras]
    task = int(table["task_index"][0].as_py())
    success = bool(row.get("success", True))
    if CHUNK in table.column_names:
        chunk = _finite(table, CHUNK).reshape(n, contract.action.rows, contract.action.cols)
    else:
        chunk = _from_frames(contract, state, action, fps)
    if DONE in table.column_names:
        done = np.asarray(numbers(table.column(DONE))).astype(np.uint8)
    else:  # all we know is that the task was done when the recording ended
        done = (np.arange(n) == n - 1).astype(np.uint8) * np.uint8(success)
    human = np.zeros(n, dtype=np.uint8)
    if HUMAN in table.column_names:
        human = np.asarray(numbers(table.column(HUMAN))).astype(np.uint8)
    return TrainingEpisode(text_of[task], np.stack(pictures, axis=1), state, chunk, done, human, success)


def _finite(table: pa.Table, key: str) -> NDArray[np.float32]:
    values = numbers(table.column(key)).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if bad.size:
        raise Invalid(f"{key} of frame {bad[0]}", "NaN or infinite", "finite numbers", reason="non_finite")
    return values


def _pictures(
    folder: Path, info: dict[str, Any], row: dict[str, Any], table: pa.Table, camera: str, fps: int
) -> NDArray[np.uint8]:
    """(f, P, P, 3)"""
    key = camera_key(camera)
    if info["features"][key]["dtype"] == "image":
        return np.stack([images.decode(cell["bytes"]) for cell in table[key].to_pylist()])
    place = {"chunk_index": row[f"videos/{key}/chunk_index"], "file_index": row[f"videos/{key}/file_index"]}
    path = folder / (info.get("video_path") or VIDEO_PATH).format(video_key=key, **place)
    first = round(float(row[f"videos/{key}/from_timestamp"]) * fps)
    return np.stack(list(lerobot_video.frames(path, fps, first, int(row["length"]))))


def _from_frames(
    contract: Contract, state: NDArray[np.float32], action: NDArray[np.float32], fps: int
) -> NDArray[np.float32]:
    """Chunks from what the frames say alone: joints between frames are straight lines."""
    at_ns = (np.arange(len(state)) * (1e9 / fps)).round().astype(np.int64)
    if len(at_ns) < 2:
        raise Invalid("frames", len(at_ns), ">= 2")
    q = state[:, :-1].astype(np.float64)
    track = Track(at_ns, q, at_ns, action[:, -1].astype(np.float64))
    return chunks(contract, Kinematics(contract), at_ns, track)
