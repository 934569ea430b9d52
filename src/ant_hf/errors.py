"""The one exception family a user sees: what is wrong, what was seen, what to type next."""

from __future__ import annotations


class AntError(Exception):
    """A mistake in the input or the surroundings that the user can mend.

    The command line prints it as one message and exits with code 2, without a traceback.

    Args:
        what: what is wrong; names the file, key or device.
        seen: the value that was found.
        expected: the limit or the allowed values.
        hint: what to type or change next.
    """

    def __init__(
        self, what: str, *, seen: object | None = None, expected: str | None = None, hint: str | None = None
    ) -> None:
        parts = [what]
        if seen is not None:
            parts.append(f"saw {seen!r}")
        if expected is not None:
            parts.append(f"expected {expected}")
        message = "; ".join(parts)
        super().__init__(f"{message}. {hint}" if hint else message)


class RunStopped(Exception):  # noqa: N818 (no error: a run that can be continued)
    """A run left before its end, to be continued; the command line exits with code 75.

    75 is EX_TEMPFAIL of sysexits.h, "try again later", so that a script can tell it from a mistake.
    """

    exit_code = 75


class Interrupted(RunStopped):
    """SIGINT or SIGTERM ended a command; what was complete is kept."""


def missing_file(path: object, what: str, hint: str) -> AntError:
    """The error for a path that should exist and does not."""
    return AntError(f"{what} not found: {path}", hint=hint)
