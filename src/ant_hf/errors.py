"""The one exception family a user sees: what is wrong, what was seen, what to type next."""

from __future__ import annotations

import re

# Sequences that colour, move or rename a terminal, and any other control but tab and line end.
_CONTROL_CODES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[@-Z\\]|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def without_control_codes(text: str) -> str:
    """A text as a terminal may get it: those of servers, files and models can hold anything."""
    return _CONTROL_CODES.sub("", text)


class AntError(Exception):
    """A mistake in the input or the surroundings that the user can correct.

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
        super().__init__(without_control_codes(f"{message}. {hint}" if hint else message))


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
