"""One run of a study: trained, scored, in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ant_hf.data.tokens import VALIDATION, PackedTokens
from ant_hf.errors import AntError, RunStopped
from ant_hf.inspection import measures
from ant_hf.model.loading import load_final
from ant_hf.recipe import Recipe, load_recipe, read_yaml
from ant_hf.studies.scores import (
    INSPECTION,
    broken_at,
    needs_inspection,
    read_scores,
    results_of,
    tasks_of,
)
from ant_hf.studies.study_file import ARCHITECTURE, RECIPE, PlannedRun, Study
from ant_hf.train.checkpoints import checkpoints
from ant_hf.train.pretrain import pretrain
from ant_hf.train.run_folder import RunRecord, is_finished
from ant_hf.train.sizing import as_yaml
from ant_hf.utils.files import differences, read_json, write_json, write_text
from ant_hf.utils.metrics import read_metrics
from ant_hf.utils.names import FINAL, METRICS, RESULTS, RUN_RECORD
from ant_hf.utils.stopping import stopped_by_signals
from ant_hf.utils.workers import worker_processes

LOG = "log.txt"
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Scoring:
    """What is measured of every run."""

    names: list[str]
    limit: int | None = None
    """Documents of a set, and prompts."""
    data_dir: Path | None = None
    """Folder of the sets as JSONL; None: the Hub."""

    @classmethod
    def of(cls, study: Study, data_dir: Path | None) -> Scoring:
        # The law is fitted to the loss.
        names = list(dict.fromkeys([*study.score, *(["loss"] if study.fit else [])]))
        return cls(names, study.limit, data_dir)


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    record: RunRecord
    scores: dict[str, float | None]
    broken: str | None
    """Where its numbers broke, in words."""


def outcome_of(run: PlannedRun, scoring: Scoring) -> Outcome | None:
    """What came of a run, if there is nothing left to do for it."""
    names = scoring.names
    if not (run.folder / RUN_RECORD).exists():
        return None
    record = RunRecord.read(run.folder)
    if record.status != "finished":
        broken = broken_at(run.folder)
        return Outcome(record, dict.fromkeys(names), broken) if broken else None
    scores = read_scores(run.recipe, record, names, scoring.limit)
    # A few steps give no gradient noise, and a small text no figures of its words.
    missing = tasks_of([name for name, value in scores.items() if value is None])
    if missing or (needs_inspection(names) and not (run.folder / INSPECTION).exists()):
        return None
    return Outcome(record, scores, None)


def write_recipe(run: PlannedRun) -> None:
    """Put recipe and architecture into the folder of a run.

    Raises:
        AntError: the folder holds a run with other values; names what differs.
    """
    values = run.recipe.model_dump(exclude_unset=True) | {"architecture": ARCHITECTURE}
    file, architecture = run.folder / RECIPE, run.folder / ARCHITECTURE
    if (run.folder / RUN_RECORD).exists() and file.exists() and architecture.exists():
        changed = differences(read_yaml(file, "recipe"), values)
        hint = f"Remove {architecture}"
        changed += differences(read_json(architecture, "model config", hint), run.architecture)
        if changed:
            listing = "".join(f"\n  - {line}" for line in changed)
            raise AntError(
                f"{run.folder} already holds a run with other values:{listing}\n"
                "Name another folder with --output-dir, or remove this one"
            )
    write_json(architecture, run.architecture)
    write_text(file, as_yaml(values))


def train_and_score(folder: Path, scoring: Scoring) -> None:
    """Train the run of a folder, or continue it, and measure what is asked for; what is there is kept.

    Raises:
        AntError: as `pretrain`, unless the numbers of the run broke; or as `evaluate`.
    """
    recipe = load_recipe(folder / RECIPE)
    if not is_finished(folder):
        try:
            pretrain(recipe)
        except AntError:
            if not broken_at(folder):
                raise
    if is_finished(folder):
        _score(folder, recipe, scoring)
    for checkpoint in checkpoints(folder):
        # Of Ant-10M 83 MB each, and a run that is over needs none.
        shutil.rmtree(checkpoint)


def _score(folder: Path, recipe: Recipe, scoring: Scoring) -> None:
    if needs_inspection(scoring.names) and not (folder / INSPECTION).exists():
        write_json(folder / INSPECTION, ranks(folder / FINAL, recipe.tokens_dir))
    found = read_scores(recipe, RunRecord.read(folder), scoring.names, scoring.limit)
    missing = [name for name, value in found.items() if value is None]
    if tasks := tasks_of(missing):
        # lm-eval is an optional part of the installation.
        from ant_hf.evaluation.evaluate import evaluate

        is_other_limit = (folder / FINAL / RESULTS).exists() and not results_of(folder, scoring.limit)
        evaluate(folder / FINAL, tasks, data_dir=scoring.data_dir, limit=scoring.limit, fresh=is_other_limit)


def ranks(final: Path, tokens: Path) -> dict[str, float]:
    """The rank figures of `ant-hf inspect`, each as a share of what is possible.

    `weight_rank`: effective rank of all linear matrices of the layers, the mean; `hidden_rank`: that of the
    hidden states after the last layer, on the first held-out tokens.
    """
    model, _ = load_final(final)
    matrices = measures.read_matrices(model)
    ids = PackedTokens(tokens, VALIDATION).slice(0, model.config.max_position_embeddings).tolist()
    activations = measures.read_activations(model, ids)
    return {
        "weight_rank": float(np.mean([matrix.rank_share for matrix in matrices])),
        "hidden_rank": float(activations.hidden_rank[-1] / activations.rank_bound),
    }


def in_a_process(run: PlannedRun, scoring: Scoring, progress: Callable[[int], None]) -> None:
    """Train and score a run in a process of its own, whose output goes to the run's folder.

    A signal is passed on once: the run saves a checkpoint and leaves.

    Args:
        progress: hears now and then how many tokens the run has seen.

    Raises:
        AntError: as `train_and_score`; or the process was killed.
        RunStopped: a signal came.
    """
    asked: list[signal.Signals] = []
    with stopped_by_signals(asked.append), worker_processes(1, os.getpid) as pool:
        work = pool.submit(_work, run.folder, scoring)
        error = _wait_for(work, asked, lambda: progress(_tokens_seen(run.folder)))
        if asked:
            # Inside, so that its process is ended at once: to take torch's modules down takes seconds.
            raise RunStopped(asked[0].name)
    if isinstance(error, BrokenProcessPool):
        raise AntError(
            f"the process of {run.folder} was killed",
            hint=f"Memory may have run out: see {run.folder / LOG}. Run the same command again to continue.",
        ) from None
    if isinstance(error, AntError):
        raise AntError(f"{run.folder}: {error}") from None
    if error:
        raise error


def _wait_for(
    work: Future[None], asked: list[signal.Signals], look: Callable[[], None]
) -> BaseException | None:
    is_passed_on = False
    over = threading.Event()
    work.add_done_callback(lambda _: over.set())
    while not over.wait(_LOOK_SECONDS):
        look()
        if asked and not is_passed_on:
            is_passed_on = True
            for process in multiprocessing.active_children():
                process.terminate()
    return work.exception()


@stopped_by_signals()
def _work(folder: Path, scoring: Scoring) -> None:
    """In the process of a run."""
    sys.stdout.flush()
    with (folder / LOG).open("a", encoding="utf-8") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    # Where they were replaced, as tests do.
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False, encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, encoding="utf-8")
    train_and_score(folder, scoring)


def _tokens_seen(folder: Path) -> int:
    rows: list[dict[str, Any]] = read_metrics(folder / METRICS)
    return next((int(row["tokens_seen"]) for row in reversed(rows) if "tokens_seen" in row), 0)
