#!/usr/bin/env bash
# Style, types, tests. Arguments go to pytest. The last line printed is pytest's own summary.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
export MUJOCO_GL=${MUJOCO_GL:-egl} ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ROS_PYTHON_CHECK_FIELDS=1
status=0
"$bin/ruff" check . || status=1
"$bin/mypy" || status=1
"$bin/python" -m pytest "$@" || status=$?
exit $status
