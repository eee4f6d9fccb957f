"""Bags that are not what a command needs: one clear message, exit code 1, nothing written, nothing left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import bags
import pytest
import yaml
from mcap.records import Schema
from typer.testing import CliRunner

from vla_ros.cli.main import app
from vla_ros.core.contract import load
from vla_ros.data.bag_reader import Bag
from vla_ros.data.bag_writer import BagWriter
from vla_ros.data.copying import CopyWriter

pytestmark = pytest.mark.unit


def other_contract(folder):
    """The bag as recorded with cameras at another rate; its own text says so."""
    path = folder / "metadata.yaml"
    content = yaml.safe_load(path.read_text())
    theirs = Path(load("panda").source).read_text().replace("rate_hz: 15.0", "rate_hz: 30.0", 1)
    content["rosbag2_bagfile_information"]["custom_data"].update(contract_hash="0" * 64, contract_text=theirs)
    path.write_text(yaml.safe_dump(content))


def unknown_type(good, folder):
    """Commands of a type that carries no definition."""
    bag, foreign = Bag.open(good), Schema(id=0, data=b"{}", encoding="jsonschema", name="acme/Thing")
    with CopyWriter(folder) as copy:
        for m in bag.messages():
            copy.write(m, bag.channels[m.topic], foreign if m.topic == "/vla/safe_command" else bag.schema(m.topic))
        copy.keep(bag.custom_data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One bag of each kind."""
    folder = tmp_path_factory.mktemp("bags")
    good = bags.make(folder, "good", seconds=1.0)
    writer = BagWriter(folder, "empty", bags.topics(), bags.episode())
    writer.close(bags.episode())
    writer.keep(bags.episode())
    for kind in ("no metadata", "other contract", "cut off"):
        shutil.copytree(good, folder / kind)
    (folder / "no metadata" / "metadata.yaml").unlink()
    other_contract(folder / "other contract")
    mcap = folder / "cut off" / "good_0.mcap"
    mcap.write_bytes(mcap.read_bytes()[: mcap.stat().st_size // 2])
    unknown_type(good, folder / "unknown_type")
    (folder / "unknown_type").rename(folder / "unknown type")
    bags.make(folder, "no_outcome", seconds=1.0, outcome="", success=None).rename(folder / "no outcome")
    return folder


COMMANDS = {
    "audit": (["bag", "audit", "{bag}"], {
        "empty": "empty", "no metadata": "vla bag recover", "unknown type": "acme/Thing",
        "other contract": r"cameras[0].rate_hz is 30.0 in the bag, 15.0 here", "cut off": "vla bag recover",
    }),
    "replay": (["bag", "replay", "{bag}"], {
        "empty": "no message on safe_command", "no metadata": "vla bag recover", "unknown type": "acme/Thing",
        "other contract": r"cameras[0].rate_hz is 30.0 in the bag, 15.0 here", "cut off": "vla bag recover",
    }),
    "trim": (["bag", "trim", "{bag}", "--start", "0.1", "--out", "{out}"], {
        "empty": "allowed: 0 <= start < end", "no metadata": "vla bag recover", "cut off": "vla bag recover",
    }),
    "export": (["data", "export", "{bag}", "--out", "{out}"], {
        "empty": "no message on camera/scene/image_raw", "no metadata": "vla bag recover", "unknown type": "acme/Thing",
        "other contract": r"cameras[0].rate_hz is 30.0 in the bag, 15.0 here", "cut off": "vla bag recover",
        "no outcome": "whether it succeeded is not known",
    }),
    "info": (["bag", "info", "{bag}"], {"no metadata": "vla bag recover", "cut off": "vla bag recover"}),
    "judge": (["data", "judge", "{bag}"], {"no metadata": "vla bag recover", "cut off": "vla bag recover"}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "kind"), [(command, kind) for command, (_, said) in COMMANDS.items() for kind in said]
)
def test_it_is_refused_with_what_is_wrong(folder, tmp_path, command, kind):
    words, said = COMMANDS[command]
    before = {path.name: path.stat().st_size for path in (folder / kind).iterdir()}
    given = [word.format(bag=folder / kind, out=tmp_path / "out") for word in words]
    result = CliRunner().invoke(app, [*given, "--json"])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert said[kind] in result.output
    assert list(tmp_path.iterdir()) == []
    assert {path.name: path.stat().st_size for path in (folder / kind).iterdir()} == before
