"""What was tried and how it ended, for docs/reliability-tables.md. Silent unless `make soak` asks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

_FOLDERS = re.compile(r"(?<!\w)(?:/[\w.@+-]+)*?/(?=(?:incomplete/)?[\w.@+-]+(?![\w@+/-]|\.\w))")


@contextmanager
def tried(fault: str) -> Iterator[SimpleNamespace]:
    """One trial of a fault. Set `message` to what the user reads; a failing block counts as a loss."""
    trial = SimpleNamespace(message="none: the run continues, or the file is made again")
    try:
        yield trial
    except BaseException:
        _write(fault, 1, trial.message)
        raise
    _write(fault, 0, trial.message)


def _write(fault: str, lost: int, message: object) -> None:
    file = os.environ.get("ANT_HF_FAULT_LOG")
    if file:
        row = {"fault": fault, "lost": lost, "message": _FOLDERS.sub("", str(message))}
        with open(file, "a", encoding="utf-8") as handle:  # noqa: PTH123 (one write a line, from several processes)
            handle.write(json.dumps(row) + "\n")
