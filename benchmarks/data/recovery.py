"""Cuts recordings at random bytes and kills writers at random times; what comes back, and what is lost.

.venv/bin/python benchmarks/data/recovery.py --cuts 200 --flips 200 --kills 50
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test" / "data"))

import bags  # noqa: E402

from vla_ros.data.bag_writer import BagWriter  # noqa: E402
from vla_ros.data.recover import recover  # noqa: E402

NS = 1_000_000_000
FLUSH_S = 0.5  # as the recorder
KILL_BETWEEN_S = (0.3, 3.0)
LOSS_MAX_S = 0.6
START_TIMEOUT_S = 120.0
Say = Callable[[str], None]


def read(folder: Path) -> set[tuple[str, int, bytes]]:
    """Every message, read and decoded by `rosbags`."""
    with AnyReader([folder]) as reader:
        found = set()
        for connection, log_ns, data in reader.messages():
            reader.deserialize(data, connection.msgtype)
            found.add((connection.topic, log_ns, bytes(data)))
        return found


def damage(folder: Path, seconds: float, n: int, flip: bool, seed: int, say: Say) -> dict[str, Any]:
    """`n` copies of one episode, each cut at a random byte, or with 1 to 30 random bits changed."""
    rng = random.Random(seed)
    good = bags.make(folder, "good", seconds=seconds)
    source, written = good / "good_0.mcap", read(good)
    content = source.read_bytes()
    chunks = bags.chunks(source)
    raised, incomplete, foreign, kept_share = 0, 0, 0, []
    for k in range(n):
        broken = bytearray(content)
        if flip:
            for _ in range(rng.choice((1, 3, 10, 30))):
                broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        else:
            del broken[rng.randrange(len(broken)) :]
        case, out = folder / "case", folder / "out"
        case.mkdir()
        (case / "case_0.mcap").write_bytes(broken)
        try:
            done = recover(case, out)
            kept = read(out) if done.messages else set()
        except Exception as error:  # noqa: BLE001 - that is what is counted
            raised += 1
            say(f"{k}: raised {type(error).__name__}: {error}")
        else:
            kept_share.append(len(kept) / len(written))
            if not flip:
                incomplete += any(end <= len(broken) and not held <= kept for end, held in chunks)
            foreign += max(len(kept - written) - done.unverified, 0)
        shutil.rmtree(case)
        shutil.rmtree(out, ignore_errors=True)
        if (k + 1) % 10 == 0:
            say(f"{k + 1} of {n}: {raised} raised")
    shutil.rmtree(good)
    return {
        "n": n,
        "raised": raised,
        "lost_a_whole_chunk": incomplete,
        "changed_and_not_told": foreign,
        "messages_kept_median": round(sorted(kept_share)[len(kept_share) // 2], 4) if kept_share else 0.0,
    }


def write_forever(folder: Path, plan: list[tuple[int, float, bytes]]) -> None:
    """The process that is killed: an episode at its real rates; the time of each written message is left in a file."""
    writer = BagWriter(folder, "killed", bags.topics(), bags.episode())
    newest = os.open(folder / "newest", os.O_CREAT | os.O_WRONLY)
    start_s = flushed_s = time.monotonic()
    for topic, due_s, data in plan:
        time.sleep(max(start_s + due_s - time.monotonic(), 0.0))
        # Time of writing, not of the plan: on a slow machine the writer falls behind its plan.
        at_ns = bags.START_NS + round((time.monotonic() - start_s) * NS)
        writer.write(topic, data, at_ns)
        os.pwrite(newest, at_ns.to_bytes(8, "little"), 0)
        if time.monotonic() - flushed_s >= FLUSH_S:
            flushed_s = time.monotonic()
            writer.flush()


def kills(folder: Path, n: int, seed: int, say: Say) -> dict[str, Any]:
    """`n` writers, killed (SIGKILL) at random times. Loss: from the last recovered message to the last written."""
    rng = random.Random(seed)
    index = {topic.name: k for k, topic in enumerate(bags.topics())}
    store = bags.fabric().store
    plan = [
        (index[m.topic], (m.log_ns - bags.START_NS) / NS, bytes(store.serialize_cdr(m.message, m.message.__msgtype__)))
        for m in bags.messages(KILL_BETWEEN_S[1] + 3.0, seed)
    ]
    recovered, losses = 0, []
    for k in range(n):
        case, out = folder / f"case{k}", folder / f"out{k}"
        case.mkdir()
        process = multiprocessing.get_context("fork").Process(target=write_forever, args=(case, plan))
        process.start()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not (case / "newest").exists() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        time.sleep(rng.uniform(*KILL_BETWEEN_S))
        process.kill()
        process.join()
        written_ns = int.from_bytes((case / "newest").read_bytes() or bytes(8), "little")
        done = recover(case / "killed.part", out)
        kept = read(out) if done.messages else set()
        newest_ns = max((log_ns for _, log_ns, _ in kept), default=bags.START_NS)
        losses.append((written_ns - newest_ns) / NS)
        recovered += len(kept) == done.messages
        say(f"{k}: {done.messages} messages, {losses[-1]:.3f} s lost")
        shutil.rmtree(case)
        shutil.rmtree(out)
    losses.sort()
    median_s = losses[len(losses) // 2] if losses else 0.0
    return {"n": n, "recovered": recovered, "median_loss_s": round(median_s, 3),
            "worst_loss_s": round(losses[-1], 3) if losses else 0.0}  # fmt: skip


def run(folder: Path, cuts: int, flips: int, n_kills: int, seconds: float, seed: int, say: Say) -> dict[str, Any]:
    facts = {}
    if cuts:
        facts["cuts"] = damage(folder, seconds, cuts, False, seed, say)
    if flips:
        facts["flips"] = damage(folder, seconds, flips, True, seed, say)
    if n_kills:
        facts["kills"] = kills(folder, n_kills, seed, say)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of the episode that is damaged")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = run(
            Path(folder), given.cuts, given.flips, given.kills, given.seconds, given.seed,
            lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    print(json.dumps(facts, indent=1))
    sys.exit(0 if passed(facts) else 1)


def passed(facts: dict[str, Any]) -> bool:
    damaged = [facts[name] for name in ("cuts", "flips") if name in facts]
    if any(d["raised"] or d["lost_a_whole_chunk"] or d["changed_and_not_told"] for d in damaged):
        return False
    killed = facts.get("kills", {"recovered": 0, "n": 0, "worst_loss_s": 0.0})
    return bool(killed["recovered"] == killed["n"] and killed["worst_loss_s"] <= LOSS_MAX_S)


if __name__ == "__main__":
    main()
