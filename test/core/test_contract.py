"""The contract refuses what would hurt, and says everything that is wrong at once (fault C10)."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import yaml

from vla_ros import paths
from vla_ros.core import contract as contracts
from vla_ros.core.errors import ContractInvalid

pytestmark = pytest.mark.unit

TEXT = paths.robot_contract("panda").read_text(encoding="utf-8")
GOOD = yaml.safe_load(TEXT)
# A wrong unit that stays inside every bound cannot be seen: zero, and values for which the factor changes little.
BLIND = {"workspace.lower_m", "arm.actuation_delay_s"}


def violations(content: object) -> list[str]:
    with pytest.raises(ContractInvalid) as error:
        contracts.parse(yaml.safe_dump(content))
    return [violation.field for violation in error.value.violations]


def numbers(node: object, path: tuple = ()) -> list[tuple[tuple, float]]:
    if isinstance(node, dict):
        return [leaf for key, value in node.items() for leaf in numbers(value, (*path, key))]
    if isinstance(node, list):
        return [leaf for i, value in enumerate(node) for leaf in numbers(value, (*path, i))]
    return [(path, node)] if isinstance(node, (int, float)) else []


def changed(path: tuple, value: object) -> dict:
    content = copy.deepcopy(GOOD)
    node = content
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return content


def name_of(path: tuple) -> str:
    return re.sub(r"\.(\d+)", r"[\1]", ".".join(str(key) for key in path))


LEAVES = numbers(GOOD)
FIRST_OF_EACH = {tuple("#" if isinstance(k, int) else k for k in path): (path, x) for path, x in reversed(LEAVES)}


def test_the_shipped_contract_loads_and_its_soft_limits_lie_inside_the_datasheet() -> None:
    panda = contracts.load("panda")
    assert panda.n_joints == 7 and panda.joint_names[0] == "panda_joint1"
    assert panda.limits.q_hi_rad[0] == pytest.approx(2.8973 - 0.05)
    assert (panda.limits.q_lo_rad < panda.limits.q_hi_rad).all()


def test_the_hash_follows_every_value_but_no_comment() -> None:
    base = contracts.parse(TEXT).hash
    assert contracts.parse("# a comment\n" + TEXT).hash == base
    assert contracts.parse(yaml.safe_dump(changed(("speed", "tool_m_s"), 0.49))).hash != base


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "abc", None, True], ids=str)
def test_every_number_that_is_no_finite_number_is_listed_and_all_of_them_at_once(value: object) -> None:
    content = copy.deepcopy(GOOD)
    for path, _ in LEAVES:
        node = content
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
    found = violations(content)
    assert [name_of(path) for path, _ in LEAVES if name_of(path) not in found] == []


@pytest.mark.parametrize("path, value", FIRST_OF_EACH.values(), ids=[name_of(p) for p, _ in FIRST_OF_EACH.values()])
def test_zero_or_a_negative_number_is_refused_where_it_would_switch_a_bound_off(path: tuple, value: float) -> None:
    name = name_of(path)
    if any(part in name for part in ("poses", "workspace", "position_rad", "crop_px", "width_m", "actuation_delay")):
        return  # zero is a position like any other
    assert violations(changed(path, 0)) and violations(changed(path, -value))


@pytest.mark.parametrize("path, value", FIRST_OF_EACH.values(), ids=[name_of(p) for p, _ in FIRST_OF_EACH.values()])
def test_a_wrong_unit_is_recognised(path: tuple, value: float) -> None:
    name = name_of(path)
    key = [k for k in path if isinstance(k, str)][-1]
    factor = 57.2958 if key.endswith(("_rad", "_rad_s", "_rad_s2", "_rad_s3")) else 1000.0
    unit_bearing = key.endswith(("_rad", "_rad_s", "_rad_s2", "_rad_s3", "_m", "_m_s", "_s")) or "timeouts" in name
    if not unit_bearing or value == 0 or any(name.startswith(blind) for blind in BLIND):
        return
    assert violations(changed(path, value * factor)), name


def test_swapped_limits_are_named() -> None:
    fields = violations(changed(("joints", 2, "position_rad"), [2.8973, -2.8973]))
    assert "joints[2].position_rad" in fields
    assert "gripper.width_m" in violations(changed(("gripper", "width_m"), [0.08, 0.0]))
    assert "workspace.upper_m[2]" in violations(changed(("workspace", "upper_m"), [0.8, 0.5, 0.0]))


@pytest.mark.parametrize("section", list(GOOD))
def test_a_missing_section_is_one_violation_that_names_it(section: str) -> None:
    content = copy.deepcopy(GOOD)
    del content[section]
    assert section in violations(content)


def test_a_missing_joint_and_a_joint_given_twice_are_violations() -> None:
    fewer = copy.deepcopy(GOOD)
    del fewer["joints"][3]
    assert "joints" in violations(fewer)
    twice = copy.deepcopy(GOOD)
    twice["joints"][3] = copy.deepcopy(twice["joints"][2])
    assert "joints[3].name" in violations(twice)


def test_a_joint_that_the_urdf_does_not_have_is_a_violation() -> None:
    assert "joints[0].name" in violations(changed(("joints", 0, "name"), "shoulder"))


def test_an_unknown_key_is_a_violation_because_it_is_a_misspelt_bound() -> None:
    assert "speed.tool_ms" in violations(changed(("speed", "tool_ms"), 0.5))


def test_limits_wider_than_the_urdf_are_refused() -> None:
    assert "joints[0].position_rad" in violations(changed(("joints", 0, "position_rad"), [-3.1, 3.1]))
    assert "joints[0].velocity_rad_s" in violations(changed(("joints", 0, "velocity_rad_s"), 3.0))


def test_every_violation_is_listed_at_once_with_the_file() -> None:
    content = changed(("speed", "tool_m_s"), 500.0)
    content["joints"][0]["velocity_rad_s"] = float("nan")
    content["cameras"][1]["crop_px"] = [0, 0, 300, 224]
    content["timeouts_s"]["chunk"] = 500
    with pytest.raises(ContractInvalid) as error:
        contracts.parse(yaml.safe_dump(content), source="my_arm.yaml")
    text = str(error.value)
    assert "my_arm.yaml" in text
    for part in ("speed.tool_m_s", "joints[0].velocity_rad_s", "cameras[1].crop_px", "timeouts_s.chunk", "millisec"):
        assert part in text


@pytest.mark.parametrize("text", ["", "[]", "3", "a: [", "a: 1\na: 2", "? {x: 1}: 2", "\x00", "speed: 3"])
def test_a_file_that_is_no_contract_is_refused_with_one_clear_error(text: str) -> None:
    with pytest.raises(ContractInvalid):
        contracts.parse(text)


def test_a_file_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ContractInvalid, match="no_such_robot"):
        contracts.load("no_such_robot")


def test_arrays_of_a_contract_are_finite() -> None:
    limits = contracts.load("panda").limits
    for array in (limits.q_lo_rad, limits.q_hi_rad, limits.v_max_rad_s, limits.a_max_rad_s2, limits.j_max_rad_s3):
        assert np.isfinite(array).all() and array.shape == (7,)
