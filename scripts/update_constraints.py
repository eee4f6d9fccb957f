"""Write constraints.txt anew: exact versions of every package that pyproject.toml leads to, per Python version.

.venv/bin/python scripts/update_constraints.py     (needs the package index; takes a few minutes)
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
# pip evaluates environment markers for the running interpreter, whatever --python-version says.
OLDEST_EXTRA = ["tomli", "exceptiongroup"]
HEADER = """\
# Exact versions of everything that is installed, direct or not; pip is given this file with -c.
# Made by scripts/update_constraints.py. The ROS packages are third-party wheels of ROS 2 Kilted, not an official
# ROS release. torch: the same pin matches its CPU-only build, which has far smaller downloads (see scripts/setup.sh).
"""


def key(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def resolve(python: str, requirements: list[str]) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        report, wheels, listing = (Path(folder, n) for n in ("report.json", "wheels", "requirements.txt"))
        listing.write_text("\n".join(requirements))
        pip = [sys.executable, "-m", "pip"]
        # empy is published as source only, and a foreign Python version is resolved from wheels only
        subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(wheels), "empy==4.2.1"], check=True)
        subprocess.run(
            [*pip, "install", "-q", "--dry-run", "--ignore-installed", "--only-binary=:all:"]
            + ["--python-version", python, "--target", folder, "--find-links", str(wheels)]
            + ["--report", str(report), "-r", str(listing)],
            check=True,
        )
        items = json.loads(report.read_text())["install"]
    return {key(i["metadata"]["name"]): i["metadata"]["version"].split("+")[0] for i in items}


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = list(project["build-system"]["requires"]) + list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        requirements += extra
    oldest = resolve("3.10", requirements + OLDEST_EXTRA)
    newer = {**resolve("3.12", requirements), **resolve("3.11", requirements)}
    lines = []
    for name in sorted(oldest | newer):
        old, new = oldest.get(name), newer.get(name)
        if old == new:
            lines.append(f"{name}=={new}")
            continue
        lines += [f'{name}=={old} ; python_version < "3.11"'] if old else []
        lines += [f'{name}=={new} ; python_version >= "3.11"'] if new else []
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
