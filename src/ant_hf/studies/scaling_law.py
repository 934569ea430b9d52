"""L(N, D) = E + A / N^alpha + B / D^beta: fitted, with intervals, and what follows from it. Imports no torch.

Approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556): the Huber loss (delta 1e-3) of log L predicted minus
log L measured, with the prediction as a log-sum-exp of its three terms, minimised by L-BFGS from a grid of
starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ant_hf.errors import AntError

DELTA = 1e-3
PARAMETERS = ("E", "A", "B", "alpha", "beta")
# Fewer do not determine five parameters, and leave no residuals to judge the fit by.
FEWEST_RUNS = 7
# Starts: each term as a share of a typical loss, and exponents; the best of all are refined.
_SHARES_OF_E, _SHARES, _EXPONENTS = (0.15, 0.4, 0.7), (0.05, 0.15, 0.4, 0.7), (0.1, 0.25, 0.45, 0.8)
_REFINED, _REFINED_AGAIN = 24, 3
_BOUNDS = (2.5, 97.5)
_Floats = NDArray[Any]


class Runs(NamedTuple):
    """What a law is fitted to."""

    parameters: _Floats
    """N of each run, shape (runs,)."""
    tokens: _Floats
    """D of each."""
    losses: _Floats
    """Nats per token of each."""

    def at(self, index: _Floats) -> Runs:
        return Runs(self.parameters[index], self.tokens[index], self.losses[index])


class Law(NamedTuple):
    """The five parameters."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """Nats per token of models of so many parameters after so many tokens."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta


class Interval(NamedTuple):
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fitted:
    """A law, and the same fitted to resampled runs."""

    runs: Runs
    law: Law
    resampled: list[Law]
    residuals: _Floats
    """log of the measured loss over the fitted one, shape (runs,)."""

    def parameter(self, name: str) -> Interval:
        """One of PARAMETERS."""
        return _interval(getattr(self.law, name), [getattr(law, name) for law in self.resampled])

    def predicted(self, parameters: float, tokens: float, seed: int = 0) -> Interval:
        """The loss of one run, with the spread of runs about the law in the interval.

        Each law of the bootstrap gives a prediction, and a residual drawn from those of the fit moves it.
        """
        generator = np.random.default_rng(seed)
        # Of five parameters so many degrees of freedom are gone.
        wider = np.sqrt(len(self.residuals) / max(1, len(self.residuals) - len(PARAMETERS)))
        drawn = generator.choice(self.residuals, len(self.resampled)) * wider
        values = [
            law.loss(parameters, tokens) * np.exp(residual)
            for law, residual in zip(self.resampled, drawn, strict=True)
        ]
        return _interval(self.law.loss(parameters, tokens), values)

    def best_size(self, flops: float, flops_per_token: FlopsPerToken) -> tuple[Interval, Interval, Interval]:
        """Parameters, tokens and loss of the best model for so much compute."""
        sizes = np.geomspace(self.runs.parameters.min() / 10, self.runs.parameters.max() * 1e4, 4000)
        tokens = flops / flops_per_token.of(sizes)

        def best(law: Law) -> int:
            return int(np.argmin(law.loss(sizes, tokens)))

        at, others = best(self.law), [best(law) for law in self.resampled]
        return (
            _interval(sizes[at], sizes[others]),
            _interval(tokens[at], tokens[others]),
            _interval(
                self.law.loss(sizes[at], tokens[at]),
                [law.loss(sizes[i], tokens[i]) for law, i in zip(self.resampled, others, strict=True)],
            ),
        )


class FlopsPerToken(NamedTuple):
    """Floating-point operations a token costs as a power of the parameters, along the shapes of a study."""

    factor: float
    power: float

    @classmethod
    def along(cls, parameters: _Floats, flops: _Floats) -> FlopsPerToken:
        power, log_factor = np.polyfit(np.log(parameters), np.log(flops), 1)
        return cls(float(np.exp(log_factor)), float(power))

    def of(self, parameters: Any) -> Any:
        return self.factor * parameters**self.power


def _interval(value: float, values: Any) -> Interval:
    low, high = np.percentile(np.asarray(values), _BOUNDS)
    return Interval(float(value), float(low), float(high))


def fit_law(runs: Runs, resamples: int, seed: int = 0) -> Fitted:
    """Fit the law, and fit it again to `resamples` samples of the runs, drawn with replacement.

    Raises:
        AntError: too few runs, or all of one size or one number of tokens.
    """
    check_runs(runs)
    problem = _Problem(runs)
    starts = problem.best_starts(_REFINED)
    refined = sorted((problem.minimised(start) for start in starts), key=lambda found: found[0])
    best = [parameters for _, parameters in refined]
    law = problem.law(best[0])
    generator = np.random.default_rng(seed)
    resampled: list[Law] = []
    while len(resampled) < resamples:
        index = generator.integers(len(runs.losses), size=len(runs.losses))
        drawn = runs.at(index)
        if _is_flat(drawn):
            continue
        # The same coordinates, so that the solutions of all runs are starts here too.
        again = _Problem(drawn, problem)
        found = min((again.minimised(start) for start in best[:_REFINED_AGAIN]), key=lambda found: found[0])
        resampled.append(again.law(found[1]))
    residuals = np.log(runs.losses) - np.log(law.loss(runs.parameters, runs.tokens))
    return Fitted(runs, law, resampled, residuals)


def check_runs(runs: Runs) -> None:
    """Raise AntError, with what is missing, if the runs do not determine the five parameters."""
    if len(runs.losses) < FEWEST_RUNS or _is_flat(runs):
        sizes, lengths = len(set(runs.parameters.tolist())), len(set(runs.tokens.tolist()))
        raise AntError(
            "the scaling law cannot be fitted",
            seen=f"{len(runs.losses)} runs of {sizes} sizes and {lengths} numbers of tokens",
            expected=f"at least {FEWEST_RUNS} runs, with 3 or more sizes and 3 or more numbers of tokens",
            hint="Add runs to the study file, or take fit out of it.",
        )


def _is_flat(runs: Runs) -> bool:
    return min(len(set(runs.parameters.tolist())), len(set(runs.tokens.tolist()))) < 3


class _Problem:
    """The objective in the coordinates (a, alpha, b, beta, e), with logs of N and D centred.

    The terms of log L are a - alpha * n, b - beta * d and e, where n and d are the centred logs: so that a
    and alpha can be moved apart from each other, and L-BFGS gets there.
    """

    def __init__(self, runs: Runs, other: _Problem | None = None) -> None:
        n, d = np.log(runs.parameters), np.log(runs.tokens)
        self._mean_n: float = other._mean_n if other else n.mean()
        self._mean_d: float = other._mean_d if other else d.mean()
        self._n, self._d, self._losses = n - self._mean_n, d - self._mean_d, np.log(runs.losses)

    def _terms(self, parameters: _Floats) -> _Floats:
        """Of sets of parameters, shape (..., 5); the terms have the shape (..., 3, runs)."""
        terms = np.empty((*parameters.shape[:-1], 3, len(self._n)))
        a, alpha, b, beta, e = (parameters[..., k, None] for k in range(5))
        terms[..., 0, :], terms[..., 1, :], terms[..., 2, :] = a - alpha * self._n, b - beta * self._d, e
        return terms

    def _value(self, residuals: _Floats) -> _Floats:
        """Huber's loss in units of delta squared, summed over the runs."""
        size = np.abs(residuals) / DELTA
        return np.where(size <= 1, size**2 / 2, size - 0.5).sum(-1)

    def objective(self, parameters: _Floats) -> tuple[float, _Floats]:
        """The value and its gradient."""
        terms = self._terms(parameters)
        logs = np.logaddexp.reduce(terms, axis=0)
        shares = np.exp(terms - logs)
        residuals = logs - self._losses
        slope = np.clip(residuals / DELTA, -1, 1) / DELTA
        gradient = [
            (slope * shares[0]).sum(),
            (-slope * shares[0] * self._n).sum(),
            (slope * shares[1]).sum(),
            (-slope * shares[1] * self._d).sum(),
            (slope * shares[2]).sum(),
        ]
        return float(self._value(residuals)), np.array(gradient)

    def best_starts(self, number: int) -> list[_Floats]:
        """Those of the grid with the lowest values."""
        typical = self._losses.mean()
        e, a, b = (typical + np.log(shares) for shares in (_SHARES_OF_E, _SHARES, _SHARES))
        grid = np.stack(np.meshgrid(a, _EXPONENTS, b, _EXPONENTS, e, indexing="ij"), axis=-1).reshape(-1, 5)
        values = self._value(np.logaddexp.reduce(self._terms(grid), axis=-2) - self._losses)
        return list(grid[np.argsort(values)[:number]])

    def minimised(self, start: _Floats) -> tuple[float, _Floats]:
        """Value and parameters where L-BFGS ends; exponents are at least 0."""
        bounds = [(None, None), (0.0, 3.0), (None, None), (0.0, 3.0), (None, None)]
        options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-8}
        found = minimize(self.objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return float(found.fun), found.x

    def law(self, parameters: _Floats) -> Law:
        a, alpha, b, beta, e = map(float, parameters)
        return Law(
            E=float(np.exp(e)),
            A=float(np.exp(a + alpha * self._mean_n)),
            B=float(np.exp(b + beta * self._mean_d)),
            alpha=alpha,
            beta=beta,
        )


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within groups, over all that have two members or more; None if none has."""
    own = [np.asarray(group) for group in groups if len(group) > 1]
    if not own:
        return None
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in own)
    return float(np.sqrt(squares / sum(len(group) - 1 for group in own)))
