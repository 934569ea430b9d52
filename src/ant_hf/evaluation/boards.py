"""Public boards of small models: their sets and metrics, our row among those that authors publish.

`boards.yaml` beside this file defines them. A row is measured here or published by its authors, never both.
Nothing is converted by a constant: bytes and tokens are those of the text that was scored.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ant_hf.errors import AntError
from ant_hf.evaluation.results import SCHEMA
from ant_hf.published import PublishedModel, PublishedRow, published_models, published_rows
from ant_hf.utils.files import file_sha256, read_json, read_sealed
from ant_hf.utils.names import RELEASE, RESULTS, WEIGHTS

_TABLE = Path(__file__).with_name("boards.yaml")


@dataclass(frozen=True)
class Figure:
    """One column of a board."""

    task: str
    metric: str
    label: str
    weight: float = 1.0
    chance: float = 0.0
    """What guessing scores, as a fraction."""
    at_one: float | None = None
    per_nat: float = 0.0

    @property
    def is_perplexity(self) -> bool:
        return self.at_one is not None

    def points(self, value: float) -> float:
        """What a value, an accuracy as a fraction or a perplexity, adds to the mean."""
        if self.at_one is not None:
            return self.at_one + self.per_nat * math.log(value)
        return 100 * (value - self.chance) / (1 - self.chance)


@dataclass(frozen=True)
class Board:
    """A board as boards.yaml defines it."""

    name: str
    title: str
    address: str
    looked_up: str
    largest: int
    """Parameters."""
    score: str
    """Name of the number that it ranks by."""
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    size_bonus: float = 0.0
    """Share that the mean grows by for each factor of ten below `largest`."""

    @property
    def tasks(self) -> list[str]:
        return [figure.task for figure in self.figures]

    def score_of(self, values: dict[str, float], parameters: int) -> float | None:
        """The score of a model; None where a figure that counts is missing."""
        counted = [figure for figure in self.figures if figure.weight]
        if any(figure.task not in values for figure in counted):
            return None
        points = sum(figure.weight * figure.points(values[figure.task]) for figure in counted)
        bonus = 1 + self.size_bonus * math.log10(self.largest / parameters)
        return points / sum(figure.weight for figure in counted) * bonus


@dataclass(frozen=True)
class Row:
    """One model on a board."""

    name: str
    parameters: int
    shown: dict[str, str]
    """By task, as printed by the authors, or with our standard error; accuracies in %."""
    score: float | None
    is_measured: bool
    """Here; otherwise published by the authors."""
    tuned_on: list[str] | None = None
    """Sets of the board whose training questions were trained on; None where nobody says."""


def load_board(name: str) -> Board:
    """A board by its name.

    Raises:
        AntError: there is none of this name; lists them.
    """
    boards = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    if name not in boards:
        near = difflib.get_close_matches(name, boards, n=1, cutoff=0.3)
        hint = f"Did you mean --board {near[0]}?" if near else None
        raise AntError("unknown board", seen=name, expected=" or ".join(boards), hint=hint)
    row = boards[name]
    figures = tuple(Figure(task, **values) for task, values in row.pop("figures").items())
    return Board(name, figures=figures, notes=tuple(row.pop("notes")), **row)


def recorded_results(board: Board, folder: Path) -> dict[str, Any] | None:
    """The results in a model's folder, if all that counts on the board is measured there, on these weights.

    Raises:
        AntError: the file is damaged or was changed by hand.
    """
    if not (folder / RESULTS).is_file() or not (folder / WEIGHTS).is_file():
        return None
    hint = "Measure the model again: add --fresh"
    results = read_sealed(folder / RESULTS, "evaluation results", hint, unsealed_format=None)
    records = {**results["tasks"], **results["perplexity"]}
    is_current = results["schema"] == SCHEMA
    is_current &= results["model"]["weights_sha256"] == file_sha256(folder / WEIGHTS)
    has_all = all(figure.task in records for figure in board.figures if figure.weight)
    return results if is_current and has_all else None


def own_name(results: dict[str, Any], folder: Path) -> str:
    """A model's name in its row: the repository that its release is made for, else the one in its results."""
    if (folder / RELEASE).is_file():
        return str(read_json(folder / RELEASE, "release record", "")["repository"])
    return str(results["model"]["name"]).removesuffix("/final")


def board_rows(board: Board, results: dict[str, Any], name: str) -> list[Row]:
    """Our row, and those published of models that the board takes: best first, without a score last."""
    rows = [_own_row(board, results, name)]
    rows += [_published_row(board, each) for each in (*map(_as_row, published_models()), *published_rows())]
    there = [row for row in rows if row.is_measured or (row.shown and row.parameters <= board.largest)]
    return sorted(there, key=lambda row: (row.score is None, -(row.score or 0.0), -len(row.shown), row.name))


def _own_row(board: Board, results: dict[str, Any], name: str) -> Row:
    """The first documents of a set are not a sample of it: such a figure is marked, and gives no score."""
    shown, values = {}, {}
    for figure in board.figures:
        record = {**results["tasks"], **results["perplexity"]}.get(figure.task)
        if record is None:
            continue
        if figure.is_perplexity:
            value, error = record[figure.metric], record[f"{figure.metric}_stderr"]
            text = f"{value:.3f} ± {error:.3f}"
        else:
            value, error = record["metrics"][figure.metric].values()
            text = f"{100 * value:.2f}" + (f" ± {100 * error:.2f}" if error else "")
        if record["complete"] is False:
            text = text.replace(" ", "* ", 1) if " " in text else f"{text}*"
        else:
            values[figure.task] = value
        shown[figure.task] = text
    parameters = results["model"]["parameters"]
    return Row(name, parameters, shown, board.score_of(values, parameters), is_measured=True)


def _published_row(board: Board, row: PublishedRow) -> Row:
    found = ((figure, row.results.get(figure.task, {}).get(figure.metric)) for figure in board.figures)
    shown = {figure.task: text for figure, text in found if text is not None}
    values = {
        figure.task: float(shown[figure.task]) / (1 if figure.is_perplexity else 100)
        for figure in board.figures
        if figure.task in shown
    }
    tuned = None if row.tuned_on is None else [task for task in row.tuned_on if task in board.tasks]
    score = board.score_of(values, row.parameters)
    return Row(row.name, row.parameters, shown, score, is_measured=False, tuned_on=tuned)


def _as_row(model: PublishedModel) -> PublishedRow:
    """A public card's figures as a row, in % where they are fractions there."""
    results = {
        task: {
            metric: f"{value:.2f}" if metric.endswith("perplexity") else f"{100 * value:.2f}"
            for metric, value in figures.items()
        }
        for task, figures in model.results.items()
    }
    return PublishedRow(model.repository, model.parameters, results, model.source, looked_up="")


def counted_line(board: Board, results: dict[str, Any]) -> str | None:
    """What a perplexity per byte was computed from: nothing in it is a constant."""
    texts = (results["perplexity"].get(figure.task) for figure in board.figures if figure.is_perplexity)
    if (text := next(texts, None)) is None:
        return None
    return (
        f"{text['label']}: exp({text['nats']:,.0f} nats / {text['bytes']:,} bytes), both counted in the text "
        f"that was scored, which has {text['bytes_per_token']:.3f} bytes per token."
    )


def markdown_row(board: Board, rows: Sequence[Row]) -> str | None:
    """Our row with its heading, to paste where boards take rows, without errors; None if it has no score."""
    (own,) = (row for row in rows if row.is_measured)
    if own.score is None:
        return None
    figures = [own.shown.get(task, "-").partition(" ")[0] for task in board.tasks]
    labels = [f"{figure.label} {figure.metric}" for figure in board.figures]
    lines = [
        ["model", "parameters", *labels, board.score],
        ["---", *["---:"] * (len(labels) + 2)],
        [own.name, f"{own.parameters:,}", *figures, f"{own.score:.2f}"],
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
