"""Promises of the scripted expert, of the verdicts it is judged by, and of the labels it writes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vla_ros.sim import choices, expert, scene, tasks, verdict
from vla_ros.sim.demonstrations import Demonstrator, Shard, lessons, other_tasks
from vla_ros.sim.tasks import DIRECTIONS, FAMILIES, HELD_OUT_PAIRS, Task
from vla_ros.sim.world import World

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def player():
    return Demonstrator("panda", render=False)


def play(player: Demonstrator, seed: int, disturbed: bool = False) -> None:
    player.play(np.random.default_rng(seed), None, disturbed)


def is_done(world: World) -> bool:
    return bool(expert.label(world, [world.task], rows=1).done[0])


def move_object(world: World, index: int, by: tuple[float, float, float]) -> None:
    first = world._object_q[index]
    world.data.qpos[first : first + 3] += by
    world.teleport(world.joints()[0], world.joints()[2])


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_expert_succeeds_touches_nothing_else_and_knows_when_it_is_done(player, family):
    wins = 0
    for seed in range(6):
        player.world.reset(seed, family)
        assert not is_done(player.world)
        play(player, seed)
        judged = player.world.outcome()
        wins += judged.success and not judged.wrong_object and not judged.wrong_direction and is_done(player.world)
    assert wins >= 5


@pytest.mark.parametrize("family", ["push", "drawer"])
def test_the_expert_recovers_from_disturbances(player, family):
    wins = 0
    for seed in range(4):
        player.world.reset(seed, family)
        play(player, seed, disturbed=True)
        wins += player.world.outcome().success
    assert wins >= 3


def test_every_possible_task_has_a_finite_plan_that_moves(player):
    for seed in range(3):
        player.world.reset(seed)
        found = choices.possible_tasks(player.world)
        assert {task.family for task in found} >= {"pick", "put", "press", "drawer"}
        labels = expert.label(player.world, found)
        assert np.isfinite(labels.chunk).all() and np.isfinite(labels.aux).all()
        assert (np.abs(labels.chunk[:, -1, :3]).max(1) > 0.01).all()
        steps = np.diff(np.concatenate([np.zeros((len(found), 1, 3)), labels.chunk[:, :, :3]], 1), axis=1)
        assert np.linalg.norm(steps, axis=-1).max() < 0.5 * expert.DT_S  # the contract's tool speed


def test_a_lifted_neighbour_counts_as_the_wrong_object(player):
    player.world.reset(8, "pick")
    named = player.world.task
    other = next(t for t in choices.possible_tasks(player.world, "pick") if t != named)
    player.world.set_task(other)
    play(player, 0)
    assert player.world.outcome().success
    player.world.set_task(named)
    judged = player.world.outcome()
    assert judged.wrong_object and not judged.success


def test_an_object_pushed_elsewhere_went_the_wrong_way(player):
    player.world.reset(2, "push")
    world = player.world
    d = np.array(DIRECTIONS[str(world.task.target)])
    index = world.index(world.task.pair)
    move_object(world, index, (*(-0.05 * d), 0.0))
    judged = world.outcome()
    assert judged.wrong_direction and not judged.success and "wrong way" in judged.detail


def test_a_push_counts_only_beyond_the_mat(player):
    player.world.reset(5, "push")
    world, index = player.world, player.world.index(player.world.task.pair)
    d, position = np.array(DIRECTIONS[str(world.task.target)]), world.object_positions()[index]
    inside = -verdict.beyond_mat(position, str(world.task.target))
    move_object(world, index, (*(d * inside), 0.0))
    assert not world.outcome().success
    move_object(world, index, (*(d * 0.02), 0.0))
    assert world.outcome().success and not world.outcome().wrong_direction


def test_the_lamp_goes_on_at_the_end_of_the_travel_and_stays_on(player):
    player.world.reset(1, "press")
    world = player.world
    for depth, lit in ((0.5 * scene.CAP_PRESSED_M, False), (scene.CAP_PRESSED_M + 0.002, True), (0.0, True)):
        world.data.qpos[world._button_q] = depth
        world.step(1)
        assert world.lit is lit and world.outcome().success is lit
    assert not is_done(world) or world.tool_pose()[1][2] > 0.15


def test_a_drawer_that_moves_the_other_way_is_noticed_and_so_is_one_that_was_not_named(player):
    for seed in range(20):
        player.world.reset(seed, "drawer")
        if 0.025 < player.world.drawer_opening() < 0.06:
            break
    world = player.world
    world.data.qpos[world._drawer_q] = 0.088 if world.task.target == "close" else 0.0
    assert world.outcome().wrong_direction and not world.outcome().success
    player.world.reset(3, "pick")
    world.data.qpos[world._drawer_q] = abs(world.drawer_opening() - 0.06)
    assert world.outcome().wrong_object


def test_an_object_beside_or_above_another_is_not_stacked(player):
    player.world.reset(4, "stack")
    world = player.world
    play(player, 4)
    assert world.outcome().success and is_done(world)
    index = world.index(world.task.pair)
    move_object(world, index, (0.0, 0.0, 0.012))
    assert not world.outcome().success and not is_done(world)
    move_object(world, index, (0.025, 0.0, -0.012))
    assert not world.outcome().success


def test_fulfilled_is_not_done_while_the_hand_is_there(player):
    """Near misses of `done`: the last picture before the hand is out of the way."""
    player.world.reset(0, "put")
    world, q = player.world, None
    for _ in range(200):
        labels = expert.label(world, [world.task], rows=1)
        if world.outcome().success and not labels.done[0]:
            break
        q = player._execute(labels.chunk[0, 0], world.joints()[0] if q is None else q)
    assert world.outcome().success and not is_done(world)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_hand_that_holds_something_else_puts_it_down_first(player, family):
    player.world.reset(9, "pick")
    play(player, 9)
    world = player.world
    held = world.held()
    assert held is not None
    options = [t for t in choices.open_tasks(world, family) if world.items[held].shape not in (t.shape,)]
    if not options:
        pytest.skip("nothing of this family can be done here")
    world.set_task(options[0])
    world.mark()
    play(player, 1)
    assert verdict.fulfilled(world, options[0])
    assert world.held() != held


def test_lessons_of_a_picture_are_of_all_families_alike_and_never_of_what_is_held_out(player):
    count = Counter()
    rng = np.random.default_rng(0)
    for seed in range(25):
        player.world.reset(seed, suitable=choices.teachable)
        for _ in range(4):
            for task in other_tasks(player.world, rng):
                count[task.family] += 1
                assert task != player.world.task
            for task in lessons(player.world, rng):
                assert not set(task.pairs) & set(HELD_OUT_PAIRS)
    assert set(count) == set(FAMILIES)
    assert min(count.values()) > 0.2 * max(count.values())  # not every scene has something to push or stack


def test_an_object_in_a_held_out_region_is_not_named(player):
    player.world.reset(0, "pick")
    world = player.world
    x0, x1, y0, y1 = tasks.HELD_OUT_REGIONS_M[0]
    index = world.index(world.task.pair)
    move_object(world, index, (*(np.array([(x0 + x1) / 2, (y0 + y1) / 2]) - world.object_positions()[index][:2]), 0.0))
    assert not choices.teachable(world, world.task)
    assert world.task not in lessons(world, np.random.default_rng(0))


def test_contrasting_tasks_differ_in_one_thing(player):
    for seed, family in enumerate(FAMILIES):
        player.world.reset(seed, family, suitable=lambda w, t: bool(choices.contrasting(w, t)))
        task = player.world.task
        for other in choices.contrasting(player.world, task):
            assert other != task
            if other.family == task.family:
                assert (other.pair == task.pair) != (other.target == task.target) or family == "pick"


def test_both_points_of_a_task_are_on_the_table(player):
    for seed in range(3):
        player.world.reset(seed)
        _, tool = player.world.tool_pose()
        for task, aux in zip(
            found := choices.possible_tasks(player.world), expert.label(player.world, found, rows=1).aux, strict=True
        ):
            assert bool(aux[6]) == (task.family in ("put", "stack", "push", "drawer"))
            for point in (aux[:3] + tool, *([aux[3:6] + tool] if aux[6] else [])):
                assert 0.2 < point[0] < 0.8 and abs(point[1]) < 0.4 and -0.01 < point[2] < 0.15
    assert Task("press") in found


def test_one_picture_carries_several_sentences_with_different_chunks():
    player, shard = Demonstrator("panda"), Shard()
    player.episode(3, 0, shard)
    player.world.close()
    frames = np.array(shard.label_frame)
    assert len(frames) > 2 * len(shard.images)
    chunks = np.array(shard.label_chunk)
    assert np.isfinite(chunks).all() and chunks.shape[1:] == (expert.ROWS, 7)
    assert len({c.tobytes() for c in chunks[frames == 0]}) >= 2
    for codes in shard.label_task:
        assert not set(tasks.from_codes(codes).pairs) & set(HELD_OUT_PAIRS)
