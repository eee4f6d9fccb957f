"""The LeRobot data set format v3.0 as we use it: names, paths, features.

    meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet  videos/<camera feature>/chunk-000/file-000.mp4

`meta/vla_ros.json` is ours: contract, options, what was left out. The format is described at
https://huggingface.co/docs/lerobot/lerobot-dataset-v3
"""

from __future__ import annotations

from typing import Any

from vla_ros.core.contract import Contract
from vla_ros.core.errors import VlaError
from vla_ros.data import lerobot_video
from vla_ros.data.extract import frame_rate

VERSION = "v3.0"
FILES_PER_CHUNK, DATA_MB, VIDEO_MB = 1000, 100, 200  # LeRobot's own
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH, EPISODES_PATH = f"data/{FILE}.parquet", f"meta/episodes/{FILE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{FILE}.mp4"
INFO, STATS, TASKS, OURS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/vla_ros.json"
STATE, ACTION, CHUNK, DONE, STAMP = "observation.state", "action", "chunk", "done", "stamp_ns"
HUMAN = "human"
COUNTERS = ("frame_index", "episode_index", "index", "task_index")


class DatasetError(VlaError):
    """A data set that cannot be written or read. The message says what to do."""


def camera_key(name: str) -> str:
    return f"observation.images.{name}"


def features(contract: Contract, lossless: bool) -> dict[str, dict[str, Any]]:
    """Of meta/info.json. Units: rad and m; `chunk` as in msg/ActionChunk, row by row, under a name that LeRobot's
    policies do not take for their own action."""
    fps = frame_rate(contract)
    joints = [*contract.joint_names, "gripper_width"]
    found: dict[str, dict[str, Any]] = {}
    for camera in contract.cameras:
        px = camera.policy_px
        kind: dict[str, Any] = {"dtype": "image" if lossless else "video", "shape": [px, px, 3]}
        kind["names"] = ["height", "width", "channels"]
        found[camera_key(camera.name)] = kind if lossless else {**kind, "info": lerobot_video.facts(fps, px, px)}
    return found | {
        STATE: {"dtype": "float32", "shape": [len(joints)], "names": joints},
        ACTION: {"dtype": "float32", "shape": [len(joints)], "names": joints},
        CHUNK: {"dtype": "float32", "shape": [contract.action.rows * contract.action.cols], "names": None},
        DONE: {"dtype": "bool", "shape": [1], "names": None},
        HUMAN: {"dtype": "bool", "shape": [1], "names": None},
        STAMP: {"dtype": "int64", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **{key: {"dtype": "int64", "shape": [1], "names": None} for key in COUNTERS},
    }
