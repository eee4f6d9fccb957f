"""Errors a person can act on. This is the leaf of the package: it imports nothing of ours."""

from __future__ import annotations

from collections.abc import Sequence


class VlaError(Exception):
    """Base of every error that vla_ros raises on purpose."""


class Invalid(VlaError):
    """One value outside what is allowed. `reason` is a stable id where the value came from another process."""

    def __init__(self, field: str, value: object, allowed: str, remedy: str = "", reason: str = "invalid") -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        self.remedy = remedy
        self.reason = reason
        shown = repr(value)
        if len(shown) > 120:  # a whole image or chunk in a log line helps nobody
            shown = shown[:117] + "..."
        message = f"{field} is {shown}, allowed: {allowed}"
        super().__init__(f"{message}. {remedy}" if remedy else message)


class ContractInvalid(VlaError):
    """A robot contract with at least one violation; lists all of them."""

    def __init__(self, source: str, violations: Sequence[Invalid]) -> None:
        self.source = source
        self.violations = tuple(violations)
        lines = "\n".join(f"  - {violation}" for violation in self.violations)
        super().__init__(f"{source}: {len(self.violations)} violation(s)\n{lines}")


class Refused(VlaError):
    """An instruction that is not taken, with the reason in words for the person who gave it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
