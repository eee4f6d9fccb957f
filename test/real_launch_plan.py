"""Print, as JSON, what ROS 2's own launch would start for a launch file. Run as a process by test_launch_runner.py.

python real_launch_plan.py VARIABLE,VARIABLE FILE [name:=value ...]
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)

from launch import LaunchContext
from launch.actions import ExecuteProcess, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.utilities import perform_substitutions


def main() -> None:
    file, *arguments = sys.argv[2:]
    plans = []

    def record(self, context):  # instead of starting the process
        argv = [perform_substitutions(context, part) for part in self.cmd]
        files = {a: Path(a).read_text() for a in argv if Path(a).name.startswith("launch_params_")}
        for path in files:
            os.unlink(path)
        environment = {k: v for k, v in context.environment.items() if k in sys.argv[1].split(",")}
        plans.append({"argv": argv, "files": files, "environment": environment})

    def visit(entity, context):
        for inner in entity.visit(context) or []:
            visit(inner, context)

    ExecuteProcess.execute = record
    context = LaunchContext()
    given = [tuple(argument.split(":=", 1)) for argument in arguments]
    visit(IncludeLaunchDescription(PythonLaunchDescriptionSource(file), launch_arguments=given), context)
    print(json.dumps(plans))


if __name__ == "__main__":
    main()
