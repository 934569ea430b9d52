"""Who owns an output folder: a new run, the same run to go on with, or another one to be refused."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ant_hf.errors import AntError
from ant_hf.recipe import Recipe
from ant_hf.train.checkpoints import INCOMPLETE, SAVING, checkpoints, newest_checkpoint, step_of
from ant_hf.utils.console import is_first_process, say
from ant_hf.utils.disk import writing
from ant_hf.utils.files import differences, read_json, read_sealed, write_sealed
from ant_hf.utils.locks import locked
from ant_hf.utils.names import FINAL, METRICS, PLOTS, RUN_RECORD

_RECORD_VERSION = 2
# A record with the longest of configs and samples.
_RECORD_BYTES = 20_000
# May differ between a run and its continuation: they change what is shown, or where things lie, and
# not the weights. What the config and the tokens hold is compared by hash.
_FREE_KEYS = {
    "architecture",
    "corpus.sources",
    "data_dir",
    "export_dtype",
    "output_dir",
    "sample_prompt",
    "training.cpu_threads",
    "training.dataloader_num_workers",
    "training.eval_max_tokens",
    "training.eval_steps",
    "training.hub_always_push",
    "training.hub_model_id",
    "training.hub_private_repo",
    "training.hub_strategy",
    "training.logging_steps",
    "training.max_hours",
    "training.max_skipped_steps",
    # Where memory runs out it must be lowered; the batch of a step stays the same.
    "training.per_device_batch_size",
    "training.push_to_hub",
    "training.report_to",
    "training.save_steps",
    "training.save_total_limit",
    "training.spike_deviations",
}


# What a run may still change while its learning rate is constant: where the decay begins, and the end.
_LENGTH_KEYS = {"training.max_steps", "training.stable_fraction"}


@dataclass(frozen=True)
class RunFolder:
    """An output folder that was found fit for a recipe."""

    path: Path
    record: dict[str, Any]
    """run.json of the run to go on with; empty for a new one."""
    checkpoint: Path | None
    """Newest complete checkpoint of the run to go on with."""
    changes: tuple[str, ...] = ()
    """What the recipe of now changes in the run, all of it allowed."""

    @property
    def is_finished(self) -> bool:
        return self.record.get("status") == "finished"

    def write_record(self, values: dict[str, Any]) -> None:
        values["format_version"] = _RECORD_VERSION
        with writing("the run record", self.path, _RECORD_BYTES):
            write_sealed(self.path / RUN_RECORD, values)


def lock_run_folder(recipe: Recipe) -> AbstractContextManager[None]:
    """Hold a run's folder while it trains.

    Raises:
        AntError: another process does, or the path is a file.
    """
    path = Path(recipe.output_dir)
    if path.exists() and not path.is_dir():
        raise AntError(f"output_dir {path} is a file", hint="Set another: --output-dir FOLDER")
    return locked(path, "run")


def open_run_folder(recipe: Recipe, fresh: bool = False) -> RunFolder:
    """Decide what a folder's contents mean for this recipe.

    Args:
        fresh: remove the run that is there; tokenizer and tokens stay, they have checks of their own.

    Raises:
        AntError: the folder holds another run (names what differs), or files that are no run.
    """
    path = Path(recipe.output_dir)
    if not (path / RUN_RECORD).exists():
        if checkpoints(path) or (path / FINAL).exists():
            raise AntError(
                f"{path} holds checkpoints without a {RUN_RECORD}",
                hint="Set another folder: --output-dir FOLDER",
            )
        return RunFolder(path, {}, None)
    if fresh:
        say(f"fresh       removing the run in {path}: {_described(path)}")
        _remove_run(path)
        return RunFolder(path, {}, None)
    record = read_sealed(path / RUN_RECORD, "run record", f"Start over with --fresh, or remove {path}.")
    _check_shape(path / RUN_RECORD, record)
    recorded = _recorded_recipe(record)
    before = _with_whole_paths(recorded.model_dump() if recorded else record["recipe"])
    values = _with_whole_paths(recipe.model_dump())
    is_open = recorded and record["status"] != "finished" and _length_is_open(path, recorded, recipe)
    free = _FREE_KEYS | _LENGTH_KEYS if is_open else _FREE_KEYS
    if refused := differences(before, values, free):
        listing = "\n".join(f"  - {line}" for line in refused)
        raise AntError(
            f"{path} holds another run, {record.get('name')!r}, {record.get('status')}, "
            f"started {record.get('started')}:\n{listing}\nSet another folder with --output-dir, "
            "or remove that run with --fresh"
        )
    # The first process sets damaged ones aside before the others look.
    newest = newest_checkpoint(path) if is_first_process() else next(reversed(checkpoints(path)), None)
    return RunFolder(path, record, newest, tuple(differences(before, values)))


def _with_whole_paths(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values with local text named from the root: by any of its names it is the same text."""
    corpus = recipe.get("corpus")
    if not isinstance(corpus, dict) or corpus.get("source") != "files" or not corpus.get("path"):
        return recipe
    return recipe | {"corpus": corpus | {"path": str(Path(corpus["path"]).expanduser().resolve())}}


def _recorded_recipe(record: dict[str, Any]) -> Recipe | None:
    """The recipe of a run, newer keys at the defaults it was trained with; None if keys are gone."""
    try:
        return Recipe.model_validate(record["recipe"])
    except ValidationError:
        return None


def _length_is_open(path: Path, recorded: Recipe, recipe: Recipe) -> bool:
    """Whether old and new length give every step up to the newest checkpoint the same learning rate."""
    old, new = recorded.training, recipe.training
    latest = next(reversed(checkpoints(path)), None)
    kinds = {old.lr_scheduler_type, new.lr_scheduler_type}
    constant_until = min(old.decay_begins, new.decay_begins)
    return latest is not None and kinds == {"warmup_stable_decay"} and step_of(latest) <= constant_until


def _check_shape(path: Path, record: dict[str, Any]) -> None:
    """A record of format 1 has no seal: hold the parts that are read to their types."""
    shape = {"recipe": dict, "status": str, "environment": dict, "resumed_from_steps": list}
    if record.get("status") == "finished":
        shape |= {"final": dict, "finished": str}
    if wrong := [name for name, kind in shape.items() if not isinstance(record.get(name), kind)]:
        raise AntError(f"run record {path} is damaged", seen=f"no {', '.join(wrong)}", hint="Use --fresh.")


def _described(path: Path) -> str:
    try:
        record = read_json(path / RUN_RECORD, "run record", "")
    except AntError:
        return f"its {RUN_RECORD} is damaged"
    newest = next((saved.name for saved in reversed(checkpoints(path))), "no checkpoint")
    return f"{record.get('name')!r}, {record.get('status')}, started {record.get('started')}, {newest}"


def _remove_run(path: Path) -> None:
    folders = (FINAL, PLOTS, "tensorboard", SAVING, INCOMPLETE)
    for child in [*checkpoints(path), *(path / name for name in folders)]:
        shutil.rmtree(child, ignore_errors=True)
    for name in (METRICS, RUN_RECORD):
        (path / name).unlink(missing_ok=True)
