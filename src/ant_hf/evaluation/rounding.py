"""Whether 16-bit arithmetic is exact enough for a set: some documents are scored both ways first.

A score in 16 bits may stand for that in 32 where rounding moves it by far less than another draw of documents
would, which is what the standard error says.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from scipy.stats import beta

from ant_hf.evaluation.benchmarks import Benchmark
from ant_hf.evaluation.language_model import BatchedLM
from ant_hf.evaluation.results import PREFERRED, headline_metric

# A set that has no more is scored in 32 bits at once.
SAMPLE = 500
# Rounding may be a third of the standard error: both together are then 5 % more than it alone.
_SHARE = 1 / 3


@dataclass(frozen=True)
class Rounding:
    """What 16 bits do to a set's score."""

    dtype: str
    documents: int
    """Scored both ways, spread evenly over the set."""
    changed: int | None
    """Of these, answers that became right or wrong; None for a perplexity."""
    error: float
    """How far rounding moves the score of the whole set, at most (95 %)."""
    stderr: float
    """Of that score, over documents."""

    @property
    def is_exact_enough(self) -> bool:
        return self.error <= _SHARE * self.stderr

    def line(self, label: str) -> str:
        """The check in one sentence."""
        seen = "rounding changes them" if self.changed is None else f"{self.changed} answers change"
        verdict = (
            f"small enough, so the set is scored in {self.dtype}"
            if self.is_exact_enough
            else "too much, so the set is scored in float32"
        )
        return (
            f"{label}: {self.documents} documents were scored in {self.dtype} too: {seen}. That moves the "
            f"score by up to {self.error / self.stderr:.2f} standard errors: {verdict}"
        )


def check_rounding(
    benchmark: Benchmark, tasks: dict[str, Any], exact: BatchedLM, rounded: BatchedLM
) -> Rounding | None:
    """Score a sample of a set's documents both ways; None where the set has too few, or another metric.

    Changed answers: the upper bound of their share f by Clopper and Pearson (1934), and sqrt(f / n) for the
    score of n documents, since rounding makes answers right as often as wrong. Perplexities: the mean of the
    differences, which are paired, and twice its standard error.
    """
    first = next(iter(tasks.values()))
    is_text = first.OUTPUT_TYPE == "loglikelihood_rolling"
    if not is_text and headline_metric(benchmark, first.aggregation()) not in PREFERRED:
        # Other metrics are not a share of right answers.
        return None
    documents: dict[tuple[str, int], list[Instance]] = defaultdict(list)
    for name, task in tasks.items():
        for request in task.instances:
            documents[name, request.doc_id].append(request)
    n = len(documents)
    if n <= SAMPLE:
        return None
    every = list(documents)
    chosen = [every[index * n // SAMPLE] for index in range(SAMPLE)]
    values = [
        _scores(benchmark, tasks, [(name, documents[name, index]) for name, index in chosen], scorer)
        for scorer in (exact, rounded)
    ]
    dtype = str(rounded.model.dtype).removeprefix("torch.")
    if is_text:
        nats, sizes = (np.array(column) for column in zip(*values[0], strict=True))
        moved = np.array([pair[0] for pair in values[1]]) - nats
        mean = sizes.mean()
        spread = nats - sizes * nats.sum() / sizes.sum()
        error = (abs(moved.mean()) + 2 * moved.std(ddof=1) / math.sqrt(SAMPLE)) / mean
        return Rounding(dtype, SAMPLE, None, float(error), float(spread.std(ddof=1) / mean / math.sqrt(n)))
    changed = sum(one != other for one, other in zip(*values, strict=True))
    # Half an answer more of both kinds: a sample that is right throughout says nothing of the rest.
    right = (sum(values[0]) + 0.5) / (SAMPLE + 1)
    share = float(beta.ppf(0.95, changed + 1, SAMPLE - changed)) if changed < SAMPLE else 1.0
    return Rounding(dtype, SAMPLE, changed, math.sqrt(share / n), math.sqrt(right * (1 - right) / n))


def _scores(
    benchmark: Benchmark,
    tasks: dict[str, Any],
    documents: Sequence[tuple[str, list[Instance]]],
    scorer: BatchedLM,
) -> list[Any]:
    """Of each document the headline metric as lm-eval gives it: 0 or 1, or (nats, bytes) of a text."""
    requests = [request for _, own in documents for request in own]
    found = iter(getattr(scorer, requests[0].request_type)(requests))
    values = []
    for name, own in documents:
        results = tasks[name].process_results(own[0].doc, [next(found) for _ in own])
        values.append(results[headline_metric(benchmark, results)])
    return values
