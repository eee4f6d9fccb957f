"""Installed policies of a machine: copied, gated, switched atomically, rolled back.

    <user data>/vla_ros/policies/<contract>/current -> <name>-<hash>      what `policy_path:=installed` names
                                           /<name>-<hash>/                a complete policy folder, never changed
                                           /history                       names in the order of activation

A policy is copied under a temporary name, checked in the copy, renamed, and only then linked: whoever follows the link
sees the old folder or the new one, whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_ros.core.contract import Contract
from vla_ros.paths import CURRENT
from vla_ros.policy.manifest import FILE_NAME, Manifest, PolicyInvalid, digest, read
from vla_ros.policy.runtime import load

HISTORY = "history"
SMOKE_EPISODES = 6  # one of each family
SMOKE_SUCCESS_MIN = 0.5  # a choice: it is to find a policy that does not work at all, the gate found the rest


@dataclass(frozen=True)
class Smoke:
    """What the smoke episodes showed."""

    episodes: int
    successes: int
    violations: int  # episodes in which a command broke the contract's limits


Smoker = Callable[[Path], Smoke]


def check_report(folder: Path, manifest: Manifest) -> None:
    """A quantized policy must have passed the gate with exactly these graphs. Raises PolicyInvalid."""
    if manifest.graph == manifest.float_graph:
        return
    gate: dict[str, Any] = manifest.precision.get("gate") or {}
    remedy = f"run `vla quantize {folder} --data DEMONSTRATIONS --out NEW` and install what it writes"
    if not gate:
        raise PolicyInvalid(
            f"{folder / FILE_NAME}: precision.gate is missing: never gated after quantization; {remedy}"
        )
    if gate.get("passed") is not True:
        failed = [c["name"] for c in gate.get("criteria", []) if not c.get("passed")]
        raise PolicyInvalid(f"{folder / FILE_NAME}: precision.gate: refused for {', '.join(failed)}; {remedy}")
    if gate.get("sha256") != manifest.files[manifest.graph].sha256:
        raise PolicyInvalid(f"{folder / FILE_NAME}: precision.gate is about another {manifest.graph}; {remedy}")


class Installed:
    """The installed policies for one contract. Not for two installers at once."""

    def __init__(self, root: Path, contract: Contract) -> None:
        self._contract = contract
        self.folder = root / contract.name

    @property
    def link(self) -> Path:
        return self.folder / CURRENT

    def current(self) -> str | None:
        return os.readlink(self.link) if self.link.is_symlink() else None

    def names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if p.is_dir() and not p.is_symlink() and p.name[0] != ".")

    def history(self) -> list[str]:
        file = self.folder / HISTORY
        return file.read_text(encoding="utf-8").split() if file.is_file() else []

    def install(self, source: Path, smoke: Smoker) -> str:
        """Gate a policy folder and switch to it; returns its installed name. Raises PolicyInvalid, changing nothing."""
        manifest = read(source, self._contract.hash)
        check_report(source, manifest)
        name = f"{manifest.name}-{digest(source / FILE_NAME)[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / name).is_dir():
            with tempfile.TemporaryDirectory(prefix=".new-", dir=self.folder) as scratch:
                copy = Path(scratch) / name
                shutil.copytree(source, copy)
                load(copy, self._contract)  # hashes, shapes and self-test of what will run, not of what was given
                seen = smoke(copy)
                if seen.violations or seen.successes < SMOKE_SUCCESS_MIN * seen.episodes or not seen.episodes:
                    raise PolicyInvalid(
                        f"{source}: smoke episodes: {seen.successes} of {seen.episodes} succeeded (at least "
                        f"{SMOKE_SUCCESS_MIN:.0%}), {seen.violations} broke a limit (none may); "
                        "see `vla eval --policy` for what it does"
                    )
                copy.rename(self.folder / name)
        self._switch(name)
        return name

    def rollback(self) -> str:
        """Back to the policy that was current before this one. Raises PolicyInvalid if there is none."""
        before = [name for name in self.history() if name in self.names()]
        now = self.current()
        while before and before[-1] == now:
            before.pop()
        if not before:
            raise PolicyInvalid(f"{self.folder}: no earlier policy to go back to; installed: {self.names() or 'none'}")
        read(self.folder / before[-1], self._contract.hash)
        self._point(before[-1])
        self._remember(before)
        return before[-1]

    def _switch(self, name: str) -> None:
        read(self.folder / name, self._contract.hash)  # it may have been there for months
        self._point(name)
        self._remember([*self.history(), name])

    def _point(self, name: str) -> None:
        fresh = self.folder / f".{CURRENT}-{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(name)
        fresh.replace(self.link)

    def _remember(self, names: list[str]) -> None:
        fresh = self.folder / f".{HISTORY}-{os.getpid()}"
        fresh.write_text("\n".join(names) + "\n", encoding="utf-8")
        fresh.replace(self.folder / HISTORY)
