"""The fit of L(N, D) on losses that were made from a known law."""

import numpy as np
import pytest

from ant_hf.errors import AntError
from ant_hf.studies.scaling_law import PARAMETERS, FlopsPerToken, Law, Runs, fit_law, pooled_deviation

TRUE = Law(E=1.7, A=60.0, B=700.0, alpha=0.3, beta=0.4)
LARGEST = (8.9e6, 4e6)


def runs_of(noise):
    """Losses of six sizes at four lengths without the largest of both, each moved by chance."""
    sizes, lengths = np.meshgrid([3e5, 7e5, 1.7e6, 3.3e6, 5.9e6, 8.9e6], [5e5, 1e6, 2e6, 4e6])
    pairs = [pair for pair in zip(sizes.ravel(), lengths.ravel(), strict=True) if pair != LARGEST]
    n, d = np.array(pairs).T
    moved = np.exp(np.random.default_rng(1).normal(0, noise, len(n)))
    return Runs(n, d, TRUE.loss(n, d) * moved)


@pytest.fixture(scope="module")
def fits():
    return {noise: fit_law(runs_of(noise), resamples=24) for noise in (0.0, 0.002, 0.02)}


def test_a_known_law_is_recovered(fits):
    assert fits[0.0].law == pytest.approx(TRUE, rel=1e-4)
    assert np.abs(fits[0.0].residuals).max() < 1e-6


def test_the_run_that_was_left_out_is_predicted(fits):
    held_out = TRUE.loss(*LARGEST)
    assert fits[0.0].predicted(*LARGEST).value == pytest.approx(held_out, rel=1e-6)
    assert fits[0.002].predicted(*LARGEST).value == pytest.approx(held_out, rel=0.01)
    for noise in (0.002, 0.02):
        _, low, high = fits[noise].predicted(*LARGEST)
        assert low < held_out < high


def test_noise_widens_every_interval(fits):
    def width(noise, interval):
        _, low, high = interval(fits[noise])
        return high - low

    def far(fit):
        return fit.predicted(8.9e6, 2.7e7)

    def exponent(fit):
        return fit.parameter("alpha")

    for interval in (far, exponent):
        assert width(0.0, interval) < width(0.002, interval) < width(0.02, interval)
    assert all(fits[0.02].parameter(name).low < fits[0.02].parameter(name).high for name in PARAMETERS)


def test_the_best_size_is_that_of_the_formula(fits):
    # Hoffmann et al. 2022, equation 4, with C = 6 N D.
    parameters, tokens, loss = fits[0.0].best_size(1e18, FlopsPerToken(6.0, 1.0))
    a, b = TRUE.alpha, TRUE.beta
    best = (a * TRUE.A / (b * TRUE.B)) ** (1 / (a + b)) * (1e18 / 6) ** (b / (a + b))
    assert parameters.value == pytest.approx(best, rel=0.02)
    assert 6 * parameters.value * tokens.value == pytest.approx(1e18)
    assert loss.value == pytest.approx(TRUE.loss(parameters.value, tokens.value))


def test_compute_follows_the_shapes_of_the_study():
    sizes = np.array([1e6, 2e6, 8e6])
    assert FlopsPerToken.along(sizes, 30 * sizes**0.8).of(4e6) == pytest.approx(30 * 4e6**0.8)


def test_too_few_runs_are_refused():
    few = runs_of(0.0).at(np.arange(6))
    with pytest.raises(AntError, match=r"6 runs of 6 sizes and 1 numbers of tokens.*at least 7 runs"):
        fit_law(few, resamples=20)


def test_the_deviation_between_seeds_is_pooled():
    assert pooled_deviation([[1.0, 3.0], [10.0, 12.0], [5.0]]) == pytest.approx(2**0.5)
    assert pooled_deviation([[1.0], [2.0]]) is None
