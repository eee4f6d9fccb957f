"""The scripted expert: privileged, for demonstrations only, never imported by the running graph.

It is a function of the present state: given where things are, it returns the chunk of tool poses that a good operator
would follow from here, for every task that makes sense in the scene. So a disturbed state gets a recovery as its
label, and one picture serves several sentences (both made training several times cheaper, see docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_ros.sim.expert.grasping import Drawer, Pick, Place
from vla_ros.sim.expert.motion import DT_S, Skill, down, rotation_vector
from vla_ros.sim.expert.touching import Press, Push
from vla_ros.sim.tasks import Task
from vla_ros.sim.world import World

ROWS = 16
SKILLS: dict[str, Callable[[World, Task], Skill]] = {  # one for each family of sim.tasks
    "pick": Pick,
    "put": Place,
    "stack": Place,
    "push": Push,
    "press": Press,
    "drawer": Drawer,
}


@dataclass
class Labels:
    """What the expert says about one state. K tasks."""

    tasks: list[Task]
    # (K, ROWS, 7): position [m] and rotation vector [rad] relative to the tool, base axes; opening 0..1
    chunk: np.ndarray
    done: np.ndarray  # (K,) bool
    aux: np.ndarray  # (K, 7): what to move - tool, where to - tool [m], 1 if there is such a place


def label(world: World, tasks: list[Task], rows: int = ROWS) -> Labels:
    """Plan every task in `tasks` from the world's present state, `rows` rows ahead."""
    rotation, tool = world.tool_pose()
    chunk = np.zeros((len(tasks), rows, 7))
    done, aux = np.zeros(len(tasks), dtype=bool), np.zeros((len(tasks), 7))
    for k, task in enumerate(tasks):
        skill = SKILLS[task.family](world, task)
        done[k] = skill.done()
        thing, place = skill.points()
        aux[k, :3] = thing - tool
        if place is not None:
            aux[k, 3:6], aux[k, 6] = place - tool, 1.0
        s, yaw = skill.state, np.zeros(rows)
        for row in range(rows):
            chunk[k, row, 6] = skill.step(s)
            chunk[k, row, :3] = s.x, s.y, s.z
            yaw[row] = s.yaw
        chunk[k, :, :3] -= tool
        chunk[k, :, 3:6] = rotation_vector(down(yaw) @ rotation.T)
    return Labels(tasks, chunk, done, aux)


__all__ = ["DT_S", "ROWS", "SKILLS", "Labels", "down", "label"]
