"""Check what pip cannot bring: Python, its headers and venv, a compiler, EGL. Runs on a bare python3, before .venv.

Missing Debian packages are installed when run as root (VLA_NO_APT=1 forbids it); otherwise the apt line is printed.
"""

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile

OLDEST, NEWEST = (3, 10), (3, 13)  # for which rclpy wheels exist


def loads(library):
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def compiles(compiler):
    """A compiler without the C library's headers is as good as none."""
    if shutil.which(compiler) is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "x.cpp" if compiler == "c++" else "x.c")
        with open(source, "w", encoding="ascii") as file:
            file.write("#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n")
        command = [compiler, source, "-o", os.path.join(folder, "x")]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def has_package(name):
    """None where there is no dpkg to ask."""
    if shutil.which("dpkg-query") is None:
        return None
    query = ["dpkg-query", "-W", "-f", "${Status}", name]
    done = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
    return done.stdout.strip() == "install ok installed"


def missing():
    """[(Debian package, what it is for)]"""
    python = "python{}.{}".format(*sys.version_info)
    debian_python = sys.executable.startswith("/usr/bin/")
    found = []
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        found.append((python + "-venv", "virtual environments of Python"))
    if not (compiles("cc") and compiles("c++")):
        found.append(("build-essential", "a C and C++ compiler, for the ROS interfaces"))
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        found.append((python + "-dev" if debian_python else "python3-dev", "headers of Python, for the ROS interfaces"))
    if not loads("libEGL.so.1"):
        found.append(("libegl1", "off-screen rendering"))
    if not loads("libEGL_mesa.so.0") and not loads("libEGL_nvidia.so.0"):
        found.append(("libegl-mesa0", "off-screen rendering"))
    if has_package("libgl1-mesa-dri") is False and not loads("libEGL_nvidia.so.0"):
        found.append(("libgl1-mesa-dri", "off-screen rendering on the CPU"))
    return found


def apt_install(packages):
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    command = ["apt-get", "install", "-y", "--no-install-recommends"] + packages
    if subprocess.call(command, env=environment) != 0:
        subprocess.call(["apt-get", "update"], env=environment)
        subprocess.call(command, env=environment)


def main():
    version = "{}.{}".format(*sys.version_info)
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        sys.exit(
            "error: {} is Python {}, but 3.10 to 3.13 is needed (ROS 2 wheels exist for these).\n"
            "Install one and name it: make PYTHON=python3.11 ...".format(sys.executable, version)
        )
    if platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
        sys.exit(
            "error: the ROS 2 wheels exist for Linux on x86-64 only, this is {} on {}.\n"
            "Use a ROS 2 installation and `colcon build` instead (README).".format(sys.platform, platform.machine())
        )
    found = missing()
    if found and os.geteuid() == 0 and shutil.which("apt-get") and not os.environ.get("VLA_NO_APT"):
        print("installing with apt: " + " ".join(name for name, _ in found), flush=True)
        apt_install([name for name, _ in found])
        found = missing()
    if found:
        lines = ["error: system packages are missing:"]
        lines += ["  {:<20} {}".format(name, purpose) for name, purpose in found]
        lines += ["Install them with:", "  sudo apt-get install -y " + " ".join(name for name, _ in found)]
        sys.exit("\n".join(lines))


if __name__ == "__main__":
    main()
