"""Contact seen in the joint torques (C6): what the arm's motion does not explain, something else pushes with.

Generalised-momentum observer (De Luca and Mattone 2005): p = M(q) v; its change is the measured torque, Coriolis,
gravity and the torque from outside. It needs no acceleration, which encoders give only as noise.
"""

from __future__ import annotations

import math

import numpy as np
import pinocchio as pin

from vla_ros.core.kinematics import Kinematics
from vla_ros.core.types import FloatArray, JointSample

GAIN_1_S = 60.0  # choice: the estimate follows a contact with a time constant of 17 ms
THRESHOLD_NM, THRESHOLD_SHARE = 20.0, 0.5  # choice: at most this, and this share of the joint's effort limit
CONTACT_FOR_S = 0.02  # C6
GAP_MAX_S = 0.05  # older samples do not belong to the same motion
ROTOR_INERTIA_KG_M2 = 0.1  # choice: of a geared drive, seen at the joint; the URDF has no field for it


class TorqueWatch:
    """Give it every new sample with effort. One thread."""

    def __init__(self, kinematics: Kinematics) -> None:
        self._model, self._order = kinematics.model, kinematics.order
        self._data = self._model.createData()
        limit = np.array(self._model.effortLimit)  # (n,), model order
        self.threshold_nm = np.minimum(THRESHOLD_NM, THRESHOLD_SHARE * limit)[self._order]
        self._reset()

    def _reset(self) -> None:
        self._sample_at_s = -math.inf
        self._below_s = math.inf  # newest time at which the estimate was small; inf: nothing known yet
        self._integral: FloatArray = np.zeros(self._model.nv)
        self._residual: FloatArray = np.zeros(self._model.nv)
        self._tau: FloatArray = np.zeros(self._model.nv)
        self.monitored = False

    @property
    def external_nm(self) -> FloatArray:
        """(n,) torque from outside, contract order."""
        external: FloatArray = self._residual[self._order]
        return external

    @property
    def contact(self) -> bool:
        return self._sample_at_s - self._below_s >= CONTACT_FOR_S - 1e-9

    def take(self, sample: JointSample) -> None:
        if sample.effort_nm is None:
            if self.monitored:
                self._reset()
            return
        dt_s = sample.measured_at_s - self._sample_at_s
        if dt_s <= 0.0:
            return
        q, v, tau = np.empty((3, self._model.nv))
        q[self._order], v[self._order], tau[self._order] = sample.q_rad, sample.qd_rad_s, sample.effort_nm
        M = pin.crba(self._model, self._data, q)
        p = (np.triu(M) + np.triu(M, 1).T) @ v + ROTOR_INERTIA_KG_M2 * v  # crba fills the upper half
        if not dt_s <= GAP_MAX_S:
            self._reset()
            self._integral, self._tau, self._below_s = p, tau, sample.measured_at_s
        else:
            C = pin.computeCoriolisMatrix(self._model, self._data, q, v)
            g = pin.computeGeneralizedGravity(self._model, self._data, q)
            self._integral = self._integral + dt_s * (0.5 * (tau + self._tau) + C.T @ v - g)
            # Implicit step of r = K (p - integral of (known + r)): stable for every dt.
            self._residual = GAIN_1_S * (p - self._integral) / (1.0 + GAIN_1_S * dt_s)
            self._integral = self._integral + dt_s * self._residual
            self._tau = tau
        self._sample_at_s, self.monitored = sample.measured_at_s, True
        if not (np.abs(self.external_nm) > self.threshold_nm).any():
            self._below_s = sample.measured_at_s
