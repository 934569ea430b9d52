"""Batch, steps and rates follow from a measured recipe by stated rules."""

import pytest

from ant_hf.recipe import TrainingRecipe, load_recipe
from ant_hf.train.sizing import (
    MEASURED,
    Saving,
    Steps,
    held_out_share,
    rates_of,
    scaled_rates,
    steps_for,
    training_section,
)

MEASURED_RUN = Steps(6600, 4, 1024)


def test_at_its_own_size_the_measured_recipe_comes_out():
    training = load_recipe(MEASURED).training
    assert (training.max_steps, training.sequences_per_step, training.sequence_length) == MEASURED_RUN
    assert steps_for(MEASURED_RUN.tokens, 1024) == MEASURED_RUN
    rates = scaled_rates(MEASURED_RUN, 256)
    assert rates == rates_of(MEASURED)
    section = training_section(MEASURED_RUN, rates, Saving(training.eval_max_tokens))
    for key in ("muon_learning_rate", "learning_rate", "weight_decay", "stable_fraction", "warmup_steps"):
        assert section[key] == getattr(training, key), key


def test_each_rule_does_what_it_says():
    base = scaled_rates(MEASURED_RUN, 256)
    longer = scaled_rates(MEASURED_RUN._replace(steps=66_000), 256)
    assert longer.muon == pytest.approx(base.muon * 10**-0.32, rel=0.05)
    assert longer.adamw == pytest.approx(base.adamw * 10**-0.32, rel=0.05)
    # Rate x decay x steps is the share of the run for which a weight is remembered.
    assert longer.muon * longer.weight_decay * 66_000 == pytest.approx(
        base.muon * base.weight_decay * 6600, rel=0.1
    )
    larger = scaled_rates(Steps(1650, 16, 1024), 256)
    assert larger.muon == pytest.approx(2 * base.muon, rel=0.05)
    wider = scaled_rates(MEASURED_RUN, 1024)
    assert wider.adamw == pytest.approx(base.adamw / 2, rel=0.05)
    assert wider.muon == base.muon


def test_the_batch_grows_with_the_tokens_and_the_steps_more():
    small, large = steps_for(27_000_000, 512), steps_for(27_000_000_000, 512)
    assert large.tokens_per_step == pytest.approx(small.tokens_per_step * 1000**0.383, rel=0.5)
    assert large.steps > 30 * small.steps
    for steps in (small, large):
        assert steps.blocks & (steps.blocks - 1) == 0
    assert small.tokens == pytest.approx(27_000_000, rel=0.01)


@pytest.mark.parametrize("tokens", [1, 20_480, 10**6, 10**9, 10**12])
@pytest.mark.parametrize("block", [16, 1024, 8192])
def test_every_length_gives_a_recipe(tokens, block):
    steps = steps_for(tokens, block)
    made = TrainingRecipe.model_validate(
        training_section(steps, scaled_rates(steps, 32), Saving(1000, 20, 30))
    )
    assert made.max_steps * made.sequences_per_step * block >= 0.97 * tokens
    assert made.warmup_steps < made.max_steps


def test_of_a_large_text_less_is_held_out():
    assert [held_out_share(size) for size in (10**4, 10**7, 10**10)] == [0.1, 0.02, 0.001]
