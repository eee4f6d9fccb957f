"""A machine that lacks something is told what and how to get it, before anything is downloaded."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from script_loader import load_script

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "check_system.py"

check_system = load_script("scripts/check_system.py")


@pytest.mark.unit
def test_missing_compiler_is_named_with_the_apt_line(tmp_path):
    environment = {"PATH": str(tmp_path), "VLA_NO_APT": "1"}
    bootstrapped = {k: v for k, v in os.environ.items() if k in ("LD_LIBRARY_PATH", "_ROS_WHEELS_BOOTSTRAP_COMPLETE")}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment | bootstrapped, capture_output=True, text=True)
    assert done.returncode == 1
    assert "C and C++ compiler" in done.stderr
    assert "sudo apt-get install -y" in done.stderr and "build-essential" in done.stderr.splitlines()[-1]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("absent", "package"),
    [("ensurepip", "python{}.{}-venv".format(*sys.version_info)), ("libEGL.so.1", "libegl1")],
)
def test_missing_part_is_answered_with_its_debian_package(absent, package, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(check_system, "compiles", lambda compiler: True)
    monkeypatch.setattr(check_system.importlib.util, "find_spec", lambda name: None if name == absent else real(name))
    monkeypatch.setattr(check_system, "loads", lambda library: library != absent)
    assert package in [name for name, _ in check_system.missing()]


@pytest.mark.unit
def test_root_installs_what_is_missing_and_others_only_hear_of_it(monkeypatch, capsys):
    installed = []
    monkeypatch.setattr(check_system, "missing", lambda: [] if installed else [("libegl1", "rendering")])
    monkeypatch.setattr(check_system, "apt_install", installed.extend)
    monkeypatch.setattr(check_system.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("VLA_NO_APT", raising=False)
    monkeypatch.setattr(check_system.os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="sudo apt-get install -y libegl1"):
        check_system.main()
    monkeypatch.setattr(check_system.os, "geteuid", lambda: 0)
    check_system.main()
    assert installed == ["libegl1"]


@pytest.mark.unit
@pytest.mark.parametrize(("version", "named"), [((3, 9, 2), "3.10 to 3.13"), ((3, 14, 0), "3.10 to 3.13")])
def test_python_without_ros_wheels_is_refused_with_the_versions_that_work(version, named, monkeypatch):
    monkeypatch.setattr(check_system.sys, "version_info", version)
    with pytest.raises(SystemExit, match=named):
        check_system.main()


@pytest.mark.unit
def test_second_make_demo_has_nothing_left_to_set_up(tmp_path):
    """With every stamp newer than its sources, make starts the demo at once."""
    stamps = tmp_path / "venv" / ".stamps"
    stamps.mkdir(parents=True)
    for name in ("system", "venv", "interfaces"):
        (stamps / name).touch()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}  # of a make around us
    command = ["make", "-n", "demo", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{tmp_path}/venv/bin/vla", "demo"]
