"""The part of the graph that every body shares; sim.launch.py and real.launch.py include it."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare


def generate_launch_description():
    config = PathJoinSubstitution([FindPackageShare("vla_ros"), "config"])

    def node(name, condition=None, **parameters):
        return Node(
            package="vla_ros",
            executable=name,
            name=name,
            namespace=LaunchConfiguration("namespace"),
            output="screen",
            condition=condition,
            ros_arguments=["--log-level", LaunchConfiguration("log_level"), "--enclave", f"/vla/{name}"],
            parameters=[
                LaunchConfiguration("params_file"),
                {"contract": ParameterValue(LaunchConfiguration("robot"), value_type=str), **parameters},
            ],
        )

    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "robot", default_value="panda", description="contract: a shipped name, or the path of a .yaml file"
            ),
            DeclareLaunchArgument("namespace", default_value="vla", description="namespace of every topic and service"),
            DeclareLaunchArgument(
                "policy", default_value="", description="folder of the policy; empty: the one shipped for the robot"
            ),
            DeclareLaunchArgument(
                "seed", default_value="0", description="integer; draws the scene (in simulation) and the policy's noise"
            ),
            DeclareLaunchArgument(
                "operator_heartbeat",
                default_value="contract",
                choices=["contract", "required"],
                description="required: the arm stops when no operator's heartbeat comes, whatever the contract says",
            ),
            DeclareLaunchArgument(
                "security",
                default_value=EnvironmentVariable("ROS_SECURITY_ENABLE", default_value="false"),
                choices=["false", "true"],
                description="true: DDS security (SROS2) with this package's policies, or no start at all",
            ),
            DeclareLaunchArgument(
                "record",
                default_value="false",
                choices=["false", "true"],
                description="true: with the recorder; `vla record` and every goal of the action execute make episodes",
            ),
            DeclareLaunchArgument(
                "joy",
                default_value="false",
                choices=["false", "true"],
                description="true: with teleoperation by a gamepad that speaks sensor_msgs/Joy on `joy`; its driver is "
                "started separately. By keyboard: `vla teleop` in a terminal",
            ),
            DeclareLaunchArgument("record_folder", default_value="episodes", description="folder for the episodes"),
            DeclareLaunchArgument(
                "log_level",
                default_value="info",
                choices=["debug", "info", "warn", "error", "fatal"],
                description="least severe message that nodes print",
            ),
            DeclareLaunchArgument(
                "params_file",
                default_value=PathJoinSubstitution([config, "nodes.yaml"]),
                description="node parameters that are not part of the contract",
            ),
            # With the defaults of Fast DDS nearly every VGA image on best-effort QoS is lost. Set by the user: kept.
            SetEnvironmentVariable(
                "FASTDDS_DEFAULT_PROFILES_FILE",
                EnvironmentVariable(
                    "FASTDDS_DEFAULT_PROFILES_FILE", default_value=PathJoinSubstitution([config, "fastdds.xml"])
                ),
            ),
            # An arm must not listen to the whole network by default.
            SetEnvironmentVariable(
                "ROS_AUTOMATIC_DISCOVERY_RANGE",
                EnvironmentVariable("ROS_AUTOMATIC_DISCOVERY_RANGE", default_value="LOCALHOST"),
            ),
            # As ROS 2 spells them; what a node asks of them before it starts is in vla_ros/nodes/security.py.
            SetEnvironmentVariable("ROS_SECURITY_ENABLE", LaunchConfiguration("security")),
            SetEnvironmentVariable(
                "ROS_SECURITY_STRATEGY", EnvironmentVariable("ROS_SECURITY_STRATEGY", default_value="Enforce")
            ),
            LogInfo(
                msg=[
                    "network: discovery ",
                    EnvironmentVariable("ROS_AUTOMATIC_DISCOVERY_RANGE"),
                    ", transport as in ",
                    EnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE"),
                    ", DDS security ",
                    LaunchConfiguration("security"),
                    ". LOCALHOST and the shipped profile keep the graph on this machine",
                ]
            ),
            # First what brakes, last what proposes motion.
            node("arm_controller"),
            node(
                "supervisor",
                operator_heartbeat=ParameterValue(LaunchConfiguration("operator_heartbeat"), value_type=str),
            ),
            node("perception"),
            node(
                "policy",
                policy_path=ParameterValue(LaunchConfiguration("policy"), value_type=str),
                seed=ParameterValue(LaunchConfiguration("seed"), value_type=int),
            ),
            node(
                "recorder",
                condition=IfCondition(LaunchConfiguration("record")),
                folder=ParameterValue(LaunchConfiguration("record_folder"), value_type=str),
            ),
            node("teleop", condition=IfCondition(LaunchConfiguration("joy"))),
        ]
    )
