"""The same work on many things: in this process, in several, or as Ray tasks.

A worker that dies costs its own item only: the item is tried again, and what is finished stays finished. Work that is
to survive the end of the whole run leaves its result on disk and skips what it finds there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vla_ros.core.errors import Invalid, VlaError

Item = TypeVar("Item")
Value = TypeVar("Value")
ATTEMPTS = 3  # our choice: a worker that dies thrice on the same item dies of it
LOCAL = "local"


class Failed(VlaError):
    """A piece of work that could not be done; the text is that of its error."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Value]):
    """Of item number `index`: a value, or the message of the error that a person can act on."""

    index: int
    value: Value | None
    error: str = ""


def run(
    work: Callable[[Item], Value],
    items: Sequence[Item],
    workers: int = 1,
    ray: str = "",
    label: str = "",
    quiet: bool = False,
) -> list[Outcome[Value]]:
    """`stream`, and the outcomes in the order of the items."""
    outcomes = {outcome.index: outcome for outcome in stream(work, items, workers, ray, label, quiet)}
    return [outcomes[index] for index in range(len(items))]


def stream(
    work: Callable[[Item], Value],
    items: Sequence[Item],
    workers: int = 1,
    ray: str = "",
    label: str = "",
    quiet: bool = False,
    done: int = 0,
    console: Console | None = None,
) -> Generator[Outcome[Value], None, None]:
    """`work(item)` for every item, each outcome as soon as there is one, in any order.

    `workers` 1: here, one after the other; more: as many processes. `ray`: address of a cluster, or "local" for one on
    this machine; tasks of one CPU each. `work` must be importable by name and its values must pickle; what it keeps in
    its module, say a world, serves the next item of the same worker. Errors of ours and of the operating system become
    outcomes, a defect is raised. `done`: so many were finished by an earlier run; they count in the bar. `console` is
    where the bar is drawn; stderr unless given.
    """
    if workers < 1:
        raise Invalid("workers", workers, ">= 1")
    source = _ray(work, items, workers, ray) if ray else _local(work, items, workers)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = console or Console(stderr=True)
    with Progress(*columns, console=shown, disable=quiet) as progress, contextlib.closing(source):
        bar = progress.add_task("", total=done + len(items), completed=done)
        for outcome in source:
            progress.advance(bar)
            yield outcome


def values(outcomes: Generator[Outcome[Value], None, None]) -> Iterator[tuple[int, Value]]:
    """Index and value of each outcome. Raises Failed at the first that is an error: for work that none may miss."""
    with contextlib.closing(outcomes):
        for outcome in outcomes:
            if outcome.error:
                raise Failed(outcome.error)
            yield outcome.index, outcome.value  # type: ignore[misc]


def _guarded(work: Callable[[Item], Value], index: int, item: Item) -> Outcome[Value]:
    """Errors travel as text: not every exception survives pickling."""
    try:
        return Outcome(index, work(item))
    except (VlaError, OSError) as error:
        return Outcome(index, None, str(error) or type(error).__name__)


def _died(index: int, item: Any) -> Outcome[Any]:
    return Outcome(index, None, f"{item}: the worker died {ATTEMPTS} times (out of memory, or killed)")


def _local(work: Callable[[Item], Value], items: Sequence[Item], workers: int) -> Generator[Outcome[Value], None, None]:
    if workers == 1 or len(items) < 2:
        for index, item in enumerate(items):
            yield _guarded(work, index, item)
        return
    attempts = dict.fromkeys(range(len(items)), 0)  # of what is not finished
    while attempts:
        # After a death nobody knows whose fault it was: one at a time until every suspect is cleared or has failed.
        suspects = [index for index, n in attempts.items() if n > 0]
        batch, size = (suspects[:1], 1) if suspects else (list(attempts), workers)
        # spawn: neither a GL context nor a thread survives a fork
        with ProcessPoolExecutor(size, mp_context=multiprocessing.get_context("spawn")) as pool:
            waiting: dict[Future[Outcome[Value]], int] = {}
            todo = iter(batch)
            try:
                # No more than a worker has in hand: what waits behind a death would count as an attempt.
                while True:
                    for index in todo:
                        waiting[pool.submit(_guarded, work, index, items[index])] = index
                        if len(waiting) >= size:
                            break
                    if not waiting:
                        break
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        outcome = future.result()
                        del waiting[future], attempts[outcome.index]
                        yield outcome
            except BrokenProcessPool:
                for index in waiting.values():
                    attempts[index] += 1
        for index in [index for index, n in attempts.items() if n >= ATTEMPTS]:
            del attempts[index]
            yield _died(index, items[index])


def _ray(
    work: Callable[[Item], Value], items: Sequence[Item], workers: int, address: str
) -> Generator[Outcome[Value], None, None]:
    try:
        import ray
    except ImportError as error:
        raise Invalid("ray", "not installed", "`pip install 'vla_ros[ray]'`, or leave --ray away") from error
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        here = {"num_cpus": workers, "include_dashboard": False} if address == LOCAL else {"address": address}
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **here)
        except Exception as error:  # a cluster that does not come up in time raises just that
            ray.shutdown()  # what it had started already
            allowed = f"the address of a running cluster, or {LOCAL!r} on a machine that has time for one ({error})"
            raise Invalid("ray", address, allowed, "leave --ray away: plain processes do the same") from error
    try:
        task = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(_guarded)
        waiting = {task.remote(work, index, item): index for index, item in enumerate(items)}
        while waiting:
            for done in ray.wait(list(waiting), num_returns=1)[0]:
                index = waiting.pop(done)
                try:
                    yield ray.get(done)
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                    yield _died(index, items[index])
    finally:
        if started:
            ray.shutdown()
