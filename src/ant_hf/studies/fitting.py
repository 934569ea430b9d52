"""The scaling law of a study: which runs are fitted, what is predicted, and what it is compared with."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from ant_hf.errors import AntError
from ant_hf.studies.record import BestSize, Estimate, FitRecord, Prediction, RunRow
from ant_hf.studies.scaling_law import PARAMETERS, Fitted, FlopsPerToken, Interval, Runs, check_runs, fit_law
from ant_hf.studies.study_file import Budgets, Fit, PlannedRun, Point
from ant_hf.train.estimates import ASSUMED_UTILISATION
from ant_hf.train.run_folder import RunRecord
from ant_hf.utils.hardware import gpu_named

_N, _D, _LOSS = "non_embedding_parameters", "tokens", "loss"


def check_fit(fit: Fit, runs: list[PlannedRun]) -> None:
    """Refuse a fit that its keys or the planned runs cannot give, before anything is trained.

    Raises:
        AntError: as `fitted`, and for an unknown GPU.
    """
    inside = [run.facts() for run in runs if run.cell not in {*fit.without, *fit.held_out}]
    sizes, lengths = (np.array([facts[name] for facts in inside]) for name in (_N, _D))
    check_runs(Runs(sizes, lengths, losses=lengths))
    for name, point in fit.predict.items():
        _size(name, point)
    if fit.budgets:
        gpu_named(fit.budgets.gpu, "fit.budgets.gpu")


def fitted(fit: Fit, rows: list[RunRow]) -> FitRecord:
    """Fit the runs that are neither held out nor left out, and predict.

    Raises:
        AntError: as `fit_law`; or a point to be predicted has no parameters or tokens.
    """
    usable = [row for row in rows if row.scores.get(_LOSS) is not None and row.cell not in fit.without]
    inside = [row for row in usable if row.cell not in fit.held_out]
    runs = Runs(*(np.array(values, dtype=float) for values in _columns(inside)))
    result = fit_law(runs, fit.resamples)
    residuals: dict[str, list[float]] = defaultdict(list)
    for row, residual in zip(inside, result.residuals, strict=True):
        residuals[row.cell].append(float(residual))
    record = FitRecord(
        parameters={name: _estimate(result.parameter(name)) for name in PARAMETERS},
        runs=len(inside),
        resamples=len(result.resampled),
        residuals={cell: float(np.mean(own)) for cell, own in residuals.items()},
        held_out=[_held_out(cell, usable, result) for cell in fit.held_out],
        predictions=[_prediction(name, point, result, inside) for name, point in fit.predict.items()],
    )
    if fit.budgets:
        flops = np.array([row.facts["flops"] / row.facts[_D] for row in inside])
        record.compute, record.best_sizes = _best_sizes(
            fit.budgets, result, FlopsPerToken.along(runs.parameters, flops)
        )
    return record


def _columns(rows: list[RunRow]) -> tuple[list[float], list[float], list[float]]:
    losses = [row.scores[_LOSS] or 0.0 for row in rows]
    return [row.facts[_N] for row in rows], [row.facts[_D] for row in rows], losses


def _held_out(cell: str, rows: list[RunRow], result: Fitted) -> Prediction:
    own = [row for row in rows if row.cell == cell]
    if not own:
        raise AntError(
            f"fit.held_out names {cell!r}, but none of its runs has a loss",
            hint="Take it out of fit.held_out, or change its runs so that their numbers stay finite.",
        )
    sizes, lengths, losses = _columns(own)
    return Prediction(
        name=cell,
        parameters=int(sizes[0]),
        tokens=int(lengths[0]),
        loss=_estimate(result.predicted(sizes[0], lengths[0])),
        measured=float(np.mean(losses)),
    )


def _prediction(name: str, point: Point, result: Fitted, rows: list[RunRow]) -> Prediction:
    parameters, tokens = _size(name, point)
    measured, source = None, point.source
    if point.run:
        record = RunRecord.read(Path(point.run))
        measured = (record.final or {}).get("loss")
        ours = {row.sha256.get("tokens") for row in rows}
        source = (
            "on the same held-out text"
            if ours == {record.sha256.get("tokens")}
            else "on its own held-out text"
        )
    return Prediction(
        name=name,
        parameters=parameters,
        tokens=tokens,
        loss=_estimate(result.predicted(parameters, tokens)),
        measured=measured,
        published=point.published,
        source=source,
    )


def _size(name: str, point: Point) -> tuple[int, int]:
    """Non-embedding parameters and tokens of a point."""
    parameters, tokens = point.parameters, point.tokens
    if point.run:
        record = RunRecord.read(Path(point.run))
        by_component = record.parameters["by_component"]
        parameters = sum(
            count for part, count in by_component.items() if part not in ("embeddings", "lm_head")
        )
        tokens = record.plan["total_tokens"]
    if not parameters or not tokens:
        raise AntError(
            f"fit.predict.{name} lacks a size",
            seen=f"parameters {parameters}, tokens {tokens}",
            expected="both numbers, or run: FOLDER with the run.json of a trained model",
        )
    return parameters, tokens


def _best_sizes(budgets: Budgets, result: Fitted, flops: FlopsPerToken) -> tuple[str, list[BestSize]]:
    gpu = gpu_named(budgets.gpu)
    assert gpu.peak_flops is not None, "gpu_named gives those with a data sheet"
    per_second = gpu.peak_flops * ASSUMED_UTILISATION
    found = []
    for hours in budgets.hours:
        compute = 3600 * hours * per_second
        parameters, tokens, loss = map(_estimate, result.best_size(compute, flops))
        found.append(BestSize(hours=hours, flops=compute, parameters=parameters, tokens=tokens, loss=loss))
    words = (
        f"an hour of a {budgets.gpu.upper()} is taken as {per_second * 3600:.3g} FLOP, "
        f"{ASSUMED_UTILISATION:.0%} of its peak of {gpu.peak_flops / 1e12:g} TFLOP/s (assumed, not measured)"
    )
    return words, found


def _estimate(interval: Interval) -> Estimate:
    return Estimate(value=interval.value, low=interval.low, high=interval.high)
