"""Where what is named lies: in the places that no demonstration named, or outside them."""

from __future__ import annotations

import pytest

from vla_ros.core import contract as contracts
from vla_ros.sim.tasks import FAMILIES, HELD_OUT_PAIRS, HELD_OUT_REGIONS_M
from vla_ros.sim.world import World
from vla_ros.training.evaluate import Trial, trials

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def world():
    return World(contracts.load("panda"), render=False)


def lies_in_a_region(world, pair):
    x, y, _ = world.object_positions()[world.index(pair)]
    return any(x0 <= x <= x1 and y0 <= y <= y1 for x0, x1, y0, y1 in HELD_OUT_REGIONS_M)


@pytest.mark.parametrize("family", ["pick", "put", "push"])
@pytest.mark.parametrize("regions", ["heldout", "trained"])
def test_named_object_lies_where_the_evaluation_asks_for_it(world, family, regions):
    for seed in (3, 4):
        world.reset(seed, family, None, Trial(seed, family, regions=regions).suits)
        assert lies_in_a_region(world, world.task.pair) is (regions == "heldout")
        assert world.task.pair not in HELD_OUT_PAIRS


def test_regions_are_asked_only_of_families_that_name_objects_and_not_of_a_given_sentence():
    assert {t.family for t in trials(12, 0, regions="heldout")} == {f.name for f in FAMILIES.values() if f.shapes}
    assert all(t.regions == "heldout" for t in trials(4, 0, regions="heldout"))
    with pytest.raises(ValueError, match="names no object"):
        trials(4, 0, family="drawer", regions="heldout")
    with pytest.raises(ValueError, match="leave one"):
        trials(4, 0, text="pick up the red cube", regions="trained")
