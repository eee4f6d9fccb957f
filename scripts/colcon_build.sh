#!/usr/bin/env bash
# `colcon build` of this tree over the ROS wheels of a virtual environment, into a folder of its own. On a normal ROS 2
# installation none of this is needed: source it and run `colcon build`.
#   scripts/colcon_build.sh FOLDER     environment: VENV (default .venv)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
prefix=$(cd "${VENV:-$root/.venv}" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
python=$prefix/bin/python

# The wheels have no setup file: the environment is what it would have set.
export AMENT_PREFIX_PATH=$prefix CMAKE_PREFIX_PATH=$prefix PATH=$prefix/bin:$PATH
export COLCON_LOG_PATH=$out/log COLCON_HOME=$out/home CMAKE_GENERATOR=Ninja CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-2}

# From a copy: CMake refuses to export include folders (numpy's, in .venv) that lie inside the source folder.
rm -rf "$out/src"
mkdir -p "$out/src"
tar -C "$root" --exclude=__pycache__ -cf - package.xml CMakeLists.txt cmake msg srv action launch config resource scripts \
  vla_ros | tar -C "$out/src" -xf -

"$python" -m colcon build --base-paths "$out/src" --packages-select vla_ros \
  --build-base "$out/build" --install-base "$out/install" --merge-install \
  --cmake-args "-DCMAKE_PROJECT_INCLUDE=$out/src/cmake/wheels.cmake" "-DPython3_EXECUTABLE=$python" -DBUILD_TESTING=OFF \
  -DCMAKE_BUILD_TYPE=Release
