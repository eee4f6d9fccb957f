"""Thin rclpy shells over the pure objects, one file each."""

import os

# Before numpy is imported: arrays here are small, and threads of a numeric library would only disturb the loops.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
