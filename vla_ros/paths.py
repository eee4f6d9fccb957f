"""Where the package's files lie: beside the code in a source tree, below share/vla_ros in an installed prefix."""

import functools
import os
import re
import sys
from pathlib import Path

PACKAGE = "vla_ros"
INSTALLED, CURRENT = "installed", "current"  # a policy's name for the user, and the link that it stands for
_CODE_DIR = Path(__file__).resolve().parent


class FilesMissing(RuntimeError):
    """The installation is incomplete; the message lists every folder that was searched."""


def source_tree() -> Path | None:
    """Repository root when the code runs from a source tree, else None."""
    root = _CODE_DIR.parent
    return root if (root / "package.xml").is_file() and (root / "config").is_dir() else None


def prefixes() -> list[Path]:
    """Install prefixes that may hold this package, the one this code was imported from first."""
    found = []
    # <prefix>/lib/pythonX.Y/{site,dist}-packages/vla_ros, or <prefix>/local/lib/... in Debian's layout.
    found += [parent for parent in _CODE_DIR.parents if (parent / "share" / PACKAGE).is_dir()]
    found += [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    found.append(Path(sys.prefix))
    return list(dict.fromkeys(found))


@functools.lru_cache(maxsize=1)
def share_dir() -> Path:
    """Folder of config/, launch/ and resource/. A source tree wins over an installed copy, which may be older."""
    root = source_tree()
    if root is not None:
        return root
    searched = [prefix / "share" / PACKAGE for prefix in prefixes()]
    for folder in searched:
        if (folder / "config").is_dir():
            return folder
    raise FilesMissing(
        f"the files of {PACKAGE} (config/, launch/, resource/) were not found; searched: "
        + ", ".join(str(folder) for folder in searched)
        + ". Install the package again (`pip install .` or `colcon build`), or source its setup file."
    )


def config_dir() -> Path:
    return share_dir() / "config"


def launch_dir() -> Path:
    return share_dir() / "launch"


def resource_dir() -> Path:
    return share_dir() / "resource"


def robots_dir() -> Path:
    """Folder that a contract's `urdf` entry is relative to."""
    return resource_dir() / "robots"


def policies_dir() -> Path:
    return resource_dir() / "policies"


def policy_folder(path: str | os.PathLike[str] | None = None, contract: str = "") -> Path:
    """The policy that a user names; without a name the shipped one. `installed`: the one that `vla policy install`
    made current for the contract of that name."""
    if path and os.fspath(path) == INSTALLED and contract:
        return installed_policies() / contract / CURRENT
    return Path(path).expanduser() if path else policies_dir() / "tabletop"


def installed_policies() -> Path:
    """Where a user's installed policies are (XDG base directory specification)."""
    data = os.environ.get("XDG_DATA_HOME", "")
    base = Path(data) if os.path.isabs(data) else Path.home() / ".local" / "share"
    return base / PACKAGE / "policies"


def cached_policies() -> Path:
    """Where graphs that were made of a policy's weights are kept; may be deleted at any time."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    return base / PACKAGE / "policies"


def fastdds_profile() -> Path:
    return config_dir() / "fastdds.xml"


def fastdds_udp_profile() -> Path:
    """Without shared memory."""
    return config_dir() / "fastdds_udp.xml"


def contract_names() -> list[str]:
    """Names of the shipped contracts."""
    return sorted(p.stem for p in (config_dir() / "robots").glob("*.yaml"))


def robot_contract(name_or_path: str | os.PathLike[str]) -> Path:
    """`panda` -> config/robots/panda.yaml; a path to a .yaml file is taken as it is."""
    text = os.fspath(name_or_path)
    if text.endswith((".yaml", ".yml")) or os.sep in text:
        path = Path(text).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"contract file {text!r} does not exist")
        return path.resolve()
    if re.fullmatch(r"[A-Za-z0-9_-]+", text) and (path := config_dir() / "robots" / f"{text}.yaml").is_file():
        return path
    raise FileNotFoundError(
        f"no contract is named {text!r}; shipped: {', '.join(contract_names()) or 'none'}; "
        "or give the path of a .yaml file"
    )


def executable(name: str) -> Path | None:
    """`lib/vla_ros/<name>` of the prefix this code was installed to; None in a source tree that is not installed."""
    for prefix in prefixes():
        path = prefix / "lib" / PACKAGE / name
        if path.is_file():
            return path
    return None


def set_ros_environment(environ: "os._Environ[str] | dict[str, str] | None" = None) -> None:
    """What a sourced setup file and the launch files set otherwise; never replaces what the user has set.

    Call before the first rclpy.init() of a process: Fast DDS reads its profile when the first participant is made.
    """
    target = os.environ if environ is None else environ
    target.setdefault("AMENT_PREFIX_PATH", sys.prefix)  # the wheels leave it unset, and ament_index_python raises
    target.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(fastdds_profile()))
    target.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")


def leave_shared_memory(environ: "os._Environ[str] | dict[str, str] | None" = None) -> None:
    """After `set_ros_environment`, for a process that nobody's death may stall. What the user has set is kept.

    The other profile keeps the process on this host by itself: with the range LOCALHOST, rmw_fastrtps 9.3 adds shared
    memory, and UDP on every interface, to whatever a profile says."""
    target = os.environ if environ is None else environ
    own_profile = Path(target["FASTDDS_DEFAULT_PROFILES_FILE"]).resolve() != fastdds_profile().resolve()
    if own_profile or target["ROS_AUTOMATIC_DISCOVERY_RANGE"] != "LOCALHOST":
        return
    target["FASTDDS_DEFAULT_PROFILES_FILE"] = str(fastdds_udp_profile())
    target["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "SYSTEM_DEFAULT"
