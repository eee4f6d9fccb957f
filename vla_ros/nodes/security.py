"""DDS security is either there or the process does not start. Never silently without.

rcl itself takes every value of ROS_SECURITY_ENABLE but "true" for no, and every strategy but "Enforce" for
"Permissive", which starts open nodes where no enclave is found. A slip of spelling would open the graph: it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ENABLE, STRATEGY, KEYSTORE = "ROS_SECURITY_ENABLE", "ROS_SECURITY_STRATEGY", "ROS_SECURITY_KEYSTORE"
REMEDY = "see docs/security.md; to run without DDS security on this machine only, unset ROS_SECURITY_ENABLE"


class SecurityRefused(RuntimeError):
    """DDS security is demanded and cannot be had. The message says what to change."""


def demanded(environment: Mapping[str, str]) -> bool:
    """Raises `SecurityRefused` where that cannot be told."""
    value = environment.get(ENABLE, "")
    if value not in ("", "false", "true"):
        raise SecurityRefused(f"{ENABLE} is {value!r}, allowed: true or false, in lower case; {REMEDY}")
    return value == "true"


def require(environment: Mapping[str, str]) -> None:
    """Before a participant is made. Raises `SecurityRefused` when security is demanded and something is missing."""
    if not demanded(environment):
        return
    missing = []
    if environment.get(STRATEGY) != "Enforce":
        missing.append(f"{STRATEGY} is {environment.get(STRATEGY, '')!r}, allowed: Enforce")
    keystore = environment.get(KEYSTORE, "")
    if not keystore:
        missing.append(f"{KEYSTORE} is not set: the folder that `ros2 security create_keystore` made")
    elif not (Path(keystore) / "enclaves").is_dir():
        missing.append(f"{KEYSTORE} is {keystore!r}, which holds no folder 'enclaves'")
    if missing:
        raise SecurityRefused(f"DDS security is demanded: {'; '.join(missing)}; {REMEDY}")


def explain(error: Exception, environment: Mapping[str, str]) -> Exception:
    """What to raise for an error of the middleware: where security is demanded, that is most likely the reason."""
    if not demanded(environment):
        return error
    return SecurityRefused(
        f"DDS security is demanded and this ROS 2 did not give it ({type(error).__name__}: {error}). Either it was "
        "built without security, as the wheels from PyPI are, or the enclave has no valid keys and permissions; "
        f"{REMEDY}"
    )
