"""`vla status`: one picture of the graph, from its own messages."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.live import Live
from rich.table import Table

from vla_ros.cli.client import CORE_NODES, GraphClient
from vla_ros.cli.report import stdout
from vla_ros.core.types import Severity

DISCOVERY_S = 8.0  # of a graph that has just started on a busy machine
LISTEN_S = 1.5  # one period of diagnostics and discovery


def snapshot(client: GraphClient, listen_s: float = LISTEN_S) -> dict[str, Any]:
    client.wait_until(lambda: client.state is not None and client.policy is not None, listen_s)
    nodes = client.node_states(CORE_NODES, LISTEN_S)
    if client.state is not None or client.health or set(nodes.values()) != {"absent"}:
        waiting = [name for name, state in nodes.items() if state == "absent"]
        nodes |= client.node_states(waiting, DISCOVERY_S)  # where one is, the others are worth a wait
    client.wait_until(lambda: set(CORE_NODES) <= set(client.health), listen_s)
    return {"nodes": nodes, **current(client)}


def current(client: GraphClient) -> dict[str, Any]:
    state, policy = client.state, client.policy
    facts: dict[str, Any] = {"supervisor": None, "policy": None}
    if state is not None:
        facts["supervisor"] = {
            "severity": Severity(state.severity).name,
            "reason": state.reason,
            "latched": state.latched,
            "phase": state.phase,
            "instruction_id": state.instruction_id,
            "text": state.text,
            "speed_scale": round(state.speed_scale, 3),
            "tool_speed_m_s": round(state.tool_speed, 4),
            "speed_cap_m_s": round(state.speed_cap, 3),
            "contact_monitored": state.contact_monitored,
            "done_probability": round(state.done_probability, 3),
            "chunks_accepted": state.chunks_accepted,
            "chunks_rejected": state.chunks_rejected,
            "ticks": state.ticks,
            "late_ticks": state.late_ticks,
        }
    if policy is not None:
        facts["policy"] = {
            "ready": policy.ready,
            "latency_ms": {"p50": round(policy.latency_p50 * 1e3, 2), "p99": round(policy.latency_p99 * 1e3, 2)},
            "precision": policy.precision,
            "checkpoint": policy.checkpoint_hash,
        }
    facts["health"] = {
        name: {"ok": health.level == 0, "message": health.message, **health.values}
        for name, health in client.health.items()
    }
    return facts


def table(facts: dict[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    nodes = facts.get("nodes", {})
    if nodes:
        grid.add_row(
            "nodes", "  ".join(f"{name} [{'green' if s == 'active' else 'red'}]{s}[/]" for name, s in nodes.items())
        )
    supervisor, policy = facts["supervisor"], facts["policy"]
    if supervisor is not None:
        latched = " (until rearm)" if supervisor["latched"] else ""
        grid.add_row("severity", f"{supervisor['severity']} {supervisor['reason']}{latched}")
        grid.add_row("phase", supervisor["phase"])
        grid.add_row(
            "instruction",
            f"{supervisor['instruction_id']} {supervisor['text']}" if supervisor["instruction_id"] else "none",
        )
        grid.add_row("control loop", f"{supervisor['ticks']} ticks, {supervisor['late_ticks']} late")
    if policy is not None:
        latency = policy["latency_ms"]
        grid.add_row("policy", f"{latency['p50']} ms a chunk (p99 {latency['p99']}), {policy['precision']}")
    for name, health in facts["health"].items():
        if not health["ok"]:
            grid.add_row(name, f"[red]{health['message']}[/]")
    return grid


def follow(client: GraphClient, as_json: bool, full_speed: bool = False) -> None:
    """Until Ctrl-C, as the operator in charge. With --json one object a line, on change and at least twice a second."""
    client.take_charge(full_speed=full_speed)
    if as_json:
        while True:
            seen = client.state
            client.wait_until(lambda seen=seen: client.state is not seen, 0.5)
            print(json.dumps({"t_s": round(time.monotonic(), 3), **current(client)}), flush=True)
    with Live(console=stdout, refresh_per_second=5) as live:
        while True:
            client.wait_until(lambda: False, 0.2)
            live.update(table(current(client)))
