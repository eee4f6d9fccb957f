"""pip build: generate the interfaces with CMake against the ROS wheels, ship them as wheel data."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class BinaryDistribution(Distribution):
    def has_ext_modules(self):  # tags the wheel for this Python and platform
        return True

    def has_data(self):  # without it an editable install silently leaves the generated files out
        return True


class BuildInterfaces(build_ext):
    """Hooked here and not on build_py, which setuptools skips when there are no packages: an empty wheel, exit 0."""

    def run(self):
        work = Path(self.get_finalized_command("build").build_temp).resolve()
        # <prefix>/lib/pythonX.Y/site-packages/rosidl_cmake/__init__.py -> <prefix>
        ros = Path(importlib.util.find_spec("rosidl_cmake").origin).parents[4]
        env = {k: v for k, v in os.environ.items() if k != "AMENT_PREFIX_PATH"}
        subprocess.check_call(
            [
                "cmake",
                *("-S", str(ROOT), "-B", str(work / "cmake"), "-G", "Ninja"),
                f"-DPython3_EXECUTABLE={sys.executable}",
                f"-DCMAKE_PREFIX_PATH={ros}",
                f"-DCMAKE_INSTALL_PREFIX={work / 'stage'}",
                "-DCMAKE_BUILD_TYPE=Release",
                "-DBUILD_TESTING=OFF",
                f"-DCMAKE_PROJECT_INCLUDE={ROOT / 'cmake' / 'wheels.cmake'}",
            ],
            env=env,
        )
        subprocess.check_call(["cmake", "--build", str(work / "cmake"), "--target", "install"], env=env)
        self.distribution.data_files = list(staged(work / "stage"))


def staged(stage):
    """Files of the CMake install that pip must place: everything but our own modules and the console script."""
    for folder, _, names in os.walk(stage):
        inside = Path(folder).relative_to(stage)
        if inside.suffix == ".egg-info" or inside.name == "__pycache__" or inside.parts[:1] == ("bin",):
            continue
        package = Path(*inside.parts[3:]) if "site-packages" in inside.parts else None
        own = {n for n in names if package and (ROOT / package / n).exists()}  # setuptools ships our own code
        keep = [os.path.relpath(Path(folder, n), ROOT) for n in names if n not in own and not n.endswith(".c")]
        if keep:
            yield str(inside), keep


# package_dir makes an editable install put the tree on sys.path; the import hook that setuptools would use
# instead is invisible to pkgutil.extend_path.
setup(
    packages=find_packages(include=["vla_ros", "vla_ros.*"]),
    package_dir={"": "."},
    distclass=BinaryDistribution,
    cmdclass={"build_ext": BuildInterfaces},
)
