"""A rendered card back to claims, so that the audit reads what readers read and not what we meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ant_hf.card.claims import Accuracy, Claims, Moment, Perplexities, Printed, Schedule
from ant_hf.card.markdown import read_tables
from ant_hf.errors import AntError, missing_file
from ant_hf.utils.names import CARD


def card_claims(text: str, name: str) -> Claims:
    """The figures of a card that `ant-hf card` rendered.

    Raises:
        AntError: it lacks a table that every such card has.
    """
    by_title: dict[str, list[list[list[str]]]] = {}
    for table in read_tables(text):
        by_title.setdefault(table[0][0], []).append(table)
    missing = [t for t in ("architecture", "training", "training dynamics", "text") if t not in by_title]
    if missing:
        raise AntError(f"{name} is no card of ours: no table of {', '.join(missing)}")
    architecture, training = _facts(by_title["architecture"][0]), _facts(by_title["training"][0])
    tables = by_title.get("benchmark", [])
    accuracies = [accuracy for table in tables[:1] for accuracy in _accuracies(table)]
    slices = [accuracy for table in tables[1:] for accuracy in _accuracies(table)]
    steps = _count(training["Steps"])
    hours, speed = training.get("Training time, hours"), training.get("Throughput, tokens/s")
    return Claims(
        name=name,
        source="its README.md",
        architecture={key: _value(text) for key, text in architecture.items()},
        parameters=Printed(architecture["Total parameters"]),
        tokens=Printed(training["Tokens seen"]),
        hours=Printed(hours) if hours else None,
        steps=steps,
        tokens_per_second=(Printed(speed),) if speed else (),
        tokens_per_step=Printed(training["Tokens a step"]),
        tokens_of_text=_count(training["Tokens of the text"]),
        block_tokens=_count(training["Block length, tokens"]),
        schedule=_schedule(training, steps),
        dynamics=_moments(by_title["training dynamics"][0]),
        accuracies=tuple(accuracies),
        slices=tuple(slices),
        slices_overall=_overall(accuracies, slices),
        perplexities=_perplexities(by_title["text"][0]),
    )


def read_card(path: Path) -> Claims:
    """The figures of a README.md, or of the one in a folder.

    Raises:
        AntError: it is not there, or no card of ours.
    """
    file = path / CARD if path.is_dir() else path
    if not file.is_file():
        raise missing_file(file, "card", "Make one: ant-hf card MODEL_FOLDER --repo OWNER/NAME")
    return card_claims(file.read_text(encoding="utf-8"), str(path))


def _facts(table: list[list[str]]) -> dict[str, str]:
    """A two-column table by its labels, or by the config key that a label names in a code span."""
    facts = {}
    for label, value in table[1:]:
        key = re.search(r"`(\w+)", label)
        facts[key[1] if key else label] = value
    return facts


def _value(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    plain = text.replace(",", "")
    return int(plain) if plain.isdecimal() else text


def _schedule(training: dict[str, str], steps: int) -> Schedule:
    return Schedule(
        kind=training["Schedule"],
        peak=Printed(training["Peak learning rate"]),
        warmup_steps=_count(training["Warmup steps"]),
        stable_steps=_count(training["Constant steps"]),
        min_rate=float(training["End of the decay, share of the peak"]),
        last_step=steps,
        skipped_steps=_count(training.get("Skipped steps", "0")),
    )


def _count(cell: str) -> int:
    return int(cell.replace(",", ""))


def _moments(table: list[list[str]]) -> tuple[Moment, ...]:
    rows = {row[0]: row[1:] for row in table[1:]}
    moments = []
    for column, head in enumerate(table[0][1:]):
        step = re.match(r"step ([\d,]+)", head)
        assert step, "our own heading"
        cells = {label: _printed(row[column]) for label, row in rows.items()}
        moments.append(
            Moment(
                step=int(step[1].replace(",", "")),
                loss=cells["Training loss"],
                eval_loss=cells["Validation loss"],
                perplexity=cells["Token perplexity"],
                learning_rate=cells["Learning rate"],
            )
        )
    return tuple(moments)


def _printed(cell: str) -> Printed | None:
    return Printed(cell) if re.match(r"-?[\d.]", cell) else None


def _accuracies(table: list[list[str]]) -> list[Accuracy]:
    head = table[0]
    measured, items = next(i for i, c in enumerate(head) if c.endswith("(measured)")), head.index("items")
    return [
        Accuracy(row[0], Printed(row[measured]), int(row[items].partition(" ")[0].replace(",", "")))
        for row in table[1:]
    ]


def _overall(accuracies: list[Accuracy], slices: list[Accuracy]) -> Accuracy | None:
    """The benchmark whose items the slices divide."""
    total = sum(part.items for part in slices)
    return next((a for a in accuracies if a.items == total and "rithm" in a.label), None)


def _perplexities(table: list[list[str]]) -> tuple[Perplexities, ...]:
    rows = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    (token,) = [title for title in table[0] if title.startswith("token perplexity")]
    return tuple(
        Perplexities(
            text=row["text"],
            byte=Printed(row["byte perplexity"]),
            word=_printed(row["word perplexity"]),
            bytes_per_token=Printed(row["bytes a token"]).value,
            bits_per_byte=Printed(row["bits per byte"]),
            nats_per_token=Printed(row["nats a token"]),
            token=Printed(row[token]),
        )
        for row in rows
    )
