"""Fault table, document and tests name the same 63 faults."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from faults import FAULTS
from script_loader import load_script
from test_simulation import EVENTS

from vla_ros import paths
from vla_ros.core.rules import RULES

pytestmark = pytest.mark.unit
TEST = Path(__file__).resolve().parent.parent


def test_the_table_has_every_row_once() -> None:
    counts = {"A": 10, "B": 12, "C": 10, "D": 10, "E": 15, "F": 6}
    assert [fault.id for fault in FAULTS] == [f"{group}{k + 1}" for group, n in counts.items() for k in range(n)]


def test_every_row_has_exactly_one_test() -> None:
    tests = [fault.test for fault in FAULTS]
    simulated = "safety/test_simulation.py::test_fault"  # one parametrised test, a case of its own for each id
    assert {fault.id for fault in FAULTS if fault.test == simulated} == set(EVENTS)
    others = [test for test in tests if test != simulated]
    assert len(others) == len(set(others))
    for fault in FAULTS:
        file, _, name = fault.test.partition("::")
        tree = ast.parse((TEST / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, fault.test


def test_a_row_that_stops_the_arm_has_a_reason_of_that_severity() -> None:
    known = {reason.value: rule.severity for reason, rule in RULES.items()}
    for fault in FAULTS:
        if fault.reason in known and fault.severity is not None:
            assert known[fault.reason] == fault.severity, fault.id


def test_the_document_names_every_fault_with_its_level_and_its_test() -> None:
    text = (paths.share_dir() / "docs" / "safety.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-F]\d+) \|[^|]+\| ([USP]) \|[^|]+\|[^|]+\| ([^|]+) \|$", text, flags=re.MULTILINE)
    assert [(id_, level) for id_, level, _ in rows] == [(fault.id, fault.level) for fault in FAULTS]
    for fault, (_, _, test) in zip(FAULTS, rows, strict=True):
        assert f"`{fault.test}`" in test, fault.id


def test_every_guard_of_the_mutation_check_stands_in_the_code_once_and_its_tests_exist() -> None:
    for guard in load_script("benchmarks/safety/mutation.py").GUARDS:
        assert (TEST.parent / "vla_ros" / guard.file).read_text(encoding="utf-8").count(guard.text) == 1, guard.name
        for test in guard.tests:
            file, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}(" in (TEST / file).read_text(encoding="utf-8"), test
