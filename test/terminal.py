"""A program in a pseudo terminal of its own, as over ssh: what is typed, what is shown, and how the connection ends."""

import contextlib
import fcntl
import os
import pty
import select
import subprocess
import termios
import threading

ENDED_S = 60.0  # a machine that has too much to do


def take_terminal():
    """In the new process: its standard input is the terminal that Ctrl-C comes from."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    def __init__(self, argv, environment):
        self.shown = b""
        self._outer, self._inner = pty.openpty()
        self._before = termios.tcgetattr(self._inner)
        self._connected = True
        self.process = subprocess.Popen(
            argv, env=environment | {"TERM": "xterm", "COLUMNS": "120"}, stdin=self._inner, stdout=self._inner,
            stderr=self._inner, preexec_fn=take_terminal,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError):  # EIO: closed
            while self._connected:
                if select.select([self._outer], [], [], 0.05)[0]:
                    self.shown += os.read(self._outer, 4096)

    @property
    def echoes(self):
        return bool(termios.tcgetattr(self._inner)[3] & termios.ECHO)

    @property
    def as_it_was(self):
        return termios.tcgetattr(self._inner) == self._before

    def press(self, keys):
        os.write(self._outer, keys.encode())

    def hang_up(self):
        """The connection is gone: the kernel tells the program (SIGHUP), and nothing can be read or shown any more."""
        self._connected = False
        self._reader.join()
        os.close(self._outer)

    def ended(self):
        """Its exit code."""
        return self.process.wait(ENDED_S)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._connected:
            self.hang_up()
        os.close(self._inner)
