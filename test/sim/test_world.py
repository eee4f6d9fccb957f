"""Promises of the simulated table-top."""

from __future__ import annotations

import numpy as np
import pytest

from vla_ros.core import contract as contracts
from vla_ros.sim import scene
from vla_ros.sim.demonstrations import STREAM, Demonstrator
from vla_ros.sim.tasks import FAMILIES, HELD_OUT_PAIRS, Task
from vla_ros.sim.world import World

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def player():
    """One demonstrator (world, kinematics) for the whole module: building it costs most of a second."""
    demonstrator = Demonstrator("panda")
    yield demonstrator
    demonstrator.world.close()


def state(world: World) -> np.ndarray:
    return np.concatenate([world.data.qpos, world.data.qvel])


def test_same_seed_and_same_commands_give_the_same_states(player):
    traces = []
    for _ in range(2):
        player.world.reset(11)
        q, _, _ = player.world.joints()
        player.world.command(q + 0.02, np.zeros(7))
        player.world.step(100)
        traces.append(state(player.world))
    assert np.array_equal(*traces)


def test_an_arm_that_presses_on_something_is_told_from_one_that_moves_freely(player):
    player.world.reset(11)
    q, _, _ = player.world.joints()

    def lean(rad):  # the shoulder forward, at 0.4 rad/s
        for k in range(1, round(rad / 0.004) + 1):
            player.world.command(q + [0.0, 0.004 * k, 0.0, 0.0, 0.0, 0.0, 0.0], 0.4 * np.eye(7)[1])
            player.world.step(5)

    lean(0.2)
    assert player.world.resisted < 0.05
    lean(0.9)  # the hand stands on the table
    assert player.world.resisted > 0.5
    player.world.reset(11)
    assert player.world.resisted == 0.0


def test_another_seed_gives_another_scene(player):
    player.world.reset(1)
    first = (player.world.items, player.world.object_positions())
    player.world.reset(2)
    assert first[0] != player.world.items
    assert not np.allclose(first[1], player.world.object_positions())


def test_demonstration_seeds_never_meet_evaluation_seeds(player):
    scenes = []
    for seed in (5, (STREAM, 0, 5), (STREAM, 5, 0)):
        player.world.reset(seed)
        scenes.append(player.world.object_positions().tobytes())
    assert len(set(scenes)) == 3


@pytest.mark.parametrize(
    "wanted",
    [
        Task("put", "yellow", "ball", "green"),
        Task("put", "green", "cube", "tray"),
        Task("stack", "red", "cube", "blue cylinder"),
        Task("push", "blue", "cube", "forward"),
        Task("press"),
        Task("drawer", target="close"),
    ],
    ids=lambda task: task.family,
)
def test_a_scene_holds_what_the_task_names(player, wanted):
    for seed in range(4):
        player.world.reset(seed, task=wanted)
        assert set(wanted.pairs) <= {(i.colour, i.shape) for i in player.world.items}
        assert wanted.family != "put" or wanted.target in (*player.world.bowls, "tray")
        assert player.world.task == wanted
        assert not player.world.outcome().success


def test_objects_leave_room_for_the_open_hand_and_lie_still(player):
    for seed in range(15):
        player.world.reset(seed)
        before = player.world.object_positions()
        gaps = [np.linalg.norm(a[:2] - b[:2]) for k, a in enumerate(before) for b in before[:k]]
        assert min(gaps) > 0.09
        player.world.step(500)
        assert np.abs(player.world.object_positions() - before).max() < 0.004


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_fresh_scene_is_neither_solved_nor_spoilt(player, family):
    for seed in range(6):
        player.world.reset(seed, family)
        verdict = player.world.outcome()
        assert player.world.task.family == family
        assert not verdict.success and not verdict.wrong_object and not verdict.wrong_direction
        assert not set(player.world.task.pairs) & set(HELD_OUT_PAIRS)


def test_nothing_starts_where_the_drawer_comes_out_and_starts_differ(player):
    openings, lamps = [], []
    for seed in range(25):
        player.world.reset(seed, "pick")
        world = player.world
        openings.append(world.drawer_opening())
        lamps.append(world.lit)
        outermost = world.handle_position()[0] + world.drawer_opening() - scene.DRAWER_TRAVEL_M
        for x, y, _ in world.object_positions():
            assert x < outermost - 0.04 or abs(y - world.handle_position()[1]) > scene.CABINET_HALF_M[1] + 0.03
        moved = world.drawer_opening()
        world.step(250)
        assert abs(world.drawer_opening() - moved) < 0.001  # it stays where it was left
    assert min(openings) < 0.005 and max(openings) > 0.07 and 0 < sum(lamps) < 25


def test_a_task_that_no_scene_has_is_refused(player):
    with pytest.raises(ValueError, match="suitable"):
        player.world.reset(0, "press", suitable=lambda world, task: False)
    with pytest.raises(ValueError, match="family"):
        player.world.reset(0, "wash")


def test_cameras_show_the_scene_and_change_with_it(player):
    player.world.reset(3)
    for name in ("scene", "wrist"):
        image = player.world.render(name)
        assert image.shape == (224, 224, 3) and image.dtype == np.uint8 and image.std() > 10
        assert np.array_equal(image, player.world.render(name))
    before = player.world.render("scene")
    player.world.reset(4)
    assert not np.array_equal(before, player.world.render("scene"))


def test_servo_reaches_its_setpoint_and_holds_without_new_commands(player):
    player.world.reset(6)
    goal = contracts.load("panda").poses.home_rad
    q, _, _ = player.world.joints()
    for k in range(300):
        player.world.command(q + (goal - q) * k / 299, (goal - q) / 3.0)
        player.world.step(5)
    player.world.step(500)
    reached, speed, _ = player.world.joints()
    assert np.abs(reached - goal).max() < 0.005 and np.abs(speed).max() < 0.005
