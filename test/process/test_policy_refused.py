"""A policy folder that was made for another body, altered or cut short is refused by hash; the node says so."""

import json
import shutil

import pytest

from vla_ros import paths


def another_contract(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["contract_hash"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))


def altered(folder):
    weights = next(iter(sorted(folder.glob("*.onnx"))))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0xFF
    weights.write_bytes(content)


def truncated(folder):
    weights = next(iter(sorted(folder.glob("*.onnx"))))
    weights.write_bytes(weights.read_bytes()[:-1000])


def missing(folder):
    shutil.rmtree(folder)


CASES = {
    "another contract": (another_contract, "contract"),
    "altered": (altered, "altered"),
    "truncated": (truncated, "truncated"),
    "missing": (missing, "no such folder"),
}


@pytest.fixture(scope="module")
def graph(make_graph):
    return make_graph()


@pytest.mark.parametrize("case", CASES)
def test_policy_that_is_not_what_it_says_is_refused(graph, tmp_path, case):
    spoil, said = CASES[case]
    folder = tmp_path / "policy"
    shutil.copytree(paths.policy_folder(), folder)
    spoil(folder)
    graph.client.health.pop("policy", None)
    graph.start("policy", policy_path=folder)
    try:
        graph.wait(lambda: graph.client.health.get("policy"), 30.0, "no diagnostics from the policy")
        health = graph.client.health["policy"]
        assert health.level == 2
        assert health.values["state"] == "unconfigured"
        assert said in health.message, health.message
        assert str(folder) in health.message
        assert "Traceback" not in graph.output("policy")
    finally:
        graph.kill("policy")
        graph.log("policy").unlink()
