"""Plants faults into good episodes and counts which ones the audit finds; good episodes count false alarms.

.venv/bin/python benchmarks/data/audit.py --good 50
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test" / "data"))

import bags  # noqa: E402
from bags import NS, START_NS, Made  # noqa: E402

from vla_ros.data.audit import Audit, audit  # noqa: E402
from vla_ros.data.bag_reader import Bag  # noqa: E402
from vla_ros.data.findings import Kind  # noqa: E402
from vla_ros.data.images import Coding  # noqa: E402

SECONDS = 4.0
SCENE, WRIST = "/vla/camera/scene/image_raw/compressed", "/vla/camera/wrist/image_raw/compressed"
JOINTS, COMMAND, STATE, CHUNK = "/vla/joint_states", "/vla/safe_command", "/vla/safety_state", "/vla/action_chunk"
Plant = Callable[[list[Made]], list[Made]]


@dataclasses.dataclass(frozen=True)
class Fault:
    """`kind` and `topic`: what a finding must say. `bag`: arguments of `bags.make` instead of changed messages."""

    name: str
    kind: Kind
    topic: str
    plant: Plant = list
    bag: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = SECONDS


def at_s(made: Made) -> float:
    return (made.log_ns - START_NS) / NS


def each(topic: str, change: Callable[[Made, int], Iterable[Made]], start_s: float = 0.0, end_s: float = 1e9) -> Plant:
    """Change the messages of one topic within a time; they are counted from 0."""

    def plant(content: list[Made]) -> list[Made]:
        out, k = [], 0
        for made in content:
            if made.topic == topic and start_s <= at_s(made) < end_s:
                out += change(made, k)
                k += 1
            else:
                out.append(made)
        return out

    return plant


def altered(made: Made, **fields: Any) -> Made:
    message = copy.copy(made.message)
    for name, value in fields.items():
        setattr(message, name, value)
    return made._replace(message=message)


def drop(topic: str, start_s: float, end_s: float = 1e9) -> Plant:
    return each(topic, lambda made, k: (), start_s, end_s)


def every(topic: str, n: int, start_s: float = 0.0) -> Plant:
    return each(topic, lambda made, k: (made,) if k % n == 0 else (), start_s)


def stamped(topic: str, shift_s: Callable[[float], float]) -> Plant:
    """The source's clock is off by that much at each time."""

    def change(made: Made, k: int) -> Iterable[Made]:
        header = copy.copy(made.message.header)
        ns = header.stamp.sec * NS + header.stamp.nanosec + round(shift_s(at_s(made)) * NS)
        header.stamp = bags.fabric().time(ns)
        return (altered(made, header=header),)

    return each(topic, change)


def frozen(topic: str, start_s: float, end_s: float) -> Plant:
    first: list[Any] = []

    def change(made: Made, k: int) -> Iterable[Made]:
        first[:] = [made.message.data] if k == 0 else first
        return (altered(made, data=first[0]),)

    return each(topic, change, start_s, end_s)


def pictures(topic: str, rgb: tuple[int, int, int], start_s: float, end_s: float, px: int = 224) -> Plant:
    data = np.frombuffer(Coding().encode(np.full((px, px, 3), rgb, dtype=np.uint8)), dtype=np.uint8)
    return each(topic, lambda made, k: (altered(made, data=data),), start_s, end_s)


def joint(topic: str, index: int, value: float, start_s: float, end_s: float) -> Plant:
    def change(made: Made, k: int) -> Iterable[Made]:
        position = made.message.position.copy()
        position[index] += value
        return (altered(made, position=position),)

    return each(topic, change, start_s, end_s)


def resized(made: Made, k: int) -> Iterable[Made]:
    data = Coding().encode(bags.picture(np.random.default_rng(k), 160, 120, 0.0))
    return (altered(made, data=np.frombuffer(data, dtype=np.uint8)),)


def faults() -> list[Fault]:
    rng = np.random.default_rng(0)
    lost = set(rng.permutation(60)[:6].tolist())
    stretch = 1.5  # of time: 15 Hz become 10 Hz
    K = Kind
    return [
        Fault("scene camera frozen for 1.5 s", K.FROZEN, SCENE, frozen(SCENE, 1.0, 2.5)),
        Fault("wrist camera frozen for 1 s", K.FROZEN, WRIST, frozen(WRIST, 2.0, 3.0)),
        Fault("scene camera frozen from the start", K.FROZEN, SCENE, frozen(SCENE, 0.0, 9.0)),
        Fault("scene camera black for 1 s", K.BLIND, SCENE, pictures(SCENE, (0, 0, 0), 1.0, 2.0)),
        Fault("wrist camera white at the end", K.BLIND, WRIST, pictures(WRIST, (255, 255, 255), 3.0, 9.0)),
        Fault("wrist camera grey from the start", K.BLIND, WRIST, pictures(WRIST, (90, 90, 90), 0.0, 9.0)),
        Fault("scene camera silent for 0.5 s", K.GAP, SCENE, drop(SCENE, 1.5, 2.0)),
        Fault("wrist camera stops early", K.GAP, WRIST, drop(WRIST, 2.5)),
        Fault("joint states silent for 0.1 s", K.GAP, JOINTS, drop(JOINTS, 2.0, 2.1)),
        Fault("commands silent for 0.1 s", K.GAP, COMMAND, drop(COMMAND, 3.0, 3.1)),
        Fault("states silent for 1 s", K.GAP, STATE, drop(STATE, 1.0, 2.0)),
        Fault("no chunk for 0.8 s while the arm follows", K.GAP, CHUNK, drop(CHUNK, 1.8, 2.6)),
        Fault("scene camera at half its rate", K.RATE, SCENE, every(SCENE, 2)),
        Fault("wrist camera at half its rate from the middle", K.RATE, WRIST, every(WRIST, 2, SECONDS / 2)),
        Fault("joint states at 50 Hz", K.RATE, JOINTS, every(JOINTS, 10)),
        Fault("commands at 50 Hz", K.RATE, COMMAND, every(COMMAND, 2)),
        Fault("scene camera loses 6 of 60 frames", K.LOST, SCENE,
              each(SCENE, lambda made, k: () if k in lost else (made,))),
        Fault("scene camera's clock is 0.3 s late", K.SKEW, SCENE, stamped(SCENE, lambda t: -0.3)),
        Fault("wrist camera's clock is 0.15 s late", K.SKEW, WRIST, stamped(WRIST, lambda t: -0.15)),
        Fault("joint states come from the future", K.SKEW, JOINTS, stamped(JOINTS, lambda t: 0.05)),
        Fault("scene camera's clock jumps by 0.1 s", K.SKEW, SCENE, stamped(SCENE, lambda t: -0.1 * (t > 2.0))),
        Fault("joint states' clock drifts 1 %", K.DRIFT, JOINTS, stamped(JOINTS, lambda t: -0.01 * t)),
        Fault("wrist camera's clock drifts 1 %", K.DRIFT, WRIST, stamped(WRIST, lambda t: -0.01 * t)),
        Fault("scene camera's stamps repeat", K.STAMPS, SCENE,
              stamped(SCENE, lambda t: -(t % (2 / 15)) * (t > 2.0) * 0.99)),
        Fault("a joint state is sent twice", K.STAMPS, JOINTS,
              each(JOINTS, lambda made, k: (made, made) if k == 700 else (made,))),
        Fault("no wrist camera", K.MISSING, "camera/wrist", bag={"without": (WRIST,)}),
        Fault("no joint states", K.MISSING, "joint_states", bag={"without": (JOINTS,)}),
        Fault("no supervisor states", K.MISSING, "safety_state", bag={"without": (STATE,)}),
        Fault("chunks never came", K.MISSING, CHUNK, drop(CHUNK, 0.0)),
        Fault("another contract", K.CONTRACT, "", bag={"contract_hash": "0" * 64}),
        Fault("chunks of another contract", K.CONTRACT, CHUNK,
              each(CHUNK, lambda made, k: (altered(made, contract_hash="1" * 64),))),
        Fault("pictures of another size", K.CONTRACT, SCENE, each(SCENE, resized, 1.0, 1.5)),
        Fault("NaN in one joint state", K.NON_FINITE, JOINTS, joint(JOINTS, 3, float("nan"), 2.0, 2.003)),
        Fault("NaN in one command", K.NON_FINITE, COMMAND, joint(COMMAND, 0, float("nan"), 2.0, 2.011)),
        Fault("an encoder jumps by 0.5 rad", K.JOINTS, JOINTS, joint(JOINTS, 2, 0.5, 2.0, 9.0)),
        Fault("joint states lack a joint", K.JOINTS, JOINTS, each(
            JOINTS, lambda made, k: (altered(made, name=["x", *made.message.name[1:]]),), 2.0, 2.5)),
        Fault("a command outside the limits", K.LIMITS, COMMAND, joint(COMMAND, 1, 2.5, 2.0, 2.011)),
        Fault("the recorder lost 5 %", K.DROPS, SCENE, bag={"drops": {SCENE: 3}}),
        Fault("pictures cut in half", K.UNREADABLE, WRIST, each(
            WRIST, lambda made, k: (altered(made, data=made.message.data[: made.message.data.size // 2]),), 2.0, 2.2)),
        Fault("an episode without length", K.EMPTY, "", seconds=0.2),
        Fault("scene camera at 10 Hz", K.RATE, SCENE, slow(SCENE, stretch)),
    ]  # fmt: skip


def slow(topic: str, stretch: float) -> Plant:
    def plant(content: list[Made]) -> list[Made]:
        shift = stamped(topic, lambda t: (t - 0.015) * (stretch - 1.0))(content)
        out = []
        for made in shift:
            if made.topic == topic:
                late_ns = round((at_s(made) - 0.015) * (stretch - 1.0) * NS)
                made = made._replace(log_ns=made.log_ns + late_ns)
                if at_s(made) > SECONDS:
                    continue
            out.append(made)
        return out

    return plant


def found(fault: Fault, result: Audit) -> bool:
    return any(f.kind is fault.kind and fault.topic in f.topic for f in result.findings) and result.grade in "CD"


def run(
    good: Sequence[int], chosen: list[Fault], folder: Path, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """`good`: numbers of good episodes, from which their length and noise follow."""
    contract = bags.fabric().contract
    missed, alarms, grades = [], [], []
    for k, fault in enumerate(chosen):
        content = fault.plant(bags.messages(fault.seconds, 100 + k))
        path = bags.make(folder, f"fault{k}", seconds=fault.seconds, content=content, **fault.bag)
        result = audit(Bag.open(path), contract)
        if not found(fault, result):
            missed.append(fault.name)
        grades.append(result.grade)
        shown = ", ".join(sorted({f"{f.kind.value} {f.topic.rpartition('/vla/')[2]}".strip() for f in result.findings}))
        say(f"{'MISSED' if missed[-1:] == [fault.name] else 'found '} {result.grade} {fault.name}: {shown}")
    for k in good:
        seconds = SECONDS + 0.5 * (k % 5)
        result = audit(Bag.open(bags.make(folder, f"good{k}", seconds=seconds, seed=1000 + k)), contract)
        if result.findings:
            alarms.append([f.facts() for f in result.findings])
            say(f"FALSE ALARM {k}: {[f.text for f in result.findings]}")
    return {
        "faults": len(chosen),
        "kinds": len({fault.kind for fault in chosen}),
        "found": len(chosen) - len(missed),
        "missed": missed,
        "good": len(good),
        "false_alarms": len(alarms),
        "alarms": alarms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--good", type=int, default=50)
    parser.add_argument("--part", default="1/1", help="K/N: every Nth episode, from the Kth on")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    first, step = (int(n) for n in given.part.split("/"))
    with tempfile.TemporaryDirectory() as folder:
        facts = run(
            range(first - 1, given.good, step),
            faults()[first - 1 :: step],
            Path(folder),
            lambda line: print(line, file=sys.stderr, flush=True),
        )
    print(json.dumps(facts) if given.json else
          f"{facts['found']} of {facts['faults']} planted faults of {facts['kinds']} kinds found; "
          f"{facts['false_alarms']} false alarms on {facts['good']} good episodes")  # fmt: skip
    sys.exit(0 if not facts["missed"] and not facts["false_alarms"] else 1)


if __name__ == "__main__":
    main()
