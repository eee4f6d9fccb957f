"""Promises of the simulated table-top."""

from __future__ import annotations

import numpy as np
import pytest

from vla_ros.core import contract as contracts
from vla_ros.sim import expert, tasks
from vla_ros.sim.demonstrations import STREAM, Demonstrator, Shard
from vla_ros.sim.tasks import COLOURS, FAMILIES, SHAPES, Task
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


def test_a_scene_holds_what_the_task_names(player):
    wanted = Task("put", "yellow", "ball", "green")
    for seed in range(10):
        player.world.reset(seed, task=wanted)
        assert ("yellow", "ball") in {(i.colour, i.shape) for i in player.world.items}
        assert "green" in player.world.bowls
        assert player.world.task == wanted


def test_objects_leave_room_for_the_open_hand_and_lie_still(player):
    for seed in range(15):
        player.world.reset(seed)
        before = player.world.object_positions()
        gaps = [np.linalg.norm(a[:2] - b[:2]) for k, a in enumerate(before) for b in before[:k]]
        assert min(gaps) > 0.09
        player.world.step(500)
        assert np.abs(player.world.object_positions() - before).max() < 0.004


def test_a_fresh_scene_is_neither_solved_nor_spoilt(player):
    for seed in range(15):
        player.world.reset(seed)
        verdict = player.world.outcome()
        assert not verdict.success and not verdict.wrong_object


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


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_expert_succeeds_and_touches_nothing_else(player, family):
    wins = 0
    for seed in range(12):
        player.world.reset(seed, family)
        player.play(np.random.default_rng(seed), None, disturbed=False)
        verdict = player.world.outcome()
        wins += verdict.success and not verdict.wrong_object
    assert wins >= 11


def test_a_lifted_neighbour_counts_as_the_wrong_object(player):
    player.world.reset(8, "pick")
    named = player.world.task
    other = next(t for t in expert.possible_tasks(player.world) if t.family == "pick" and t != named)
    player.world.set_task(other)
    player.play(np.random.default_rng(0), None, disturbed=False)
    assert player.world.outcome().success
    player.world.set_task(named)
    verdict = player.world.outcome()
    assert verdict.wrong_object and not verdict.success


def test_one_picture_carries_several_sentences_with_different_chunks(player):
    shard = Shard()
    player.episode(3, 0, shard)
    frames = np.array(shard.label_frame)
    assert len(frames) > 2 * len(shard.images)
    chunks = np.array(shard.label_chunk)
    assert np.isfinite(chunks).all() and chunks.shape[1:] == (expert.ROWS, 7)
    first = chunks[frames == 0]
    assert len({c.tobytes() for c in first}) >= 2  # the same object begins alike, whatever is to be done with it


def test_each_family_has_at_least_fifteen_phrasings_and_every_sentence_reads_back():
    rng = np.random.default_rng(0)
    for family in FAMILIES.values():
        assert len(set(family.phrasings)) >= 15
        for _ in range(200):
            colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
            target = rng.choice(list(COLOURS)) if family.has_target else None
            text = tasks.sentence(family.name, colour, shape, target, rng)
            assert tasks.parse(text) == Task(family.name, colour, shape, target), text
            assert set(text.split()) <= tasks.all_words()


def test_task_codes_round_trip():
    for task in (Task("pick", "red", "cube"), Task("put", "blue", "ball", "yellow")):
        assert tasks.from_codes(task.codes()) == task
