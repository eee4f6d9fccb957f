"""Joins episodes to a LeRobot data set, format v3.0 (see `lerobot_format`). Files begin anew at LeRobot's own sizes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_ros import __version__
from vla_ros.core.contract import Contract
from vla_ros.data import lerobot_video, statistics
from vla_ros.data.disk import sync_folder
from vla_ros.data.extract import frame_rate
from vla_ros.data.lerobot_format import (
    DATA_MB,
    DATA_PATH,
    EPISODES_PATH,
    FILES_PER_CHUNK,
    INFO,
    OURS,
    STATS,
    TASKS,
    VERSION,
    VIDEO_MB,
    VIDEO_PATH,
    camera_key,
    features,
)
from vla_ros.data.lerobot_part import PART_DATA, PART_JSON, part_video

MB = 1 << 20


def assemble(parts: Sequence[Path], out: Path, contract: Contract, lossless: bool, ours: dict[str, Any]) -> None:
    """Parts (`lerobot_part`), in this order, become `out`, a new folder. `ours` goes into meta/vla_ros.json."""
    facts = [json.loads((part / PART_JSON).read_text(encoding="utf-8")) for part in parts]
    tasks = {text: index for index, text in enumerate(dict.fromkeys(f["task"] for f in facts))}
    fps, first, episodes = frame_rate(contract), 0, []
    for index, f in enumerate(facts):
        span = {"dataset_from_index": first, "dataset_to_index": first + f["frames"]}
        place = {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        episodes.append({"episode_index": index, "tasks": [f["task"]], "length": f["frames"], **span, **place})
        episodes[-1].update(f["about"])
        first += f["frames"]
    (out / "meta").mkdir(parents=True)
    columns = _write_data(parts, out, episodes, [tasks[f["task"]] for f in facts], fps)
    if not lossless:
        for camera in contract.cameras:
            _write_videos(parts, out, camera.name, episodes, fps)
    histograms = {
        camera_key(camera.name): [np.array(f["histograms"][camera.name]) for f in facts] for camera in contract.cameras
    }
    _json(out / STATS, statistics.of_dataset(columns, histograms, first))
    for index, episode in enumerate(episodes):
        rows = slice(episode["dataset_from_index"], episode["dataset_to_index"])
        own = statistics.of_dataset(
            {key: column[rows] for key, column in columns.items()},
            {key: [parts_of[index]] for key, parts_of in histograms.items()},
            episode["length"],
        )
        episode.update({f"stats/{key}/{name}": v for key, found in own.items() for name, v in found.items()})
    _table(out / EPISODES_PATH.format(chunk_index=0, file_index=0), pa.Table.from_pylist(episodes))
    _table(out / TASKS, _tasks(tasks))
    info = {
        "codebase_version": VERSION,
        "robot_type": contract.name,
        "total_episodes": len(episodes),
        "total_frames": first,
        "total_tasks": len(tasks),
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": DATA_MB,
        "video_files_size_in_mb": VIDEO_MB,
        "fps": fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": DATA_PATH,
        "video_path": None if lossless else VIDEO_PATH,
        "features": features(contract, lossless),
    }
    _json(out / INFO, info)
    a = contract.action
    action = {"space": int(a.space), "rows": a.rows, "cols": a.cols, "dt_s": a.dt_s}
    own = {"format": 1, "vla_ros": __version__, "robot": contract.name, "contract_hash": contract.hash}
    _json(out / OURS, {**own, "action": action, **ours})
    sync_folder(out / "meta")


def _files(sizes: Sequence[int], limit_bytes: int) -> Iterator[tuple[dict[str, int], list[int]]]:
    """Indices of one file after the other, and the episodes in it: as many as stay below the limit, at least one."""
    number, held, size = 0, [], 0
    for episode, own in enumerate(sizes):
        if held and size + own >= limit_bytes:
            yield _indices(number), held
            number, held, size = number + 1, [], 0
        held.append(episode)
        size += own
    yield _indices(number), held


def _indices(number: int) -> dict[str, int]:
    return {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}


def _write_data(
    parts: Sequence[Path], out: Path, episodes: list[dict[str, Any]], task_of: Sequence[int], fps: int
) -> dict[str, np.ndarray]:
    """The parquet files of all frames. Returns the columns of numbers, for the statistics."""
    columns: dict[str, list[np.ndarray]] = {}
    for indices, held in _files([(part / PART_DATA).stat().st_size for part in parts], DATA_MB * MB):
        path = out / DATA_PATH.format(**indices)
        path.parent.mkdir(parents=True, exist_ok=True)
        writer: pq.ParquetWriter | None = None
        for e in held:
            episode, n = episodes[e], episodes[e]["length"]
            table = pq.read_table(parts[e] / PART_DATA)
            counters = {
                "timestamp": (np.arange(n) / fps).astype(np.float32),
                "frame_index": np.arange(n),
                "episode_index": np.full(n, e),
                "index": np.arange(n) + episode["dataset_from_index"],
                "task_index": np.full(n, task_of[e]),
            }
            for key, values in counters.items():
                table = table.append_column(key, pa.array(values))
            for key in table.column_names:
                if not pa.types.is_struct(table.schema.field(key).type):  # a picture
                    columns.setdefault(key, []).append(numbers(table.column(key)))
            writer = writer or pq.ParquetWriter(path, table.schema, compression="snappy")
            writer.write_table(table)
            episode.update({f"data/{key}": value for key, value in indices.items()})
        if writer is not None:
            writer.close()
    return {key: np.concatenate(found) for key, found in columns.items()}


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers (n,), or of lists of d numbers (n, d)."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no chunk at all
        return np.zeros(0)
    if pa.types.is_fixed_size_list(array.type) or pa.types.is_list(array.type):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
    return array.to_numpy(zero_copy_only=False)


def _write_videos(parts: Sequence[Path], out: Path, camera: str, episodes: list[dict[str, Any]], fps: int) -> None:
    key = camera_key(camera)
    for indices, held in _files([part_video(part, camera).stat().st_size for part in parts], VIDEO_MB * MB):
        path = out / VIDEO_PATH.format(video_key=key, **indices)
        path.parent.mkdir(parents=True, exist_ok=True)
        lerobot_video.join([(part_video(parts[e], camera), episodes[e]["length"]) for e in held], path, fps)
        begin = 0
        for e in held:
            end = begin + episodes[e]["length"]
            place = {**indices, "from_timestamp": begin / fps, "to_timestamp": end / fps}
            episodes[e].update({f"videos/{key}/{name}": value for name, value in place.items()})
            begin = end


def _tasks(tasks: dict[str, int]) -> pa.Table:
    """With the sentence as pandas' index, by which LeRobot looks it up."""
    table = pa.table({"task_index": pa.array(list(tasks.values()), pa.int64()), "task": list(tasks)})
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    about = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
            for name, (kind, stored) in kinds.items()
        ],
        "creator": {"library": "vla_ros", "version": __version__},
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(about)})


def _table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="snappy")


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
