"""Graphs of real processes, one ROS domain each. Skipped where rclpy is absent."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FAKE_POLICY = HERE / "fake_policy.py"
READY_S = 60.0
GONE_S = 5.0
PR_SET_PDEATHSIG = 1


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.fspath).is_relative_to(HERE):
            item.add_marker(pytest.mark.process)
            # Six processes on two shared cores without a real-time kernel: one that waits for its turn too long is told
            # from one that never answers by asking again. Each further try is shown as RERUN.
            item.add_marker(pytest.mark.flaky(reruns=2))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What the nodes last said, under a failed test of theirs."""
    report = yield
    for graph in getattr(item, "funcargs", {}).values():
        if report.failed and isinstance(graph, Graph):
            report.sections += [(f"{name}, last lines", graph.tail(name)) for name in graph.processes]
    return report


def leave_with_the_test_runner():
    """SIGINT to the process when the thread that started it dies, however it dies (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


class Graph:
    """Node processes of one test, their output, and an operator client in the same private domain."""

    def __init__(self, folder):
        from vla_ros.cli.client import GraphClient
        from vla_ros.cli.launch_runner import remove_stale_segments
        from vla_ros.cli.live import free_domain

        remove_stale_segments(set(), 0.0)  # what killed processes left in any domain slows this graph, too
        self.folder = folder
        self.domain_id = free_domain()
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        self.environment = {
            **os.environ,
            "ROS_DOMAIN_ID": str(self.domain_id),
            "ROS_PYTHON_CHECK_FIELDS": "1",  # an over-long field fails here, not on a robot
            "PYTHONUNBUFFERED": "1",
        }
        self.processes = {}
        self.client = GraphClient(domain_id=self.domain_id)

    def start(self, name, *, script=None, **parameters):
        """A node of the package, or of a script that stands in for it."""
        argv = [sys.executable, str(script)] if script else [sys.executable, "-m", f"vla_ros.nodes.{name}"]
        argv += ["--ros-args", *(x for k, v in parameters.items() for x in ("-p", f"{k}:={v}"))]
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                argv,
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=leave_with_the_test_runner,
            )
        self.processes[name] = process
        return process

    def log(self, name):
        return self.folder / f"{name}.log"

    def output(self, name):
        return self.log(name).read_text(errors="replace")

    def tail(self, name, lines=15):
        return "\n".join(self.output(name).splitlines()[-lines:])

    def wait_active(self, *names):
        self.client.wait_active(names, READY_S, check=self.check)

    def check(self):
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended with {process.returncode}:\n{self.output(name)}"

    def wait(self, condition, timeout_s, what):
        def looked_at():
            self.check()
            return condition()

        value = self.client.wait_until(looked_at, timeout_s)
        assert value, f"{what}: not within {timeout_s:g} s; {self.client.state}"
        return value

    def rearm(self):
        """Whatever went on is over, the arm is at rest and may move again."""
        self.client.interrupt()
        from_tick = self.client.state.ticks
        self.wait(lambda: self.client.state.ticks > from_tick + 20, 5.0, "no states")  # a late interrupt has arrived
        answer = self.client.rearm()
        assert answer.success, answer.message
        self.wait(lambda: not self.client.state.latched, 5.0, "the rearm is not shown")

    def kill(self, name):
        """SIGKILL, as a crash would."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop(self):
        """SIGINT to all; fails when one needs longer than 5 s."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        deadline_s = time.monotonic() + GONE_S
        late = []
        for name, process in self.processes.items():
            try:
                process.wait(max(deadline_s - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                late.append(name)
                process.kill()
                process.wait()
        self.processes.clear()
        self.client.close()
        assert not late, f"still there {GONE_S:g} s after SIGINT: {late}"


@pytest.fixture(scope="module")
def make_graph(tmp_path_factory):
    pytest.importorskip("rclpy")
    from vla_ros.cli.launch_runner import remove_stale_segments, shm_clock_s

    since_s, graphs = shm_clock_s(), []

    def make():
        graphs.append(Graph(tmp_path_factory.mktemp("graph")))
        return graphs[-1]

    yield make
    problems = []
    for graph in graphs:
        try:
            graph.stop()
        except AssertionError as error:
            problems.append(str(error))
    remove_stale_segments(set(), since_s)  # of the processes that a test killed
    assert not problems, problems


class Tape:
    """Everything that came in on one topic, with the steady time of its receipt."""

    def __init__(self, client, kind, topic, stream):
        self.items = []
        self._lock = threading.Lock()
        client.subscribe(kind, topic, stream, self._add)

    def _add(self, message):
        with self._lock:
            self.items.append((time.monotonic(), message))

    def since(self, t_s):
        with self._lock:
            return [(t, m) for t, m in self.items if t >= t_s]


@pytest.fixture(scope="module")
def make_tape():
    return Tape


@pytest.fixture(scope="session")
def fake_policy():
    return FAKE_POLICY
