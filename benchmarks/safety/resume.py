"""A long run in parts: finished ones are kept in a file, one JSON object a line; the same command goes on from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vla_ros.data.disk import write_whole


class State:
    """Without a path nothing is kept. The first line says which run it is; that of another run ends the program."""

    def __init__(self, path: Path | None, plan: dict[str, Any]) -> None:
        self._path = path
        self.done: list[dict[str, Any]] = []
        if path is None:
            return
        if not path.exists():
            path.write_text(json.dumps(plan) + "\n", encoding="utf-8")
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        found = json.loads(lines[0])
        if found != plan:
            other = ", ".join(f"--{k} {found.get(k)}, not {plan[k]}" for k in plan if found.get(k) != plan[k])
            print(f"error: {path} is of a run with {other}: use its options or another file", file=sys.stderr)
            raise SystemExit(2)
        whole = lines[:1]
        for line in lines[1:]:
            try:
                self.done.append(json.loads(line))
                whole.append(line)
            except json.JSONDecodeError:
                print(f"{path}: an unfinished line is left out, its part is done again", file=sys.stderr)
        if len(whole) < len(lines):  # what is kept from now on must not be written behind it
            write_whole(path, "".join(f"{line}\n" for line in whole))

    def keep(self, part: dict[str, Any]) -> None:
        self.done.append(part)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(part) + "\n")
