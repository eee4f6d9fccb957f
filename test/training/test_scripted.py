"""A scripted demonstration is an episode like any recorded one: the audit finds nothing, the export takes it."""

from __future__ import annotations

import pytest

pytest.importorskip("mujoco")

from vla_ros.core import contract as contracts
from vla_ros.core.errors import Invalid
from vla_ros.data.audit import audit_folder
from vla_ros.data.bag_reader import Bag
from vla_ros.data.extract import extract
from vla_ros.sim.tasks import HELD_OUT_PAIRS, parse
from vla_ros.training import scripted
from vla_ros.training.evaluate import meanings, trials

pytestmark = pytest.mark.sim
TEXT, MEANS = "poke the button", "press the button"  # the shortest task there is


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("episodes")
    return folder, scripted.demonstrate(folder, TEXT, MEANS, 1, seed=0)


def test_a_scripted_episode_succeeds_and_has_no_fault(recorded):
    folder, facts = recorded
    contract = contracts.load("panda")
    (path,) = folder.iterdir()
    assert (facts["played"], facts["succeeded"]) == (1, 1)
    audited = audit_folder(path, contract)
    assert audited.grade == "A" and audited.findings == []
    episode = Bag.open(path).episode()
    assert (episode.text, episode.success, episode.operator) == (TEXT, True, scripted.OPERATOR)
    assert episode.instruction_id == 1 and episode.contract_hash == contract.hash
    pictures = []
    found = extract(Bag.open(path), contract, lambda observation: pictures.append(observation.images))
    assert found.refused == 0 and found.done[-1] and not found.done[0]
    assert len(pictures) == len(found.stamp_ns) > 2 * contract.cameras[0].rate_hz
    assert abs(found.chunk[..., :3]).max() > 0.02, "the arm went somewhere"


def test_episodes_that_are_there_are_not_played_again(recorded):
    folder, _ = recorded
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert scripted.demonstrate(folder, TEXT, MEANS, 1, seed=0)["played"] == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_sentence_that_the_expert_cannot_do_is_refused(tmp_path):
    for text, means in (("wave", ""), ("tidy up the {colour} {shape}", "press the button"), ("x", "wave")):
        with pytest.raises(Invalid, match="text, means"):
            scripted.demonstrate(tmp_path / "out", text, means, 1, 0)
    assert not (tmp_path / "out").exists()


def test_new_words_have_a_known_meaning_for_every_object_that_may_be_taught():
    asked = meanings("tidy up the {colour} {shape}", "put the {colour} {shape} on the tray")
    assert len(asked) == 12 - len(HELD_OUT_PAIRS)
    assert ("tidy up the red cube", "put the red cube on the tray") in asked
    assert {parse(meant).target for _, meant in asked} == {"tray"}
    held_out = meanings("pick up the {colour} {shape}", "pick up the {colour} {shape}", heldout_pair=True)
    assert {parse(meant).pair for _, meant in held_out} == set(HELD_OUT_PAIRS)


def test_trials_of_a_new_sentence_take_its_objects_in_turn():
    planned = trials(9, 4, text="tidy up the {colour} {shape}", means="put the {colour} {shape} on the tray")
    assert len({trial.text for trial in planned}) == 9 and [trial.seed for trial in planned] == list(range(4, 13))
    with pytest.raises(ValueError, match="text and pairs only"):
        trials(1, 0, means="press the button")
