"""The measurement of a new skill in miniature: every step, the report, and that it is gone on with."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("mujoco")
pytest.importorskip("pyarrow")

from vla_ros.training import rollout, scripted

pytestmark = pytest.mark.sim
FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "data"


@pytest.fixture(scope="module")
def new_skill():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("new_skill")
    finally:
        sys.path.remove(str(FOLDER))


def test_a_new_skill_is_measured_and_gone_on_with(
    new_skill, trained, demonstrations, training_file, tmp_path, monkeypatch, capsys
):
    config = tmp_path / "tiny.yaml"
    config.write_text(training_file.read_text() + "threads: 1\n")
    arguments = ["--from", str(trained), "--old", str(demonstrations), "--out", str(tmp_path / "out")]
    arguments += ["--config", str(config), "--steps", "2", "--text", "poke the button", "--means", "press the button"]
    arguments += ["--demonstrations", "1", "--episodes", "2", "--before-episodes", "1", "--old-episodes", "2"]
    made, played = scripted.demonstrate, []

    def demonstrate(*given, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rollout, "TIME_LIMIT_S", 15.0)  # the expert has all the time it needs
            facts = made(*given, **options)
        played.append(facts["played"])
        return facts

    monkeypatch.setattr(scripted, "demonstrate", demonstrate)
    monkeypatch.setattr(rollout, "TIME_LIMIT_S", 1.0)
    assert new_skill.main(arguments) == 1, "a policy of two steps misses the bar"
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (found["taken"], found["grades"], found["steps"]) == (1, "A", 2)
    assert found["met"] == {"new skill": False, "old suite": True} and found["old"]["episodes"] == 2
    told = capsys.readouterr().out
    assert (
        "`poke the button` = `press the button`" in told and (tmp_path / "out" / "report.md").read_text() == told[:-1]
    )
    lines = (tmp_path / "out" / "new_after.jsonl").read_text().splitlines()
    (tmp_path / "out" / "new_after.jsonl").write_text(lines[0] + "\n" + lines[1][:50])  # as a kill leaves it
    assert new_skill.main(arguments) == 1
    assert (tmp_path / "out" / "new_after.jsonl").read_text().splitlines() == lines and played == [1, 0]
    assert json.loads((tmp_path / "out" / "result.json").read_text())["new"] == found["new"]
    assert new_skill.main([*arguments, "--share", "0.5"]) == 2
    assert "begun with other settings (share: 0.3, now 0.5)" in capsys.readouterr().err


def test_what_is_lost_has_an_interval(new_skill):
    found = new_skill.interval({"episodes": 200, "only_before": 8, "only_after": 4, "lost_points": 2.0})
    assert found == pytest.approx([-1.4, 5.4], abs=0.1)  # 2 +- 1.96 * sqrt(12 - 16 / 200) / 2
