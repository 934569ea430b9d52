"""The log of a run, `metrics.jsonl`, and its units. Imports no torch, so that plots need none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut short by a kill is left out.

    Raises:
        AntError: the file cannot be read, or a line before the last is damaged (names the line).
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AntError(f"{path} cannot be read: {error}") from None
    rows = []
    # What stands after the last line end was cut short, or is empty.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise AntError(f"{path} line {number} is damaged: {error}", hint="Remove that line.") from None
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise AntError(f"{path} line {number} is no row of metrics", seen=line[:80])
        rows.append(row)
    return rows


def exp(value: float) -> float:
    """E to the power of nats, infinite where a float ends."""
    return math.exp(value) if value < 700 else math.inf
