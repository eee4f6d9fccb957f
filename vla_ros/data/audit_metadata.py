"""What an episode's metadata say about it, and admit."""

from __future__ import annotations

import json
from collections.abc import Iterator

from vla_ros.core.contract import Contract
from vla_ros.core.errors import Invalid
from vla_ros.data.bag_reader import Bag, contract_differences
from vla_ros.data.findings import Finding, Kind, Weight, finding

DROPS_MAX = 0.01  # our choice: share of a topic's messages; more is a major finding


def about(bag: Bag, contract: Contract) -> Iterator[Finding]:
    data = bag.custom_data
    recorded = data.get("contract_hash", "")
    if recorded != contract.hash:
        differing = "; ".join(contract_differences(bag, contract)) or "fields unknown"
        yield finding(
            Kind.CONTRACT, f"another contract: {differing}", recorded[:16] or "none named", contract.hash[:16]
        )
    try:
        episode = bag.episode()
    except Invalid as error:
        text, allowed = f"custom data: {error}", "as the recorder writes it"
        yield finding(Kind.METADATA, text, "invalid", allowed, weight=Weight.MAJOR)
        return
    for name in ("text", "outcome"):
        if not getattr(episode, name):
            yield finding(Kind.METADATA, f"{name} is not known", "empty", "named")
    if episode.closed:
        yield finding(Kind.METADATA, f"the recording ended early: {episode.closed}", "early", "as asked")
    for topic, count in episode.drops.items():
        written = bag.topics[topic].count if topic in bag.topics else 0
        share = count / (count + written)
        weight = Weight.MAJOR if share > DROPS_MAX else None
        text = f"share that the recorder lost ({count} messages)"
        yield finding(Kind.DROPS, text, share, DROPS_MAX, topic, weight=weight)
    if data.get("recovered"):
        unverified = _unverified(data["recovered"])
        weight = Weight.MAJOR if unverified else None
        yield finding(Kind.RECOVERED, "messages of damaged chunks, unverified", unverified, 0, weight=weight)


def _unverified(recovered: str) -> int:
    try:
        return int(json.loads(recovered)["unverified"])
    except (ValueError, KeyError, TypeError):
        return -1  # it says that it was recovered, and not how
