"""How much time and disk a study takes, said before anything is written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ant_hf.data.survey import Survey, survey
from ant_hf.errors import AntError
from ant_hf.studies.fitting import check_fit
from ant_hf.studies.report import short, whole
from ant_hf.studies.running import Scoring, outcome_of
from ant_hf.studies.scores import all_scores
from ant_hf.studies.study import say_left_out, without_impossible
from ant_hf.studies.study_file import LoadedStudy, PlannedRun
from ant_hf.train.estimates import (
    arithmetic,
    choose_compilation,
    in_words,
    measure_training,
    seconds_on,
)
from ant_hf.train.setup import Setup, set_up
from ant_hf.utils.console import COMPACT, facts_table, say, show
from ant_hf.utils.files import free_bytes, write_json
from ant_hf.utils.hardware import gpu_named

# A process that imports torch, reads tokens and exports: a guess.
_START_SECONDS = 15.0
# Time of scoring as a share of training, where nothing is timed: forward passes only, of two models.
_SCORING_SHARE = 0.8
_TIMED_SECONDS, _SURVEY_SECONDS, _SURVEY_BYTES = 3.0, 1.0, 1_000_000


@dataclass(frozen=True)
class _Pace:
    seconds: Callable[[float], float]
    """Of a token, from the compute that it takes."""
    how: str


def plan_study(loaded: LoadedStudy, tokens_per_second: float | None = None) -> None:
    """Print the runs, their tokens, the hours and the disk that a study takes.

    Args:
        tokens_per_second: of the run with the most compute per token; None: two runs are timed here.

    Raises:
        AntError: the text cannot be read or is too small for a vocabulary; or no run can be trained here.
    """
    loaded, left_out = without_impossible(loaded)
    if loaded.study.fit:
        check_fit(loaded.study.fit, loaded.runs)
    with tempfile.TemporaryDirectory() as scratch:
        setups = {run.name: _set_up(run, Path(scratch)) for run in loaded.runs}
        pace = _stated(loaded.runs, tokens_per_second) if tokens_per_second else _timed(loaded.runs, setups)
        texts = _texts(loaded.runs)
        gpu = gpu_named("t4")
        on_gpu = sum(seconds_on(gpu, setup) for setup in setups.values())
    seconds = {run.name: _seconds(run, pace, texts) for run in loaded.runs}
    show(_runs_table(loaded, seconds))
    runs = loaded.trainings
    done = [run for run in runs if outcome_of(run, Scoring.of(loaded.study, None))]
    left = sum(seconds[run.name] for run in runs if run not in done)
    prepared = sum((text.tokenizer_seconds or 0) + (text.packing_seconds or 0) for text in texts.values())
    facts = [
        ("runs", f"{len(runs)}, of which {len(done)} are finished"),
        ("tokens", f"{sum(run.tokens for run in runs):,}"),
        ("text", f"{len(texts)} to tokenize and pack, each once: {in_words(prepared)}"),
        ("runs left", f"{in_words(left)}; {pace.how}"),
        ("in all", f"{(left + prepared) / 3600:.1f} hours{_not_counted(loaded)}"),
        ("on a T4", f"{in_words(on_gpu)} of training, {arithmetic(gpu)}"),
        ("disk", _disk(loaded, setups, texts)),
    ]
    show(facts_table(f"The study {loaded.study.name}", facts))
    say_left_out(left_out)
    say("dry run", "nothing was written")


def _set_up(run: PlannedRun, scratch: Path) -> Setup:
    architecture = scratch / f"{run.name}.json"
    write_json(architecture, run.architecture)
    return set_up(run.recipe.model_copy(update={"architecture": str(architecture)}), scratch)


def _stated(runs: list[PlannedRun], tokens_per_second: float) -> _Pace:
    most = max(run.flops_per_token for run in runs)
    return _Pace(
        lambda flops: flops / most / tokens_per_second,
        f"{tokens_per_second:,.0f} tokens per second for the largest model, as given; the others follow from "
        "their compute",
    )


def _timed(runs: list[PlannedRun], setups: dict[str, Setup]) -> _Pace:
    """Seconds per token are taken as linear in the compute between the smallest and the largest model."""
    ordered = sorted(runs, key=lambda run: run.flops_per_token)
    least, most = ordered[0], ordered[-1]
    say("dry run", "timing a few steps of the smallest and the largest model on random tokens")

    def timed(run: PlannedRun) -> float:
        rate = measure_training(choose_compilation(setups[run.name]), _TIMED_SECONDS)
        return 1 / rate.tokens_per_second

    first = timed(least)
    last = timed(most) if most.flops_per_token > least.flops_per_token else first
    how = f"timed here: {1 / last:,.0f} tokens per second for the largest model, {1 / first:,.0f} for the "
    how += "smallest"
    slope = (last - first) / max(most.flops_per_token - least.flops_per_token, 1.0)
    return _Pace(lambda flops: first + slope * (flops - least.flops_per_token), how)


def _texts(runs: list[PlannedRun]) -> dict[str, Survey]:
    """A look at the text for each folder of tokens."""
    found: dict[str, Survey] = {}
    for run in runs:
        folder = str(run.recipe.data_dir)
        if folder in found:
            continue
        say("dry run", f"reading a sample of the text for a vocabulary of {run.config.vocab_size:,} entries")
        try:
            text = survey(run.recipe, run.config.max_position_embeddings, _SURVEY_SECONDS, _SURVEY_BYTES)
        except AntError as error:
            raise AntError(f"{run.cell}: {error}") from None
        found[folder] = text
    return found


def _seconds(run: PlannedRun, pace: _Pace, texts: dict[str, Survey]) -> float:
    held_out = texts[str(run.recipe.data_dir)].validation_tokens or 0
    # Scored twice at the end, before and after the export.
    return _START_SECONDS + pace.seconds(run.flops_per_token) * (run.tokens + 2 * _SCORING_SHARE * held_out)


def _not_counted(loaded: LoadedStudy) -> str:
    table = all_scores()
    others = [name for name in loaded.study.score if table[name].needs != "run"]
    return f", plus the time to measure {', '.join(others)}" if others else ""


def _disk(loaded: LoadedStudy, setups: dict[str, Setup], texts: dict[str, Survey]) -> str:
    tokens = sum(
        2 * ((text.train_tokens or 0) + (text.validation_tokens or 0))
        for text in texts.values()
        if text.packing_seconds != 0
    )
    finals = sum(4 * setup.ledger.total for setup in setups.values())
    checkpoints = max(
        setup.plan.checkpoint_bytes * (setup.recipe.training.save_total_limit + 1)
        for setup in setups.values()
    )
    free = free_bytes(loaded.folder)
    return (
        f"{(tokens + finals + checkpoints) / 1e9:,.2f} GB (tokens {tokens / 1e9:,.2f}, final models "
        f"{finals / 1e9:,.2f}, checkpoints of a run {checkpoints / 1e9:,.2f}); {free / 1e9:,.1f} GB are free"
    )


def _runs_table(loaded: LoadedStudy, seconds: dict[str, float]) -> Table:
    """One row for each cell, within 80 columns."""
    table = Table(title=loaded.study.question, **COMPACT)
    # A long name continues below; a number is never cut.
    table.add_column("run", max_width=26)
    for name in ("seeds", "params", "embed", "layers", "width", "vocab", "tokens", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    cells: dict[str, list[PlannedRun]] = {}
    for run in loaded.runs:
        cells.setdefault(run.cell, []).append(run)
    for cell, runs in cells.items():
        run = runs[0]
        facts = run.facts()
        table.add_row(
            cell,
            str(len(runs)),
            short(run.ledger.total),
            f"{facts['embedding_share']:.0%}",
            str(run.config.num_hidden_layers),
            str(run.config.hidden_size),
            f"{run.config.vocab_size:,}",
            short(run.tokens),
            in_words(sum(seconds[each.name] for each in runs if not each.is_repeat)),
        )
    return whole(table)
