"""What recipes that are made here have in common: steps, rates and how they scale, what is held out, YAML."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import yaml

from ant_hf.data.sources import Source
from ant_hf.model.architecture import load_config
from ant_hf.recipe import load_recipe

FEWEST_STEPS = 20
MOST_HELD_OUT = 0.1
_HELD_OUT_BYTES, _LEAST_HELD_OUT = 200_000, 0.001
# The measured run that others are scaled from: docs/recipe-27m.md.
MEASURED = "ant10m-cpu"
# Powers by which a batch grows with the tokens, and a rate falls with the tokens, grows with the batch, and
# falls with the width: see `scaled_rates`.
_BATCH_BY_TOKENS = 0.383
_RATE_BY_TOKENS, _RATE_BY_BATCH, _RATE_BY_WIDTH = -0.32, 0.5, -0.5


class Steps(NamedTuple):
    """The length of a run."""

    steps: int
    blocks: int
    """Of a step, over all processes."""
    block: int
    """Tokens."""

    @property
    def tokens_per_step(self) -> int:
        return self.blocks * self.block

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def warmup(self) -> int:
        """A twentieth of a short run, 100 steps of one of thousands, a hundredth of a longer one."""
        return max(min(self.steps // 20, 100), self.steps // 100)


class Rates(NamedTuple):
    """Peaks of the learning rates, and what goes with them."""

    muon: float
    """Of the matrices."""
    adamw: float
    """Of embeddings and norms."""
    weight_decay: float
    stable_fraction: float
    """Share of the steps after the warmup at the peak, before the decay to zero."""


class Saving(NamedTuple):
    """How often a run is measured and saved."""

    evaluated: int
    """Held-out tokens scored each time."""
    evaluations: int = 5
    saves: int = 4


class _Measured(NamedTuple):
    """A recipe whose values were found by measurements."""

    rates: Rates
    steps: Steps
    width: int


@cache
def _measured(name: str) -> _Measured:
    recipe = load_recipe(name)
    training = recipe.training
    assert training.muon_learning_rate is not None
    assert recipe.architecture is not None
    return _Measured(
        Rates(
            training.muon_learning_rate,
            training.learning_rate,
            training.weight_decay,
            training.stable_fraction,
        ),
        Steps(training.max_steps, training.sequences_per_step, training.sequence_length),
        load_config(recipe.architecture).hidden_size,
    )


def rates_of(name: str) -> Rates:
    """The rates of a recipe that comes with the package."""
    return _measured(name).rates


def steps_for(tokens: int, block: int) -> Steps:
    """The steps for so many tokens, in batches that grow with them, a power of two of blocks.

    The best batch grows with the tokens to the power 0.383, whatever the model (Bergsma et al. 2025, Power
    Lines, arXiv 2505.13738), here from the measured recipe's.
    """
    before = _measured(MEASURED).steps
    batch = before.tokens_per_step * (tokens / before.tokens) ** _BATCH_BY_TOKENS
    blocks = 2 ** max(0, round(math.log2(batch / block)))
    return Steps(max(FEWEST_STEPS, round(tokens / (blocks * block))), blocks, block)


def scaled_rates(steps: Steps, width: int) -> Rates:
    """The rates of the measured recipe, for a run of another length, batch and width.

    Both rates: x (tokens / its tokens)^-0.32 (Bjorck et al. 2024, arXiv 2409.19913) and x (tokens of a step /
    its tokens of a step)^0.5 (Malladi et al. 2022, arXiv 2205.10287, shown for Adam and assumed for Muon).
    AdamW's also x (width / its width)^-0.5, as nanochat scales its embeddings' (its input side alone would
    want no change, and its output side 1 / width: Yang et al. 2022, arXiv 2203.03466; tied, they share one).
    Muon's update has the same spectral norm in any width, so its rate stays (Bernstein and Newhouse 2024,
    arXiv 2409.20325). The decay is such that a weight is remembered for the same share of the run (Wang and
    Aitchison 2024, arXiv 2405.13698): rate x decay x steps is constant.
    """
    before = _measured(MEASURED)
    factor = (steps.tokens / before.steps.tokens) ** _RATE_BY_TOKENS
    factor *= (steps.tokens_per_step / before.steps.tokens_per_step) ** _RATE_BY_BATCH
    by_width = (width / before.width) ** _RATE_BY_WIDTH
    decay = before.rates.weight_decay / factor * before.steps.steps / steps.steps
    return before.rates._replace(
        muon=_two_digits(before.rates.muon * factor),
        adamw=_two_digits(before.rates.adamw * factor * by_width),
        weight_decay=_two_digits(decay),
    )


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def training_section(steps: Steps, rates: Rates, saving: Saving) -> dict[str, Any]:
    """The section `training` of a recipe, as its YAML holds it."""
    return {
        "sequence_length": steps.block,
        "sequences_per_step": steps.blocks,
        "max_steps": steps.steps,
        "optimizer": "muon",
        "muon_learning_rate": rates.muon,
        "learning_rate": rates.adamw,
        "lr_scheduler_type": "warmup_stable_decay",
        "warmup_steps": steps.warmup,
        "stable_fraction": rates.stable_fraction,
        "min_lr_rate": 0.0,
        "weight_decay": rates.weight_decay,
        "logging_steps": min(20, max(1, steps.steps // 80)),
        "eval_steps": max(1, steps.steps // saving.evaluations),
        "eval_max_tokens": saving.evaluated,
        "save_steps": max(1, steps.steps // saving.saves),
        "save_total_limit": 1,
    }


def held_out_share(size: float) -> float:
    """The share of a text of so many bytes that is held out: of a large one less."""
    return round(min(MOST_HELD_OUT, max(_LEAST_HELD_OUT, _HELD_OUT_BYTES / size)), 3)


def first_words(source: Source) -> str:
    """The beginning of a text, to be continued."""
    text = " ".join(next((text for text in source.documents() if text.strip()), "").split())
    words = text[:40].split(" ")
    return " ".join(words[:4]) if len(words) > 4 else text[:10] or "The"


def as_yaml(values: dict[str, Any]) -> str:
    """A recipe's values as its file holds them."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
