"""The log of a run, `metrics.jsonl`, and its units. Imports no torch, so that plots need none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError
from ant_hf.utils.files import read_json_rows


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut short by a kill is left out.

    Raises:
        AntError: the file cannot be read, or a line before the last is damaged (names the line).
    """
    rows = []
    for where, row in read_json_rows(path, may_be_cut=True) if path.exists() else ():
        if type(row.get("step")) is not int:
            raise AntError(f"{where}, is no row of metrics", seen=str(row)[:80])
        rows.append(row)
    return rows


def exp(value: float) -> float:
    """E to the power of nats, infinite where a float ends."""
    return math.exp(value) if value < 700 else math.inf
