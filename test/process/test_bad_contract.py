"""A node with a contract that is wrong does not activate, and says everything that is wrong with it."""

import pytest
import yaml

from vla_ros import paths

BAD = {
    "swapped limit": lambda c: c["joints"][0].update(position_rad=[2.8, -2.8]),
    "degrees": lambda c: c["joints"][1].update(velocity_rad_s=150.0),
    "millimetres": lambda c: c["gripper"].update(width_m=[0.0, 80.0]),
    "missing joint": lambda c: c["joints"].pop(),
}
EXPECTED = ("joints[0].position_rad", "joints[1].velocity_rad_s", "gripper.width_m", "panda_joint7")


@pytest.fixture(scope="module")
def bad_contract(tmp_path_factory):
    content = yaml.safe_load(paths.robot_contract("panda").read_text())
    for spoil in BAD.values():
        spoil(content)
    path = tmp_path_factory.mktemp("contract") / "bad.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_node_with_a_bad_contract_stays_unconfigured_and_lists_every_violation(make_graph, bad_contract):
    graph = make_graph()
    names = ("supervisor", "arm_controller", "perception")
    for name in names:
        graph.start(name, contract=bad_contract)
    for name in names:
        graph.wait(lambda name=name: name in graph.client.health, 30.0, f"no diagnostics from {name}")
        health = graph.client.health[name]
        assert health.level == 2
        assert health.values["state"] == "unconfigured"
        for field in EXPECTED:
            assert field in health.message, health.message
            assert field in graph.output(name)
    assert graph.client.node_states(names, timeout_s=5.0) == dict.fromkeys(names, "unconfigured")
