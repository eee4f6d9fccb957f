"""Each kind of work that can be spread over a cluster, really as Ray tasks on a local one, tiny; a worker is killed.

What all kinds share (errors, defects, attempts) is tested without any work in test/data/test_parallel.py.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import threading
import time

import pytest

pytest.importorskip("ray", reason="Ray is optional: pip install 'vla_ros[ray]'")
pytest.importorskip("torch")
pytest.importorskip("mujoco")
pytest.importorskip("pyarrow")

import psutil
from rich.console import Console
from typer.testing import CliRunner

from vla_ros.cli.main import app
from vla_ros.data.bag_reader import Bag
from vla_ros.data.episode import PART
from vla_ros.data.parallel import LOCAL
from vla_ros.policy.features import StateFeatures
from vla_ros.sim import demonstrations
from vla_ros.training import corrections, evaluate, scripted
from vla_ros.training.dataset import Dataset

pytestmark = [pytest.mark.sim, pytest.mark.process]
TEXT, MEANS = "poke the button", "press the button"  # the shortest task there is
KILLED_WITHIN_S = 120.0

# In every worker, before its first task: one episode makes a shard, and a policy that can do nothing gives up soon.
SMALL = """
from vla_ros.sim import demonstrations
from vla_ros.training import corrections, rollout

def small():
    demonstrations.EPISODES_PER_SHARD = corrections.EPISODES_PER_SHARD = 1
    rollout.TIME_LIMIT_S = 12.0  # the expert needs 4 s for its button
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("small")
    (folder / "small_work.py").write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        with ray_cluster(runtime_env={"worker_process_setup_hook": "small_work.small"}):
            yield LOCAL


@pytest.fixture
def small_shards(monkeypatch):
    for module in (demonstrations, corrections):
        monkeypatch.setattr(module, "EPISODES_PER_SHARD", 1)


@pytest.fixture(scope="module")
def episodes(cluster, tmp_path_factory):
    """Two recorded demonstrations; the worker at one of them was killed. What was shown meanwhile, and who died."""
    folder, shown, killed = tmp_path_factory.mktemp("ray") / "episodes", io.StringIO(), []
    killer = threading.Thread(target=kill_who_writes, args=(folder, killed), daemon=True)
    killer.start()
    console = Console(file=shown, force_terminal=True, width=100)
    facts = scripted.demonstrate(folder, TEXT, MEANS, 2, seed=0, workers=2, ray=cluster, console=console)
    killer.join()
    return folder, facts, shown.getvalue(), killed


def kill_who_writes(folder, killed):
    """SIGKILL to the first process below this one that has an unfinished episode open."""
    deadline_s = time.monotonic() + KILLED_WITHIN_S
    while time.monotonic() < deadline_s:
        for process in psutil.Process().children(recursive=True):
            try:
                writes = any(PART in file.path and str(folder) in file.path for file in process.open_files())
            except psutil.Error:  # it has just ended
                continue
            if writes:
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)
                return
        time.sleep(0.01)


def test_demonstrations_go_on_after_a_worker_was_killed(episodes):
    folder, facts, shown, killed = episodes
    assert len(killed) == 1
    assert (facts["played"], facts["succeeded"]) == (2, 2) and "2/2" in shown
    assert sorted(path.name for path in folder.iterdir()) == ["scripted_0_0000", "scripted_0_0001"]
    for path in folder.iterdir():
        assert Bag.open(path).episode().success


def test_export_makes_the_data_set_that_it_makes_without_ray(episodes, cluster, tmp_path):
    folder, *_ = episodes
    ways = {"ray": ["--ray", cluster, "--workers", "2"], "plain": []}
    for name, arguments in ways.items():
        result = CliRunner().invoke(app, ["data", "export", str(folder), "--out", str(tmp_path / name), *arguments])
        assert result.exit_code == 0, result.output
    made = {name: {f.relative_to(tmp_path / name): f.read_bytes() for f in (tmp_path / name).rglob("*.parquet")}
            for name in ways}  # fmt: skip
    assert made["ray"] == made["plain"] and made["ray"]


def test_shards_of_demonstrations(cluster, small_shards, contract, tmp_path, monkeypatch, capsys):
    given = ["demonstrations", "--out", str(tmp_path), "--seed", "7", "--workers", "2", "--ray", cluster, "--episodes"]
    for episodes in ("1", "2"):
        monkeypatch.setattr(sys, "argv", [*given, episodes])
        demonstrations.main()
        first = (tmp_path / "0000.images.npy").stat().st_mtime_ns
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (tmp_path / "0001.json").stat().st_mtime_ns > first and told[1]["frames"] > told[0]["frames"] > 0
    assert len(Dataset([tmp_path], contract.hash, StateFeatures(contract).of_states, 0.5).shards) == 2


def test_corrections(cluster, small_shards, trained, tmp_path, monkeypatch, capsys):
    argv = ["corrections", "--out", str(tmp_path), "--episodes", "2", "--policy", str(trained), "--families", "press"]
    monkeypatch.setattr(sys, "argv", [*argv, "--workers", "2", "--ray", cluster])
    corrections.main()
    assert json.loads(capsys.readouterr().out)["frames"] > 20
    assert json.loads((tmp_path / "meta.json").read_text())["shards"][1]["name"] == "0001"


def test_evaluation_plays_what_it_plays_without_ray(cluster, trained, monkeypatch):
    from vla_ros.training import rollout

    monkeypatch.setattr(rollout, "TIME_LIMIT_S", 12.0)
    planned = evaluate.trials(2, 5, family="press")
    ways = [{"workers": 2, "ray": cluster}, {}]
    played = [evaluate.evaluate(planned, policy=str(trained), runtime="torch", **way) for way in ways]
    facts = [[(e.seed, e.text, e.success, e.duration_s) for e in episodes] for episodes in played]
    assert facts[0] == facts[1] and len(facts[0]) == 2
