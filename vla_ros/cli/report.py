"""How a command speaks: results on stdout, everything else on stderr, one clear message when it fails."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from rich.console import Console

EXIT_FAILED = 1  # asked and answered: no
EXIT_USAGE = 2  # typer's own
EXIT_UNREACHABLE = 3  # nobody answered

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)


class CliError(Exception):
    """What went wrong, where, what is allowed and what to do, in one message for the person at the terminal."""

    def __init__(self, message: str, *, code: int = EXIT_FAILED, **facts: Any) -> None:
        super().__init__(message)
        self.code = code
        self.facts = facts


class Unreachable(CliError):
    """No answer from the graph."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=EXIT_UNREACHABLE)


def result(as_json: bool, facts: Mapping[str, Any], text: str = "") -> None:
    """The one result of a command."""
    if as_json:
        print(json.dumps(facts, default=str), flush=True)
    elif text:
        stdout.print(text)


@contextlib.contextmanager
def errors(as_json: bool) -> Iterator[None]:
    """Errors that a user can act on become one message and an exit code; a defect keeps its traceback."""
    from vla_ros.cli.launch_subset import LaunchError
    from vla_ros.core.errors import VlaError

    try:
        yield
    except CliError as error:
        _fail(as_json, str(error), error.code, error.facts)
    except LaunchError as error:
        _fail(as_json, str(error), EXIT_USAGE, {})
    except (VlaError, OSError) as error:
        _fail(as_json, str(error), EXIT_FAILED, {})
    except KeyboardInterrupt:
        _fail(as_json, "interrupted by the user", 130, {})


def _fail(as_json: bool, message: str, code: int, facts: Mapping[str, Any]) -> None:
    if as_json:
        print(json.dumps({**facts, "error": message}, default=str), flush=True)
    stderr.print("[bold red]error:[/]" if stderr.is_terminal else "error:", end=" ")
    stderr.print(message, markup=False, soft_wrap=True)
    raise typer.Exit(code)
