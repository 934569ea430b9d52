"""Arithmark-2.0: the schema the set must have, and a seeded stand-in for machines without the Hub.

Facts of the set, as its public card and third-party scripts read it: 2,500 rows, of 1, 2 and 3 operators
(1,250 / 750 / 500), `ctx` such as "59 + 45 =", four `endings` that begin with a space, `label`,
`metadata.operator_count`. The stand-in has the same shape and other numbers, so its results carry
another name.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError

SLICES = {1: 1250, 2: 750, 3: 500}
_FORMS = {
    1: ("{a} {x} {b}",),
    2: ("{a} {x} {b} {y} {c}",),
    3: ("({a} {x} {b}) {y} ({c} {z} {d})", "{a} {x} ({b} {y} {c}) {z} {d}"),
}


def check_schema(documents: Any, where: str) -> None:
    """Refuse rows that are not Arithmark's.

    Raises:
        AntError: names the columns or the values seen.
    """
    wanted = "ctx, endings (4), label (0 to 3), metadata.operator_count (1 to 3)"
    for number, row in enumerate(documents, 1):
        if not {"ctx", "endings", "label", "metadata"} <= set(row):
            raise AntError(f"{where}: not Arithmark-2.0's columns", seen=sorted(row), expected=wanted)
        metadata = row["metadata"]
        count = metadata.get("operator_count") if isinstance(metadata, Mapping) else None
        if len(row["endings"]) != 4 or str(row["label"]) not in set("0123") or count not in SLICES:
            seen = {"endings": len(row["endings"]), "label": row["label"], "operator_count": count}
            raise AntError(f"{where}, row {number}: not Arithmark-2.0's values", seen=seen, expected=wanted)


def generate_arithmark(path: Path, seed: int = 20) -> None:
    """Write the stand-in: the same slices, answers balanced over the four positions."""
    with path.open("w", encoding="utf-8") as handle:
        for row in _rows(random.Random(seed)):
            handle.write(json.dumps(row) + "\n")


def _rows(chance: random.Random) -> Iterator[dict[str, Any]]:
    for operators, rows in SLICES.items():
        positions = [index % 4 for index in range(rows)]
        chance.shuffle(positions)
        seen: set[str] = set()
        for label in positions:
            expression, answer = _expression(operators, chance)
            while expression in seen:
                expression, answer = _expression(operators, chance)
            seen.add(expression)
            endings = _distractors(answer, chance)
            endings.insert(label, answer)
            yield {
                "ctx": f"{expression} =",
                "endings": [f" {value}" for value in endings],
                "label": label,
                "metadata": {"operator_count": operators},
            }


def _expression(operators: int, chance: random.Random) -> tuple[str, int]:
    """Operands of 1 to 99; products only of small ones, so that answers stay near the sums."""
    form = chance.choice(_FORMS[operators])
    signs = {name: chance.choice("+-*") for name in "xyz"}
    limit = 12 if "*" in [signs[name] for name in "xyz"[:operators]] else 99
    operands = {name: chance.randint(1, limit) for name in "abcd"}
    text = form.format(**operands, **signs)
    # Only digits, signs and parentheses made above can be in it.
    return text, int(eval(text, {"__builtins__": {}}))  # noqa: S307


def _distractors(answer: int, chance: random.Random) -> list[int]:
    """Three distinct wrong answers near the right one: off by one, by a carry, or by a little."""
    near = [answer + step for step in (-20, -11, -10, -9, -5, -3, -2, -1, 1, 2, 3, 5, 9, 10, 11, 20)]
    return chance.sample(near, 3)
