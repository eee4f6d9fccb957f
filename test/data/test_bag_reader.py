"""Bags are read by what they carry; what is wrong with one is said so that somebody can act on it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import bags
import numpy as np
import pytest
import yaml
from mcap.records import Schema
from typer.testing import CliRunner

from vla_ros.cli.main import app
from vla_ros.core.contract import load
from vla_ros.data.audit import audit
from vla_ros.data.bag_reader import Bag, BagError, require_contract, stamp_ns
from vla_ros.data.copying import CopyWriter

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return bags.make(tmp_path_factory.mktemp("bags"), "good", seconds=2.0)


def change_metadata(source, target, change):
    shutil.copytree(source, target)
    path = target / "metadata.yaml"
    content = yaml.safe_load(path.read_text())
    change(content["rosbag2_bagfile_information"])
    path.write_text(yaml.safe_dump(content))
    return target


def test_every_message_is_read_in_the_order_of_receipt_and_decoded(good):
    bag = Bag.open(good)
    messages = list(bag.messages())
    assert len(messages) == bag.messages_total == sum(t.count for t in bag.topics.values())
    assert [m.log_ns for m in messages] == sorted(m.log_ns for m in messages)
    command = bag.decode(next(m for m in messages if m.topic == "/vla/safe_command"))
    assert np.allclose(command.position, bags.joints_at(0.0)[0]) and stamp_ns(command.stamp) == bags.START_NS
    assert bag.duration_s == pytest.approx(2.0, abs=0.05)


def test_time_bounds_include_both_ends(good):
    bag = Bag.open(good)
    times = [m.log_ns for m in bag.messages(["/vla/safe_command"])]
    assert [m.log_ns for m in bag.messages(["/vla/safe_command"], times[3], times[7])] == times[3:8]


def test_a_camera_is_found_by_the_contracts_name_for_it(good):
    bag = Bag.open(good)
    camera = load("panda").cameras[0]
    assert bag.find(camera.topic) == f"/vla/{camera.topic}/compressed"
    assert bag.find("nothing_like_it") is None


@pytest.mark.parametrize(
    "break_it, said",
    [
        (lambda folder: shutil.rmtree(folder), "not a folder"),
        (lambda folder: (folder / "metadata.yaml").unlink(), "cut off"),
        (lambda folder: (folder / "metadata.yaml").write_text("just: text"), "not a rosbag2"),
        (lambda folder: (folder / "metadata.yaml").write_text("{{{"), "not a rosbag2"),
        (lambda folder: (folder / f"{folder.name}_0.mcap").unlink(), "is missing"),
        (lambda folder: (folder / f"{folder.name}_0.mcap").write_bytes(b""), "vla bag recover"),
        (lambda folder: cut(folder / f"{folder.name}_0.mcap"), "vla bag recover"),
    ],
)
def test_a_bag_that_cannot_be_read_says_why_and_what_helps(good, tmp_path, break_it, said):
    folder = shutil.copytree(good, tmp_path / "good")
    break_it(folder)
    with pytest.raises(BagError, match=said):
        Bag.open(folder)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_chunk_is_an_error_and_not_other_data(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "good")
    path = folder / "good_0.mcap"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BagError, match="damaged"):
        list(Bag.open(folder).messages())


def test_a_bag_of_another_contract_is_refused_with_the_differing_fields(good, tmp_path):
    contract = load("panda")
    text = Path(contract.source).read_text().replace("rate_hz: 15.0", "rate_hz: 30.0", 1)

    def other(information):
        information["custom_data"].update(contract_hash="0" * 64, contract_text=text)

    bag = Bag.open(change_metadata(good, tmp_path / "good", other))
    with pytest.raises(BagError, match=r"cameras\[0\].rate_hz is 30.0 in the bag, 15.0 here"):
        require_contract(bag, contract)
    require_contract(Bag.open(good), contract)
    with pytest.raises(BagError, match="another contract"):
        require_contract(Bag.open(good), dataclasses.replace(contract, hash="1" * 64))


def test_a_type_that_is_not_defined_can_be_listed_and_not_decoded(good, tmp_path):
    bag, topic = Bag.open(good), "/vla/safe_command"
    foreign = Schema(id=0, data=b"{}", encoding="jsonschema", name="acme/Thing")
    with CopyWriter(tmp_path / "odd") as copy:
        for message in bag.messages():
            copy.write(
                message, bag.channels[message.topic], foreign if message.topic == topic else bag.schema(message.topic)
            )
        copy.keep(bag.custom_data)
    odd = Bag.open(tmp_path / "odd")
    assert odd.topics[topic].kind == "acme/Thing"
    with pytest.raises(BagError, match=r"safe_command: the bag's definition of 'acme/Thing' \(jsonschema\)"):
        odd.decode(next(odd.messages([topic])))
    assert audit(odd, load("panda")).grade == "D"


def test_info_tells_episode_and_rates_as_json(good):
    result = CliRunner().invoke(app, ["bag", "info", str(good), "--json"])
    facts = json.loads(result.stdout)
    assert result.exit_code == 0 and facts["episode"]["text"] == "pick up the red cube"
    assert facts["topics"]["/vla/joint_states"]["rate_hz"] == pytest.approx(500.0, rel=0.02)


def test_info_of_no_bag_is_one_message_and_exit_code_1(tmp_path):
    result = CliRunner().invoke(app, ["bag", "info", str(tmp_path), "--json"])
    assert result.exit_code == 1 and "metadata.yaml is missing" in json.loads(result.stdout)["error"]
