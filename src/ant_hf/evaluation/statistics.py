"""How sure a difference between two models is: interval, p-value, and what it would take to tell them apart.

Both models answered the same documents, so what counts is the difference in each document, whose spread is
far smaller than that of two scores taken alone. Documents of one subject or paradigm may err together; then
whole groups are the units. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES, SEED = 10_000, 0
ALPHA, POWER = 0.05, 0.8
# Fewer groups can hardly show anything: the least p-value of n units is 2 ** (1 - n).
MIN_GROUPS = 10
# Numbers that are drawn at once.
_AT_ONCE = 1_000_000
_Floats = NDArray[Any]


@dataclass(frozen=True)
class Estimate:
    """A difference of two scores."""

    difference: float
    interval: tuple[float, float]
    """Of 95 %."""
    stderr: float
    p: float
    """Two-sided, of no difference."""


@dataclass(frozen=True)
class Units:
    """What is resampled, each as one: documents, or groups of them."""

    differences: _Floats
    """[units] first model minus second, summed over the unit."""
    sizes: _Floats
    """[units] what the sum is divided by: documents, or ln(2) times bytes."""

    def grouped(self, groups: Sequence[str]) -> Units | None:
        """The groups as units; None where there are too few of them.

        Args:
            groups: of each unit.
        """
        names, index = np.unique(np.asarray(groups), return_inverse=True)
        if len(names) < MIN_GROUPS:
            return None
        return Units(np.bincount(index, self.differences), np.bincount(index, self.sizes))


def paired(units: Units, seed: int = SEED) -> Estimate:
    """The difference of two models on the same documents, sum(differences) / sum(sizes).

    Interval: percentiles of the bootstrap over units, set apart as far as a t-interval of so few units would
    be (the expanded percentile interval of Hesterberg 2015, The American Statistician 69). Where no document
    differs, it is that of Clopper and Pearson for the share of documents that could.

    p: were the models alike, each unit's difference could as well have the other sign. Of 0 and 1 in
    documents that is McNemar's exact test; else 10,000 drawings of the signs.

    Args:
        units: two or more.
    """
    n, generator = len(units.sizes), np.random.default_rng(seed)
    total = units.sizes.sum()
    difference = float(units.differences.sum() / total)
    if not units.differences.any():
        reach = float(1 - (ALPHA / 2) ** (1 / total))
        return Estimate(0.0, (-reach, reach), 0.0, 1.0)
    means = _bootstrap(units, generator)
    tail = float(stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf(ALPHA / 2, n - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(
        difference, (float(low), float(high)), float(means.std()), sign_flip_p(units.differences, generator)
    )


def _bootstrap(units: Units, generator: np.random.Generator) -> _Floats:
    """[RESAMPLES] The statistic in samples of as many units, drawn with replacement."""
    rows = np.stack([units.differences, units.sizes], axis=1)
    # Equal units are drawn together: a set of right and wrong answers has three kinds.
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    n = len(rows)
    sums = _drawn(lambda size: generator.multinomial(n, counts / n, size) @ kinds, len(kinds))
    return sums[:, 0] / sums[:, 1]


def sign_flip_p(differences: _Floats, generator: np.random.Generator) -> float:
    """How often signs drawn at random give a sum as far from 0 as this one, two-sided."""
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    seen = abs(float(differences.sum()))
    if len(sizes) == 1:
        positive = int((differences > 0).sum())
        return float(stats.binomtest(positive, int(counts[0])).pvalue)
    sums = _drawn(
        lambda size: (2 * generator.binomial(counts, 0.5, (size, len(sizes))) - counts) @ sizes, len(sizes)
    )
    # Sums that are equal but for rounding count as equal. The one that was seen is one of the drawings.
    return (1 + int((np.abs(sums) >= seen * (1 - 1e-9)).sum())) / (1 + RESAMPLES)


def _drawn(draw: Callable[[int], _Floats], width: int) -> _Floats:
    """RESAMPLES rows of `draw(rows)`, made in parts that fit the memory."""

    def parts() -> Iterator[_Floats]:
        left, most = RESAMPLES, max(1, _AT_ONCE // width)
        while left > 0:
            yield draw(min(left, most))
            left -= most

    return np.concatenate(list(parts()))


def unpaired(first: tuple[float, Sequence[float]], second: tuple[float, Sequence[float]]) -> Estimate:
    """The difference of two scores of which only value and 95 % interval are known, as of other documents.

    Interval: Newcombe's, out of the two (1998, Statistics in Medicine 17). It is too wide for the same
    documents. The p-value is the one that agrees with it.
    """
    (a, (a_low, a_high)), (b, (b_low, b_high)) = first, second
    difference = a - b
    below, above = math.hypot(a - a_low, b_high - b), math.hypot(a_high - a, b - b_low)
    # The side that faces 0 decides.
    stderr = (below if difference > 0 else above) / float(stats.norm.ppf(1 - ALPHA / 2))
    p = float(2 * stats.norm.sf(abs(difference) / stderr)) if difference else 1.0
    return Estimate(difference, (difference - below, difference + above), stderr, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm 1979): a false one among all comes with 5 % at most."""
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def more_items(estimate: Estimate, n: int, comparisons: int) -> int | None:
    """How many more items would show the seen difference with 80 % probability; None: no difference was seen.

    As after Bonferroni's correction, which Holm's never falls behind; two digits are shown, no more is known.

    Args:
        n: items there are.
        comparisons: made at once.
    """
    if not estimate.difference or not estimate.stderr:
        return None
    needed = stats.norm.ppf(1 - ALPHA / 2 / comparisons) + stats.norm.ppf(POWER)
    more = n * ((needed * estimate.stderr / estimate.difference) ** 2 - 1)
    step = 10 ** max(0, math.floor(math.log10(max(more, 1))) - 1)
    return int(math.ceil(more / step) * step)
