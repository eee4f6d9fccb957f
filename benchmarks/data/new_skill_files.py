"""What `new_skill.py` leaves behind, so that the same command goes on: what was asked for, and every episode."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from vla_ros.core.errors import VlaError
from vla_ros.data.disk import write_whole
from vla_ros.training.scores import Episode

# May differ when the measurement is gone on with: how many are played of the same scenes, and by whom.
FREE = ("out", "episodes", "before_episodes", "old_episodes", "workers", "ray")


class Settings:
    """A folder is about one question."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def must_be(self, given: dict[str, Any]) -> None:
        """Raises VlaError where the folder was begun with others."""
        asked = json.loads(json.dumps({k: v for k, v in given.items() if k not in FREE}, default=str))
        if not self._path.is_file():
            write_whole(self._path, json.dumps(asked, indent=1))
            return
        begun = json.loads(self._path.read_text(encoding="utf-8"))
        differing = [f"{k}: {begun.get(k)!r}, now {v!r}" for k, v in asked.items() if begun.get(k) != v]
        if differing:
            raise VlaError(
                f"{self._path.parent} was begun with other settings ({'; '.join(differing)}); give a fresh --out"
            )


class Episodes:
    """One JSON line of each, by its seed, written as it ends. A line that a crash has cut is played again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines):
            write_whole(path, b"".join(whole).decode())
        self.by_seed = {episode.seed: episode for episode in (Episode(**json.loads(line)) for line in whole)}

    def add(self, episode: Episode) -> None:
        self.by_seed[episode.seed] = episode
        with self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(dataclasses.asdict(episode) | {"inference_s": []}) + "\n")
