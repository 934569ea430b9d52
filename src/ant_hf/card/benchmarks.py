"""Measured benchmarks beside published ones, with errors and floors; the two never share a label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ant_hf.evaluation.results import against_floor
from ant_hf.published import PublishedModel


@dataclass(frozen=True)
class Row:
    """One benchmark; accuracies, errors and floors are fractions."""

    task: str
    label: str
    metric: str
    value: float
    stderr: float
    floor: float | None
    """None where guessing means nothing, as for an exact continuation."""
    verdict: str | None
    """`above`, `below` or `indistinguishable` from the floor at two standard errors."""
    items: int
    complete: bool
    expected: int | None
    """Items of the complete set, where that is known."""
    published: dict[str, float]
    """By name of the published model."""

    def errors_from_floor(self) -> float:
        """Standard errors between the value and the floor, positive above it."""
        return (self.value - self.floor) / self.stderr if self.stderr and self.floor is not None else 0.0

    def errors_from(self, name: str) -> float:
        """Standard errors between our value and a published one, both taken as sampled from `items`."""
        other = self.published[name]
        error = math.hypot(self.stderr, math.sqrt(max(other * (1 - other), 0.0) / self.items))
        return (self.value - other) / error if error else 0.0


def benchmark_rows(tasks: dict[str, Any], published: list[PublishedModel]) -> list[Row]:
    """The tasks of results.json in their order."""
    return [_row(task, values, published) for task, values in tasks.items()]


def slice_rows(task: str, values: dict[str, Any], published: list[PublishedModel]) -> list[Row]:
    """The slices of Arithmark as rows; the floor is the task's."""
    rows = []
    for key, part in values.get("slices", {}).items():
        merged = {**values, "expected_n": None, **part, "label": f"{key} operator{'s'[: key != '1']}"}
        if merged["floor"] is not None:
            merged["verdict"] = against_floor(merged["value"], merged["stderr"], merged["floor"])
        rows.append(_row(task, merged, published, key))
    return rows


def _row(task: str, values: dict[str, Any], published: list[PublishedModel], part: str | None = None) -> Row:
    metric = values["metric"]
    others = {}
    for model in published:
        figures = model.results.get(task, {})
        figure = figures.get(f"slice_{part}" if part else metric)
        if figure is not None:
            others[model.name] = figure
    return Row(
        task=task,
        label=values["label"],
        metric=metric,
        value=values["value"],
        stderr=values["stderr"] or 0.0,
        floor=values["floor"],
        verdict=values["verdict"],
        items=values["n"],
        complete=values["complete"] is not False,
        expected=values["expected_n"],
        published=others,
    )
