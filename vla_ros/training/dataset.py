"""Demonstrations from disk: memory-mapped shards, sentences drawn per sample, a loader thread.

Batch number `step` depends on (seed, step) alone, so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import json
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_ros.core.errors import VlaError
from vla_ros.policy.tokenizer import Tokenizer
from vla_ros.sim.tasks import FAMILIES
from vla_ros.training.actions import OPENING, TOOL_FLOOR, ActionLabels

FORMAT = 1
LEROBOT = Path("meta", "info.json")  # a folder that has it is a LeRobot data set
ARRAYS = {  # name -> (dtype, dimensions, counts per frame or per label)
    "images": ("uint8", 5, "frames"),  # (n, K, P, P, 3)
    "state": ("float32", 2, "frames"),  # (n, joints + 1): q [rad], gripper width [m]
    "label_frame": ("int32", 1, "labels"),  # (m,) frame of the label
    "label_task": ("int8", 2, "labels"),  # (m, 4) sim.tasks.Task.codes()
    "label_chunk": ("float32", 3, "labels"),  # (m, R, A) as in msg/ActionChunk
    "label_done": ("uint8", 1, "labels"),  # (m,)
    "label_point": (
        "float32",
        4,
        "labels",
    ),  # (m, K, 2, 3) named object and destination in each picture: u, v in 0..1, visible 0 or 1
    "label_aux": (
        "float32",
        2,
        "labels",
    ),  # (m, 7) object minus tool [m], destination minus tool [m], destination valid
}


class DatasetInvalid(VlaError):
    """A data set that cannot be used; names the file, the field and what to do."""


@dataclass(frozen=True, slots=True)
class Augment:
    """Cheap changes of the pictures. Colours are what the words name, so they move little."""

    contrast: float = 0.15  # factor on the distance from mid grey, +- this
    brightness: float = 0.12  # of full scale, +- this, all channels alike
    colour: float = 0.04  # gain of each channel, +- this
    shift_px: int = 1  # of policy pixels, each camera for itself


@dataclass(frozen=True, slots=True)
class Batch:
    """G pictures with B sentences about them, those of one picture side by side."""

    images: NDArray[np.uint8]  # (G, K, P, P, 3)
    gain: NDArray[np.float32]  # (G, K, 3), with offset: pixel / 127.5 - 1 becomes gain * that + offset
    offset: NDArray[np.float32]  # (G, K, 3)
    picture: NDArray[np.int64]  # (B,) ascending: which picture each sentence is about
    ids: NDArray[np.int64]  # (B, L)
    state: NDArray[np.float32]  # (B, S)
    chunk: NDArray[np.float32]  # (B, R, A)
    done: NDArray[np.float32]  # (B,)
    aux: NDArray[np.float32]  # (B, 7)
    point: NDArray[np.float32]  # (B, K, 2, 3)
    old: NDArray[np.bool_]  # (B,) what is known already

    def part(self, first: int, end: int) -> Batch:
        """Pictures first..end - 1 with their sentences."""
        a, b = np.searchsorted(self.picture, [first, end])
        seen = {name: getattr(self, name)[first:end] for name in PICTURES}
        told = {f.name: getattr(self, f.name)[a:b] for f in dataclasses.fields(self) if f.name not in PICTURES}
        return Batch(**seen, **(told | {"picture": self.picture[a:b] - first}))


PICTURES = ("images", "gain", "offset")  # fields of a batch with one entry per picture


@dataclass(frozen=True)
class Shard:
    name: str
    images: NDArray[np.uint8]
    features: NDArray[np.float32]  # (n, S)
    frame: NDArray[np.int32]
    task: NDArray[np.int8]
    chunk: NDArray[np.float32]
    done: NDArray[np.uint8]
    aux: NDArray[np.float32]
    point: NDArray[np.float32]
    texts: tuple[str, ...] | None = None  # what was said, label by label; None: any phrasing of the task
    corrected: NDArray[np.bool_] | None = None  # (m,) a person corrected what a policy did; None: nobody ever


def fits_in_memory(folders: Sequence[Path]) -> bool:
    """Whether all pictures may be read at once: they take at most half of the memory that is available now.

    Mapped pictures are read again and again where the system reclaims its file cache (measured: 13 % of the time)."""
    pictures = sum(path.stat().st_size for folder in folders for path in folder.glob("*.images.npy"))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return False
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)
    return pictures <= available // 2


def read_shard(
    folder: Path,
    name: str,
    frames: int,
    labels: int,
    features: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    in_memory: bool,
    actions: ActionLabels | None = None,
) -> Shard:
    """Read or map one shard and check what a truncated or mixed-up file would break. Raises DatasetInvalid."""
    found: dict[str, np.ndarray] = {}
    for key, (dtype, dimensions, per) in ARRAYS.items():
        path = folder / f"{name}.{key}.npy"
        try:
            mapped = key == "images" and not in_memory
            array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DatasetInvalid(f"{path}: not readable ({error}); generate the shard again") from error
        count = frames if per == "frames" else labels
        if array.dtype != dtype or array.ndim != dimensions or len(array) != count:
            raise DatasetInvalid(
                f"{path}: {array.dtype} {array.shape}, expected {dtype} with {dimensions} dimensions and {count} rows"
            )
        found[key] = array
    if labels and not (found["label_frame"].min() >= 0 and found["label_frame"].max() < frames):
        raise DatasetInvalid(f"{folder / name}.label_frame.npy: an index lies outside 0..{frames - 1}")
    for key in ("state", "label_chunk", "label_point", "label_aux"):
        if not np.isfinite(found[key]).all():
            raise DatasetInvalid(f"{folder / name}.{key}.npy: holds NaN or infinite values")
    chunk = found["label_chunk"]
    if actions is not None:
        if chunk.shape[1] < actions.rows:
            raise DatasetInvalid(
                f"{folder / name}.label_chunk.npy: {chunk.shape[1]} rows, model.rows asks for {actions.rows}; "
                "a model cannot learn longer chunks than were demonstrated"
            )
        chunk = actions(found["state"][found["label_frame"]], chunk)
    return Shard(
        name,
        found["images"],
        features(found["state"]),
        found["label_frame"],
        found["label_task"],
        chunk,
        found["label_done"],
        found["label_aux"],
        found["label_point"],
    )


def read_meta(folder: Path, contract_hash: str) -> dict[str, Any]:
    """The description of one data set. Raises DatasetInvalid where it is not one, or one of another robot."""
    path = folder / "meta.json"
    try:
        meta: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DatasetInvalid(f"{path}: not readable ({error}); is --data a folder of demonstrations?") from error
    if meta.get("format") != FORMAT:
        raise DatasetInvalid(f"{path}: format is {meta.get('format')!r}, this version reads {FORMAT}")
    if meta["contract_hash"] != contract_hash:
        raise DatasetInvalid(
            f"{path}: contract_hash {meta['contract_hash'][:12]} is of another robot contract "
            f"({contract_hash[:12]} is loaded); generate the demonstrations again or name their contract"
        )
    return meta


def same_meaning(metas: Sequence[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    """The description that holds for all: theirs, with the longest list of families. Raises DatasetInvalid.

    Labels name families by number. Older data knows fewer of them, which is no contradiction as long as its list is the
    beginning of the longest one, and that one the beginning of what this version can put into words."""
    first_folder, first = metas[0]
    longest = max((meta["families"] for _, meta in metas), key=len)
    known = list(FAMILIES)
    for folder, meta in metas:
        path = folder / "meta.json"
        for key in ("colours", "shapes", "rows", "cols"):
            if meta[key] != first[key]:
                raise DatasetInvalid(
                    f"{path}: {key} is {meta[key]}, in {first_folder} it is {first[key]}; train on folders of one kind"
                )
        families = meta["families"]
        if families != longest[: len(families)] or families != known[: len(families)]:
            raise DatasetInvalid(
                f"{path}: families is {families}, not the beginning of {longest} and of this version's {known}: "
                "the same number would mean another task; generate the demonstrations again"
            )
    return first | {"families": longest}


class Dataset:
    """All readable shards of one or several data sets. A corrupt shard is left out, counted and named in `skipped`.

    features: states (m, n + 1) -> (m, S), see StateFeatures. actions: what a chunk becomes, see ActionLabels; None
    leaves chunks as they are stored. old: folders of which `old_share` of all samples is drawn, so that a model that
    learns something new keeps what it knew. weights: of `folders`, the shares of all samples that come from each;
    without them families count, not folders. families: how often a family is drawn, against 1 for those not named.
    human_share: of what is drawn from data with corrections by a person, so much is corrections; None: as many as there
    are. recorded: reads a folder that is a LeRobot data set.

    Raises DatasetInvalid."""

    def __init__(
        self,
        folders: Sequence[Path],
        contract_hash: str,
        features: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        validation_fraction: float = 0.03,
        actions: ActionLabels | None = None,
        old: Sequence[Path] = (),
        old_share: float = 0.5,
        recorded: Callable[[Path], tuple[Shard, dict[str, Any], list[str]]] | None = None,
        weights: Sequence[float] = (),
        families: Mapping[str, float] | None = None,
        human_share: float | None = None,
    ) -> None:
        if weights and (old or len(weights) != len(folders) or not all(0 < w < float("inf") for w in weights)):
            raise DatasetInvalid(
                f"weights are {list(weights)}, allowed: one > 0 for each of {len(folders)} folders, and no old data"
            )
        every = [*folders, *old]
        found = {folder: recorded(folder) for folder in every if recorded and (folder / LEROBOT).is_file()}
        self.sources = [found[f][1] if f in found else read_meta(f, contract_hash) for f in every]
        self.meta = same_meaning(list(zip(every, self.sources, strict=True)))
        self.floor = None if actions is None else actions.floor
        self.shares = dict(families or {})
        self.human_share = human_share
        self.shards: list[Shard] = []
        self.skipped: list[str] = []
        in_memory = fits_in_memory(every)
        self.new_shards = 0  # old ones follow
        folder_of: list[int] = []  # of each shard
        for number, (folder, meta) in enumerate(zip(every, self.sources, strict=True)):
            before = len(self.shards)
            if folder in found:
                self.shards.append(found[folder][0])
                self.skipped += found[folder][2]
            for entry in meta.get("shards", []):
                try:
                    shard = read_shard(
                        folder, entry["name"], entry["frames"], entry["labels"], features, in_memory, actions
                    )
                    self.shards.append(shard)
                except DatasetInvalid as error:
                    self.skipped.append(str(error))
            if len(self.shards) == before:
                raise DatasetInvalid(f"{folder}: no readable shard. " + "; ".join(self.skipped[-3:]))
            self.new_shards = len(self.shards) if number < len(folders) else self.new_shards
            folder_of += [number] * (len(self.shards) - before)
        # Index of every label: (shard, label). The last frames of a shard are for validation, whole episodes but one.
        train, validation = [], []
        for s, shard in enumerate(self.shards):
            labels = np.stack([np.full(len(shard.frame), s), np.arange(len(shard.frame))], axis=1)  # (m, 2)
            held = shard.frame >= round(len(shard.features) * (1.0 - validation_fraction))
            train.append(labels[~held])
            validation.append(labels[held])
        self.train = np.concatenate(train)  # (m, 2), new before old
        self.validation = np.concatenate(validation[: self.new_shards])  # (v, 2)
        self.old_validation = np.concatenate([np.empty((0, 2), dtype=np.int64), *validation[self.new_shards :]])
        parts = list(zip(self.shards, train, strict=True))
        family = np.concatenate([shard.task[labels[:, 1], 0] for shard, labels in parts])
        done = np.concatenate([shard.done[labels[:, 1]] for shard, labels in parts]) > 0
        self.corrected = np.concatenate([corrections(shard)[labels[:, 1]] for shard, labels in parts])  # (m,)
        source = np.array(folder_of)[self.train[:, 0]]  # (m,) folder of each label
        is_old = self.train[:, 0] >= self.new_shards
        if weights:
            chosen, shares = [source == k for k in range(len(weights))], list(weights)
        elif is_old.any():
            chosen, shares = [~is_old, is_old], [1.0 - old_share, old_share]
        else:
            chosen, shares = [~is_old], [1.0]
        self.mix = [self._rows(family, done, rows) for rows in chosen]
        # Pictures are drawn, with all their sentences: a recorded one has one, one of the simulator four.
        frame = np.concatenate([shard.frame[labels[:, 1]] for shard, labels in parts])
        first = np.diff(frame, prepend=-1) != 0
        first |= np.diff(self.train[:, 0], prepend=-1) != 0  # (m,) of the labels of its picture
        pictures = [np.count_nonzero(first & rows) / np.count_nonzero(rows) for rows in chosen]  # per label
        self.mix_upto = np.cumsum(np.array(shares) * pictures)

    def _rows(self, family: NDArray[np.int8], done: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> Rows | Weighed:
        """The chosen rows of `train`; corrections and the rest apart where their shares were asked for."""
        if self.human_share is None:
            return self._by_family(family, done, chosen)
        by_hand, rest = chosen & self.corrected, chosen & ~self.corrected
        if not (by_hand.any() and rest.any()):
            return self._by_family(family, done, chosen)
        return Weighed(self._by_family(family, done, by_hand), self._by_family(family, done, rest), self.human_share)

    def _by_family(self, family: NDArray[np.int8], done: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> Rows:
        """The rows of `train` of every family that occurs, and how often each is drawn."""
        named = [(1.0, chosen & (family == -1))]  # recorded, of no family
        named += [(self.shares.get(name, 1.0), chosen & (family == f)) for f, name in enumerate(FAMILIES)]
        kinds = [(share, kind) for share, kind in named if kind.any()]
        return Rows(
            [(np.flatnonzero(kind), np.flatnonzero(kind & done)) for _, kind in kinds],
            np.cumsum([share for share, _ in kinds]),
        )

    def statistics(self) -> tuple[NDArray[np.float32], ...]:
        """Mean and deviation of state (S,) and of chunks (R, A), from at most 50,000 labels.

        Deviations have floors, so that a column that hardly moves (say, tilt) is not blown up into noise.
        """
        state = np.concatenate([shard.features for shard in self.shards])
        pick = self.train[np.linspace(0, len(self.train) - 1, min(len(self.train), 50_000)).astype(int)]
        chunk = np.stack([self.shards[s].chunk[i] for s, i in pick])  # (m, R, A)
        mean, std = chunk.mean(0), chunk.std(0)  # (R, A)
        floor = np.float32([*TOOL_FLOOR, OPENING]) if self.floor is None else self.floor  # (A,)
        mean[:, -1], std[:, -1] = OPENING, OPENING
        state_floor = np.full(state.shape[1], 0.02, dtype=np.float32)
        return (state.mean(0), np.maximum(state.std(0), state_floor), mean, np.maximum(std, floor))

    def batch(
        self, picks: NDArray[np.int64], rng: np.random.Generator, tokenizer: Tokenizer, augment: Augment | None
    ) -> Batch:
        """picks (B, 2) of `train` or `validation`; labels of one picture that follow each other share it."""
        from vla_ros.sim.tasks import from_codes, sentence

        B = len(picks)
        first = self.shards[picks[0, 0]]
        frame = np.array([self.shards[s].frame[i] for s, i in picks])  # (B,)
        fresh = np.ones(B, dtype=bool)
        fresh[1:] = (frame[1:] != frame[:-1]) | (picks[1:, 0] != picks[:-1, 0])
        picture = np.cumsum(fresh) - 1  # (B,)
        G, K = int(picture[-1]) + 1, first.images.shape[1]
        images = np.empty((G, *first.images.shape[1:]), dtype=np.uint8)
        state = np.empty((B, first.features.shape[1]), dtype=np.float32)
        chunk = np.empty((B, *first.chunk.shape[1:]), dtype=np.float32)
        done, aux = np.empty(B, dtype=np.float32), np.empty((B, 7), dtype=np.float32)
        point = np.empty((B, *first.point.shape[1:]), dtype=np.float32)
        ids = np.empty((B, tokenizer.length), dtype=np.int64)
        shift = augment.shift_px if augment else 0
        shifts = rng.integers(-shift, shift + 1, (G, K, 2))
        for b, (s, i) in enumerate(picks):
            shard, f = self.shards[s], frame[b]
            if fresh[b]:
                g = picture[b]
                for k in range(K):
                    move(shard.images[f, k], images[g, k], int(shifts[g, k, 0]), int(shifts[g, k, 1]))
            state[b], chunk[b], done[b], aux[b] = shard.features[f], shard.chunk[i], shard.done[i], shard.aux[i]
            point[b] = shard.point[i]
            said = sentence(from_codes(shard.task[i]), rng) if shard.texts is None else shard.texts[i]
            ids[b] = tokenizer.encode(said)
        gain, offset = np.ones((G, K, 3), dtype=np.float32), np.zeros((G, K, 3), dtype=np.float32)
        if augment:
            gain *= 1 + rng.uniform(-augment.contrast, augment.contrast, (G, K, 1)).astype(np.float32)
            offset += 2 * rng.uniform(-augment.brightness, augment.brightness, (G, K, 1)).astype(np.float32)
            colour_gain = 1 + rng.uniform(-augment.colour, augment.colour, (G, K, 3)).astype(np.float32)
            gain, offset = gain * colour_gain, (offset + 1) * colour_gain - 1  # about black, not mid grey
        return Batch(images, gain, offset, picture, ids, state, chunk, done, aux, point, picks[:, 0] >= self.new_shards)

    def training_batch(
        self, step: int, size: int, seed: int, tokenizer: Tokenizer, augment: Augment | None, done_share: float = 0.0
    ) -> Batch:
        """Batch number `step`, at least `size` labels of whole pictures. A picture comes with all its sentences: they
        cost little, and what the words change is learned where the picture is the same.

        Families in equal parts; within a family labels uniform, but for `done_share` of the pictures, which are drawn
        for a task that is done already: a demonstration has few, and a robot must know when to stop."""
        rng = np.random.default_rng((seed, step))
        picks: list[NDArray[np.int64]] = []
        total = 0
        while total < size:
            every, done = self._family(rng)
            rows = done if rng.random() < done_share and len(done) else every
            picks.append(self.of_picture(int(rows[int(rng.integers(len(rows)))])))
            total += len(picks[-1])
        return self.batch(np.concatenate(picks), rng, tokenizer, augment)

    def of_picture(self, row: int) -> NDArray[np.int64]:
        """(n, 2) all training labels of the picture of row `row` of `train`: shards keep them side by side."""
        s, i = self.train[row]
        frames = self.shards[s].frame
        a, b = np.searchsorted(frames, [frames[i], frames[i] + 1])
        return np.stack([np.full(b - a, s), np.arange(a, b)], axis=1)

    @property
    def texts(self) -> list[str]:
        """Sentences that were recorded, each once."""
        return sorted({text for shard in self.shards for text in shard.texts or ()})

    def _family(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of a random family, of a part of the data drawn by its share."""
        return self.mix[draw(self.mix_upto, rng)].family(rng)


@dataclass(frozen=True)
class Rows:
    """For each family, rows of `Dataset.train`: every label, and those whose task is done already."""

    families: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    upto: NDArray[np.float64]  # (families,) shares, summed up

    def family(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A random one, by the shares."""
        return self.families[draw(self.upto, rng)]


@dataclass(frozen=True)
class Weighed:
    """Corrections with probability `share`, else the rest: few frames that show what a policy lacks would be lost among
    many that show what it can do (intervention weighted regression, 2012.06733, draws both alike)."""

    corrections: Rows
    rest: Rows
    share: float

    def family(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return (self.corrections if rng.random() < self.share else self.rest).family(rng)


def corrections(shard: Shard) -> NDArray[np.bool_]:
    """(m,) of each label: whether a person corrected a policy."""
    return np.zeros(len(shard.frame), dtype=np.bool_) if shard.corrected is None else shard.corrected


def draw(upto: NDArray[np.float64], rng: np.random.Generator) -> int:
    """Index by the shares whose running sum is `upto`."""
    return int(np.searchsorted(upto, rng.random() * upto[-1], side="right"))


def move(source: NDArray[np.uint8], target: NDArray[np.uint8], down: int, right: int) -> None:
    """Copy a picture (P, P, 3), moved by whole pixels; the uncovered edge keeps what was there."""
    target[...] = source
    if down or right:
        P, Q = source.shape[:2]
        target[max(down, 0) : P + min(down, 0), max(right, 0) : Q + min(right, 0)] = source[
            max(-down, 0) : P + min(-down, 0), max(-right, 0) : Q + min(-right, 0)
        ]


class Loader:
    """Makes batches first..last in a background thread, a few ahead."""

    def __init__(self, make: Callable[[int], Batch], first: int, last: int, ahead: int = 4) -> None:
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._make, self._range = make, range(first, last)
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def _put(self, item: Batch | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def _run(self) -> None:
        try:
            for step in self._range:
                if not self._put(self._make(step)):
                    return
            self._put(None)
        except Exception as error:  # noqa: BLE001  handed to the training loop, which raises it
            self._put(error)

    def next(self) -> Batch | None:
        """The next batch, or None after the last."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)
