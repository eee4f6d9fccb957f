"""The whole graph with a simulated arm and cameras.

ros2 launch vla_ros sim.launch.py        vla launch sim robot:=panda seed:=7
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue


def generate_launch_description():
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "engine",
                default_value="mujoco",
                choices=["mujoco"],
                description="physics engine; gazebo is not supported yet",
            ),
            DeclareLaunchArgument(
                "family", default_value="", description="task family the scene is drawn for; empty: any"
            ),
            DeclareLaunchArgument(
                "render",
                default_value="true",
                choices=["true", "false"],
                description="false: no camera images; the arm then holds",
            ),
            # A plain path, not a substitution: only then does `ros2 launch --show-args` look inside.
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(Path(__file__).resolve().parent / "core.launch.py"))
            ),
            Node(
                package="vla_ros",
                executable="sim",
                name="sim",
                namespace=LaunchConfiguration("namespace"),
                output="screen",
                ros_arguments=["--log-level", LaunchConfiguration("log_level"), "--enclave", "/vla/sim"],
                parameters=[
                    LaunchConfiguration("params_file"),
                    {
                        "contract": ParameterValue(LaunchConfiguration("robot"), value_type=str),
                        "seed": ParameterValue(LaunchConfiguration("seed"), value_type=int),
                        "family": ParameterValue(LaunchConfiguration("family"), value_type=str),
                        "render": ParameterValue(LaunchConfiguration("render"), value_type=bool),
                    },
                ],
            ),
        ]
    )
