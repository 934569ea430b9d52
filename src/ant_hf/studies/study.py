"""A study from file to page: plan, train and score run after run, fit, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ant_hf.errors import AntError, RunStopped
from ant_hf.evaluation.benchmarks import choose_benchmarks, known_benchmarks
from ant_hf.studies.fitting import check_fit, fitted
from ant_hf.studies.record import STUDY_RECORD, RunRow, StudyRecord
from ant_hf.studies.report import draw, page, results_table
from ant_hf.studies.running import Outcome, Scoring, in_a_process, outcome_of, write_recipe
from ant_hf.studies.scores import LOOPS, all_scores, tasks_of
from ant_hf.studies.study_file import ARCHITECTURE, RECIPE, Changes, LoadedStudy, PlannedRun
from ant_hf.train.setup import choose_execution
from ant_hf.utils.console import Advance, progress_bar, say, show
from ant_hf.utils.files import file_sha256, write_text
from ant_hf.utils.locks import locked
from ant_hf.utils.names import RUN_RECORD
from ant_hf.utils.provenance import without_paths
from ant_hf.utils.stopping import phase

_PRECISION = "training.precision"


def run_study(loaded: LoadedStudy, data_dir: Path | None = None, docs: Path | None = None) -> StudyRecord:
    """Train and score what is missing, then write record, plot and page.

    Args:
        data_dir: folder of evaluation sets as JSONL; None: the Hub.
        docs: folder that gets the page, its plot and its record too.

    Raises:
        AntError: a run fails, and not because its numbers broke; or as `load_study` and `fit_law`.
        RunStopped: a signal came; what is finished is kept, and the run that was training has a checkpoint.
    """
    loaded, left_out = without_impossible(loaded)
    study = loaded.study
    if study.fit:
        check_fit(study.fit, loaded.runs)
    scoring = Scoring.of(study, data_dir)
    kept = "What is finished is kept. Run the same command again to continue."
    with locked(loaded.folder, "study"), phase(f"running the study {study.name}", kept):
        for run in loaded.runs:
            write_recipe(run)
        say_left_out(left_out)
        outcomes = _all_run(loaded, scoring)
    record = _record(loaded, left_out, outcomes)
    if study.fit:
        say("fitting", f"the scaling law to all runs, then to {study.fit.resamples} samples of them")
        record.fit = fitted(study.fit, record.runs)
    write_all(record, loaded.folder)
    if docs:
        write_all(record, docs, named=True)
    show(results_table(record))
    say("study", str(loaded.folder / STUDY_RECORD))
    say("page", str((docs or loaded.folder) / f"{study.name}.md"))
    if not study.answer:
        say("next", f"write your answer into {loaded.file} as answer: ..., and run this command again")
    return record


def write_all(record: StudyRecord, folder: Path, named: bool = False) -> None:
    """Write record, plot and page of a study.

    Args:
        named: give the record the study's name, as in a folder of several.
    """
    record.write(folder / (f"{record.name}.json" if named else STUDY_RECORD))
    draw(record, folder / f"{record.name}.png")
    write_text(folder / f"{record.name}.md", page(record))


def without_impossible(loaded: LoadedStudy) -> tuple[LoadedStudy, dict[str, str]]:
    """The study without the runs in a precision that this machine lacks, and why, by cell.

    Raises:
        AntError: no run is left.
    """
    left_out: dict[str, str] = {}
    for run in loaded.runs:
        if run.cell in left_out or _PRECISION not in run.changes:
            continue
        try:
            choose_execution(run.recipe.training)
        except AntError as error:
            left_out[run.cell] = str(error)
    runs = [run for run in loaded.runs if run.cell not in left_out]
    if not runs:
        raise AntError(
            f"{loaded.file}: this machine cannot train any of its runs", hint=next(iter(left_out.values()))
        )
    return replace(loaded, runs=runs), left_out


def say_left_out(left_out: dict[str, str]) -> None:
    """Name the cells that are not trained here, by reason."""
    for reason in dict.fromkeys(left_out.values()):
        say("left out", "; ".join(cell for cell, own in left_out.items() if own == reason))
        say("", reason)


def _all_run(loaded: LoadedStudy, scoring: Scoring) -> list[tuple[PlannedRun, Outcome]]:
    """Every run with what came of it."""
    runs = loaded.trainings
    found = {run.name: outcome_of(run, scoring) for run in runs}
    total = sum(run.tokens for run in runs)
    finished = sum(outcome is not None for outcome in found.values())
    say("study", f"{loaded.study.name}: {len(found)} runs, {total:,} tokens; {finished} runs are finished")
    sets = [name for name in tasks_of(scoring.names) if name != LOOPS]
    if sets and finished < len(found):
        # Documents that are missing would end the study after its first run.
        choose_benchmarks(sets, known_benchmarks(scoring.data_dir), scoring.data_dir)
    # The time that is left follows from the compute: a token of a larger model takes longer.
    compute = {run.name: run.tokens * run.flops_per_token / 1e9 for run in runs}
    done = sum(compute[run.name] for run in runs if found[run.name])
    with progress_bar("study", "GFLOP", earlier=done) as advance:
        for number, run in enumerate(runs, 1):
            if found[run.name]:
                continue
            figures = f"run {number} of {len(found)}: {run.name}"
            progress = _run_progress(advance, run.flops_per_token / 1e9, sum(compute.values()), figures)
            progress(0)
            try:
                in_a_process(run, scoring, progress)
            except RunStopped as stopped:
                finished = sum(outcome is not None for outcome in found.values())
                text = (
                    f"by {stopped} in run {number} of {len(found)}, {run.name}; {finished} are finished. "
                    "Run the same command again to continue."
                )
                say("stopped", text)
                raise RunStopped(f"stopped {text}") from None
            found[run.name] = outcome = outcome_of(run, scoring)
            if outcome is None:
                raise AntError(
                    f"the run in {run.folder} ended, but some of its scores are missing",
                    expected=", ".join(scoring.names),
                    hint="Remove that folder and run the same command again.",
                )
            progress(run.tokens)
            say("run", f"{number} of {len(found)}, {run.name}: {_in_words(outcome)}")
    return [(run, outcome) for run in loaded.runs if (outcome := found[run.name])]


def _run_progress(advance: Advance, each: float, total: float, figures: str) -> Callable[[int], None]:
    """What moves the bar of all runs as far as one run has come, in tokens, each of which counts `each`."""
    seen = 0

    def progress(tokens: int) -> None:
        nonlocal seen
        advance(max(0, tokens - seen) * each, total, figures)
        seen = max(seen, tokens)

    return progress


def _in_words(outcome: Outcome) -> str:
    if outcome.broken:
        return f"broke, {outcome.broken}"
    table = all_scores()
    return ", ".join(
        f"{table[name].label} {table[name].form.format(value)}"
        for name, value in outcome.scores.items()
        if value is not None
    )


def _record(
    loaded: LoadedStudy, left_out: dict[str, str], outcomes: list[tuple[PlannedRun, Outcome]]
) -> StudyRecord:
    study = loaded.study
    return StudyRecord(
        name=study.name,
        question=study.question,
        answer=study.answer,
        does_not_show=study.does_not_show,
        base=study.base,
        file=loaded.file.name,
        file_sha256=file_sha256(loaded.file),
        scale=loaded.scale,
        planned=len(loaded.runs),
        left_out=left_out,
        scores=study.score,
        limit=study.limit,
        plot=study.plot,
        shared_changes=_public(loaded.shared),
        conditions=_conditions(outcomes),
        runs=[_row(run, outcome) for run, outcome in outcomes],
    )


def _row(run: PlannedRun, outcome: Outcome) -> RunRow:
    files = {"recipe": RECIPE, "architecture": ARCHITECTURE, "run": RUN_RECORD}
    record = outcome.record
    # `num_train_epochs` can make a run shorter than it was planned.
    tokens = record.plan.get("total_tokens", run.tokens)
    # The first is of the last sitting alone.
    seconds = max(record.train_and_finish_seconds or 0.0, record.training_seconds or 0.0)
    return RunRow(
        cell=run.cell,
        point=run.point,
        changes=_public(run.changes),
        seed=run.seed,
        facts=run.facts() | {"tokens": tokens, "flops": run.flops_per_token * tokens},
        scores=outcome.scores,
        broken=outcome.broken,
        minutes=round(seconds / 60, 1) if seconds else None,
        sha256={name: file_sha256(run.folder / file) for name, file in files.items()}
        | {name: record.sha256[name] for name in ("tokenizer", "tokens") if name in record.sha256},
    )


def _public(changes: Changes) -> Changes:
    """Changes without the folders of somebody's machine."""
    return {key: without_paths(value, key.rpartition(".")[2]) for key, value in changes.items()}


def _conditions(outcomes: list[tuple[PlannedRun, Outcome]]) -> dict[str, list[str]]:
    """What the records of the runs say of machine, packages and text."""
    found: dict[str, dict[str, None]] = {}
    for run, outcome in outcomes:
        here, final = outcome.record.environment, outcome.record.final or {}
        places = [text.path or text.source for text in run.recipe.corpus.texts]
        texts = [text for place in places for text in (place if isinstance(place, list) else [place])]
        values = {
            "text": ", ".join(without_paths(texts, "path")),
            "held-out text": f"{final['bytes']:,} bytes" if "bytes" in final else None,
            "device": f"{here['device']} ({here['device_name']}), torch threads: {here['torch_threads']}",
            "precision": here["precision"],
            "packages": ", ".join(
                f"{name} {here['packages'][name]}"
                for name in ("ant-hf", "torch", "transformers")
                if name in here["packages"]
            ),
            "commit": here.get("commit"),
        }
        for name, value in values.items():
            if value:
                found.setdefault(name, {})[str(value)] = None
    return {name: list(values) for name, values in found.items()}
