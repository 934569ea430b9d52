"""`study.json`: every run with its changes, seed, figures and hashes, the conditions, and what was fitted."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from ant_hf.errors import AntError
from ant_hf.studies.scaling_law import pooled_deviation
from ant_hf.studies.study_file import Changes, Plot
from ant_hf.utils.files import read_sealed, write_sealed

STUDY_RECORD = "study.json"
_VERSION = 2


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RunRow(_Record):
    """A run that is over."""

    cell: str
    point: dict[str, str]
    changes: Changes
    """Of the base recipe, as the study file gives them."""
    seed: int
    facts: dict[str, float]
    scores: dict[str, float | None]
    broken: str | None
    """Where its numbers broke, in words; then it has no scores."""
    minutes: float | None
    """Of training and the export."""
    sha256: dict[str, str]
    """Of recipe, architecture and run record, and of tokenizer and tokens."""


class Estimate(_Record):
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value is within the interval."""
        return self.low <= value <= self.high


class Prediction(_Record):
    """A loss that the fit predicts, and what it is compared with."""

    name: str
    parameters: int
    """Non-embedding."""
    tokens: int
    loss: Estimate
    """Nats per token."""
    measured: float | None = None
    published: float | None = None
    source: str | None = None
    """Of the published loss; or what is to be known of the measured one."""

    @property
    def reference(self) -> float | None:
        return self.measured if self.measured is not None else self.published


class BestSize(_Record):
    """The best model for so much compute."""

    hours: float
    flops: float
    parameters: Estimate
    tokens: Estimate
    loss: Estimate


class FitRecord(_Record):
    """The scaling law of a study."""

    parameters: dict[str, Estimate]
    """E, A, B, alpha and beta."""
    runs: int
    """That were fitted."""
    resamples: int
    residuals: dict[str, float]
    """log(measured / fitted) by cell, the mean over its seeds."""
    held_out: list[Prediction]
    predictions: list[Prediction]
    compute: str | None = None
    """What an hour is taken to be, in words."""
    best_sizes: list[BestSize] = []


class StudyRecord(_Record):
    """The whole of a study."""

    name: str
    question: str
    answer: str | None
    does_not_show: list[str]
    base: str
    file: str
    """Name of the study file."""
    file_sha256: str
    scale: float
    planned: int
    """Runs."""
    left_out: dict[str, str] = {}
    """Cells that this machine cannot train, and why."""
    scores: list[str]
    limit: int | None
    plot: Plot
    shared_changes: Changes
    """Of the base, in all runs."""
    conditions: dict[str, list[str]]
    """Of the runs' records; several values where they differ."""
    runs: list[RunRow]
    fit: FitRecord | None = None

    @classmethod
    def read(cls, path: Path) -> StudyRecord:
        """The record in a file.

        Raises:
            AntError: it is missing or damaged, or was changed after it was written.
        """
        hint = "Run ant-hf study again: it trains nothing that is finished."
        values = read_sealed(path, "study record", hint)
        values.pop("format_version", None)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            wrong = ", ".join(sorted({str(item["loc"][0]) for item in error.errors()}))
            raise AntError(f"study record {path} is damaged", seen=wrong, hint=hint) from None

    def write(self, path: Path) -> None:
        """Write it, whole or as it was."""
        write_sealed(path, self.model_dump() | {"format_version": _VERSION})

    @property
    def cells(self) -> list[Cell]:
        """The runs by cell, in the order of the study file."""
        found: dict[str, list[RunRow]] = defaultdict(list)
        for row in self.runs:
            found[row.cell].append(row)
        return [Cell(name, rows) for name, rows in found.items()]

    @property
    def models(self) -> list[list[Cell]]:
        """The cells by what was trained: several are together where they are one model."""
        found: dict[str, list[Cell]] = defaultdict(list)
        for cell in self.cells:
            found[cell.rows[0].sha256["run"]].append(cell)
        return list(found.values())

    def budget(self, cell: Cell) -> tuple[str, float]:
        """What the study gives a cell: compute, or tokens; without either, the tokens of its recipe."""
        for key in ("flops", "tokens"):
            if key in cell.rows[0].changes:
                return key, cell.rows[0].changes[key] * self.scale
        return "tokens", cell.facts["tokens"]

    def noise(self, score: str) -> float | None:
        """Standard deviation of a score between seeds, over all cells with several; None if none has."""
        return pooled_deviation([cells[0].values(score) for cells in self.models])


@dataclass(frozen=True)
class Cell:
    """Runs that differ in the seed alone."""

    name: str
    rows: list[RunRow]

    def values(self, score: str) -> list[float]:
        """Of the runs that have the score."""
        return [value for row in self.rows if (value := row.scores.get(score)) is not None]

    def mean(self, score: str) -> float:
        """NaN where no run has the score."""
        return float(np.mean(own)) if (own := self.values(score)) else math.nan

    def deviation(self, score: str) -> float | None:
        """Standard deviation over the seeds; None for a single one."""
        return pooled_deviation([self.values(score)])

    @property
    def broken(self) -> list[str]:
        """Where the numbers of its runs broke."""
        return [row.broken for row in self.rows if row.broken]

    @property
    def facts(self) -> dict[str, float]:
        return self.rows[0].facts

    def x(self, name: str) -> Any:
        """A fact, the value of a changed key, or the name of an axis's point; None if the cell has none."""
        first = self.rows[0]
        for values in (first.point, first.facts, first.changes):
            if name in values:
                return values[name]
        return None
