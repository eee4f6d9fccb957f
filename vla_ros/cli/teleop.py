"""`vla teleop`: an arm driven from a terminal. The node runs in this process; its chunks go to the supervisor."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from typing import Any

import rclpy
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vla_ros import paths
from vla_ros.cli.record import login
from vla_ros.cli.report import CliError, Unreachable, stderr
from vla_ros.core.teleop_input import ACT_KEYS, MOTION_KEYS, Act, keys_of
from vla_ros.core.types import Severity
from vla_ros.nodes import security
from vla_ros.nodes.runtime import LEAVE_TIMEOUT_S, make_executor, prepare_process
from vla_ros.nodes.teleop import TeleopNode

POLL_S = 0.03  # our choice: so long a key waits at most
ESCAPE_S = 0.02  # our choice: the rest of a key's escape sequence comes within this, also over ssh
HEARD_S = 10.0  # our choice: until then the supervisor of a graph that has just started is heard
RECORDER_S = 1.0  # our choice: a recorder that is not found so long after the supervisor is not there
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # SIGHUP: the connection is gone


class Terminal:
    """Standard input, key by key and without echo, while in use; as it was afterwards, whatever happens in between."""

    def __init__(self) -> None:
        if not (sys.stdin is not None and sys.stdin.isatty()):
            raise CliError(
                "standard input is no terminal: keys cannot be read. Run `vla teleop` in a terminal "
                "(over ssh: `ssh -t`), or with --joy to drive with a gamepad alone"
            )
        self._fd = sys.stdin.fileno()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")

    def __enter__(self) -> Terminal:
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd, termios.TCSADRAIN)
        return self

    def __exit__(self, *error: object) -> None:
        termios.tcsetattr(self._fd, termios.TCSAFLUSH, self._before)  # what was typed ahead is not for the shell

    def keys(self, wait_s: float) -> list[str]:
        """Pressed since the last call, within `wait_s` at the latest. Raises EOFError when the terminal is gone."""
        text = self._read(wait_s)
        while text.endswith(("\x1b", "\x1b[", "\x1bO", "\x1b[5", "\x1b[6")):
            more = self._read(ESCAPE_S)
            if not more:
                break
            text += more
        return keys_of(text)

    def _read(self, wait_s: float) -> str:
        if not select.select([self._fd], [], [], wait_s)[0]:
            return ""
        try:
            data = os.read(self._fd, 1024)
        except OSError:  # EIO: the other end hung up
            data = b""
        if not data:
            raise EOFError
        return self._decoder.decode(data)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """What has asked to leave. Nothing is interrupted by it, also not by a second one: the arm is handed back before.
    And Ctrl-Z is ignored: a process that sleeps cannot stop an arm."""
    left: list[int] = []
    previous = {number: signal.signal(number, lambda n, frame: left.append(n)) for number in ENDS}
    previous[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        yield left
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _while_connected() -> Iterator[None]:
    """A terminal that is gone is a Ctrl-C. Reading it fails, and so do showing something and restoring it."""
    try:
        with contextlib.suppress(EOFError):
            yield
    except (OSError, termios.error) as error:
        if error.args[0] != errno.EIO:
            raise


class _Spinner:
    """The node's executor in a thread of its own."""

    def __init__(self, node: TeleopNode) -> None:
        self._executor = make_executor()
        self._executor.add_node(node)
        self._open, self.failure = True, ""
        self._thread = threading.Thread(target=self._spin, name="teleop", daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        try:
            while self._open and rclpy.ok():
                self._executor.spin_once(timeout_sec=0.1)
        except Exception as error:  # noqa: BLE001  the one at the terminal is told
            self.failure = repr(error)

    def close(self) -> None:
        self._open = False
        self._thread.join(timeout=2.0)


def run(namespace: str, text: str, joy: bool, robot: str, take: bool) -> dict[str, Any]:
    """Until Ctrl-C. What was taken over is handed back. Returns facts for the last word."""
    terminal = None if joy and not sys.stdin.isatty() else Terminal()
    prepare_process()
    arguments = [
        "--ros-args", "--disable-stdout-logs", "--enclave", "/vla/teleop", "-r", f"__ns:=/{namespace.strip('/')}",
        "--params-file", str(paths.config_dir() / "nodes.yaml"), "-p", f"contract:={robot}",
    ]  # fmt: skip
    try:
        security.require(os.environ)
        rclpy.init(args=arguments, signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
        node = TeleopNode(text, login())
    except security.SecurityRefused as refusal:
        raise CliError(str(refusal)) from None
    except Exception as error:  # which type differs by release
        raise security.explain(error, os.environ) from error
    spinner: _Spinner | None = None
    try:
        node.autostart()
        if not node.active:
            raise CliError(node.failure or "the node teleop does not start")
        spinner = _Spinner(node)
        with _signals() as left:
            _wait_for_supervisor(node, spinner, namespace, left)
            _wait_for_recorder(node, spinner, left)
            node.attended = terminal is not None
            try:
                with _while_connected(), terminal or contextlib.nullcontext():
                    if take and not node.in_control:  # somebody who left without a word may have left it to a person
                        node.do(Act.CONTROL)
                    _drive(node, spinner, terminal, left)
            finally:
                _hand_back(node)
        return {"chunks": node.sequence, "in_control": node.in_control}
    finally:
        if spinner is not None:
            spinner.close()
        node.release()
        node.destroy_node()
        rclpy.try_shutdown()


def _wait_for_supervisor(node: TeleopNode, spinner: _Spinner, namespace: str, left: list[int]) -> None:
    deadline_s = time.monotonic() + HEARD_S
    while node.state is None or not node.connected:
        if left:
            raise KeyboardInterrupt
        if time.monotonic() > deadline_s:
            raise Unreachable(
                f"no supervisor answers in /{namespace.strip('/')} (waited {HEARD_S:g} s). Start the graph with "
                "`vla launch sim`, and check that ROS_DOMAIN_ID is the same here and there"
            )
        _check(node, spinner)
        time.sleep(POLL_S)


def _wait_for_recorder(node: TeleopNode, spinner: _Spinner, left: list[int]) -> None:
    """Until a recorder that is there hears this node: an episode must not lack what a person began with."""
    began_s = time.monotonic()
    while not (node.recorded or left):
        waited_s = time.monotonic() - began_s
        if waited_s > (HEARD_S if node.recorder_there else RECORDER_S):
            if node.recorder_there:
                node.note = f"the recorder has not answered for {HEARD_S:g} s: its episode may lack what you do"
            return
        _check(node, spinner)
        time.sleep(POLL_S)


def _check(node: TeleopNode, spinner: _Spinner) -> None:
    failure = node.failure or spinner.failure
    if failure:
        raise CliError(f"teleoperation ended: {failure}")


def _drive(node: TeleopNode, spinner: _Spinner, terminal: Terminal | None, left: list[int]) -> None:
    with Live(view(node, terminal is not None), console=stderr, refresh_per_second=4, transient=True) as live:
        while not left:
            _check(node, spinner)
            if terminal is None:
                time.sleep(POLL_S)
            else:
                for key in terminal.keys(POLL_S):
                    node.press(key)
            live.update(view(node, terminal is not None))


def _hand_back(node: TeleopNode) -> None:
    asked_at_s = now_s = time.monotonic()
    while not node.may_leave(asked_at_s, now_s) and now_s - asked_at_s < LEAVE_TIMEOUT_S:
        time.sleep(POLL_S)
        now_s = time.monotonic()


# ------------------------------------------------------------------------------------------------ what is shown


def view(node: TeleopNode, keyboard: bool) -> Group:
    """One screen: who drives, what the supervisor says, what the keys do."""
    state, hand = node.state, node.hand
    grid = Table.grid(padding=(0, 2))
    driver = "[bold green]you drive[/]" if node.in_control else "the policy drives; [bold]t[/] takes over"
    grid.add_row("control", driver)
    if state is not None:
        severity = Severity(state.severity)
        colour = "green" if severity < Severity.HOLD else "yellow" if severity < Severity.STOP else "bold red"
        latched = "; [bold]r[/] rearms" if state.latched else ""
        grid.add_row("arm", f"[{colour}]{severity.name} {state.reason}[/] {state.phase}{latched}")
        grid.add_row("task", Text(state.text if state.instruction_id else f"none; Enter begins: {node.text or '?'}"))
    grid.add_row("speed", f"{hand.speed_m_s:g} m/s, axes of the {'tool' if hand.tool_axes else 'base'}")
    grid.add_row("gamepad", "there" if node.pad_alive else "none heard")
    if node.recording:
        grid.add_row("recorder", node.recording)
    grid.add_row("", Text(node.note))
    return Group(grid, key_help()) if keyboard else Group(grid)


def key_help() -> Table:
    """From the tables that the keys are read with."""
    motion: dict[str, list[str]] = {}
    for key, (axis, share) in MOTION_KEYS.items():
        motion.setdefault(f"{axis} {'+' if share > 0.0 else '-'}", []).append(key)
    table = Table.grid(padding=(0, 2))
    moves = [f"[bold]{'[/], [bold]'.join(keys)}[/] {axis}" for axis, keys in motion.items()]
    acts = [f"[bold]{key.capitalize() if len(key) > 1 else key}[/] {act.value}" for key, act in ACT_KEYS.items()]
    acts.append("[bold]Ctrl-C[/] leave and hand back")
    for k in range(max(len(moves), len(acts))):
        table.add_row(*(column[k] if k < len(column) else "" for column in (moves, acts)))
    return table
