"""One episode of a data set as a folder of its own: pictures, numbers, and what joining it needs to know."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_ros.core.contract import Contract
from vla_ros.core.types import Observation
from vla_ros.data import images, lerobot_video, statistics
from vla_ros.data.extract import Extract, frame_rate
from vla_ros.data.lerobot_format import ACTION, CHUNK, DONE, HUMAN, STAMP, STATE, camera_key

LOSSLESS = images.Coding(images.PNG)
PART_JSON, PART_DATA = "part.json", "data.parquet"


class PartWriter:
    """Takes the frames of one episode as they are made; `finish` with the rest. Nothing is left where it does not."""

    def __init__(self, folder: Path, contract: Contract, lossless: bool) -> None:
        self._folder, self._contract, self._lossless = folder, contract, lossless
        self._work = folder.with_name(f".{folder.name}.work")
        self._videos: dict[str, lerobot_video.VideoWriter] = {}
        self._pictures: dict[str, list[bytes]] = {camera.name: [] for camera in contract.cameras}
        self._histograms = {camera.name: statistics.empty_histogram() for camera in contract.cameras}
        self._closing = ExitStack()

    def __enter__(self) -> PartWriter:
        shutil.rmtree(self._work, ignore_errors=True)  # of a worker that died
        self._work.mkdir(parents=True)
        if not self._lossless:
            for camera in self._contract.cameras:
                video = lerobot_video.VideoWriter(
                    part_video(self._work, camera.name), frame_rate(self._contract), camera.policy_px, camera.policy_px
                )
                self._videos[camera.name] = self._closing.enter_context(video)
        return self

    def __exit__(self, *error: Any) -> None:
        self._closing.__exit__(*error)
        shutil.rmtree(self._work, ignore_errors=True)

    def add(self, observation: Observation) -> None:
        for name, rgb in observation.images.items():
            statistics.count(self._histograms[name], rgb)
            if self._lossless:
                self._pictures[name].append(LOSSLESS.encode(rgb))
            else:
                self._videos[name].add(rgb)

    def finish(self, extract: Extract, about: dict[str, Any]) -> None:
        """`about`: further columns of the episode in meta/episodes."""
        self._closing.close()
        columns: dict[str, pa.Array] = {}
        if self._lossless:
            for name, encoded in self._pictures.items():
                columns[camera_key(name)] = pa.array(
                    [{"bytes": data, "path": None} for data in encoded],
                    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
                )
        flat = extract.chunk.reshape(len(extract.chunk), -1)  # (f, rows * cols)
        columns |= {STATE: _rows(extract.state), ACTION: _rows(extract.action), CHUNK: _rows(flat)}
        columns |= {DONE: pa.array(extract.done), HUMAN: pa.array(extract.human), STAMP: pa.array(extract.stamp_ns)}
        pq.write_table(pa.table(columns), self._work / PART_DATA, compression="snappy")
        facts = {
            "frames": len(extract.stamp_ns),
            "task": extract.episode.text,
            "about": about,
            "histograms": {name: h.tolist() for name, h in self._histograms.items()},
        }
        (self._work / PART_JSON).write_text(json.dumps(facts), encoding="utf-8")
        os.replace(self._work, self._folder)


def part_video(part: Path, camera: str) -> Path:
    return part / f"{camera}.mp4"


def _rows(values: np.ndarray) -> pa.FixedSizeListArray:
    """(f, d) -> f lists of d numbers."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
