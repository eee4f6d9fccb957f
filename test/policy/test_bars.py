"""The table of what a policy must reach, the file that it is made of, and the model card that shows it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from vla_ros.policy import PolicyInvalid
from vla_ros.policy.card import card
from vla_ros.policy.manifest import read
from vla_ros.training.scores import Episode

pytestmark = pytest.mark.unit
HEADER = {"policy": "0" * 64, "name": "tiny", "runtime": "int8", "seed": 7}


@pytest.fixture(scope="module")
def bars():
    folder = str(Path(__file__).parents[2] / "benchmarks" / "policy")
    sys.path.insert(0, folder)
    try:
        import bars as runner
        import bars_table as table

        yield runner, table
    finally:
        sys.path.remove(folder)


def played(n: int, failures: int = 0, **changes) -> list[Episode]:
    families = ("pick", "put", "stack", "push", "press", "drawer")
    one = Episode(0, "pick", "pick up the red cube", True, False, True, 3.0, "")
    episodes = [dataclasses.replace(one, seed=k, family=families[k % 6], **changes) for k in range(n)]
    return [dataclasses.replace(e, success=False) if k < failures else e for k, e in enumerate(episodes)]


def row(table, what: str):
    return next(r for r in table if r.what.startswith(what))


def test_every_row_judges_its_own_bar(bars):
    _, table = bars
    episodes = {
        "normal": played(200, 4),
        "phrasings": played(200, 9),
        "pairs": played(200, 20),
        "swap": [dataclasses.replace(e, obeyed=k >= 3) for k, e in enumerate(played(200))],
        "prefix 4": played(200, 10),
        **{f"rows {n}": played(200, f) for n, f in ((1, 12), (4, 4), (8, 4), (16, 15))},
    }
    made = table.rows(episodes, {"live": {"episodes": 100, "success": 0.93}}, {"step": 1, "seconds": 60})
    assert row(made, "overall").found == "98.0%" and row(made, "overall").reached
    assert not row(made, "held-out phrasings").reached and row(made, "held-out colour").reached
    assert not row(made, "language swap").reached and row(made, "delay").reached
    assert not row(made, "rows executed").reached and row(made, "through the live").reached
    assert row(made, "false `done`").found == "2.0%" and row(made, "false `done`").reached
    assert "95.0% to 99.2%" in table.markdown(made)  # Wilson, 196 of 200
    assert [r.reached for r in table.rows({}, {}, {})] == [False]  # nothing played: only the training's row


def test_a_cut_results_file_goes_on_and_another_policys_is_refused(bars, tmp_path):
    runner, _ = bars
    path = tmp_path / "bars.jsonl"
    results = runner.Results(path, HEADER)
    for episode in played(3):
        results.add("normal", None, episode)
    results.note("live", {"episodes": 1})
    with path.open("a") as file:
        file.write('{"condition": "normal", "swap": null, "epi')  # the power went
    again = runner.Results(path, HEADER)
    assert again.of(2)["normal"] == played(3)[:2] and again.facts["live"] == {"episodes": 1}
    planned = runner.trials(4, 0)
    assert [again.has("normal", trial) for trial in planned] == [True, True, True, False]
    assert path.read_text().endswith("\n")
    with pytest.raises(SystemExit, match="give another --results"):
        runner.Results(path, HEADER | {"policy": "1" * 64})


def test_the_card_says_what_was_measured_and_what_was_missed(bars, policy_folder, contract, tmp_path):
    _, table = bars
    manifest = read(policy_folder, contract.hash)
    header = HEADER | {"policy": manifest.files[manifest.graph].sha256}
    made = table.as_json(header, table.rows({"normal": played(200, 12)}, {}, dict(manifest.training)))
    text = card(manifest, [(tmp_path / "bars.json", made)], "a test")
    assert "of a test" in text and "94.0%" in text and "Not reached: overall success" in text
    assert all(name in text for name in manifest.files)
    with pytest.raises(PolicyInvalid, match="another graph"):
        card(manifest, [(tmp_path / "bars.json", made | {"policy": "0" * 64})])
    with pytest.raises(PolicyInvalid, match="neither"):
        card(manifest, [(tmp_path / "x.json", json.loads("{}"))])
