"""The built-in MuJoCo world: table-top, arm, tasks, and the privileged expert that makes demonstrations."""

import os

# MuJoCo's own default asks for a window system. EGL draws off screen, in software too; a set MUJOCO_GL wins.
os.environ.setdefault("MUJOCO_GL", "egl")
