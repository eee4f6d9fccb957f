"""Punctuality of the control loops and memory of the graph, while the policy infers and the arm moves."""

from __future__ import annotations

import time
from typing import Any

from vla_ros.cli.client import CORE_NODES
from vla_ros.cli.live import LiveGraph, Say, fresh_motion, starting

MOTION_SECONDS = 12.0  # of one instruction


def run(seconds: float, *, robot: str, policy: str, seed: int, say: Say) -> dict[str, Any]:
    """Figures of the nodes' own diagnostics, over `seconds`."""
    with LiveGraph({"robot": robot, "seed": str(seed), "policy": policy}) as graph:
        client = graph.start(starting(say))
        fresh_motion(client, seed)
        before = {
            name: dict(client.health[name].values) for name in ("supervisor", "arm_controller") if name in client.health
        }
        end_s, round_s, k = time.monotonic() + seconds, time.monotonic(), 0
        while time.monotonic() < end_s:
            graph.check()
            state = client.state
            ended = state is not None and state.phase in ("done", "idle", "stopped")
            if ended or time.monotonic() - round_s > MOTION_SECONDS:
                k, round_s = k + 1, time.monotonic()
                fresh_motion(client, seed + k)
                say(f"{end_s - round_s:.0f} s left, {k} tasks so far")
            client.wait_until(lambda: False, 0.2)
        client.wait_until(lambda: False, 1.2)  # the diagnostics of the last second
        health = {name: dict(h.values) for name, h in client.health.items()}
        latency = client.policy
    rss = {name: float(health[name]["rss_mb"]) for name in CORE_NODES if name in health}
    loops = {
        name: _loop_facts(health[name], before.get(name, {}))
        for name in ("supervisor", "arm_controller")
        if name in health
    }
    return {
        "seconds": seconds,
        "loops": loops,
        "late_share": max((facts["late_share"] for facts in loops.values()), default=1.0),
        "rss_mb": rss,
        "rss_total_mb": round(sum(rss.values()), 1),
        "sim": {key: health.get("sim", {}).get(key, "") for key in ("real_time_factor", "rss_mb")},
        "policy_latency_ms": {"p50": round(latency.latency_p50 * 1e3, 2), "p99": round(latency.latency_p99 * 1e3, 2)}
        if latency
        else {},
    }


def _loop_facts(after: dict[str, str], before: dict[str, str]) -> dict[str, Any]:
    ticks = int(after["ticks"]) - int(before.get("ticks", 0))
    late = int(after["late_ticks"]) - int(before.get("late_ticks", 0))
    return {
        "ticks": ticks,
        "late_ticks": late,
        "late_share": round(late / ticks, 5) if ticks else 1.0,
        "rate_hz": float(after["rate_hz"]),
        "realtime_priority": after["realtime_priority"] == "True",
        **{key: float(after[key]) for key in ("delay_p50_ms", "delay_p99_ms", "delay_max_ms", "busy_p99_ms")},
    }
