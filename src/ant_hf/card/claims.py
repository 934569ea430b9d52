"""The figures a model card prints, as the card prints them: text, so that the precision is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from ant_hf.errors import AntError
from ant_hf.evaluation.benchmarks import ARITHMARK, ARITHMARK_GENERATED, ARITHMARK_SLICES, complete_sizes
from ant_hf.published import PublishedModel


@dataclass(frozen=True)
class Printed:
    """A number as printed, and the interval of values that round to it."""

    text: str

    @property
    def value(self) -> float:
        return float(self._decimal)

    @property
    def low(self) -> float:
        return float(self._decimal - self._half_a_unit)

    @property
    def high(self) -> float:
        return float(self._decimal + self._half_a_unit)

    @property
    def _decimal(self) -> Decimal:
        try:
            return Decimal(self.text.replace(",", ""))
        except InvalidOperation:
            raise AntError("a printed figure is no number", seen=self.text) from None

    @property
    def _half_a_unit(self) -> Decimal:
        exponent = self._decimal.as_tuple().exponent
        return Decimal(5).scaleb(int(exponent) - 1)

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
    slices: tuple[Accuracy, ...] = ()
    """Parts of `slices_overall`."""
    slices_overall: Accuracy | None = None
    perplexities: tuple[Perplexities, ...] = ()


# Bytes and words of WikiText-2's test pages, counted as lm-eval counts them.
WIKITEXT_BYTES_PER_WORD = 1_290_527 / 241_335


def usual_items() -> dict[str, int]:
    """Items of the complete sets by task, from the evaluation's own table."""
    return {task: items for task, items in complete_sizes().items() if task not in _NO_SHARE}


# Arithmark is claimed with its slices; WikiText is no share of right answers.
_NO_SHARE = {ARITHMARK, ARITHMARK_GENERATED, "wikitext"}


def published_claims(model: PublishedModel) -> Claims:
    """A published model's figures, out of its `claims` and `results`."""
    claims = model.claims
    training, wikitext = claims.get("training", {}), claims.get("wikitext", {})
    return Claims(
        name=model.name,
        source=model.source,
        architecture=model.architecture,
        parameters=_printed(claims.get("parameters")),
        tokens=_printed(training.get("tokens")),
        hours=_printed(training.get("hours")),
        steps=int(training["steps"].replace(",", "")) if "steps" in training else None,
        tokens_per_second=tuple(Printed(text) for text in training.get("tokens_per_second", ())),
        schedule=_schedule(claims.get("schedule")),
        dynamics=tuple(_moment(values) for values in claims.get("dynamics", ())),
        accuracies=tuple(
            Accuracy(task, _fraction(next(iter(model.results[task].values()))), items)
            for task, items in usual_items().items()
            if task in model.results
        ),
        **_arithmark(model.results.get(ARITHMARK)),
        perplexities=(_wikitext(wikitext),) if wikitext else (),
    )


def _wikitext(values: dict[str, str]) -> Perplexities:
    word = _printed(values.get("word_perplexity"))
    return Perplexities("WikiText-2", Printed(values["byte_perplexity"]), word, WIKITEXT_BYTES_PER_WORD)


def _arithmark(figures: dict[str, Any] | None) -> dict[str, Any]:
    if figures is None:
        return {}
    slices = tuple(
        Accuracy(f"{ARITHMARK}, {key} operators", _fraction(figures[f"slice_{key}"]), items)
        for key, items in ARITHMARK_SLICES.items()
    )
    overall = Accuracy(ARITHMARK, _fraction(figures["acc"]), sum(ARITHMARK_SLICES.values()))
    return {"slices": slices, "slices_overall": overall}


def _printed(text: str | None) -> Printed | None:
    return None if text is None else Printed(text)


def _fraction(value: float) -> Printed:
    return Printed(f"{value:.4f}")


def _schedule(values: dict[str, Any] | None) -> Schedule | None:
    if values is None:
        return None
    return Schedule(values["kind"], Printed(values["peak"]), values["warmup_steps"])


def _moment(values: dict[str, Any]) -> Moment:
    keys = ("loss", "eval_loss", "perplexity", "learning_rate")
    return Moment(values["step"], **{key: _printed(values.get(key)) for key in keys})
