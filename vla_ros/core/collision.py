"""Distance of the arm to itself, from the collision primitives of its URDF (fault C3). pinocchio and coal compute it.

Which pairs of shapes are looked at is computed from the model once per arm:

* shapes of one joint, or of two joints next to each other, touch by design: left out;
* pairs closer than HOLD_M nearly everywhere touch by design as well (shapes that overlap at a double joint): left out;
* a pair with one joint between them has two degrees of freedom, which the samples cover densely; if it never
  touches, the arm's own build keeps it apart, however near it comes (forearm and flange of the Panda: 14 mm): left out.

An object holds work memory and is not thread-safe: each owner makes its own.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pinocchio as pin

from vla_ros.core.contract import Contract
from vla_ros.core.kinematics import Kinematics, read_urdf
from vla_ros.core.types import FloatArray

HOLD_M = 0.015  # fault C3
SAMPLES = 1000  # choice: poses by which pairs are judged; 0.15 s once per process
ALWAYS_SHARE = 0.95  # choice: closer than HOLD_M in this share of the poses is "always"


class SelfCollision:
    def __init__(self, contract: Contract, kinematics: Kinematics) -> None:
        limits = contract.limits
        self._to_model = kinematics.to_model
        self._model = read_urdf(contract.urdf_path, contract.joint_names)[0]
        lo, hi = self._to_model(limits.q_lo_rad), self._to_model(limits.q_hi_rad)
        self._geometry = _geometry(contract.urdf_path, contract.joint_names, tuple(lo.tolist()), tuple(hi.tolist()))
        self._data, self._geometry_data = self._model.createData(), self._geometry.createData()

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Names of the shapes that are looked at, two by two."""
        shapes = self._geometry.geometryObjects
        return [(shapes[pair.first].name, shapes[pair.second].name) for pair in self._geometry.collisionPairs]

    def distance(self, q: FloatArray) -> float:
        """Smallest distance [m] between two parts of the arm at `q` (n,); negative when they overlap."""
        if not self._geometry.collisionPairs:
            return float(np.inf)
        pairs = self._geometry_data
        nearest = pin.computeDistances(self._model, self._data, self._geometry, pairs, self._to_model(q))
        return float(pairs.distanceResults[nearest].min_distance)


@lru_cache(maxsize=8)
def _geometry(
    urdf: Path, joint_names: tuple[str, ...], lo: tuple[float, ...], hi: tuple[float, ...]
) -> pin.GeometryModel:
    """Collision shapes with the pairs to look at. Shared and read only. `lo`, `hi`: joint range in model order."""
    model, shared = read_urdf(urdf, joint_names)
    geometry = shared.copy()
    geometry.removeAllCollisionPairs()
    joints = [shape.parentJoint for shape in geometry.geometryObjects]
    for first in range(len(joints)):
        for second in range(first + 1, len(joints)):
            if _joints_between(model, joints[first], joints[second]) > 0:
                geometry.addCollisionPair(pin.CollisionPair(first, second))
    pairs = list(geometry.collisionPairs)
    data, geometry_data = model.createData(), geometry.createData()
    rng = np.random.default_rng(0)
    distances = np.empty((SAMPLES, len(pairs)))
    for k in range(SAMPLES):
        pin.computeDistances(model, data, geometry, geometry_data, rng.uniform(lo, hi))
        distances[k] = [result.min_distance for result in geometry_data.distanceResults]
    geometry.removeAllCollisionPairs()
    for pair, column in zip(pairs, distances.T, strict=True):
        always = np.mean(column < HOLD_M) > ALWAYS_SHARE
        kept_apart = _joints_between(model, joints[pair.first], joints[pair.second]) == 1 and np.all(column > 0.0)
        if not (always or kept_apart):
            geometry.addCollisionPair(pair)
    return geometry


def _joints_between(model: pin.Model, first: int, second: int) -> int:
    """Joints on the way from one body to the other, less one; below 1: same body or neighbours."""
    a, b = list(model.supports[first]), list(model.supports[second])
    return len(set(a) ^ set(b)) - 1
