"""A strict subset of `launch` and `launch_ros`, enough to execute this package's launch files where ROS 2's launch is
not installed. A launch file turns into a list of processes with the argv that launch_ros would use.

Whatever is outside the subset (symbol, argument, type) raises `OutsideSubset`, which names it: nothing is skipped in
silence, so a file that runs here means the same under `ros2 launch`.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import os
import re
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vla_ros import paths

USE_ROS2 = "use `ros2 launch` on a ROS 2 installation for this file"


class LaunchError(Exception):
    """A launch file or its arguments are wrong; the message says what to change."""


class OutsideSubset(LaunchError):
    """The launch file uses something that only the real launch has."""

    def __init__(self, symbol: str) -> None:
        super().__init__(f"{symbol} is outside the built-in subset of launch; {USE_ROS2}")
        self.symbol = symbol


def refuse(owner: str, others: Mapping[str, Any]) -> None:
    for name in others:
        raise OutsideSubset(f"{owner}({name}=...)")


@dataclass(frozen=True)
class ProcessPlan:
    """One process, ready to start."""

    name: str  # unique in the session
    argv: tuple[str, ...]  # as launch_ros would build it; argv[0] is the executable's path
    environment: Mapping[str, str]
    start_argv: tuple[str, ...]  # what is really started: with this interpreter for Python executables


@dataclass
class Context:
    configurations: dict[str, str]
    environment: dict[str, str]
    scratch: Path  # parameter files of this run
    log: Callable[[str], None]
    namespace: str = ""
    plans: list[ProcessPlan] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------- substitutions


class Substitution:
    def perform(self, context: Context) -> str:
        raise NotImplementedError


def text_of(value: Any, context: Context) -> str:
    """A str, a substitution, or a sequence of them (concatenated), as everywhere in launch."""
    if isinstance(value, str):
        return value
    if isinstance(value, Substitution):
        return value.perform(context)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Sequence):
        return "".join(text_of(part, context) for part in value)
    raise OutsideSubset(f"a value of type {type(value).__name__} where text is expected")


class TextSubstitution(Substitution):
    def __init__(self, *, text: str) -> None:
        self.text = text

    def perform(self, context: Context) -> str:
        return self.text


class LaunchConfiguration(Substitution):
    def __init__(self, variable_name: Any, *, default: Any = None) -> None:
        self.variable_name, self.default = variable_name, default

    def perform(self, context: Context) -> str:
        name = text_of(self.variable_name, context)
        if name in context.configurations:
            return context.configurations[name]
        if self.default is None:
            raise LaunchError(f"the launch file reads the argument {name!r}, which nothing declares")
        return text_of(self.default, context)


class PathJoinSubstitution(Substitution):
    def __init__(self, substitutions: Iterable[Any]) -> None:
        self.parts = list(substitutions)

    def perform(self, context: Context) -> str:
        return os.path.join(*(text_of(part, context) for part in self.parts))


class EnvironmentVariable(Substitution):
    def __init__(self, name: Any, *, default_value: Any = None) -> None:
        self.name, self.default_value = name, default_value

    def perform(self, context: Context) -> str:
        name = text_of(self.name, context)
        if name in context.environment:
            return context.environment[name]
        if self.default_value is None:
            raise LaunchError(f"environment variable {name!r} is not set")
        return text_of(self.default_value, context)


class FindPackageShare(Substitution):
    def __init__(self, package: Any) -> None:
        self.package = package

    def perform(self, context: Context) -> str:
        package = text_of(self.package, context)
        if package == paths.PACKAGE:
            return str(paths.share_dir())
        for prefix in paths.prefixes():
            if (prefix / "share" / package).is_dir():
                return str(prefix / "share" / package)
        raise LaunchError(f"ROS package {package!r} is not installed")


# ---------------------------------------------------------------------------------------------------- conditions


class IfCondition:
    wanted = True

    def __init__(self, predicate_expression: Any) -> None:
        self.expression = predicate_expression

    def holds(self, context: Context) -> bool:
        text = text_of(self.expression, context).strip().lower()
        if text not in ("true", "1", "false", "0"):
            raise LaunchError(f"a condition must be true, false, 1 or 0, not {text!r}")
        return (text in ("true", "1")) is self.wanted


class UnlessCondition(IfCondition):
    wanted = False


# ---------------------------------------------------------------------------------------------------- actions


class Action:
    def __init__(self, *, condition: IfCondition | None = None, **others: Any) -> None:
        refuse(type(self).__name__, others)
        if condition is not None and not isinstance(condition, IfCondition):
            raise OutsideSubset(f"condition {type(condition).__name__}")
        self.condition = condition

    def visit(self, context: Context) -> None:
        if self.condition is None or self.condition.holds(context):
            self.execute(context)

    def execute(self, context: Context) -> None:
        raise NotImplementedError

    def arguments(self) -> Iterator[DeclareLaunchArgument]:
        """Declared launch arguments, also those of what is inside."""
        return iter(())


class LaunchDescription:
    def __init__(self, initial_entities: Iterable[Action] | None = None) -> None:
        self.entities: list[Action] = []
        for entity in initial_entities or ():
            self.add_action(entity)

    def add_action(self, action: Action) -> None:
        if not isinstance(action, Action):
            raise OutsideSubset(f"{type(action).__name__} in a LaunchDescription")
        self.entities.append(action)

    def visit(self, context: Context) -> None:
        for entity in self.entities:
            entity.visit(context)

    def arguments(self) -> Iterator[DeclareLaunchArgument]:
        for entity in self.entities:
            yield from entity.arguments()


class DeclareLaunchArgument(Action):
    def __init__(
        self,
        name: str,
        *,
        default_value: Any = None,
        description: str = "",
        choices: Iterable[str] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.name, self.default_value, self.description = name, default_value, description
        self.choices = None if choices is None else list(choices)

    def execute(self, context: Context) -> None:
        if self.name not in context.configurations:
            if self.default_value is None:
                raise LaunchError(f"launch argument {self.name!r} has no default: give {self.name}:=VALUE")
            context.configurations[self.name] = text_of(self.default_value, context)
        value = context.configurations[self.name]
        if self.choices is not None and value not in self.choices:
            raise LaunchError(
                f"launch argument {self.name}:={value} is not valid; allowed: {', '.join(self.choices)}"
                + (f" ({self.description})" if self.description else "")
            )

    def arguments(self) -> Iterator[DeclareLaunchArgument]:
        yield self


class SetLaunchConfiguration(Action):
    def __init__(self, name: Any, value: Any, **others: Any) -> None:
        super().__init__(**others)
        self.name, self.value = name, value

    def execute(self, context: Context) -> None:
        context.configurations[text_of(self.name, context)] = text_of(self.value, context)


class SetEnvironmentVariable(Action):
    def __init__(self, name: Any, value: Any, **others: Any) -> None:
        super().__init__(**others)
        self.name, self.value = name, value

    def execute(self, context: Context) -> None:
        context.environment[text_of(self.name, context)] = text_of(self.value, context)


class LogInfo(Action):
    def __init__(self, *, msg: Any, **others: Any) -> None:
        super().__init__(**others)
        self.msg = msg

    def execute(self, context: Context) -> None:
        context.log(text_of(self.msg, context))


class GroupAction(Action):
    """Scoped, as in launch: configurations, environment and namespace set inside end with the group."""

    def __init__(self, actions: Iterable[Action], *, scoped: bool = True, **others: Any) -> None:
        super().__init__(**others)
        self.inside = LaunchDescription(actions)
        self.scoped = scoped

    def execute(self, context: Context) -> None:
        saved = (dict(context.configurations), dict(context.environment), context.namespace)
        self.inside.visit(context)
        if self.scoped:
            context.configurations, context.environment, context.namespace = saved

    def arguments(self) -> Iterator[DeclareLaunchArgument]:
        return self.inside.arguments()


class PythonLaunchDescriptionSource:
    def __init__(self, launch_file_path: Any) -> None:
        self.location = launch_file_path


class IncludeLaunchDescription(Action):
    def __init__(
        self,
        launch_description_source: Any,
        *,
        launch_arguments: Iterable[tuple[Any, Any]] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        if not isinstance(launch_description_source, PythonLaunchDescriptionSource):
            raise OutsideSubset(f"launch description source {type(launch_description_source).__name__}")
        self.source = launch_description_source
        self.launch_arguments = list(launch_arguments or ())
        self.loaded: LaunchDescription | None = None

    def load(self, location: str) -> LaunchDescription:
        if self.loaded is None:
            self.loaded = load_description(Path(location))
        return self.loaded

    def execute(self, context: Context) -> None:
        for name, value in self.launch_arguments:  # not scoped: they stay set after the include, as in launch
            context.configurations[text_of(name, context)] = text_of(value, context)
        self.load(text_of(self.source.location, context)).visit(context)

    def arguments(self) -> Iterator[DeclareLaunchArgument]:
        if not isinstance(self.source.location, (str, os.PathLike)):  # launch cannot look inside these either
            return iter(())
        given = {name for name, _ in self.launch_arguments if isinstance(name, str)}
        return (a for a in self.load(os.fspath(self.source.location)).arguments() if a.name not in given)


class PushRosNamespace(Action):
    def __init__(self, namespace: Any, **others: Any) -> None:
        super().__init__(**others)
        self.namespace = namespace

    def execute(self, context: Context) -> None:
        context.namespace = join_namespace(context.namespace, text_of(self.namespace, context))


class ParameterValue:
    def __init__(self, value: Any, *, value_type: Any = None) -> None:
        if value_type not in (str, int, float, bool):
            raise OutsideSubset(f"ParameterValue(value_type={value_type!r})")
        self.value, self.value_type = value, value_type

    def evaluate(self, context: Context) -> Any:
        if isinstance(self.value, (bool, int, float)):
            return self.value_type(self.value)
        text = text_of(self.value, context)
        return text if self.value_type is str else typed(text, self.value_type)


def typed(text: str, kind: type) -> Any:
    value = yaml.safe_load(text)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise LaunchError(f"{text!r} is not of type {kind.__name__}")
    return value


def parameter(value: Any, context: Context) -> Any:
    if isinstance(value, ParameterValue):
        return value.evaluate(context)
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Substitution):
        return yaml.safe_load(text_of(value, context))  # launch_ros reads untyped substitutions as YAML
    raise OutsideSubset(f"a node parameter of type {type(value).__name__} (wrap it in ParameterValue)")


def join_namespace(base: str, namespace: str) -> str:
    if namespace.startswith("/"):
        return namespace
    joined = "/".join(part for part in (base.strip("/"), namespace.strip("/")) if part)
    return f"/{joined}" if joined else ""


class Node(Action):
    def __init__(
        self,
        *,
        executable: Any,
        package: Any = None,
        name: Any = None,
        namespace: Any = None,
        parameters: Iterable[Any] | None = None,
        remappings: Iterable[tuple[Any, Any]] | None = None,
        arguments: Iterable[Any] | None = None,
        ros_arguments: Iterable[Any] | None = None,
        output: Any = "log",
        emulate_tty: bool = False,
        **others: Any,
    ) -> None:
        condition = others.pop("condition", None)
        refuse("Node", others)
        super().__init__(condition=condition)
        if package is None:
            raise OutsideSubset("Node without a package")
        if output not in ("log", "screen", "both"):
            raise OutsideSubset(f"Node(output={output!r})")
        self.executable, self.package, self.name, self.namespace = executable, package, name, namespace
        self.parameters, self.remappings = list(parameters or ()), list(remappings or ())
        self.command_arguments = list(arguments or ())
        self.ros_arguments = None if ros_arguments is None else list(ros_arguments)

    def execute(self, context: Context) -> None:
        package, executable = text_of(self.package, context), text_of(self.executable, context)
        name = None if self.name is None else valid_name(text_of(self.name, context), "node name")
        own = "" if self.namespace is None else text_of(self.namespace, context)
        namespace = join_namespace(context.namespace, own)
        for part in namespace.split("/")[1:]:
            valid_name(part, "namespace")

        rest = [text_of(a, context) for a in self.command_arguments]
        if self.ros_arguments is not None:
            rest += ["--ros-args", *(text_of(a, context) for a in self.ros_arguments)]
        rest.append("--ros-args")
        if name is not None:
            rest += ["-r", f"__node:={name}"]
        if namespace:
            rest += ["-r", f"__ns:={namespace}"]
        for item in self.parameters:
            rest += ["--params-file", self.parameter_file(item, name, namespace, context)]
        for source, target in self.remappings:
            rest += ["-r", f"{text_of(source, context)}:={text_of(target, context)}"]

        unique, n = name or executable, 1
        while unique in {plan.name for plan in context.plans}:
            n += 1
            unique = f"{name or executable}-{n}"
        path, start = resolve_executable(package, executable)
        context.plans.append(ProcessPlan(unique, (path, *rest), dict(context.environment), (*start, *rest)))

    def parameter_file(self, item: Any, name: str | None, namespace: str, context: Context) -> str:
        if not isinstance(item, Mapping):
            path = text_of(item, context)
            if not Path(path).is_file():  # launch_ros only warns: a wrong path must not start with other parameters
                raise LaunchError(f"parameter file {path!r} does not exist")
            return path
        values = {text_of(key, context): parameter(value, context) for key, value in item.items()}
        full_name = f"{namespace}/{name}" if name and namespace else "/**"
        with tempfile.NamedTemporaryFile("w", prefix="launch_params_", dir=context.scratch, delete=False) as file:
            yaml.dump({full_name: {"ros__parameters": values}}, file, default_flow_style=False)
        return file.name


def valid_name(text: str, what: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise LaunchError(f"{what} {text!r} is not valid: letters, digits and _ only, not starting with a digit")
    return text


def resolve_executable(package: str, executable: str) -> tuple[str, tuple[str, ...]]:
    """Path that launch_ros would use, and the start of the argv that works here.

    pip leaves `#!/usr/bin/env python3` in lib/<package>/ as it is, so a Python executable is started with the
    interpreter that runs us. In a source tree that was not installed, the module is started instead.
    """
    for prefix in paths.prefixes():
        path = prefix / "lib" / package / executable
        if path.is_file() and os.access(path, os.X_OK):
            with path.open("rb") as file:
                is_python = b"python" in file.readline()
            return str(path), (sys.executable, str(path)) if is_python else (str(path),)
    module = f"{paths.PACKAGE}.nodes.{executable}"
    if package == paths.PACKAGE and re.fullmatch(r"\w+", executable) and importlib.util.find_spec(module):
        return module, (sys.executable, "-m", module)
    raise LaunchError(
        f"executable {executable!r} of package {package!r} was not found below lib/{package}/ of "
        + ", ".join(str(prefix) for prefix in paths.prefixes())
    )


# ---------------------------------------------------------------------------------------------------- loading

SUBSET: dict[str, tuple[Any, ...]] = {
    "launch": (LaunchDescription,),
    "launch.actions": (
        DeclareLaunchArgument,
        GroupAction,
        IncludeLaunchDescription,
        LogInfo,
        SetEnvironmentVariable,
        SetLaunchConfiguration,
    ),
    "launch.conditions": (IfCondition, UnlessCondition),
    "launch.launch_description_sources": (PythonLaunchDescriptionSource,),
    "launch.substitutions": (EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution, TextSubstitution),
    "launch_ros": (),
    "launch_ros.actions": (Node, PushRosNamespace),
    "launch_ros.parameter_descriptions": (ParameterValue,),
    "launch_ros.substitutions": (FindPackageShare,),
}


class SubsetModule(types.ModuleType):
    def __getattr__(self, symbol: str) -> Any:
        if symbol.startswith("__"):  # asked by the import system itself
            raise AttributeError(symbol)
        raise OutsideSubset(f"{self.__name__}.{symbol}")


class RefuseOthers(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname.partition(".")[0] in ("launch", "launch_ros"):
            raise OutsideSubset(f"module {fullname}")


def is_launch_module(name: str) -> bool:
    return name.partition(".")[0] in ("launch", "launch_ros")


@contextlib.contextmanager
def subset_in_sys_modules() -> Iterator[None]:
    """While it lasts `launch` means the subset, also where the real one is imported. Not thread-safe."""
    saved = {name: sys.modules.pop(name) for name in list(sys.modules) if is_launch_module(name)}
    finder = RefuseOthers()
    sys.meta_path.insert(0, finder)
    for name, symbols in SUBSET.items():
        module = SubsetModule(name)
        module.__path__ = []  # a package: submodules are asked for and refused by name
        for symbol in symbols:
            setattr(module, symbol.__name__, symbol)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if is_launch_module(name)]:
            del sys.modules[name]
        sys.modules.update(saved)


def load_description(file: Path) -> LaunchDescription:
    if not file.name.endswith(".py"):
        raise OutsideSubset(f"launch file {file.name} (only Python launch files)")
    if not file.is_file():
        raise LaunchError(f"launch file {str(file)!r} does not exist")
    module = types.ModuleType("launch_file")
    module.__file__ = str(file)
    with subset_in_sys_modules():
        exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), module.__dict__)  # as launch itself does
        if not hasattr(module, "generate_launch_description"):
            raise LaunchError(f"{file} defines no generate_launch_description()")
        description = module.generate_launch_description()
    if not isinstance(description, LaunchDescription):
        raise LaunchError(f"generate_launch_description() of {file} returned a {type(description).__name__}")
    return description
