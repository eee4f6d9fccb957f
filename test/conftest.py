"""What tests of several folders share."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import terminal`


@pytest.fixture
def mount_tmpfs(tmp_path):
    """Makes a real file system of so many MB, gone after the test. Skips where nothing may be mounted: root may."""
    mounted = []

    def mount(size_mb):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("may not mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


CLUSTER_ATTEMPTS = 3  # Ray gives its own processes 30 s: a busy machine may need another go


@pytest.fixture(scope="session")
def ray_cluster():
    """Makes a local Ray cluster of two CPUs, which `vla_ros.data.parallel` then joins, as in a Ray job."""
    import ray

    @contextlib.contextmanager
    def cluster(**options):
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
            # Ray's workers import what is installed; a test's modules are not.
            environment.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
            for attempt in range(CLUSTER_ATTEMPTS):
                try:
                    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", **options)
                    break
                except Exception:
                    ray.shutdown()
                    if attempt == CLUSTER_ATTEMPTS - 1:
                        raise
            try:
                yield
            finally:
                ray.shutdown()

    return cluster
