"""Log-likelihoods already computed, kept on disk so that an interrupted evaluation goes on.

One JSON line a request, appended after every batch. The first line names the model and the
conditions; another model's file is refused rather than mixed in.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError
from ant_hf.utils.files import write_text


def request_key(context: list[int], continuation: list[int]) -> str:
    """Hash of a request's token ids; lm-eval's results follow from it and the model alone."""
    ids = array("q", [len(context), *context, *continuation])
    return hashlib.sha256(ids.tobytes()).hexdigest()[:24]


class LikelihoodStore:
    """(log-likelihood in nats, whether greedy) by request key.

    Raises:
        AntError: the file is of another model, or of other conditions.
    """

    def __init__(self, path: Path, conditions: dict[str, Any]) -> None:
        self.path = path
        self._values = _read(path, conditions)
        self.resumed = len(self._values)
        # Rewritten rather than appended to: a kill may have cut the last line. Whole or as it was: another
        # kill must not lose what is kept.
        lines = (_line(key, value) for key, value in self._values.items())
        write_text(path, "".join([json.dumps(conditions) + "\n", *lines]))

    def get(self, key: str) -> tuple[float, bool] | None:
        return self._values.get(key)

    def add(self, values: Iterable[tuple[str, tuple[float, bool]]]) -> None:
        """Keep a batch, in memory and on disk."""
        new = list(values)
        self._values.update(new)
        with self.path.open("a", encoding="utf-8") as handle:
            handle.writelines(_line(key, value) for key, value in new)

    def remove(self) -> None:
        """Delete the file, once the results are written."""
        self.path.unlink(missing_ok=True)


def _line(key: str, value: tuple[float, bool]) -> str:
    return json.dumps([key, value[0], value[1]]) + "\n"


def _read(path: Path, conditions: dict[str, Any]) -> dict[str, tuple[float, bool]]:
    if not path.is_file():
        return {}
    hint = f"Pass --fresh to start over, or remove {path}."
    first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    try:
        recorded = json.loads(first)
    except ValueError:
        recorded = None
    if not isinstance(recorded, dict) or set(recorded) != set(conditions):
        raise AntError(f"{path} is damaged", seen=first[:40], hint=hint)
    for name, value in conditions.items():
        if recorded[name] != value:
            raise AntError(
                f"an interrupted evaluation here had another {name.replace('_', ' ')}",
                seen=recorded[name],
                expected=str(value),
                hint=hint,
            )
    values = {}
    for line in lines:
        try:
            key, nats, greedy = json.loads(line)
        except ValueError:
            # The line that a kill cut short; its batch is scored again.
            continue
        values[str(key)] = (float(nats), bool(greedy))
    return values
