"""Builds the MuJoCo model of the table-top: the arm of the contract, four objects, two bowls, a tray, a button, a
drawer in its cabinet, a mat, two cameras.

The model is built once. What differs between episodes (shapes, sizes, colours, light, camera pose) is written into
the compiled model by `world.py`, which is 50 times cheaper than compiling again.
"""

from __future__ import annotations

import math

import mujoco
import numpy as np

from vla_ros.core.contract import Contract

TIMESTEP_S = 0.002
OBJECT_COUNT = 4
BOWL_COUNT = 2
TABLE_FRICTION = 0.5  # wood on wood; below 1 / that of the rubber fingers, or what they push would jam
BOWL_RIM_RADIUS_M = 0.070  # inside, at the rim
BOWL_FLOOR_RADIUS_M = 0.045
BOWL_HEIGHT_M = 0.045
BOWL_WALLS = 14
TRAY_HALF_M = (0.045, 0.09, 0.004)
TRAY_RIM_M = 0.020  # height above the table
MAT_X_M, MAT_Y_M = (0.43, 0.58), (-0.10, 0.10)  # a thin mat: what is to be pushed leaves it on the named side
CABINET_HALF_M = (0.055, 0.070, 0.022)
DRAWER_TRAVEL_M = 0.090
DRAWER_DAMPING_N_S_M = 6.0
DRAWER_FRICTION_N = 1.0  # it stays where it is left
HANDLE_X_M = -0.030  # of the handle's post in front of the drawer's face
HANDLE_HALF_M = (0.009, 0.010, 0.018)  # low enough for the palm of a hand that pushes something to pass over it
HANDLE_Z_M = 0.040
BUTTON_HALF_M = (0.028, 0.028, 0.014)
CAP_RADIUS_M = 0.020
CAP_TOP_M = 0.044  # above the table, when it is not pressed
CAP_TRAVEL_M = 0.012
CAP_PRESSED_M = 0.008  # the lamp goes on when the cap is this far down
CAP_SPRING_N_M = 200.0
CAP_DARK, CAP_LIT = (0.52, 0.18, 0.66), (1.0, 0.72, 1.0)
CAMERA_PX = 224
SCENE_CAMERA_POSITION_M = (1.15, 0.0, 0.70)
SCENE_CAMERA_TARGET_M = (0.47, 0.0, 0.09)
SCENE_CAMERA_FOVY_DEG = 48.0
WRIST_CAMERA_POSITION_M = (0.075, 0.0, 0.045)  # hand frame: in front of the hand, low enough to see the fingertips
# Towards the fingertips. At 0.30 what is between them was at the picture's upper edge and cut off: grasps were off by
# 11 mm (standard deviation) along the one direction that closing fingers do not correct.
WRIST_CAMERA_TILT_RAD = 0.55
WRIST_CAMERA_FOVY_DEG = 84.0

# Collision classes: links meet objects and table, not each other (self-collision is the supervisor's business).
_ARM = {"contype": 2, "conaffinity": 0}
_THING = {"contype": 1, "conaffinity": 3}


def look_at(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Unit quaternion (w, x, y, z) of a MuJoCo camera (looks along -z, x is right) at `position` facing `target`."""
    back = position - target
    back = back / np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    up = np.cross(back, right)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([right, up, back]).flatten())
    return quat


def _add_bowl(world: mujoco.MjsBody, index: int) -> None:
    bowl = world.add_body(name=f"bowl{index}", pos=[0.5, 0.3 * (2 * index - 1), 0.0])
    bowl.add_freejoint()
    common = {**_THING, "friction": [0.8, 0.005, 0.0001], "group": 0}
    bowl.add_geom(
        name=f"bowl{index}_floor",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[BOWL_FLOOR_RADIUS_M, 0.003, 0],
        pos=[0, 0, 0.003],
        mass=0.30,
        **common,
    )
    lean = math.atan2(BOWL_RIM_RADIUS_M - BOWL_FLOOR_RADIUS_M, BOWL_HEIGHT_M)
    radius = (BOWL_RIM_RADIUS_M + BOWL_FLOOR_RADIUS_M) / 2
    half_width = BOWL_RIM_RADIUS_M * math.tan(math.pi / BOWL_WALLS) + 0.001
    half_height = 0.5 * math.hypot(BOWL_HEIGHT_M, BOWL_RIM_RADIUS_M - BOWL_FLOOR_RADIUS_M)
    for k in range(BOWL_WALLS):
        angle = 2 * math.pi * k / BOWL_WALLS
        turn, tip = np.zeros(4), np.zeros(4)
        mujoco.mju_axisAngle2Quat(turn, np.array([0.0, 0.0, 1.0]), angle)
        mujoco.mju_axisAngle2Quat(tip, np.array([0.0, 1.0, 0.0]), lean)
        quat = np.zeros(4)
        mujoco.mju_mulQuat(quat, turn, tip)
        bowl.add_geom(
            name=f"bowl{index}_wall{k}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[0.002, half_width, half_height],
            pos=[radius * math.cos(angle), radius * math.sin(angle), BOWL_HEIGHT_M / 2 + 0.003],
            quat=quat,
            mass=0.01,
            **common,
        )


def _add_button(world: mujoco.MjsBody) -> None:
    button = world.add_body(name="button", pos=[0.68, 0.15, 0.0])
    hx, hy, hz = BUTTON_HALF_M
    button.add_geom(
        name="button_box",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[hx, hy, hz],
        pos=[0, 0, hz],
        rgba=[0.10, 0.10, 0.11, 1],
        **_THING,
    )
    cap = button.add_body(name="button_cap", pos=[0, 0, CAP_TOP_M - 0.010])
    cap.add_joint(
        name="button",
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=[0, 0, -1],
        range=[0.0, CAP_TRAVEL_M],
        limited=mujoco.mjtLimited.mjLIMITED_TRUE,
        stiffness=[CAP_SPRING_N_M, 0, 0],
        springref=-0.004,  # pressed against its upper stop
        damping=[4.0, 0, 0],
    )
    cap.add_geom(
        name="button_cap",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[CAP_RADIUS_M, 0.010, 0],
        mass=0.03,
        rgba=[*CAP_DARK, 1],
        **_THING,
    )


def _add_cabinet(world: mujoco.MjsBody) -> None:
    """A cabinet that stands at the far end; its drawer comes out towards the robot, along -x of the base."""
    hx, hy, hz = CABINET_HALF_M
    brown, cream = [0.33, 0.20, 0.12, 1], [0.93, 0.89, 0.80, 1]
    cabinet = world.add_body(name="cabinet", pos=[0.80, 0.0, 0.0])  # its face is at x - hx
    for name, size, position in (
        ("top", [hx, hy, 0.003], [0, 0, 2 * hz - 0.003]),
        ("left", [hx, 0.003, hz], [0, hy - 0.003, hz]),
        ("right", [hx, 0.003, hz], [0, -hy + 0.003, hz]),
        ("back", [0.003, hy, hz], [hx - 0.003, 0, hz]),
    ):
        cabinet.add_geom(
            name=f"cabinet_{name}", type=mujoco.mjtGeom.mjGEOM_BOX, size=size, pos=position, rgba=brown, **_THING
        )
    drawer = cabinet.add_body(name="drawer", pos=[-hx, 0, 0])
    drawer.add_joint(
        name="drawer",
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=[-1, 0, 0],
        range=[0.0, DRAWER_TRAVEL_M],
        limited=mujoco.mjtLimited.mjLIMITED_TRUE,
        damping=[DRAWER_DAMPING_N_S_M, 0, 0],
        frictionloss=DRAWER_FRICTION_N,
    )
    for name, size, position, colour in (
        ("face", [0.004, hy - 0.004, hz - 0.004], [0, 0, hz - 0.002], [0.48, 0.30, 0.18, 1]),
        ("floor", [0.048, hy - 0.008, 0.002], [0.050, 0, 0.006], cream),
        ("left", [0.048, 0.002, 0.014], [0.050, hy - 0.008, 0.018], cream),
        ("right", [0.048, 0.002, 0.014], [0.050, -hy + 0.008, 0.018], cream),
        ("bar", [-HANDLE_X_M / 2, 0.006, 0.006], [HANDLE_X_M / 2, 0, 0.029], cream),
        ("handle", list(HANDLE_HALF_M), [HANDLE_X_M, 0, HANDLE_Z_M], cream),
    ):
        drawer.add_geom(
            name=f"drawer_{name}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=size,
            pos=position,
            mass=0.06,
            friction=[1.0, 0.01, 0.0005],
            rgba=colour,
            **_THING,
        )


def build(contract: Contract) -> mujoco.MjModel:
    """Compile the model. Joint and body names are those of the contract's URDF."""
    spec = mujoco.MjSpec.from_file(str(contract.urdf_path))
    spec.modelname = "tabletop"
    spec.option.timestep = TIMESTEP_S
    # Elliptic cones and a high ratio: a grasped object does not creep out of the fingers. At 10 it did, 3 mm a second.
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 100.0
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.visual.quality.shadowsize = 0  # shadows and multisampling cost ten times the frame rate in software rendering
    spec.visual.quality.offsamples = 0
    spec.visual.quality.numslices = 20
    spec.visual.quality.numstacks = 12
    spec.visual.global_.offwidth = CAMERA_PX
    spec.visual.global_.offheight = CAMERA_PX
    spec.visual.headlight.ambient = [0.35, 0.35, 0.35]
    spec.visual.headlight.diffuse = [0.25, 0.25, 0.25]
    spec.visual.headlight.specular = [0.05, 0.05, 0.05]
    spec.visual.map.znear = 0.005
    spec.visual.map.zfar = 10.0

    for geom in spec.geoms:
        geom.contype, geom.conaffinity = _ARM["contype"], _ARM["conaffinity"]
        name = geom.parent.name
        geom.rgba = [0.28, 0.29, 0.31, 1] if "finger" in name else [0.90, 0.90, 0.88, 1]
        if name.endswith(("link2", "link4", "link6")):
            geom.rgba = [0.62, 0.64, 0.67, 1]
        if "finger" in name:
            geom.friction = [1.5, 0.01, 0.0005]
            geom.condim = 4
    for joint in spec.joints:
        finger = joint.type == mujoco.mjtJoint.mjJNT_SLIDE
        joint.armature = 0.1  # rotor inertia, about that of the real drives; keeps the servo well conditioned
        joint.damping[0] = 5.0 if finger else 0.5  # an array in MuJoCo 4

    world = spec.worldbody
    world.add_light(
        name="lamp",
        pos=[0.6, -0.4, 1.6],
        dir=[-0.1, 0.3, -1.0],
        diffuse=[0.55, 0.55, 0.55],
        specular=[0.1, 0.1, 0.1],
        castshadow=False,
    )
    world.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[0.55, 0.65, 0.02],
        pos=[0.40, 0.0, -0.02],
        rgba=[0.60, 0.52, 0.43, 1],
        friction=[TABLE_FRICTION, 0.005, 0.0001],
        **_THING,
    )
    world.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[3, 3, 0.1],
        pos=[0, 0, -0.7],
        rgba=[0.42, 0.44, 0.47, 1],
        **_THING,
    )

    for i in range(OBJECT_COUNT):
        body = world.add_body(name=f"object{i}", pos=[0.4 + 0.08 * i, 0.0, 0.1])
        body.add_freejoint()
        # torsional and rolling friction: without them a ball rolls off the table at the first touch
        body.add_geom(
            name=f"object{i}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[0.02, 0.02, 0.02],
            mass=0.05,
            condim=6,
            friction=[TABLE_FRICTION, 0.01, 0.0015],
            rgba=[1, 0, 0, 1],
            **_THING,
        )
    for i in range(BOWL_COUNT):
        _add_bowl(world, i)

    _add_button(world)
    _add_cabinet(world)
    for part in ("drawer", "button_cap"):  # a body fixed to the world is no parent in MuJoCo's collision filter
        spec.add_exclude(bodyname1="cabinet" if part == "drawer" else "button", bodyname2=part)
    world.add_geom(
        name="mat",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[(MAT_X_M[1] - MAT_X_M[0]) / 2, (MAT_Y_M[1] - MAT_Y_M[0]) / 2, 0.0004],
        pos=[sum(MAT_X_M) / 2, sum(MAT_Y_M) / 2, 0.0],
        rgba=[0.30, 0.30, 0.32, 1],
        contype=4,  # meets nothing; with 0 the compiler would discard it as decoration
        conaffinity=0,
    )

    tray = world.add_body(name="tray", pos=[0.30, 0.0, 0.0])
    hx, hy, hz = TRAY_HALF_M
    white = [0.90, 0.90, 0.90, 1]
    tray.add_geom(
        name="tray_floor", type=mujoco.mjtGeom.mjGEOM_BOX, size=[hx, hy, hz], pos=[0, 0, hz], rgba=white, **_THING
    )
    for k, (x, y, sx, sy) in enumerate(
        [(hx, 0, 0.004, hy), (-hx, 0, 0.004, hy), (0, hy, hx, 0.004), (0, -hy, hx, 0.004)]
    ):
        tray.add_geom(
            name=f"tray_rim{k}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[sx, sy, TRAY_RIM_M / 2],
            pos=[x, y, TRAY_RIM_M / 2],
            rgba=white,
            **_THING,
        )

    scene_position, scene_target = np.array(SCENE_CAMERA_POSITION_M), np.array(SCENE_CAMERA_TARGET_M)
    world.add_camera(
        name="scene", pos=scene_position, quat=look_at(scene_position, scene_target), fovy=SCENE_CAMERA_FOVY_DEG
    )
    c, s = math.cos(WRIST_CAMERA_TILT_RAD), math.sin(WRIST_CAMERA_TILT_RAD)
    forward = np.array([-s, 0.0, c])  # the hand's z axis points at the object
    right = np.array([0.0, -1.0, 0.0])
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([right, np.cross(-forward, right), -forward]).flatten())
    hand = spec.body("panda_hand") if spec.body("panda_hand") else spec.body(contract.tool_frame)
    hand.add_camera(name="wrist", pos=list(WRIST_CAMERA_POSITION_M), quat=quat, fovy=WRIST_CAMERA_FOVY_DEG)
    return spec.compile()
