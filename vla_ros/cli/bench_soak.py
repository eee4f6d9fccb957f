"""Hours of random work in minutes: instructions, interrupts, crashes and faults, and what they leave behind."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_ros.cli.client import SIM_NODES, GraphClient
from vla_ros.cli.launch_runner import SHM, SHM_NAME, base_name, mapped_anywhere
from vla_ros.cli.live import LiveGraph, Say, starting
from vla_ros.cli.report import CliError, Unreachable
from vla_ros.cli.stream import Recorder, markdown, stream_violations
from vla_ros.core import contract as contracts
from vla_ros.core.contract import Contract
from vla_ros.msg import SafetyState

SENTENCES = ("pick up the red ball", "pick up the blue cube", "fly to the moon", "", "put the green cube in the bowl")
PAUSE_S = (0.3, 4.0)  # between two events
FAULT_S = (0.05, 1.0)  # how long a cable is out or a process stands
REARM_S = 10.0  # an arm that cannot be rearmed for this long is reported
WARM_UP_S = 60.0  # caches fill; not a leak
SLOPE_MIN_S = 60.0  # shorter lives say nothing about a slope
SAMPLE_S = 1.0
Sample = tuple[float, float, int, int]  # steady time [s], resident memory [MB], ticks, late ticks


@dataclass
class Findings:
    violations: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    unanswered: list[str] = field(default_factory=list)  # requests that did not get the answer they needed


class Vitals:
    """Memory and ticks of every process, from the diagnostics; a restarted process begins a life of its own."""

    def __init__(self) -> None:
        self._lives: dict[tuple[str, str], list[Sample]] = {}  # of (node, pid)

    def take(self, client: GraphClient, now_s: float) -> None:
        for name, health in list(client.health.items()):
            values = health.values
            if name not in SIM_NODES or "rss_mb" not in values:
                continue
            life = self._lives.setdefault((name, values["pid"]), [])
            if not life or now_s - life[-1][0] >= SAMPLE_S:
                ticks, late = int(values.get("ticks", 0)), int(values.get("late_ticks", 0))
                life.append((now_s, float(values["rss_mb"]), ticks, late))

    def report(self) -> dict[str, dict[str, Any]]:
        """Per node: slope of the longest life [MB/min], None when too short, and that life; largest memory; ticks, and
        late ones."""
        nodes: dict[str, dict[str, Any]] = {}
        for name in SIM_NODES:
            lives = [life for (node, _), life in self._lives.items() if node == name]
            if lives:
                longest = max(lives, key=lambda life: life[-1][0] - life[0][0])
                nodes[name] = {
                    "slope_mb_min": slope_mb_min(longest),
                    "longest_life_min": round((longest[-1][0] - longest[0][0]) / 60.0, 1),
                    "rss_max_mb": max(sample[1] for life in lives for sample in life),
                    "lives": len(lives),
                    "ticks": sum(life[-1][2] for life in lives),
                    "late_ticks": sum(life[-1][3] for life in lives),
                }
        return nodes


def slope_mb_min(life: Sequence[Sample]) -> float | None:
    """Least squares over a life without its warm-up; None when less than `SLOPE_MIN_S` remain."""
    t = np.array([sample[0] for sample in life])
    mb = np.array([sample[1] for sample in life])
    late = t - t[0] >= WARM_UP_S
    if late.sum() < 3 or t[late][-1] - t[late][0] < SLOPE_MIN_S:
        return None
    return round(float(np.polyfit((t[late] - t[late][0]) / 60.0, mb[late], 1)[0]), 3)


class Latches:
    """A latched stop that ends without a rearm of ours is a violation (invariant 5)."""

    def __init__(self, client: GraphClient, findings: Findings) -> None:
        self._findings = findings
        self._last: SafetyState | None = None
        self.rearmed_at_s = -np.inf  # when we last asked for it
        client.subscribe(SafetyState, "safety_state", "safety_state", self._on_state)

    def _on_state(self, message: SafetyState) -> None:
        last, self._last = self._last, message
        asked = time.monotonic() - self.rearmed_at_s < REARM_S + 1.0  # a request may be answered late
        was_latched = last is None or last.latched or last.writer_id != message.writer_id
        if was_latched and not message.latched and not asked:
            self._findings.violations.append("a latched stop ended without a rearm")


class Soak:
    """Everything that a random event may touch."""

    def __init__(self, graph: LiveGraph, contract: Contract, rng: random.Random) -> None:
        self.graph, self.client, self.contract, self.rng = graph, graph.client, contract, rng
        self.findings = Findings()
        self.recorder = Recorder(self.client)
        self.latches = Latches(self.client, self.findings)
        self.drawn = ""
        self.client.wait_until(lambda: self.client.state, 5.0, "no safety_state from the supervisor")

    def rearm(self, timeout_s: float = 0.0) -> None:
        """Once, or until it is accepted; it may be refused, for example while the arm moves."""
        self.latches.rearmed_at_s = time.monotonic()
        answer = self.client.rearm(timeout_s)
        if timeout_s and not answer.success:
            self.findings.unanswered.append(f"rearm was refused for {timeout_s:g} s: {answer.message}")

    def work(self) -> None:
        """The scene's own sentence."""
        self.client.interrupt()
        self.drawn = str(self.client.sim_reset(self.rng.randrange(10**6))["instruction"])
        self.rearm(REARM_S)
        self.client.instruct(self.drawn)

    def speak(self) -> None:
        """Any sentence; some are refused, and that is right."""
        self.client.instruct(self.rng.choice((self.drawn, *SENTENCES)))

    def interrupt(self) -> None:
        if self.rng.random() < 0.5:
            self.client.interrupt()
        else:
            self.client.trigger("interrupt")

    def home(self) -> None:
        self.client.trigger("home")

    def retreat(self) -> None:
        self.client.trigger("retreat")

    def unplug(self) -> None:
        cable = self.rng.choice(("joint_states", *(camera.name for camera in self.contract.cameras)))
        self.client.set_parameters("sim", unplugged=cable)
        self.client.wait_until(lambda: False, self.rng.uniform(*FAULT_S))
        self.client.set_parameters("sim", unplugged="")

    def crash(self) -> None:
        name = self.rng.choice(("policy", "perception", "supervisor", "arm_controller"))
        self.findings.events[f"crash {name}"] += 1
        self.graph.kill(name)
        self.client.wait_until(lambda: False, self.rng.uniform(*FAULT_S))
        self.graph.restart(name)

    def hang(self) -> None:
        """SIGSTOP, as a process that is swapped out."""
        name = self.rng.choice(SIM_NODES)
        self.findings.events[f"hang {name}"] += 1
        pid = self.graph.session.processes[name].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            self.client.wait_until(lambda: False, self.rng.uniform(*FAULT_S))
        finally:
            os.kill(pid, signal.SIGCONT)


EVENTS: dict[str, tuple[Callable[[Soak], None], int]] = {  # what, and how often
    "work": (Soak.work, 6),
    "speak": (Soak.speak, 4),
    "interrupt": (Soak.interrupt, 3),
    "rearm": (Soak.rearm, 3),
    "home": (Soak.home, 1),
    "retreat": (Soak.retreat, 1),
    "unplug": (Soak.unplug, 2),
    "hang": (Soak.hang, 1),
    "crash": (Soak.crash, 1),
}


def run(minutes: float, *, robot: str, policy: str, seed: int, say: Say) -> dict[str, Any]:
    """`minutes` of random events; the same seed draws the same ones."""
    contract, rng = contracts.load(robot), random.Random(seed)
    before = segments()
    with LiveGraph({"robot": robot, "seed": str(seed), "policy": policy}) as graph:
        client = graph.start(starting(say))
        soak = Soak(graph, contract, rng)
        vitals = Vitals()
        started_s = said_s = time.monotonic()
        soak.work()
        while (elapsed_s := time.monotonic() - started_s) < 60.0 * minutes:
            graph.check()
            name = _one_event(soak)
            pause_end_s = time.monotonic() + rng.uniform(*PAUSE_S)
            while time.monotonic() < pause_end_s:
                vitals.take(client, time.monotonic())
                client.wait_until(lambda: False, 0.2)
            for found in stream_violations(soak.recorder.take()[0], contract):
                soak.findings.violations.append(found)
                say(f"violation after {name}: {found}")
            if time.monotonic() - said_s > 30.0:
                said_s = time.monotonic()
                events = sum(soak.findings.events.values())
                say(f"{elapsed_s / 60.0:.1f} min, {events} events, {len(soak.findings.violations)} violations")
        client.interrupt()
    findings, nodes = soak.findings, vitals.report()
    slopes = [node["slope_mb_min"] for node in nodes.values() if node["slope_mb_min"] is not None]
    return {
        "minutes": round((time.monotonic() - started_s) / 60.0, 2),
        "events": dict(findings.events),
        "nodes": nodes,
        "slope_max_mb_min": max(slopes, default=None),
        "leaked_segments": sorted(segments() - before - {base_name(name) for name in mapped_anywhere()}),
        "unanswered": findings.unanswered,
        "violations": len(findings.violations),
        "violation_details": list(dict.fromkeys(findings.violations))[:20],
    }


def _one_event(soak: Soak) -> str:
    """What happened."""
    name = soak.rng.choices(list(EVENTS), [weight for _, weight in EVENTS.values()])[0]
    soak.findings.events[name] += 1
    try:
        EVENTS[name][0](soak)
    except Unreachable as error:  # a request that only a killed node's ghost heard; the next event goes on
        soak.findings.unanswered.append(f"{name}: {error}")
    except CliError as error:
        raise CliError(f"{name}: {error}") from error
    return name


def segments() -> set[str]:
    """Shared memory of Fast DDS on this machine."""
    return {base_name(path.name) for path in SHM.glob("*fast*_*") if SHM_NAME.fullmatch(path.name)}


def table(facts: dict[str, Any]) -> str:
    """Markdown."""
    head = ("node", "memory slope [MB/min]", "of a life of [min]", "largest [MB]", "lives", "late ticks")
    rows = [
        (
            name,
            "too short" if node["slope_mb_min"] is None else node["slope_mb_min"],
            node["longest_life_min"],
            node["rss_max_mb"],
            node["lives"],
            f"{node['late_ticks']} of {node['ticks']}" if node["ticks"] else "",
        )
        for name, node in facts["nodes"].items()
    ]
    return markdown(head, rows) + (
        f"\n{facts['minutes']} min, {sum(facts['events'].values())} events, {facts['violations']} violations, "
        f"{len(facts['leaked_segments'])} leaked shared memory segments, {len(facts['unanswered'])} requests without "
        "the answer they needed.\n"
    )
