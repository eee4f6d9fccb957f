"""The graph for a real arm: the drivers of arm and cameras (ros2_control, camera nodes) are started separately.

    ros2 launch vla_ros real.launch.py robot:=panda

Topics of the drivers are named in the contract (config/robots/<robot>.yaml). A contract of a real arm says
`operator_heartbeat: required`.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource


def generate_launch_description():
    return LaunchDescription(
        [
            # A plain path, not a substitution: only then does `ros2 launch --show-args` look inside.
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(Path(__file__).resolve().parent / "core.launch.py"))
            ),
        ]
    )
