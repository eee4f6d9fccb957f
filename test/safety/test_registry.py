"""Fault table, document and tests name the same 63 faults."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from faults import FAULTS
from test_simulation import EVENTS

from vla_ros import paths
from vla_ros.core.rules import RULES

pytestmark = pytest.mark.unit
TEST = Path(__file__).resolve().parent.parent
# Both lists may only become shorter.
MISSING = {"D9", "E6", "F1", "F2", "F3", "F4", "F6"}
BELOW = {"A6", "B6", "D2", "D3", "D4", "D5", "D7", "E4", "E5", "E7", "E10", "E11", "E12"}


def test_the_table_has_every_row_once() -> None:
    counts = {"A": 10, "B": 12, "C": 10, "D": 10, "E": 15, "F": 6}
    assert [fault.id for fault in FAULTS] == [f"{group}{k + 1}" for group, n in counts.items() for k in range(n)]


def test_every_row_has_exactly_one_test_or_says_why_it_has_none() -> None:
    assert {fault.id for fault in FAULTS if fault.missing} == MISSING
    assert {fault.id for fault in FAULTS if fault.below} == BELOW
    tests = [fault.test for fault in FAULTS if not fault.missing]
    simulated = "safety/test_simulation.py::test_fault"  # one parametrised test, a case of its own for each id
    assert {fault.id for fault in FAULTS if fault.test == simulated} == set(EVENTS)
    others = [test for test in tests if test != simulated]
    assert len(others) == len(set(others))
    for fault in FAULTS:
        assert bool(fault.test) != bool(fault.missing), fault.id
        if fault.test:
            file, _, name = fault.test.partition("::")
            tree = ast.parse((TEST / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, fault.test


def test_a_row_that_stops_the_arm_has_a_reason_of_that_severity() -> None:
    known = {reason.value: rule.severity for reason, rule in RULES.items()}
    for fault in FAULTS:
        if fault.reason in known and fault.severity is not None and not fault.missing:
            assert known[fault.reason] == fault.severity, fault.id


def test_the_document_says_what_is_covered() -> None:
    text = (paths.share_dir() / "docs" / "safety.md").read_text(encoding="utf-8")
    section = text.partition("## Faults with a reaction")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([A-F]) \w[^|]*\|([^|]*)\|([^|]*)\|([^|]*)\|$", section, flags=re.MULTILINE)
    assert len(rows) == 6
    covered, below, missing = (
        {name for row in rows for name in re.findall(r"\b[A-F]\d+\b", row[k])} for k in (1, 2, 3)
    )
    assert missing == MISSING and below == BELOW
    assert covered == {fault.id for fault in FAULTS} - MISSING - BELOW


def test_every_guard_of_the_mutation_check_stands_in_the_code_once_and_its_tests_exist() -> None:
    path = TEST.parent / "benchmarks" / "safety" / "mutation.py"
    spec = importlib.util.spec_from_file_location("mutation", path)
    assert spec is not None and spec.loader is not None
    sys.modules["mutation"] = mutation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutation)
    for guard in mutation.GUARDS:
        assert (TEST.parent / "vla_ros" / guard.file).read_text(encoding="utf-8").count(guard.text) == 1, guard.name
        for test in guard.tests:
            file, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}(" in (TEST / file).read_text(encoding="utf-8"), test
