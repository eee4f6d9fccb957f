"""Run a launch file: with ROS 2's own launch where it is installed, otherwise with the strict subset.

python -m vla_ros.cli.launch_runner sim seed:=7
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import math
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from vla_ros import paths
from vla_ros.cli.launch_subset import Context, LaunchError, OutsideSubset, ProcessPlan, load_description

__all__ = ["LaunchError", "LaunchSession", "OutsideSubset", "find_launch_file", "known_arguments", "main", "run"]

SIGINT_GRACE_S = 5.0  # as launch: SIGINT, 5 s, SIGTERM, 5 s, SIGKILL
SIGTERM_GRACE_S = 5.0
TAIL_LINES = 200  # kept per process for error messages

Output = Callable[[str, str], None]  # (process name, line)


def print_prefixed(name: str, line: str) -> None:
    print(f"[{name}] {line}", flush=True)


# ---------------------------------------------------------------------------------------------------- plan


def find_launch_file(name: str | os.PathLike[str]) -> Path:
    """A path; or `sim`, `sim.launch.py`: a launch file of this package."""
    given = Path(name)
    if given.is_file():
        return given.resolve()
    for candidate in (given.name, f"{given.name}.launch.py"):
        if given.parent == Path() and (paths.launch_dir() / candidate).is_file():
            return paths.launch_dir() / candidate
    shipped = ", ".join(sorted(p.name.removesuffix(".launch.py") for p in paths.launch_dir().glob("*.launch.py")))
    raise LaunchError(f"launch file {str(name)!r} was not found; shipped: {shipped}")


def parse_arguments(arguments: Sequence[str]) -> dict[str, str]:
    parsed: dict[str, str] = {}
    for argument in arguments:
        name, separator, value = argument.partition(":=")
        if not separator or not name:
            raise LaunchError(f"launch argument {argument!r} is not of the form name:=value")
        if name in parsed:
            raise LaunchError(f"launch argument {name!r} is given twice")
        parsed[name] = value
    return parsed


def known_arguments(file: Path) -> dict[str, str]:
    """Name -> one line for people, of every argument that the file and its includes declare."""
    known = {}
    for argument in load_description(file).arguments():
        default = argument.default_value
        text = argument.description
        if argument.choices:
            text += f" (one of: {', '.join(argument.choices)})"
        if default is None:
            text += " (required)"
        elif isinstance(default, str):
            text += f" (default: {default!r})"
        known.setdefault(argument.name, text.strip())
    return known


def check_known(given: Mapping[str, str], known: Mapping[str, str], file: Path) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise LaunchError(
            f"unknown launch argument {', '.join(map(repr, unknown))} for {file.name}; known: "
            + (", ".join(known) or "none")
        )


def make_plan(
    file: Path,
    arguments: Mapping[str, str],
    scratch: Path,
    environment: Mapping[str, str] | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> list[ProcessPlan]:
    """The processes of a launch file. Parameter files are written to `scratch`."""
    description = load_description(file)
    check_known(arguments, {a.name: "" for a in description.arguments()}, file)
    environ = dict(os.environ if environment is None else environment)
    context = Context(dict(arguments), environ, scratch, log)
    description.visit(context)
    return context.plans


# ---------------------------------------------------------------------------------------------------- shared memory

SHM = Path("/dev/shm")
# Fast DDS: a segment and the file whose lock says that its owner lives; a port, its lock file and its mutex.
SHM_NAME = re.compile(r"(?:sem\.)?(?:fastdds|fastrtps)_(?:[0-9a-f]{16}|port\d+)(?:_el|_sl|_mutex)?")
SHM_MIN_AGE_S = 5.0  # between creation and lock a segment of a starting process looks stale


def mapped_segments(pid: int) -> set[str]:
    """Names of the Fast DDS segments and ports that a process has mapped, its own and its peers'; empty when gone."""
    with contextlib.suppress(OSError):  # gone, or not ours
        text = Path(f"/proc/{pid}/maps").read_text()
        return {name for name in re.findall(r"/dev/shm/(\S+)", text) if SHM_NAME.fullmatch(name)}
    return set()


def base_name(name: str) -> str:
    return re.sub(r"_(el|sl|mutex)$", "", name.removeprefix("sem."))


def lock_is_free(path: Path) -> bool:
    """True when no living process holds the lock: the kernel drops it when the owner dies, however it dies."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return True
    except OSError:
        return False


def mapped_anywhere() -> set[str]:
    return set().union(*(mapped_segments(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit()))


def shm_clock_s() -> float:
    """Now, on the clock that stamps files in /dev/shm."""
    with tempfile.NamedTemporaryFile(dir=SHM, prefix="vla_clock_") as file:
        return os.fstat(file.fileno()).st_mtime


def remove_stale_segments(ours: set[str], since_s: float) -> list[str]:
    """Remove shared memory that processes left behind by dying; return the names removed.

    Candidates are `ours`, and files of this user made after `since_s` (`shm_clock_s`) and at least SHM_MIN_AGE_S ago.
    A segment is stale when its lock is free: only the dead owner wrote to it, and readers keep their mapping. A port is
    shared by its writers, so no living process may have it mapped either.
    """
    groups: dict[str, list[Path]] = {}
    for path in SHM.glob("*fast*_*"):
        if SHM_NAME.fullmatch(path.name):
            groups.setdefault(base_name(path.name), []).append(path)
    if not groups:
        return []
    now_s = shm_clock_s()
    in_use = mapped_anywhere()
    removed = []
    for base, files in groups.items():
        with contextlib.suppress(FileNotFoundError):  # its owner has just removed it
            stats = [path.stat() for path in files]
            made_s = max(s.st_mtime for s in stats)
            candidate = base in ours or since_s <= made_s <= now_s - SHM_MIN_AGE_S
            locks = [path for path in files if path.name.endswith(("_el", "_sl"))]
            if not candidate or any(s.st_uid != os.geteuid() for s in stats):
                continue
            if "port" in base and base in in_use:
                continue
            if all(lock_is_free(path) for path in locks):
                for path in files:
                    path.unlink()
                    removed.append(path.name)
    return removed


# ---------------------------------------------------------------------------------------------------- session


class LaunchSession:
    """The processes of one launch file. `start()` and `stop()` from one thread; output arrives on another.

    with LaunchSession("sim", {"seed": "7"}) as session:
        session.wait(timeout_s=10.0)
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        arguments: Mapping[str, str] | None = None,
        *,
        output: Output | None = print_prefixed,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Everything that can be wrong with file and arguments is raised here, before a process starts.

        `output` gets each line that a process prints; None drops them. `environment` is what the processes inherit.
        """
        self._scratch = Path(tempfile.mkdtemp(prefix="vla_launch_"))
        try:
            base = dict(os.environ if environment is None else environment)
            base.setdefault("AMENT_PREFIX_PATH", sys.prefix)  # the wheels leave it unset
            base.setdefault("PYTHONUNBUFFERED", "1")  # lines appear when printed, not when a buffer is full
            log = (lambda text: output("launch", text)) if output else (lambda text: None)
            self.plan = make_plan(find_launch_file(file), arguments or {}, self._scratch, base, log)
        except BaseException:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.asked_to_stop = False
        self.exit_codes: dict[str, int] = {}  # of processes that have ended; negative: killed by that signal
        self.ended_early: dict[str, int] = {}  # those of them that ended before stop() was called
        self._output = output
        self._tails: dict[str, deque[str]] = {plan.name: deque(maxlen=TAIL_LINES) for plan in self.plan}
        self._readers: list[threading.Thread] = []  # of the processes started together, and of each restarted one
        self.segments: set[str] = set()
        self._since_s = 0.0
        self._noted_at_s: dict[int, float] = {}  # pid -> steady clock of the last look at its mappings

    def __enter__(self) -> LaunchSession:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        if self.processes:
            raise LaunchError("this session was started before; make a new one")
        self._since_s = shm_clock_s()
        # Ports of shared memory are common to all ROS domains of a machine: what a killed process left in any of them
        # slows every graph. Measured with a dozen stale ports: 30 % late ticks, services silent for seconds.
        remove_stale_segments(set(), 0.0)
        try:
            for plan in self.plan:
                self._spawn(plan)
        except BaseException:
            self.stop()
            raise
        self._read_from(*self.processes)

    def _spawn(self, plan: ProcessPlan) -> None:
        self.processes[plan.name] = subprocess.Popen(
            plan.start_argv,
            env=dict(plan.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the session only, which tells each process once
        )

    def _read_from(self, *names: str) -> None:
        pipes = {name: pipe for name in names if (pipe := self.processes[name].stdout) is not None}
        reader = threading.Thread(target=self._read, args=(pipes,), name="launch_output", daemon=True)
        reader.start()
        self._readers.append(reader)

    def kill(self, name: str) -> float:
        """SIGKILL, as a crash would end it: no error of the session. Returns the steady time just before the signal."""
        process = self.processes[name]
        self._note_segments(process.pid, every_s=0.0)
        own = mapped_segments(process.pid)
        at_s = time.monotonic()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        del self.processes[name]
        remove_stale_segments(own, math.inf)  # what it left slows the others down
        return at_s

    def start_again(self, name: str) -> None:
        """A process that `kill` has ended, once more."""
        if name in self.processes:
            raise LaunchError(f"{name} is running")
        self._spawn(next(plan for plan in self.plan if plan.name == name))
        self._read_from(name)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Until every process has ended (0, or 1 when one failed by itself), or None after `timeout_s`."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self.running():
            if deadline_s is not None and time.monotonic() >= deadline_s:
                return None
            time.sleep(0.05)
        return int(any(code != 0 for code in self.ended_early.values()))

    def running(self) -> list[str]:
        """Names of the processes that have not ended; notes the others' exit codes and the shared memory they use."""
        alive = []
        for name, process in self.processes.items():
            code = process.poll()
            if code is None:
                alive.append(name)
                self._note_segments(process.pid)
            elif name not in self.exit_codes:
                self.exit_codes[name] = code
                if not self.asked_to_stop:
                    self.ended_early[name] = code
                    self._emit(name, f"process has ended by itself, exit code {code}")
        return alive

    def tail(self, name: str) -> list[str]:
        """The last lines that a process printed."""
        return list(self._tails[name])

    def stop(self) -> dict[str, int]:
        """SIGINT, 5 s, SIGTERM, 5 s, SIGKILL; then remove the shared memory left by the dead. Returns exit codes."""
        alive = self.running()
        for name in alive:
            self._note_segments(self.processes[name].pid, every_s=0.0)
        self.asked_to_stop = True
        for number, grace_s in ((signal.SIGINT, SIGINT_GRACE_S), (signal.SIGTERM, SIGTERM_GRACE_S)):
            for name in alive:
                self.processes[name].send_signal(number)
            deadline_s = time.monotonic() + grace_s
            while (alive := self.running()) and time.monotonic() < deadline_s:
                time.sleep(0.02)
        for name in alive:
            self._emit(name, "does not answer SIGINT and SIGTERM: killed")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.processes[name].pid, signal.SIGKILL)
            self.processes[name].wait()
        self.running()
        for reader in self._readers:
            reader.join(timeout=2.0)
        self._readers.clear()
        if self.processes or self.segments:
            remove_stale_segments(self.segments, self._since_s)
        shutil.rmtree(self._scratch, ignore_errors=True)
        return dict(self.exit_codes)

    # ------------------------------------------------------------------------------------------ inside

    def _note_segments(self, pid: int, every_s: float = 0.5) -> None:
        now_s = time.monotonic()
        if every_s == 0.0 or now_s - self._noted_at_s.get(pid, -every_s) >= every_s:
            self._noted_at_s[pid] = now_s
            self.segments |= mapped_segments(pid)

    def _emit(self, name: str, line: str) -> None:
        self._tails[name].append(line)
        if self._output is not None:
            self._output(name, line)

    def _read(self, pipes: Mapping[str, IO[bytes]]) -> None:
        rest: dict[str, bytes] = dict.fromkeys(pipes, b"")
        with selectors.DefaultSelector() as selector:
            for name, pipe in pipes.items():
                selector.register(pipe, selectors.EVENT_READ, name)
            while selector.get_map():
                for key, _ in selector.select():
                    name = key.data
                    data = os.read(key.fd, 65536)
                    *lines, rest[name] = (rest[name] + data).split(b"\n")
                    if not data:
                        selector.unregister(key.fileobj)
                        pipes[name].close()
                        lines = [rest[name]] if rest[name] else []
                    for line in lines:
                        self._emit(name, line.decode("utf-8", "replace").rstrip("\r"))


# ---------------------------------------------------------------------------------------------------- command


def real_launch_is_installed() -> bool:
    """ROS 2's launch: PyPI has an unrelated package of the same name."""
    try:
        return all(importlib.util.find_spec(name) for name in ("launch", "launch.launch_service", "launch_ros.actions"))
    except ImportError:
        return False


def run_real(file: Path, arguments: Mapping[str, str]) -> int:
    from launch import LaunchService
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import AnyLaunchDescriptionSource

    paths.set_ros_environment()
    source = AnyLaunchDescriptionSource(str(file))
    description = source.try_get_launch_description_without_context()
    if description is not None:
        check_known(arguments, {a.name: "" for a in description.get_launch_arguments()}, file)
    service = LaunchService()
    service.include_launch_description(IncludeLaunchDescription(source, launch_arguments=list(arguments.items())))
    return int(service.run())


def run_subset(file: Path, arguments: Mapping[str, str], output: Output | None = print_prefixed) -> int:
    """Until every process has ended or SIGINT, SIGTERM or SIGHUP asks to stop."""
    session = LaunchSession(file, arguments, output=output)
    asked = threading.Event()
    previous = {
        number: signal.signal(number, lambda n, frame: asked.set())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    code: int | None = 0
    try:
        session.start()
        while not asked.is_set() and (code := session.wait(timeout_s=0.2)) is None:
            pass
    finally:
        session.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code or 0


def run(file: str | os.PathLike[str], arguments: Sequence[str] = (), *, show_args: bool = False) -> int:
    """`vla launch`: exit code. Raises LaunchError for what the user can fix."""
    path = find_launch_file(file)
    if show_args:
        print("Arguments (pass arguments as '<name>:=<value>'):")
        for name, text in known_arguments(path).items():
            print(f"\n    {name}\n        {text}")
        return 0
    given = parse_arguments(arguments)
    if real_launch_is_installed():
        return run_real(path, given)
    return run_subset(path, given)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_args = any(flag in arguments for flag in ("-s", "--show-args"))
    arguments = [a for a in arguments if a not in ("-s", "--show-args")]
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m vla_ros.cli.launch_runner FILE [--show-args] [name:=value ...]", file=sys.stderr)
        return 2
    try:
        return run(arguments[0], arguments[1:], show_args=show_args)
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
