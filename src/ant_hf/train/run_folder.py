"""A run's folder: whose it is, its record `run.json`, and where a run continues."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from ant_hf.errors import AntError
from ant_hf.model.base import config_source
from ant_hf.recipe import Recipe
from ant_hf.train.checkpoints import INCOMPLETE, check_trained_with, checkpoints, newest_checkpoint, step_of
from ant_hf.train.distributed import check_equal_inputs
from ant_hf.train.setup import Execution, Setup
from ant_hf.utils.console import is_first_process, say
from ant_hf.utils.files import (
    check_hash,
    check_room,
    differences,
    file_sha256,
    read_json,
    read_sealed,
    write_sealed,
    writing,
)
from ant_hf.utils.names import (
    FINAL,
    MANIFEST,
    METRICS,
    PLOTS,
    RUN_RECORD,
    TOKENIZER,
    expand_home,
)
from ant_hf.utils.provenance import now, package_versions, source_commit

_RECORD_VERSION = 2
# A record with the longest of configs and samples.
_RECORD_BYTES = 20_000
_PACKAGES = (
    *("ant-hf", "torch", "transformers", "accelerate"),
    *("tokenizers", "datasets", "numpy", "safetensors"),
)
# May differ between a run and its continuation: they change what is shown, or where things lie, and
# not the weights. What the config and the tokens hold is compared by hash.
_FREE_KEYS = {
    "architecture",
    "corpus.decontaminate",
    "corpus.general",
    "corpus.language",
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
    # By the hash of its weights.
    "training.init_from",
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
# What a run may still change while its learning rate is constant: where the decay begins, the end, and how
# many of the last checkpoints are averaged.
_LENGTH_KEYS = {"training.max_steps", "training.stable_fraction", "training.average_last"}


class RunRecord(BaseModel):
    """`run.json`: what was run, on what, from what, with what outcome. What is not known yet is not in it.

    Keys of other versions are kept as they are.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    name: str | None = None
    status: str = "running"
    """`running`, `stopped` or `finished`."""
    started: str | None = None
    recipe: dict[str, Any]
    config: dict[str, Any] = {}
    """The LlamaConfig."""
    parameters: dict[str, Any] = {}
    plan: dict[str, Any] = {}
    environment: dict[str, Any]
    """Versions, commit and hardware."""
    sha256: dict[str, str] = {}
    """Of config, tokenizer and tokens, and of the weights it began with, if any."""
    base: dict[str, Any] | None = None
    """The model that the training began with: name, revision, licence, texts, benchmarks."""
    resumed_from_steps: list[int]
    changes: list[dict[str, Any]] = []
    """When, at which step, and what of recipe and machine was not as before."""
    stopped: dict[str, Any] | None = None
    training_seconds: float | None = None
    timed_steps: int | None = None
    compile_seconds: float | None = None
    """Of the first step of each sitting, which compiled the model; in `training_seconds` too."""
    tokens_per_second: float | None = None
    """Without the steps that compiled."""
    skipped_steps: int | None = None
    mix: dict[str, dict[str, Any]] | None = None
    """What each part of a mix gave: share and tokens of the training, documents and tokens of its text, and
    passes over them."""
    exported_sha256: dict[str, str] | None = None
    best: dict[str, Any] | None = None
    """Step and held-out loss of the checkpoint that became the final model, and the last step of the run."""
    final: dict[str, Any] | None = None
    """Scores of the reloaded model."""
    general: dict[str, Any] | None = None
    """Scores of it on text that is not the user's."""
    before: dict[str, Any] | None = None
    """The same of the model that the training began with: `final`, `general`, `samples`."""
    samples: list[dict[str, Any]] | None = None
    peak_memory_bytes: dict[str, int] | None = None
    train_and_finish_seconds: float | None = None
    finished: str | None = None

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """The record of a folder.

        Raises:
            AntError: it is damaged, or was changed after it was written.
        """
        path = folder / RUN_RECORD
        hint = f"Start over with --fresh, or remove {folder}."
        try:
            record = cls.model_validate(read_sealed(path, "run record", hint))
        except ValidationError as error:
            wrong = ", ".join(str(item["loc"][0]) for item in error.errors())
            raise AntError(f"run record {path} is damaged", seen=f"no {wrong}", hint=hint) from None
        if record.status == "finished" and not (record.final and record.finished):
            raise AntError(f"run record {path} is damaged", seen="no final", hint=hint)
        return record

    def write(self, folder: Path) -> None:
        """Write `run.json`, whole or as it was."""
        values = {name: value for name, value in self if value is not None}
        with writing("the run record", folder, _RECORD_BYTES):
            write_sealed(folder / RUN_RECORD, values | {"format_version": _RECORD_VERSION})


def environment(execution: Execution, num_processes: int) -> dict[str, Any]:
    """Versions, commit and hardware, as JSON values."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(_PACKAGES),
        "commit": source_commit(),
        "device": execution.device,
        "device_name": execution.device_name,
        "num_processes": num_processes,
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "precision": execution.precision,
        "precision_reason": execution.reason,
        "torch_compile": execution.torch_compile,
        "attn_implementation": execution.attn_implementation,
    }


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """An output folder that was found fit for a recipe."""

    path: Path
    record: RunRecord | None = None
    """Of the run to continue with; None for a new one."""
    checkpoint: Path | None = None
    """Newest complete checkpoint of the run to continue with."""
    changes: tuple[str, ...] = ()
    """What today's recipe changes in the run, all of it allowed."""

    @property
    def is_finished(self) -> bool:
        return self.record is not None and is_finished(self.path)


def is_finished(path: Path) -> bool:
    """Whether a folder says that it holds a finished run, and its final model is there."""
    try:
        is_told = read_json(path / RUN_RECORD, "run record", "").get("status") == "finished"
    except AntError:
        return False
    return is_told and (path / FINAL).is_dir()


def check_is_run(path: Path) -> None:
    """Refuse a folder whose checkpoints belong to no run that is known; an empty one may become a run's.

    Raises:
        AntError: there are checkpoints or a final model, and no record.
    """
    if not (path / RUN_RECORD).exists() and (any(path.glob("checkpoint-*")) or (path / FINAL).exists()):
        raise AntError(
            f"{path} holds checkpoints, but no {RUN_RECORD}",
            hint="Name another folder: --output-dir FOLDER",
        )


def open_run_folder(recipe: Recipe, fresh: bool = False, look_only: bool = False) -> RunFolder:
    """Decide what a folder's contents mean for this recipe.

    Args:
        fresh: remove the run that is there; tokenizer and tokens stay, they have checks of their own.
        look_only: change nothing in the folder.

    Raises:
        AntError: the folder holds another run (names what differs), or files that are not a run.
    """
    path = Path(recipe.output_dir)
    check_is_run(path)
    if not (path / RUN_RECORD).exists():
        return RunFolder(path)
    if fresh:
        what = "a run would remove" if look_only else "removing"
        say("fresh", f"{what} the run in {path}: {_described(path)}")
        if not look_only:
            _remove_run(path)
        return RunFolder(path)
    record = RunRecord.read(path)
    try:
        # Newer keys are at the defaults that the run was trained with.
        recorded: Recipe | None = Recipe.model_validate(record.recipe)
    except ValidationError:
        recorded = None
    before = _with_whole_paths(recorded.model_dump() if recorded else record.recipe)
    values = _with_whole_paths(recipe.model_dump())
    is_open = recorded and record.status != "finished" and _length_is_open(path, recorded, recipe)
    free = _FREE_KEYS
    if is_open:
        free = free | _LENGTH_KEYS | {f"corpus.{part}.decay_weight" for part in _parts(values)}
    if recipe.training.average_last and not is_open:
        # They say which checkpoints are averaged.
        free = free - {"training.save_steps"}
    if recipe.keeps_best:
        # They decide which checkpoints there are to choose from.
        free = free - {"training.eval_max_tokens", "training.eval_steps", "training.save_steps"}
    free = free | {f"corpus.{part}.{key}" for part in _parts(values) for key in ("name", "license", "url")}
    if None in [(each.get("tokenizer") or {}).get("vocab_size") for each in (before, values)]:
        # Left open on one side; the tokenizer itself is compared by its hash.
        free = free | {"tokenizer.vocab_size"}
    if refused := differences(before, values, free):
        listing = "\n".join(f"  - {line}" for line in refused)
        raise AntError(
            f"{path} holds another run, {record.name!r}, {record.status}, "
            f"started {record.started}:\n{listing}\nName another folder with --output-dir, "
            "or remove that run with --fresh"
        )
    # The first process sets damaged ones aside before the others look.
    newest = (
        newest_checkpoint(path, look_only) if is_first_process() else next(reversed(checkpoints(path)), None)
    )
    return RunFolder(path, record, newest, tuple(differences(before, values)))


def begin_or_go_on(setup: Setup, folder: RunFolder) -> RunRecord:
    """The record of a run that begins here, or of one that continues, with what is not as it was.

    Raises:
        AntError: config, tokenizer or tokens are not those the run was started with (names both hashes),
            or there is no room for what it will write.
    """
    now_here = environment(setup.execution, setup.plan.num_processes)
    record = folder.record or RunRecord(
        name=setup.recipe.name,
        started=now(),
        recipe={},
        config=setup.config_values,
        parameters={"total": setup.ledger.total, "by_component": dict(setup.ledger.rows)},
        environment=now_here,
        resumed_from_steps=[],
        base=setup.base.described() if setup.base else None,
    )
    hashes = _input_hashes(setup)
    check_equal_inputs(hashes)
    _check_inputs(setup, folder, record, hashes)
    check_room("the checkpoints", folder.path, room_needed(setup, folder))
    step = step_of(folder.checkpoint) if folder.checkpoint else 0
    if folder.checkpoint:
        say("resuming", f"from step {step:,} ({folder.checkpoint})")
        record.resumed_from_steps.append(step)
    changes = [*folder.changes, *differences(record.environment, now_here)]
    for change in changes:
        say("changed", change)
    if changes:
        record.changes.append({"when": now(), "step": step, "what": changes})
    record.status, record.environment = "running", now_here
    record.recipe, record.plan = setup.recipe.model_dump(), dataclasses.asdict(setup.plan)
    return record


def _input_hashes(setup: Setup) -> dict[str, str]:
    recipe = setup.recipe
    return {
        # First: with another model to begin with, all the others differ too.
        **({"base": setup.base.sha256} if setup.base else {}),
        "config": file_sha256(config_source(recipe, setup.base)),
        "tokenizer": file_sha256(recipe.tokenizer_dir / TOKENIZER),
        "tokens": file_sha256(recipe.tokens_dir / MANIFEST),
    }


def _check_inputs(setup: Setup, folder: RunFolder, record: RunRecord, hashes: dict[str, str]) -> None:
    record.sha256 = record.sha256 or hashes
    for name in {**record.sha256, **hashes}:
        changed = differences(record.config, setup.config_values) if name == "config" else []
        listing = "".join(f"\n  - {line}" for line in changed)
        problem = f"{folder.path} was made with different {name}{listing}"
        hint = "Put the old one back, or start over with --fresh"
        check_hash(problem, hashes.get(name), record.sha256.get(name), hint)
    if folder.checkpoint:
        check_trained_with(folder.checkpoint, hashes)


def check_can_go_on(setup: Setup, folder: RunFolder) -> None:
    """Hold config, tokenizer and tokens to those of the run in the folder, if there is one.

    Raises:
        AntError: as `begin_or_go_on`, or they are not there any more.
    """
    if folder.record:
        _check_inputs(setup, folder, folder.record, _input_hashes(setup))


def room_needed(setup: Setup, folder: RunFolder) -> int:
    """Bytes of the final model, and of the checkpoints at most beyond those that are there."""
    training = setup.recipe.training
    saves = -(-training.max_steps // training.save_steps)
    # An old one goes when the new one is complete; the best one may stay beside them.
    most = min(training.save_total_limit + 1 + setup.recipe.keeps_best, saves)
    missing = max(1, most - len(checkpoints(folder.path)))
    return missing * setup.plan.checkpoint_bytes + 4 * setup.ledger.total


def _with_whole_paths(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values with local text named from the root: by any of its names it is the same text."""

    def whole(text: dict[str, Any]) -> dict[str, Any]:
        if text.get("source") != "files" or not text.get("path"):
            return text
        paths = text["path"] if isinstance(text["path"], list) else [text["path"]]
        return text | {"path": [str(Path(expand_home(path)).resolve()) for path in paths]}

    corpus = recipe.get("corpus")
    if not isinstance(corpus, dict):
        return recipe
    corpus = whole(corpus)
    if replay := corpus.get("replay"):
        corpus |= {"replay": whole(replay)}
    if mix := corpus.get("mix"):
        corpus |= {"mix": {name: whole(part) for name, part in mix.items()}}
    return recipe | {"corpus": corpus}


def _parts(recipe: dict[str, Any]) -> list[str]:
    """The keys of the parts of a corpus, in the section `corpus`."""
    return [f"mix.{name}" for name in recipe["corpus"].get("mix") or ()] + ["replay"]


def _length_is_open(path: Path, recorded: Recipe, recipe: Recipe) -> bool:
    """Whether old and new length give every step up to the newest checkpoint the same learning rate."""
    old, new = recorded.training, recipe.training
    latest = next(reversed(checkpoints(path)), None)
    kinds = {old.lr_scheduler_type, new.lr_scheduler_type}
    constant_until = min(old.decay_begins, new.decay_begins)
    return latest is not None and kinds == {"warmup_stable_decay"} and step_of(latest) <= constant_until


def _described(path: Path) -> str:
    try:
        record = read_json(path / RUN_RECORD, "run record", "")
    except AntError:
        return f"its {RUN_RECORD} is damaged"
    newest = next((saved.name for saved in reversed(checkpoints(path))), "no checkpoint")
    return f"{record.get('name')!r}, {record.get('status')}, started {record.get('started')}, {newest}"


def _remove_run(path: Path) -> None:
    # .saving is of earlier versions.
    folders = (FINAL, PLOTS, "tensorboard", ".saving", INCOMPLETE)
    for child in [*path.glob("checkpoint-*"), *(path / name for name in folders)]:
        shutil.rmtree(child, ignore_errors=True)
    for name in (METRICS, RUN_RECORD):
        (path / name).unlink(missing_ok=True)
