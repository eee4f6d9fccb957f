"""The robot contract: one YAML file that says everything about one body. See config/robots/panda.yaml.

`load` lists every violation at once. The hash covers the file's content and the URDF, and travels with
observations, chunks and checkpoints, so that a policy made for another body refuses to run.
"""

from __future__ import annotations

import hashlib
import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from vla_ros import paths
from vla_ros.core.contract_reader import Reader, parse_yaml
from vla_ros.core.contract_types import (
    Action,
    Arm,
    Camera,
    Contract,
    Gripper,
    JointLimits,
    Poses,
    Rates,
    Speed,
    Timeouts,
    Tolerances,
    Workspace,
)
from vla_ros.core.errors import ContractInvalid, Invalid
from vla_ros.core.types import DT_MAX_S, DT_MIN_S, MAX_ROWS, ActionSpace

__all__ = ["Camera", "Contract", "JointLimits", "load", "parse"]

NAME = r"[A-Za-z_][A-Za-z0-9_]{0,31}"
FRAME = r"[A-Za-z_][A-Za-z0-9_/]{0,63}"
TOPIC = r"/?[A-Za-z_][A-Za-z0-9_/]{0,127}"
BACKENDS = ("joint_trajectory",)
# Bounds between a sane value and the same value in a wrong unit; choices, wide enough for any table-top arm.
POSITION_MAX_RAD = 4.0 * math.pi  # more than two turns is degrees
VELOCITY_MAX_RAD_S = 20.0
ACCELERATION_MAX_RAD_S2 = 100.0
JERK_MAX_RAD_S3 = 20_000.0  # Panda itself: 10,000
LENGTH_MAX_M = 5.0
STOP_TIME_MAX_S = 2.0  # longest planned stop that we call a stop
DEGREES = "looks like degrees; the unit is radians"
MILLIMETRES = "looks like millimetres; the unit is metres"
MILLISECONDS = "looks like milliseconds; the unit is seconds"


def load(name_or_path: str | Path) -> Contract:
    """A shipped contract by name ("panda") or any file by path. Raises `ContractInvalid` with every violation."""
    try:
        path = paths.robot_contract(name_or_path)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ContractInvalid(str(name_or_path), [Invalid("file", str(error), "a readable UTF-8 file")]) from error
    return parse(text, source=str(path))


def parse(text: str, source: str = "contract") -> Contract:
    """A contract from its text. `urdf` is found beside the file, else below resource/robots."""
    violations: list[Invalid] = []
    try:
        content = parse_yaml(text)
    except Invalid as error:
        raise ContractInvalid(source, [error]) from error
    root = Reader(content, "", violations)
    contract = _read(root, content, source)
    if violations or contract is None:
        raise ContractInvalid(source, violations)
    return contract


def _read(root: Reader, content: object, source: str) -> Contract | None:
    root.integer("schema", 1, 1)
    name = root.text("name", NAME, "a short name of letters, digits and _")
    urdf_name = root.text("urdf", r"[^\x00]{1,255}", "a path below resource/robots")
    urdf_path = _find_urdf(urdf_name, source)
    urdf_text, urdf_links, urdf_joints = _read_urdf(urdf_path, root)
    frames = {key: root.text(key, FRAME, "a frame name") for key in ("base_frame", "tool_frame", "elbow_frame")}
    for key, frame in frames.items():
        if frame and urdf_text and frame not in urdf_links:
            root.fail(key, frame, f"a link of {urdf_name}")
    rates = _rates(root.section("rates"))
    joint_names, limits = _joints(root, rates, urdf_joints if urdf_text else None)
    contract = Contract(
        name=name,
        hash=_hash(content, urdf_text),
        source=source,
        urdf_path=urdf_path,
        joint_names=joint_names,
        limits=limits,
        workspace=_workspace(root.section("workspace")),
        speed=_speed(root.section("speed")),
        poses=_poses(root.section("poses"), limits),
        gripper=_gripper(root.section("gripper"), urdf_joints if urdf_text else None),
        cameras=_cameras(root),
        action=_action(root.section("action"), len(joint_names)),
        rates=rates,
        timeouts=_timeouts(root.section("timeouts_s"), rates),
        tolerances=_tolerances(root.section("tolerances")),
        arm=_arm(root.section("arm")),
        operator_heartbeat_required=root.choice("operator_heartbeat", ("none", "required")) == "required",
        **frames,
    )
    root.finish()
    return contract


def _hash(content: object, urdf_text: str) -> str:
    """Comments and layout do not count; every value and the URDF do."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256((canonical + "\n" + urdf_text).encode()).hexdigest()


def _find_urdf(name: str, source: str) -> Path:
    beside = Path(source).parent / name
    return beside if name and beside.is_file() else paths.robots_dir() / name


def _read_urdf(path: Path, root: Reader) -> tuple[str, set[str], dict[str, ElementTree.Element]]:
    """Text, link names and joints by name; an empty text means that it could not be read (already reported)."""
    try:
        text = path.read_text(encoding="utf-8")
        robot = ElementTree.fromstring(text)
    except (OSError, ElementTree.ParseError, UnicodeDecodeError) as error:
        root.fail("urdf", str(error), "a URDF file below resource/robots")
        return "", set(), {}
    links = {link.get("name", "") for link in robot.findall("link")}
    return text, links, {joint.get("name", ""): joint for joint in robot.findall("joint")}


def _joints(
    root: Reader, rates: Rates, urdf_joints: dict[str, ElementTree.Element] | None
) -> tuple[tuple[str, ...], JointLimits]:
    margin = root.number("soft_limit_margin_rad", 0.0, 0.5, DEGREES, above_low=True)
    names: list[str] = []
    rows: list[tuple[float, float, float, float, float]] = []
    for joint in root.items("joints", 1, 16):
        name = joint.text("name", FRAME, "a joint name")
        if name in names:
            joint.fail("name", name, "a name that is used once")
        names.append(name)
        low, high = joint.numbers("position_rad", 2, -POSITION_MAX_RAD, POSITION_MAX_RAD, DEGREES)
        v_max = joint.number("velocity_rad_s", 0.0, VELOCITY_MAX_RAD_S, DEGREES, above_low=True)
        a_max = joint.number("acceleration_rad_s2", 0.0, ACCELERATION_MAX_RAD_S2, DEGREES, above_low=True)
        j_max = joint.number("jerk_rad_s3", 0.0, JERK_MAX_RAD_S3, DEGREES, above_low=True)
        joint.finish()
        joint.relation("position_rad", low < high, (low, high), [low, high], "[lower, upper], lower < upper")
        joint.relation(
            "position_rad", low + margin < high - margin or not low < high, (low, high, margin), [low, high],
            "wider than two soft_limit_margin_rad",
        )  # fmt: skip
        # A jerk phase shorter than a tick cannot be held at this rate (trap 3 of the limiter's formulae).
        joint.relation(
            "jerk_rad_s3", j_max <= a_max * rates.control_hz, (j_max, a_max, rates.control_hz), j_max,
            "at most acceleration_rad_s2 * control_hz: full acceleration must take at least one tick",
        )  # fmt: skip
        stop_s = v_max / a_max + a_max / j_max
        joint.relation(
            "acceleration_rad_s2", stop_s <= STOP_TIME_MAX_S, (v_max, a_max, j_max), a_max,
            f"a stop from full speed within {STOP_TIME_MAX_S:g} s (now {stop_s:.3g} s)",
        )  # fmt: skip
        if urdf_joints is not None and name:
            _check_against_urdf(joint, urdf_joints.get(name), name, low, high, v_max)
        rows.append((low + margin, high - margin, v_max, a_max, j_max))
    if urdf_joints is not None:
        for name, element in urdf_joints.items():
            if element.get("type") in ("revolute", "continuous") and name not in names:
                root.fail("joints", name, "every revolute joint of the URDF; this one is missing")
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return tuple(names), JointLimits(*(np.ascontiguousarray(column) for column in table.T))


def _check_against_urdf(
    joint: Reader, element: ElementTree.Element | None, name: str, low: float, high: float, v_max: float
) -> None:
    if element is None:
        joint.fail("name", name, "a joint of the URDF")
        return
    if element.get("type") not in ("revolute", "continuous"):
        joint.fail("name", name, f"a revolute joint; the URDF says {element.get('type')}")
    limit = element.find("limit")
    if limit is None:
        return
    if element.get("type") == "revolute":
        urdf_low, urdf_high = float(limit.get("lower", "nan")), float(limit.get("upper", "nan"))
        inside = urdf_low - 1e-6 <= low and high <= urdf_high + 1e-6
        joint.relation("position_rad", inside, (low, high), [low, high], f"inside the URDF's {urdf_low} to {urdf_high}")
    urdf_v = float(limit.get("velocity", "nan"))
    joint.relation("velocity_rad_s", v_max <= urdf_v, (v_max,), v_max, f"at most the URDF's {urdf_v}")


def _workspace(section: Reader) -> Workspace:
    lower = section.numbers("lower_m", 3, -LENGTH_MAX_M, LENGTH_MAX_M, MILLIMETRES)
    upper = section.numbers("upper_m", 3, -LENGTH_MAX_M, LENGTH_MAX_M, MILLIMETRES)
    for i in range(3):
        pair = (float(lower[i]), float(upper[i]))
        section.relation(f"upper_m[{i}]", pair[0] < pair[1], pair, pair[1], f"more than lower_m[{i}] = {pair[0]:g}")
    section.finish()
    return Workspace(lower, upper)


def _speed(section: Reader) -> Speed:
    tool = section.number("tool_m_s", 0.0, 2.0, MILLIMETRES, above_low=True)
    reduced = section.number("reduced_m_s", 0.0, 0.25, MILLIMETRES, above_low=True)  # ISO 10218, second-hand
    section.relation("reduced_m_s", reduced <= tool, (reduced, tool), reduced, "at most tool_m_s")
    section.finish()
    return Speed(tool, reduced)


def _poses(section: Reader, limits: JointLimits) -> Poses:
    n = limits.q_lo_rad.size
    poses = {}
    for key in ("home_rad", "ready_rad"):
        pose = section.numbers(key, n, -POSITION_MAX_RAD, POSITION_MAX_RAD, DEGREES)
        for i, (x, low, high) in enumerate(zip(pose, limits.q_lo_rad, limits.q_hi_rad, strict=True)):
            inside = low <= x <= high
            section.relation(f"{key}[{i}]", inside, (x, low, high), x, f"inside the soft limits {low:g} to {high:g}")
        poses[key] = pose
    section.finish()
    return Poses(**poses)


def _gripper(section: Reader, urdf_joints: dict[str, ElementTree.Element] | None) -> Gripper:
    joint = section.text("joint", FRAME, "a joint name")
    if joint and urdf_joints is not None and joint not in urdf_joints:
        section.fail("joint", joint, "a joint of the URDF")
    closed, opened = section.numbers("width_m", 2, 0.0, 0.5, MILLIMETRES)
    section.relation("width_m", closed < opened, (closed, opened), [closed, opened], "[closed, open], closed < open")
    gripper = Gripper(
        joint=joint,
        closed_m=float(closed),
        open_m=float(opened),
        speed_m_s=section.number("speed_m_s", 0.0, 1.0, MILLIMETRES, above_low=True),
        force_n=section.number("force_n", 0.0, 500.0, above_low=True),
    )
    section.finish()
    return gripper


def _cameras(root: Reader) -> tuple[Camera, ...]:
    cameras: list[Camera] = []
    for section in root.items("cameras", 1, 4):
        name = section.text("name", NAME, "a short name of letters, digits and _")
        if name in [camera.name for camera in cameras]:
            section.fail("name", name, "a name that is used once")
        width, height = section.integer("width_px", 8, 8192), section.integer("height_px", 8, 8192)
        crop = section.numbers("crop_px", 4, 0, 8192)
        policy_px = section.integer("policy_px", 8, 1024)
        left, top, crop_w, crop_h = (float(x) for x in crop)
        whole = all(x % 1.0 == 0.0 for x in (left, top, crop_w, crop_h))  # NaN is not whole
        inside = left + crop_w <= width and top + crop_h <= height
        section.relation("crop_px", whole and inside, crop.tolist(), crop.tolist(),
                         f"[left, top, width, height], whole pixels inside {width} x {height}")  # fmt: skip
        # A square picture from a crop that is not square would be distorted; enlarging would invent pixels.
        section.relation("crop_px", crop_w == crop_h and crop_w >= policy_px, crop.tolist(), crop.tolist(),
                         f"square, at least policy_px = {policy_px} wide")  # fmt: skip
        cameras.append(
            Camera(
                name=name,
                topic=section.text("topic", TOPIC, "a topic name"),
                width_px=width,
                height_px=height,
                rate_hz=section.number("rate_hz", 0.0, 240.0, above_low=True),
                crop_px=tuple(int(x) if math.isfinite(x) else 0 for x in crop),  # type: ignore[arg-type]
                policy_px=policy_px,
            )
        )
        section.finish()
    return tuple(cameras)


def _action(section: Reader, n_joints: int) -> Action:
    space = ActionSpace.JOINT_POSITION
    if section.choice("space", ("tool_delta", "joint_position")) == "tool_delta":
        space = ActionSpace.TOOL_DELTA
    action = Action(
        space=space,
        rows=section.integer("rows", 1, MAX_ROWS),
        cols=space.cols(n_joints),
        dt_s=section.number("dt_s", DT_MIN_S, DT_MAX_S, MILLISECONDS),
    )
    section.finish()
    return action


def _rates(section: Reader) -> Rates:
    control = section.number("control_hz", 20.0, 1000.0)
    policy = section.number("policy_hz", 0.0, 100.0, above_low=True)
    section.relation("policy_hz", policy <= control, (policy, control), policy, "at most control_hz")
    section.finish()
    return Rates(control, policy)


def _timeouts(section: Reader, rates: Rates) -> Timeouts:
    keys = ("image", "joint_state", "chunk", "safe_command", "operator_heartbeat")
    values = {key: section.number(key, 0.0, 5.0, MILLISECONDS, above_low=True) for key in keys}
    for key in ("joint_state", "safe_command"):  # shorter than two periods would trip on every late tick
        ok = values[key] * rates.control_hz >= 2.0
        section.relation(key, ok, (values[key], rates.control_hz), values[key], "at least two control periods")
    section.finish()
    return Timeouts(**{f"{key}_s": value for key, value in values.items()})


def _tolerances(section: Reader) -> Tolerances:
    tolerances = Tolerances(
        rest_rad_s=section.number("rest_rad_s", 0.0, 0.05, DEGREES, above_low=True),
        rearm_start_rad=section.number("rearm_start_rad", 0.0, 0.1, DEGREES, above_low=True),
    )
    section.finish()
    return tolerances


def _arm(section: Reader) -> Arm:
    arm = Arm(
        backend=section.choice("backend", BACKENDS),
        joint_state_topic=section.text("joint_state_topic", TOPIC, "a topic name"),
        command_topic=section.text("command_topic", TOPIC, "a topic name"),
        gripper_topic=section.text("gripper_topic", TOPIC, "a topic name"),
        actuation_delay_s=section.number("actuation_delay_s", 0.0, 0.3, MILLISECONDS),
    )
    section.finish()
    return arm
