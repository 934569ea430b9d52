"""The outcome of a check and of a gate, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

PASSED, REFUSED = "passed", "refused"


@dataclass(frozen=True)
class Check:
    """One thing the gate looked at."""

    name: str
    passed: bool | None
    """None when there was nothing to check it against."""
    seen: str
    """The numbers or the reason, in one line."""
    numbers: dict[str, Any] = field(default_factory=dict)


def verdict(checks: list[Check]) -> str:
    """`passed` unless a check failed."""
    return REFUSED if any(check.passed is False for check in checks) else PASSED


def as_json(checks: list[Check]) -> list[dict[str, Any]]:
    return [asdict(check) for check in checks]


def from_json(values: list[dict[str, Any]]) -> list[Check]:
    return [Check(**value) for value in values]
