"""Installing a policy and the running graph's change to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vla_ros.policy import PolicyInvalid
from vla_ros.policy.hot_swap import HotSwap
from vla_ros.policy.install import Installed, Smoke
from vla_ros.policy.manifest import FILE_NAME

pytestmark = pytest.mark.unit


class Folders:
    """A link and the folders it may point to; loading gives the folder's name."""

    def __init__(self, root: Path) -> None:
        self.root, self.link, self.queue, self.loaded = root, root / "current", [], []
        for name in ("a", "b", "c", "broken"):
            (root / name).mkdir()
        self.link.symlink_to("a")

    def point(self, name: str) -> None:
        fresh = self.root / "fresh"
        fresh.symlink_to(name)
        fresh.replace(self.link)

    def load(self, folder: Path) -> str:
        self.loaded.append(folder.name)
        if folder.name == "broken":
            raise PolicyInvalid("SHA-256 differs")
        return folder.name


@pytest.fixture
def folders(tmp_path) -> Folders:
    return Folders(tmp_path)


def test_a_new_policy_is_taken_once_and_only_when_idle(folders):
    swap = HotSwap(folders.link, folders.load, start=lambda work: work())
    swap.watch()
    assert swap.take(idle=True) is None and folders.loaded == []
    folders.point("b")
    swap.watch()
    assert swap.take(idle=False) is None
    assert swap.take(idle=True) == "b"
    swap.watch()
    assert swap.take(idle=True) is None and folders.loaded == ["b"]


def test_loading_does_not_hold_up_the_watcher_and_runs_once(folders):
    swap = HotSwap(folders.link, folders.load, start=folders.queue.append)
    folders.point("b")
    swap.watch()
    swap.watch()
    assert len(folders.queue) == 1 and swap.take(idle=True) is None
    folders.queue.pop()()
    assert swap.take(idle=True) == "b"


def test_what_was_rolled_back_while_it_waited_is_not_taken(folders):
    swap = HotSwap(folders.link, folders.load, start=lambda work: work())
    folders.point("b")
    swap.watch()
    folders.point("a")
    assert swap.take(idle=True) is None
    swap.watch()
    assert swap.take(idle=True) == "a", "the link has changed twice: what it points to now is fetched"


def test_a_link_that_changes_while_loading_is_fetched_next(folders):
    swap = HotSwap(folders.link, folders.load, start=folders.queue.append)
    folders.point("b")
    swap.watch()
    folders.point("c")
    folders.queue.pop()()
    assert swap.take(idle=True) is None
    swap.watch()
    folders.queue.pop()()
    assert swap.take(idle=True) == "c"


def test_a_broken_policy_is_named_not_taken_and_not_tried_again(folders):
    swap = HotSwap(folders.link, folders.load, start=lambda work: work())
    folders.point("broken")
    for _ in range(3):
        swap.watch()
    assert swap.take(idle=True) is None and folders.loaded == ["broken"]
    assert "broken" in swap.problem and "SHA-256 differs" in swap.problem
    folders.point("c")
    swap.watch()
    assert swap.take(idle=True) == "c" and swap.problem == ""


def test_a_plain_folder_never_changes(folders):
    swap = HotSwap(folders.root / "a", folders.load, start=lambda work: work())
    swap.watch()
    assert swap.take(idle=True) is None and folders.loaded == []


# ------------------------------------------------------------------------------------------------ installing


def fine(_: Path) -> Smoke:
    return Smoke(6, 6, 0)


def gated(folder: Path, passed: bool = True, **changes) -> Path:
    text = json.loads((folder / FILE_NAME).read_text())
    sha256 = text["files"][text["graph"]]["sha256"]
    criteria = [{"name": "loss of success", "passed": passed}]
    text["precision"]["gate"] = {"passed": passed, "sha256": sha256, "criteria": criteria} | changes
    (folder / FILE_NAME).write_text(json.dumps(text))
    return folder


@pytest.fixture
def source(policy_folder, tmp_path) -> Path:
    return gated(shutil.copytree(policy_folder, tmp_path / "source"))


@pytest.fixture
def installed(tmp_path, contract) -> Installed:
    return Installed(tmp_path / "policies", contract)


def test_install_list_and_rollback(source, installed):
    first = installed.install(source, fine)
    assert installed.current() == first and (installed.link / FILE_NAME).is_file()
    text = json.loads((source / FILE_NAME).read_text())
    (source / FILE_NAME).write_text(json.dumps(text | {"name": "better"}))
    second = installed.install(source, fine)
    assert installed.current() == second != first and installed.names() == sorted([first, second])
    assert installed.rollback() == first == installed.current()
    with pytest.raises(PolicyInvalid, match="no earlier policy"):
        installed.rollback()
    installed.install(source, fine)  # again: it is there, so it is only switched to
    assert installed.current() == second and installed.history() == [first, second]


def test_an_ungated_a_refused_and_an_exchanged_graph_are_not_installed(source, policy_folder, installed):
    with pytest.raises(PolicyInvalid, match=r"precision.gate is missing.*vla quantize"):
        installed.install(policy_folder, fine)
    with pytest.raises(PolicyInvalid, match="refused for loss of success"):
        installed.install(gated(source, passed=False), fine)
    with pytest.raises(PolicyInvalid, match="about another"):
        installed.install(gated(source, sha256="0" * 64), fine)
    assert installed.current() is None and installed.names() == []


@pytest.mark.parametrize("smoke", [Smoke(6, 2, 0), Smoke(6, 6, 1), Smoke(0, 0, 0)])
def test_a_policy_that_fails_its_smoke_episodes_changes_nothing(source, installed, smoke):
    with pytest.raises(PolicyInvalid, match="smoke episodes"):
        installed.install(source, lambda _: smoke)
    assert installed.current() is None and list(installed.folder.iterdir()) == []


def test_an_installed_policy_that_was_altered_is_not_switched_to(source, installed):
    name = installed.install(source, fine)
    (installed.folder / name / "self_test.npz").write_bytes(b"x")
    with pytest.raises(PolicyInvalid, match=r"self_test\.npz"):
        installed.install(source, fine)
