"""The recorder under load, and what the control loops notice of it.

    python benchmarks/data/recorder.py --seconds 300 --tasks 6 [--rounds 3] [--images png] [--json FILE]
    python benchmarks/data/recorder.py --seconds 0 --tasks 6        the control loop alone

Two cameras 640x480 at 30 Hz, joint states at 500 Hz and every control topic, from another process. Bar: nothing lost,
at most 35 % of one core. Then the simulated arm does tasks in rounds, without a recorder and beside one that writes an
episode, in turn and over the same scenes: late ticks of both. Needs a quiet machine: a talker that does not keep its
rates is told, and so are rounds that differ too much among themselves; both fail the run. Prints Markdown.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import graph as parts
import late_ticks

from vla_ros import paths
from vla_ros.cli.client import GraphClient
from vla_ros.cli.live import LiveGraph, free_domain
from vla_ros.cli.record import ask
from vla_ros.cli.stream import Recorder
from vla_ros.core import contract as contracts
from vla_ros.data.bag_reader import Bag

TALKER = Path(__file__).resolve().parent / "talker.py"
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
NUMBERED = {"image_raw/compressed": "header", "joint_states": "header", "safe_command": "sequence"}
ASKED_HZ = {"image_raw/compressed": 30.0, "joint_states": 500.0, "safe_command": 100.0}
KEPT_SHARE = 0.98  # of these rates: less was not the load that the bar is about
CPU_MAX_PERCENT = 35.0
SETTLE_S = 2.0  # our choice


def vga_contract(folder):
    """The panda's contract with cameras of 640x480 at 30 Hz."""
    text = paths.robot_contract("panda").read_text()
    text = text.replace("width_px: 224, height_px: 224, rate_hz: 15.0", "width_px: 640, height_px: 480, rate_hz: 30.0")
    path = folder / "vga.yaml"
    path.write_text(text)
    assert contracts.load(path).cameras[0].width_px == 640
    return path


def cpu_s(pid):
    """User and system time of a process so far [s]."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def missing(bag):
    """Numbers that are absent between the first and the last of each numbered topic."""
    found = {}
    for name in bag.topics:
        where = next((place for end, place in NUMBERED.items() if name.endswith(end)), None)
        if where is None or not bag.topics[name].count:
            continue
        messages = (bag.decode(message) for message in bag.messages([name]))
        numbers = [int(m.header.frame_id) if where == "header" else int(m.sequence) for m in messages]
        found[name] = numbers[-1] - numbers[0] + 1 - len(numbers)
    return found


def too_slow(rates):
    """Topics on which less was said than asked for."""
    asked = {name: hz for name in rates for end, hz in ASKED_HZ.items() if name.endswith(end)}
    return sorted(name for name, hz in asked.items() if not rates[name] >= KEPT_SHARE * hz)


def load(folder, seconds, images):
    """One episode of everything, from a talker."""
    domain, contract = free_domain(), vga_contract(folder)
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    given = {"contract": contract, "folder": folder / "episodes", "images": f"'{images}'", "ring_s": 0.0}
    words = [sys.executable, str(TALKER), "--contract", str(contract)]
    talker = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        with GraphClient(domain_id=domain) as client, parts.recorder(client, **given) as pid:
            talker.stdout.readline()  # everybody is heard
            ask(client, "START", text="benchmark", name="benchmark")
            begin_s, spent_s = time.monotonic(), cpu_s(pid)
            client.wait_until(lambda: False, seconds)
            share = (cpu_s(pid) - spent_s) / (time.monotonic() - begin_s)
            facts = ask(client, "KEEP")
    finally:
        talker.send_signal(signal.SIGINT)
        talker.wait(20.0)
    bag = Bag.open(facts["episode"])
    rates = {name: round(t.count / bag.duration_s, 1) for name, t in bag.topics.items() if t.count}
    return {
        **facts,
        "drops_by_topic": json.loads(bag.custom_data.get("drops", "{}")),
        "cpu_percent_of_one_core": round(100.0 * share, 1),
        "missing": missing(bag),
        "rate_hz": rates,
        "said_too_slowly": too_slow(rates),
    }


def loops(folder, tasks, rounds, seed):
    """The control loop without a recorder and beside one, in turn, over the same scenes."""
    with LiveGraph({"seed": str(seed)}) as graph:
        client = graph.start()
        listener = Recorder(client)
        parts.tasks(graph, listener, 1, seed)  # first time for everything
        found, violations, episodes = [], [], []
        for k, beside in enumerate(late_ticks.turns(rounds)):
            with parts.recorder(client, folder=folder / "loops", free_min_mb=1) if beside else contextlib.nullcontext():
                if beside:
                    ask(client, "START", name=f"round_{k}")
                client.wait_until(lambda: False, SETTLE_S)  # starting and leaving are not what is measured
                facts = parts.tasks(graph, listener, tasks, seed + tasks * (k // 2))
                if beside:
                    episodes.append(ask(client, "KEEP"))
            loop = facts["control_loop"]
            found.append(late_ticks.Round(beside, loop["ticks"], loop["late_ticks"], tuple(facts["outcomes"])))
            violations += facts["command_violations"]
            print(f"round {k + 1} of {2 * rounds}: {found[-1]}", file=sys.stderr, flush=True)
    verdict = late_ticks.judge(found)
    return {
        "rounds": [dataclasses.asdict(r) for r in found],
        "verdict": dataclasses.asdict(verdict),
        "command_violations": violations,
        "recorded": {key: sum(episode[key] for episode in episodes) for key in ("messages", "drops")},
        "table": late_ticks.markdown(found, verdict),
    }


def bars(facts):
    """(what, bar, measured, met) of everything that was run."""
    rows = []
    if "load" in facts:
        load = facts["load"]
        slow = load["said_too_slowly"]
        rows += [
            ("rates of the load", "as asked", f"too slow: {', '.join(slow)}" if slow else "kept", not slow),
            ("lost", "0", f"{load['drops']} drops, {sum(load['missing'].values())} missing of {load['messages']}",
             not load["drops"] and not any(load["missing"].values())),
            ("CPU of the recorder", f"<= {CPU_MAX_PERCENT:g} % of one core", f"{load['cpu_percent_of_one_core']} %",
             load["cpu_percent_of_one_core"] <= CPU_MAX_PERCENT),
        ]  # fmt: skip
    if "loops" in facts:
        verdict, drops = facts["loops"]["verdict"], facts["loops"]["recorded"]["drops"]
        late = f"{verdict['beside']:.3%} beside {verdict['without']:.3%}"
        rows += [
            ("late ticks beside a recorder", "within noise", late, verdict["met"]),
            ("lost while the arm works", "0", f"{drops} drops", not drops),
        ]
    return rows


def markdown(facts):
    rows = ["| what | bar | measured | met |", "|---|---|---|---|"]
    rows += [
        f"| {what} | {bar} | {measured} | {'yes' if met else '**no**'} |" for what, bar, measured, met in bars(facts)
    ]
    return "\n".join([*rows, "", facts.get("loops", {}).get("table", "")])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="of the load; 0: none")
    parser.add_argument("--tasks", type=int, default=6, help="of each round; 0: the load only")
    parser.add_argument("--rounds", type=int, default=3, help="with a recorder, and as many without")
    parser.add_argument("--seed", type=int, default=800)
    parser.add_argument("--images", default="jpeg 90")
    parser.add_argument("--json", type=Path, help="everything that was measured goes here")
    options = parser.parse_args()
    if not (
        options.seconds >= 0 and options.tasks >= 0 and options.rounds >= 1 and options.seconds + options.tasks > 0
    ):
        parser.error("--seconds and --tasks must be >= 0 and not both 0, --rounds >= 1")
    folder = Path(tempfile.mkdtemp(prefix="vla_recorder_"))
    try:
        facts = {}
        if options.seconds:
            facts["load"] = load(folder, options.seconds, options.images)
        if options.tasks:
            facts["loops"] = loops(folder, options.tasks, options.rounds, options.seed)
        if options.json:
            options.json.write_text(json.dumps(facts, indent=2))
        print(markdown(facts))
        return 0 if all(met for *_, met in bars(facts)) else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
