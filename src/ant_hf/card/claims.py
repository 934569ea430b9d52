"""The figures a model card prints, as the card prints them: text, so that the precision is known.

They come out of `published.yaml`, or out of a rendered card, so that the audit reads what readers read and
not what we meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from ant_hf.card.markdown import read_tables
from ant_hf.errors import AntError, missing_file
from ant_hf.evaluation.benchmarks import ARITHMARK, ARITHMARK_GENERATED, ARITHMARK_SLICES, benchmark_table
from ant_hf.published import PublishedModel
from ant_hf.utils.names import CARD, EVAL_RESULTS


@dataclass
class Printed:
    """A number as printed, and the interval of values that round to it: `value`, `low` and `high`."""

    text: str

    def __post_init__(self) -> None:
        try:
            number = Decimal(self.text.replace(",", ""))
            half_a_unit = Decimal(5).scaleb(int(number.as_tuple().exponent) - 1)
        # The second for "nan" and "inf", which have no decimals.
        except (InvalidOperation, ValueError):
            raise AntError("a figure of the card is not a number", seen=self.text) from None
        self.value = float(number)
        self.low, self.high = float(number - half_a_unit), float(number + half_a_unit)

    def meets(self, low: float, high: float) -> bool:
        """Whether some value in [low, high] is printed like this; equal to a part in 10^12."""
        slack = 1e-12 * max(abs(self.value), 1e-300)
        return self.low - slack <= high and low <= self.high + slack


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers, as a fraction with the card's decimals."""

    label: str
    printed: Printed
    items: int


@dataclass(frozen=True)
class Sliced:
    """A benchmark's accuracy beside those of its parts, which hold all of its items."""

    overall: Accuracy
    parts: tuple[Accuracy, ...]


@dataclass(frozen=True)
class Moment:
    """One column of the table of training dynamics."""

    step: int
    loss: Printed | None = None
    eval_loss: Printed | None = None
    perplexity: Printed | None = None
    learning_rate: Printed | None = None


@dataclass(frozen=True)
class Schedule:
    """What a card says of the learning rate; None where it says nothing."""

    kind: str
    """`cosine` or `warmup-stable-decay`."""
    peak: Printed
    warmup_steps: int
    stable_steps: int = 0
    min_rate: float | None = None
    """Where the decay ends, as a share of the peak."""
    last_step: int | None = None
    skipped_steps: int = 0
    """Steps that fp16 overflowed in; the schedule waits for them."""


@dataclass(frozen=True)
class Perplexities:
    """Perplexities of one evaluation on one text."""

    text: str
    byte: Printed
    word: Printed | None = None
    bytes_per_word: float | None = None
    """Of the text itself."""
    bytes_per_token: float | None = None
    """Of the card's tokenizer on that text; None when the card does not say."""
    bits_per_byte: Printed | None = None
    nats_per_token: Printed | None = None
    token: Printed | None = None
    """Token perplexity."""


@dataclass(frozen=True)
class Claims:
    """Everything an audit can recompute."""

    name: str
    source: str
    architecture: dict[str, Any] = field(default_factory=dict)
    parameters: Printed | None = None
    tokens: Printed | None = None
    hours: Printed | None = None
    steps: int | None = None
    tokens_per_second: tuple[Printed, ...] = ()
    """One figure, or the lowest and the highest."""
    tokens_per_step: Printed | None = None
    tokens_of_text: int | None = None
    """Read once in a pass."""
    block_tokens: int | None = None
    schedule: Schedule | None = None
    dynamics: tuple[Moment, ...] = ()
    accuracies: tuple[Accuracy, ...] = ()
    sliced: tuple[Sliced, ...] = ()
    on_leaderboards: tuple[tuple[str, Printed], ...] = ()
    """Label and accuracy in %, as the files for the Hub's leaderboards beside the card have them."""
    perplexities: tuple[Perplexities, ...] = ()


# How the table of a benchmark's parts begins, before the benchmark's label.
PART_OF = "part of "
# Bytes and words of WikiText-2's test pages, counted as lm-eval counts them.
WIKITEXT_BYTES_PER_WORD = 1_290_527 / 241_335


# Rows of a card's table of training dynamics, and the keys of published.yaml.
_MOMENT = {
    "Training loss": "loss",
    "Validation loss": "eval_loss",
    "Token perplexity": "perplexity",
    "Learning rate": "learning_rate",
}


def published_claims(model: PublishedModel) -> Claims:
    """A published model's figures, out of its `claims` and `results`."""
    claims, results = model.claims, model.results
    training = claims.get("training", {})
    accuracies = tuple(
        _share(task, next(iter(results[task].values())), entry["documents"])
        for task, entry in benchmark_table().items()
        # Arithmark is claimed with its slices; WikiText is not a share of right answers.
        if task in results and task not in (ARITHMARK, ARITHMARK_GENERATED, "wikitext")
    )
    sliced: tuple[Sliced, ...] = ()
    if arithmark := results.get(ARITHMARK):
        names = benchmark_table()[ARITHMARK]["slice_names"]
        parts = (
            _share(f"{ARITHMARK}, {names[operators]}", arithmark[names[operators]], count)
            for operators, count in ARITHMARK_SLICES.items()
        )
        overall = _share(ARITHMARK, arithmark["acc"], sum(ARITHMARK_SLICES.values()))
        sliced = (Sliced(overall, tuple(parts)),)
    perplexities: tuple[Perplexities, ...] = ()
    if texts := claims.get("wikitext"):
        byte, word = Printed(texts["byte_perplexity"]), _printed(texts.get("word_perplexity"))
        perplexities = (Perplexities("WikiText-2", byte, word, WIKITEXT_BYTES_PER_WORD),)
    schedule = claims.get("schedule")
    return Claims(
        name=model.name,
        source=model.source,
        architecture=model.architecture,
        parameters=_printed(claims.get("parameters")),
        tokens=_printed(training.get("tokens")),
        hours=_printed(training.get("hours")),
        steps=_count(training["steps"]) if "steps" in training else None,
        tokens_per_second=tuple(Printed(text) for text in training.get("tokens_per_second", ())),
        schedule=Schedule(**{**schedule, "peak": Printed(schedule["peak"])}) if schedule else None,
        dynamics=tuple(
            Moment(values["step"], *(_printed(values.get(key)) for key in _MOMENT.values()))
            for values in claims.get("dynamics", ())
        ),
        accuracies=accuracies,
        sliced=sliced,
        perplexities=perplexities,
    )


def _share(label: str, value: float, items: int) -> Accuracy:
    return Accuracy(label, Printed(f"{value:.4f}"), items)


def _printed(text: str | None) -> Printed | None:
    """A figure, or None where nothing is printed, or a dash."""
    return None if text in (None, "-", "\N{EN DASH}") else Printed(text)


def _count(text: str) -> int:
    return int(Printed(text).value)


def read_card(path: Path) -> Claims:
    """The figures of a README.md, or of the one in a folder.

    Raises:
        AntError: it is missing, not UTF-8, or `ant-hf card` did not make it as it is; or a file for
            leaderboards is damaged.
    """
    # Brings the Hub's client, which no command line starts with.
    from ant_hf.card.eval_results import read_entries

    file = path / CARD if path.is_dir() else path
    if not file.is_file():
        raise missing_file(file, "card", "Make one: ant-hf card MODEL_FOLDER --repo OWNER/NAME")
    try:
        claims = card_claims(file.read_text(encoding="utf-8"), str(path))
    except (LookupError, ValueError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise AntError(
            f"{file} was changed after ant-hf made it, and cannot be read: {why}",
            hint="Make it again: ant-hf card MODEL_FOLDER --repo OWNER/NAME",
        ) from None
    labels, listed = {name: row["label"] for name, row in benchmark_table().items()}, []
    for each in sorted((file.parent / EVAL_RESULTS).glob("*.yaml")):
        entries = read_entries(each)
        listed += [(labels.get(each.stem, each.stem), Printed(f"{entry.value:.2f}")) for entry in entries]
    return replace(claims, on_leaderboards=tuple(listed))


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
        raise AntError(
            f"{name} is not a card that ant-hf made: it lacks the tables {', '.join(missing)}",
            hint="Make one: ant-hf card MODEL_FOLDER --repo OWNER/NAME",
        )
    architecture, training = _facts(by_title["architecture"][0]), _facts(by_title["training"][0])
    accuracies = tuple(share for table in by_title.get("benchmark", ()) for share in _accuracies(table))
    by_label = {accuracy.label: accuracy for accuracy in accuracies}
    speed = training.get("Throughput, tokens/s")
    return Claims(
        name=name,
        source="its README.md",
        architecture={key: _value(text) for key, text in architecture.items()},
        parameters=Printed(architecture["Total parameters"]),
        tokens=Printed(training["Tokens seen"]),
        hours=_printed(training.get("Training time, hours")),
        steps=_count(training["Steps"]),
        tokens_per_second=(Printed(speed),) if speed else (),
        # Cards of earlier versions have the second label.
        tokens_per_step=Printed(training.get("Tokens per step") or training["Tokens a step"]),
        tokens_of_text=_count(training["Tokens of the text"]),
        block_tokens=_count(training["Block length, tokens"]),
        schedule=Schedule(
            kind=training["Schedule"],
            peak=Printed(training["Peak learning rate"]),
            warmup_steps=_count(training["Warmup steps"]),
            stable_steps=_count(training["Constant steps"]),
            min_rate=float(training["End of the decay, share of the peak"]),
            last_step=_count(training["Steps"]),
            skipped_steps=_count(training.get("Skipped steps", "0")),
        ),
        dynamics=_moments(by_title["training dynamics"][0]),
        accuracies=accuracies,
        sliced=tuple(
            Sliced(by_label[whole], _accuracies(tables[0]))
            for title, tables in by_title.items()
            if (whole := title.removeprefix(PART_OF)) != title and whole in by_label
        ),
        perplexities=_perplexities(by_title["text"][0]),
    )


def _facts(table: list[list[str]]) -> dict[str, str]:
    """A two-column table by its labels, or by the config key that a label names in a code span."""
    return {re.sub(r".*?`(\w+).*", r"\1", label): value for label, value in table[1:]}


def _value(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    plain = text.replace(",", "")
    return int(plain) if plain.isdecimal() else text


def _moments(table: list[list[str]]) -> tuple[Moment, ...]:
    rows = {label: cells for label, *cells in table[1:]}
    return tuple(
        # The heading is "step 80 (warmup peak)".
        Moment(_count(heading.split()[1]), *(_printed(rows[label][column]) for label in _MOMENT))
        for column, heading in enumerate(table[0][1:])
    )


def _accuracies(table: list[list[str]]) -> tuple[Accuracy, ...]:
    head = table[0]
    own, items = [c.endswith("(measured)") for c in head].index(True), head.index("items")
    return tuple(
        Accuracy(row[0], Printed(row[own]), _count(row[items].partition(" ")[0])) for row in table[1:]
    )


def _perplexities(table: list[list[str]]) -> tuple[Perplexities, ...]:
    (token,) = [title for title in table[0] if title.startswith("token perplexity")]
    return tuple(
        Perplexities(
            text=row["text"],
            byte=Printed(row["byte perplexity"]),
            word=_printed(row["word perplexity"]),
            bytes_per_token=Printed(row["bytes per token"]).value,
            bits_per_byte=Printed(row["bits per byte"]),
            nats_per_token=Printed(row["nats per token"]),
            token=Printed(row[token]),
        )
        for row in (dict(zip(table[0], cells, strict=True)) for cells in table[1:])
    )
