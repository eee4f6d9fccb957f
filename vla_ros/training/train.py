"""The training run behind `vla train`. Resumable at any moment, also after SIGTERM: run the same command again.

What it leaves in --out:
    policy.json, policy.safetensors   averaged weights (EMA) and everything needed to use or export them
    snapshots/<step>/                 the same, every `snapshot_every` steps: the closed loop chooses, never the loss
    checkpoint/                       raw weights, optimizer and counters, to resume; safetensors and JSON
    log.jsonl                         one line per report and per validation
    before/                           the policy that --from named, with this run's words
    forgetting.json                   what it could do before and after, see `forgetting.py`
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vla_ros.core import contract as contracts
from vla_ros.core.errors import VlaError
from vla_ros.policy.features import StateFeatures
from vla_ros.policy.tokenizer import split
from vla_ros.training import lerobot
from vla_ros.training.actions import ActionLabels
from vla_ros.training.checkpoint import find_checkpoint
from vla_ros.training.config import ConfigInvalid, TrainConfig
from vla_ros.training.dataset import Dataset, Loader, Shard
from vla_ros.training.forgetting import BEFORE, Forgetting
from vla_ros.training.losses import validate
from vla_ros.training.processes import join
from vla_ros.training.trainer import Trainer

REPORT_EVERY = 20
BAD_STEPS_MAX = 5  # consecutive non-finite losses until the run gives up
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.percentage:>3.0f}%"),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)


def keep_memory() -> None:
    """Ask glibc to keep freed memory: each step frees and takes the same hundreds of MB, and page faults are dear."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks from the heap, too
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def progress(trainer: Trainer, max_seconds: float | None) -> float:
    """0..1 of the run, by steps or by time, whichever is further."""
    by_steps = trainer.step / trainer.config.steps
    return min(1.0, by_steps if max_seconds is None else max(by_steps, trainer.elapsed_s / max_seconds))


class Report:
    """log.jsonl, the progress bar and the console; silent in every process but the first."""

    def __init__(self, trainer: Trainer, console: Console, log: TextIO | None, bar: Progress) -> None:
        self._trainer, self._console, self._log, self._bar = trainer, console, log, bar
        self._task = bar.add_task("training", total=1.0)
        self._seconds, self._steps = 0.0, 0

    def _write(self, line: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()

    def step(self, took_s: float, figures: dict[str, float] | None, done: float) -> None:
        t = self._trainer
        self._seconds, self._steps = self._seconds + took_s, self._steps + 1
        if not figures or t.step % REPORT_EVERY:
            return
        rate = self._steps * t.config.batch / self._seconds
        self._seconds, self._steps = 0.0, 0
        rounded = {k: round(v, 5) for k, v in figures.items()}
        self._write({"step": t.step, "elapsed_s": round(t.elapsed_s, 1), "samples_per_s": round(rate, 1), **rounded})
        text = f"step {t.step}  loss {figures['loss']:.3f}  pointing {figures['point']:.2f}  {rate:.0f}/s"
        self._bar.update(self._task, completed=done, description=text)

    def validation(self) -> None:
        t = self._trainer
        self._write({"step": t.step, "validation": {k: round(v, 5) for k, v in t.validation.items()}})
        self._console.print(f"step {t.step}: " + "  ".join(f"{k} {v:.3g}" for k, v in t.validation.items()))


def judge(trainer: Trainer) -> None:
    """Validation figures of the averaged weights; those on old data, under `old/`, show what is being forgotten."""
    started = time.monotonic()
    t = trainer
    t.validation = validate(t.average, t.config, t.data, t.tokenizer, t.data.validation)
    if len(t.data.old_validation):
        old = validate(t.average, t.config, t.data, t.tokenizer, t.data.old_validation)
        t.validation |= {f"old/{key}": value for key, value in old.items()}
    t.elapsed_s += time.monotonic() - started


def run(trainer: Trainer, max_seconds: float | None, console: Console, stop_at: int | None = None) -> None:
    """Train until steps or time are used up, or a signal arrives; then save. `stop_at`: a test's early end."""
    t, c = trainer, trainer.config
    first = t.processes.index == 0
    last = min(c.steps, stop_at or c.steps)
    loader = Loader(
        lambda s: t.data.training_batch(s, c.batch, c.seed, t.tokenizer, c.augment, c.done_share), t.step, last
    )
    t.out.mkdir(parents=True, exist_ok=True)
    bad, validated, stopped = 0, t.step, False
    with contextlib.ExitStack() as stack:
        stack.callback(loader.close)
        log = stack.enter_context((t.out / "log.jsonl").open("a")) if first else None
        bar = stack.enter_context(Progress(*COLUMNS, console=console, refresh_per_second=1))
        report = Report(t, console, log, bar)
        while t.step < last and not stopped and (done := progress(t, max_seconds)) < 1.0:
            started = time.monotonic()
            batch = loader.next()
            assert batch is not None
            figures = t.train_step(batch, done)
            bad = 0 if figures else bad + 1
            if bad >= BAD_STEPS_MAX:
                raise VlaError(f"the loss was not finite {bad} times in a row at step {t.step}; lower learning_rate")
            t.step += 1
            took = time.monotonic() - started
            t.elapsed_s += took
            if first:
                report.step(took, figures, done)
                if t.step % c.validation_every == 0 or t.step == last:
                    validated = t.step
                    judge(t)
                    report.validation()
                if t.step % c.save_every == 0:
                    t.save()
                if t.step % c.snapshot_every == 0:
                    t.save_policy(t.out / "snapshots" / f"{t.step:06d}")
            stopped = t.agree()
        if first:
            if t.step != validated and not stopped and stop_at is None:  # the time was up between two validations
                judge(t)
                report.validation()
            t.save()
    t.processes.wait()


@contextlib.contextmanager
def stop_on_signals(trainer: Trainer) -> Iterator[None]:
    """SIGTERM and SIGINT end the run after the present step, with everything saved."""

    def on_signal(number: int, _frame: object) -> None:
        trainer.stop_signal = number

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    config: TrainConfig,
    folders: Sequence[Path],
    out: Path,
    *,
    weights: Sequence[float] = (),
    old_folders: Sequence[Path] = (),
    start: Path | None = None,
    max_minutes: float | None = None,
    forgetting: Forgetting | None = None,
    console: Console,
) -> dict[str, Any]:
    """A whole run, begun or resumed. Returns what it came to. Raises VlaErrors that name file, entry and remedy.

    weights: of the folders, see `Dataset`. forgetting: what to play before and after; needs `start`."""
    keep_memory()
    from vla_ros.sim.tasks import all_words

    processes = join(config.device)
    if processes.index:
        console = Console(quiet=True)
    contract = contracts.load(config.robot)
    space = contract.action.space.name.lower()
    if config.model.action_space != space:
        raise ConfigInvalid(
            f"model.action_space = {config.model.action_space}, but contract {config.robot} says {space}: chunks are "
            "what the contract says they are; change action.space there, or the setting here"
        )
    actions = ActionLabels(contract, config.model.rows, config.model.action_space)
    features = StateFeatures(contract).of_states

    def recorded(folder: Path) -> tuple[Shard, dict[str, Any], list[str]]:
        shard, skipped = lerobot.as_shard(str(folder), lerobot.episodes(folder, contract), features, actions)
        return shard, lerobot.describe(shard, contract), skipped

    fraction, share = config.validation_fraction, config.old_share
    data = Dataset(
        folders, contract.hash, features, fraction, actions, old_folders, share, recorded, weights, config.families,
        config.human_share,
    )  # fmt: skip
    words = all_words().union(*(split(text) for text in data.texts))
    for line in data.skipped:
        console.print(f"[yellow]skipped[/yellow] {line}", soft_wrap=True)
    resuming = find_checkpoint(out) is not None
    before = out / BEFORE
    keeps = config.keep > 0 and bool(old_folders)
    for wanted, what in ((forgetting is not None, "forgetting"), (keeps, f"keep = {config.keep:g}, with old data")):
        if wanted and start is None and not before.is_dir():
            raise ConfigInvalid(f"{what}: there is no policy from before; give --from")
    trainer = Trainer(config, data, words, out, contract.hash, None if resuming else start, processes)
    resumed = trainer.resume()
    if trainer.start is not None and not resumed and not processes.index:
        trainer.save_policy(before, trainer.start)
    if keeps:
        trainer.processes.wait()
        trainer.keep_answers_of(before)
    own = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    learning = sum(p.numel() for p in trainer.learning(trainer.model)) / 1e6
    console.print(
        f"{own:.2f} M parameters, {learning:.2f} M of them trained ({config.tune}); {len(data.train)} training labels "
        f"of {len(data.shards)} shards; {'bfloat16' if trainer.bfloat16 else 'float32'}, {processes.count} processes; "
        + (f"resumed at step {trainer.step}" if resumed else f"from {start or 'nothing'}"),
        soft_wrap=True,
    )
    with stop_on_signals(trainer):
        run(trainer, max_minutes * 60 if max_minutes else None, console)
    if trainer.stop_signal:
        console.print(
            f"stopped by signal {trainer.stop_signal}; saved at step {trainer.step}, run the same command to go on"
        )
    lost = None
    if forgetting is not None and not processes.index and not trainer.stop_signal:
        if not before.is_dir():
            raise ConfigInvalid(f"{before}: is not there: the run was begun by an older version; begin it again")
        lost = forgetting.measure(before, out, config.robot, config.threads, console)
    return {
        "out": str(out),
        "step": trainer.step,
        "seconds": round(trainer.elapsed_s, 1),
        "stopped_by_signal": trainer.stop_signal,
        "resumed": resumed,
        "skipped_shards": data.skipped,
        "validation": trainer.validation,
        "forgetting": lost,
    }
