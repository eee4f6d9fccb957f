"""Several processes learn what one learns."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402

pytestmark = pytest.mark.unit
PATIENCE_S = 300  # on a machine that does other things, too


def test_two_processes_equal_one_with_two_threads(demonstrations, training_file, tmp_path):
    """Both split a batch in two; the sums may round differently, no more."""
    config = yaml.safe_load(training_file.read_text()) | {"steps": 4, "validation_every": 4}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port, "--multi_gpu"]
    runs = {}
    for threads, start in ((2, [sys.executable]), (1, command)):
        file, out = tmp_path / f"{threads}.yaml", tmp_path / f"run{threads}"
        file.write_text(yaml.safe_dump(config | {"threads": threads}))
        arguments = ["-m", "vla_ros.cli.main", "train", str(file), "--data", str(demonstrations), "--out", str(out)]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
        runs[threads] = (
            out,
            subprocess.Popen(
                start + arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
            ),
        )
    for _, process in runs.values():
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, output
    one, two = (out for out, _ in runs.values())
    assert json.loads((two / "policy.json").read_text())["training"]["processes"] == 2
    figures = [json.loads((out / "log.jsonl").read_text().splitlines()[-1])["validation"] for out in (one, two)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-3, abs=1e-4)
    alone, shared = (load_file(out / "checkpoint" / "weights.safetensors") for out in (one, two))
    for key, value in alone.items():
        assert torch.allclose(value.float(), shared[key].float(), atol=2e-4), key
