"""Work spread over processes: in order, tried again when a worker dies, gone on with after a kill."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vla_ros.core.errors import Invalid
from vla_ros.data import parallel

pytestmark = pytest.mark.unit

# A module of its own, so that the processes load it and nothing else.
WORK = '''
import os, signal
from pathlib import Path
from vla_ros.core.errors import Invalid

def square(n):
    if n < 0:
        raise Invalid("n", n, ">= 0")
    return n * n

def die_once(path):
    """Leaves a mark and dies; finds the mark and lives."""
    try:
        Path(path).touch(exist_ok=False)
    except FileExistsError:
        return os.path.basename(path)
    os.kill(os.getpid(), signal.SIGKILL)

def die(path):
    if path:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"

def defect(n):
    raise ZeroDivisionError("a defect")
'''


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    (folder / "work_for_workers.py").write_text(WORK)
    sys.path.insert(0, str(folder))
    import work_for_workers

    yield work_for_workers
    sys.path.remove(str(folder))
    del sys.modules["work_for_workers"]


@pytest.mark.parametrize("workers", [1, 2])
def test_outcomes_are_in_order_and_errors_are_texts(work, workers: int) -> None:
    found = parallel.run(work.square, [3, -1, 2], workers, quiet=True)
    assert [o.value for o in found] == [9, None, 4]
    assert found[1].error == "n is -1, allowed: >= 0"


def test_a_worker_that_is_killed_costs_nothing_but_time(work, tmp_path: Path) -> None:
    items = [str(tmp_path / name) for name in ("a", "b")]
    (tmp_path / "b").touch()  # only the first one dies
    found = parallel.run(work.die_once, items, 2, quiet=True)
    assert [(o.value, o.error) for o in found] == [("a", ""), ("b", "")]


def test_an_item_that_kills_every_worker_is_given_up_and_the_others_are_not(work) -> None:
    found = parallel.run(work.die, ["x", ""], 2, quiet=True)
    assert "the worker died 3 times" in found[0].error
    assert found[1].value == "alive"


def test_a_defect_is_raised(work) -> None:
    with pytest.raises(ZeroDivisionError):
        parallel.run(work.defect, [1, 2], 2, quiet=True)


def test_workers_must_be_at_least_one(work) -> None:
    with pytest.raises(Invalid, match="workers is 0"):
        parallel.run(work.square, [1], 0)


def test_work_that_none_may_miss_ends_with_the_first_error(work) -> None:
    stream = parallel.stream(work.square, [3, -1, 2], quiet=True)
    found = parallel.values(stream)
    assert next(found) == (0, 9)
    with pytest.raises(parallel.Failed, match="n is -1"):
        next(found)
    assert next(stream, None) is None, "nothing is begun after it"


# ------------------------------------------------------------------------------------------------ Ray, where it is


@pytest.fixture(scope="module")
def local_ray(work, request):
    pytest.importorskip("ray", reason="Ray is optional: pip install 'vla_ros[ray]'")
    with request.getfixturevalue("ray_cluster")():
        yield parallel.LOCAL


def test_a_cluster_that_does_not_come_up_is_an_error_with_a_remedy(work, monkeypatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is optional: pip install 'vla_ros[ray]'")

    def init(**options):
        raise Exception("The current node timed out during startup")  # in the words and the type of Ray's own

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(Invalid, match=r"ray is 'local'.*timed out.*plain processes"):
        parallel.run(work.square, [1], 1, parallel.LOCAL, quiet=True)


@pytest.mark.process
def test_a_local_cluster_is_started_when_asked_for_and_gone_afterwards(work, monkeypatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is optional: pip install 'vla_ros[ray]'")
    monkeypatch.setenv("PYTHONPATH", str(Path(work.__file__).parent))
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    assert [o.value for o in parallel.run(work.square, [3, 2], 2, parallel.LOCAL, quiet=True)] == [9, 4]
    assert not ray.is_initialized()


@pytest.mark.process
def test_ray_tasks_give_what_processes_give(work, local_ray) -> None:
    found = parallel.run(work.square, [3, -1, 2], 2, local_ray, quiet=True)
    assert [o.value for o in found] == [9, None, 4] and found[1].error == "n is -1, allowed: >= 0"
    with pytest.raises(ZeroDivisionError):
        parallel.run(work.defect, [1], 2, local_ray, quiet=True)


@pytest.mark.process
def test_a_ray_worker_that_is_killed_costs_its_own_item_another_attempt(work, local_ray, tmp_path: Path) -> None:
    items = [str(tmp_path / name) for name in ("a", "b")]
    (tmp_path / "b").touch()  # only the first one dies
    found = parallel.run(work.die_once, items, 2, local_ray, quiet=True)
    assert [(o.value, o.error) for o in found] == [("a", ""), ("b", "")]
    assert "the worker died 3 times" in parallel.run(work.die, ["x"], 2, local_ray, quiet=True)[0].error
