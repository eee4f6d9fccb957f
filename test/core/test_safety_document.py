"""The document and the code name the same reasons."""

from __future__ import annotations

import re

import pytest

from vla_ros import paths
from vla_ros.core.rules import RULES

pytestmark = pytest.mark.unit


def test_every_reason_is_explained_with_its_severity_and_no_other_is() -> None:
    text = (paths.share_dir() / "docs" / "safety.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", text, flags=re.MULTILINE))
    assert rows == {reason.value: rule.severity.name for reason, rule in RULES.items()}
