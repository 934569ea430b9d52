"""One run from recipe to `final/`: plan, prepare, train or resume, export, reload, report."""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers.utils import logging

from ant_hf.data.dataset import PackedDataset, TrainingOrder
from ant_hf.data.prepare import find_data, make_data
from ant_hf.data.tokenizer import PAD, load_tokenizer, token_byte_lengths
from ant_hf.data.tokens import TRAIN, VALIDATION, PackedTokens
from ant_hf.errors import AntError, RunStopped
from ant_hf.model.generation import generate_sample
from ant_hf.model.loading import load_final
from ant_hf.model.saving import export_final
from ant_hf.model.scoring import SAME_LOSS, score_tokens
from ant_hf.recipe import Recipe
from ant_hf.train.checkpoints import check_made_of, checkpoint_name, checkpoints, step_of
from ant_hf.train.distributed import (
    check_equal_inputs,
    check_run_folder_is_shared,
    is_first_on_another_machine,
)
from ant_hf.train.dry_run import dry_run as run_dry
from ant_hf.train.run_folder import RunFolder, lock_run_folder, open_run_folder
from ant_hf.train.run_record import environment
from ant_hf.train.setup import Setup, make_trainer, set_up
from ant_hf.train.trainer import AntTrainer
from ant_hf.train.uploads import fetch_checkpoint, finish_uploads, start_uploads
from ant_hf.utils.console import is_first_process, say
from ant_hf.utils.disk import check_room, writing
from ant_hf.utils.files import differences, file_sha256
from ant_hf.utils.hardware import peak_memory_bytes
from ant_hf.utils.metrics import TextScore, read_metrics
from ant_hf.utils.names import FINAL, MANIFEST, METRICS, PLOTS, WEIGHTS
from ant_hf.utils.plots import plot_run
from ant_hf.utils.provenance import now

# Shown as they come.
_SAMPLE_SEEDS = (0, 1, 2)


def pretrain(recipe: Recipe, fresh: bool = False, dry_run: bool = False) -> None:
    """Run a recipe to its end, or continue it from its newest complete checkpoint.

    Args:
        fresh: remove the run in the output folder first.
        dry_run: print the plan, run one micro-batch through model and optimizer, write nothing.

    Raises:
        AntError: anything in the recipe, the data or the folder that the user must mend.
        RunStopped: a signal or the time budget ended it early, with a checkpoint to go on from.
    """
    if not is_first_process():
        logging.set_verbosity_error()
    # A bar for each 40 MB file would tear up the bar of the training.
    logging.disable_progress_bar()
    if dry_run:
        run_dry(recipe)
        return
    setup = set_up(recipe, Path(recipe.output_dir))
    with ExitStack() as held:
        # The first process alone removes and makes files; the others come after and find them.
        with setup.arguments.main_process_first(local=False, desc="preparing data"):
            if is_first_process():
                held.enter_context(lock_run_folder(recipe))
            fetch_checkpoint(recipe, fresh)
            folder = open_run_folder(recipe, fresh and is_first_process())
            if not folder.is_finished and is_first_process():
                make_data(recipe, setup.config.max_position_embeddings)
        check_run_folder_is_shared(folder.path)
        with setup.arguments.main_process_first(local=True, desc="preparing data"):
            if not folder.is_finished and is_first_on_another_machine():
                find_data(recipe, setup.config.max_position_embeddings)
        if folder.is_finished:
            say(f"finished    {folder.path / FINAL} is there already ({folder.record['finished']})")
            _say_result(folder.record["final"], folder.path)
            finish_uploads(start_uploads(recipe), folder.path / FINAL)
            return
        record = folder.record or _new_record(setup)
        _check_inputs(setup, folder, record)
        _train_and_finish(setup, folder, record)


def _check_inputs(setup: Setup, folder: RunFolder, record: dict[str, Any]) -> None:
    """Hold architecture, tokenizer and tokens to those the run was started with."""
    recipe = setup.recipe
    hashes = {
        "config": file_sha256(Path(recipe.architecture)),
        "tokenizer": file_sha256(recipe.tokenizer_dir / "tokenizer.json"),
        "tokens": file_sha256(recipe.tokens_dir / MANIFEST),
    }
    check_equal_inputs(hashes)
    before = record.setdefault("sha256", hashes)
    config = json.loads(json.dumps(setup.config.to_dict()))
    for name, seen in hashes.items():
        if before[name] != seen:
            changed = differences(record["config"], config) if name == "config" else []
            listing = "".join(f"\n  - {line}" for line in changed)
            raise AntError(
                f"{folder.path} was made with different {name}{listing}",
                seen=f"sha256 {seen[:12]}",
                expected=before[name][:12],
                hint="Put the old one back, or start over with --fresh",
            )
    if folder.checkpoint:
        check_made_of(folder.checkpoint, hashes)
    # Three files of weights and moments more than there are, and the export.
    missing = recipe.training.save_total_limit + 1 - len(checkpoints(folder.path))
    room = max(1, missing) * setup.plan.checkpoint_bytes + 4 * setup.ledger.total
    check_room("the checkpoints", folder.path, room)


def _new_record(setup: Setup) -> dict[str, Any]:
    return {
        "name": setup.recipe.name,
        "status": "running",
        "started": now(),
        "recipe": setup.recipe.model_dump(),
        "config": setup.config.to_dict(),
        "parameters": {"total": setup.ledger.total, "by_component": dict(setup.ledger.rows)},
        "plan": dataclasses.asdict(setup.plan),
        "environment": environment(setup.execution, setup.plan.num_processes),
        "resumed_from_steps": [],
        "changes": [],
    }


def _continue_record(setup: Setup, folder: RunFolder, record: dict[str, Any]) -> None:
    """Write down from where a run goes on, and what of recipe and machine is not as it was."""
    if folder.checkpoint:
        step = step_of(folder.checkpoint)
        say(f"resuming    from step {step:,} ({folder.checkpoint})")
        record["resumed_from_steps"].append(step)
    now_here = environment(setup.execution, setup.plan.num_processes)
    changes = [*folder.changes, *differences(record["environment"], now_here)]
    for change in changes:
        say(f"changed     {change}")
    if changes:
        entry = {
            "when": now(),
            "step": step_of(folder.checkpoint) if folder.checkpoint else 0,
            "what": changes,
        }
        record.setdefault("changes", []).append(entry)
    record |= {
        "status": "running",
        "recipe": setup.recipe.model_dump(),
        "plan": dataclasses.asdict(setup.plan),
        "environment": now_here,
    }


def _train_and_finish(setup: Setup, folder: RunFolder, record: dict[str, Any]) -> None:
    recipe, started = setup.recipe, time.perf_counter()
    tokenizer = load_tokenizer(recipe.tokenizer_dir)
    if tokenizer.get_vocab_size() != setup.config.vocab_size:
        raise AntError(
            f"{recipe.tokenizer_dir} has {tokenizer.get_vocab_size()} entries and {recipe.architecture} has "
            f"vocab_size {setup.config.vocab_size}"
        )
    training, length = PackedTokens(recipe.tokens_dir, TRAIN), recipe.training.sequence_length
    pad = tokenizer.token_to_id(PAD)
    assert pad is not None, "load_tokenizer checked it"
    blocks = PackedDataset(training, length, pad)
    positions = recipe.training.max_steps * recipe.training.sequences_per_step
    validation = PackedTokens(recipe.tokens_dir, VALIDATION)
    trainer = make_trainer(
        setup,
        TrainingOrder(blocks, positions, recipe.training.seed),
        validation,
        token_byte_lengths(tokenizer),
        folder.path / METRICS,
        record["sha256"],
    )
    say(f"training    {positions / len(blocks):.2f} passes over {len(training):,} tokens")
    if folder.record:
        _continue_record(setup, folder, record)
    uploads = start_uploads(recipe, trainer)
    if is_first_process():
        folder.write_record(record)
    trainer.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)
    if trainer.guard.stopped_by:
        # The machine may be gone in a moment, and another one goes on from what has arrived.
        finish_uploads(uploads, None)
        _leave(trainer, folder, record)
    in_training = trainer.score(validation)
    model, weights = trainer.whole_model()
    if is_first_process():
        record["training_seconds"] = round(trainer.meter.seconds, 1)
        record["timed_steps"] = trainer.meter.steps
        record["tokens_per_second"] = round(
            trainer.meter.steps * setup.plan.tokens_per_step / max(trainer.meter.seconds, 1e-9), 1
        )
        record["skipped_steps"] = trainer.guard.skipped_steps
        with writing("the final model", folder.path, 4 * setup.ledger.total):
            record["exported_sha256"] = export_final(
                model,
                recipe.tokenizer_dir,
                folder.path / FINAL,
                weights,
                getattr(torch, recipe.export_dtype),
            )
        _finish(setup, folder, record, validation, in_training, started)
        finish_uploads(uploads, folder.path / FINAL)
    trainer.accelerator.wait_for_everyone()


def _leave(trainer: AntTrainer, folder: RunFolder, record: dict[str, Any]) -> NoReturn:
    """Record and say where a stopped run stands.

    Raises:
        RunStopped: always.
    """
    step, reason = trainer.state.global_step, trainer.guard.stopped_by
    text = (
        f"stopped     by {reason} at step {step:,} of {trainer.state.max_steps:,}, saved in "
        f"{folder.path / checkpoint_name(step)}. Run the same command again to continue."
    )
    if is_first_process():
        record |= {"status": "stopped", "stopped": {"step": step, "reason": reason, "when": now()}}
        folder.write_record(record)
    say(text)
    # The launcher ends the others as soon as one has left.
    trainer.accelerator.wait_for_everyone()
    raise RunStopped(text)


def _finish(
    setup: Setup,
    folder: RunFolder,
    record: dict[str, Any],
    validation: PackedTokens,
    in_training: TextScore,
    started: float,
) -> None:
    """Reload what was written, hold it to what was trained, and tell the user."""
    recipe = setup.recipe
    model, tokenizer = load_final(folder.path / FINAL)
    model.to(setup.arguments.device)  # type: ignore[arg-type]  # wrapped by a decorator of transformers
    scores = score_tokens(
        model,
        validation,
        token_byte_lengths(tokenizer.backend_tokenizer),
        context=recipe.training.sequence_length,
        batch_size=setup.plan.per_device_batch_size,
    )
    difference = scores.loss / in_training.loss - 1
    if abs(difference) > SAME_LOSS:
        raise AntError(
            f"{folder.path / FINAL}, reloaded, does not reproduce the trained model: validation loss "
            f"{scores.loss:.4f} against {in_training.loss:.4f} in training",
            expected=f"a difference of at most {SAME_LOSS:.1%}",
            hint="Do not use it; please report this run's run.json",
        )
    samples = [
        {"seed": seed, "text": generate_sample(model, tokenizer, recipe.sample_prompt, seed)}
        for seed in _SAMPLE_SEEDS
    ]
    plot_run(read_metrics(folder.path / METRICS), folder.path / PLOTS, recipe.name)
    record |= {
        "status": "finished",
        "finished": now(),
        "final": {
            **scores.metrics(),
            "uniform_byte_perplexity": scores.uniform_byte_perplexity,
            "tokens": scores.tokens,
            "bytes": scores.bytes,
            "context_tokens": recipe.training.sequence_length,
            "dtype": "float32",
            "loss_in_training": in_training.loss,
            "weights_sha256": file_sha256(folder.path / FINAL / WEIGHTS),
        },
        "samples": samples,
        "peak_memory_bytes": peak_memory_bytes(),
        "train_and_finish_seconds": round(time.perf_counter() - started, 1),
    }
    folder.write_record(record)
    _say_result(record["final"], folder.path)
    say(
        f"speed       {record['tokens_per_second']:,.0f} tokens a second, "
        f"{record['training_seconds']:,.0f} s of training, "
        f"{record['peak_memory_bytes']['process'] / 1e9:.2f} GB of memory at most"
    )
    say(f"\nsample      {samples[0]['text']}\n")
    final, prompt = shlex.quote(str(folder.path / FINAL)), shlex.quote(recipe.sample_prompt)
    say(f"next        look at the curves:     {folder.path / PLOTS / 'loss.png'}")
    say(f"            let it write:           ant-hf generate {final} --prompt {prompt}")
    say(f"            measure it:             ant-hf evaluate {final}")


def _say_result(final: dict[str, Any], path: Path) -> None:
    say(f"final       {path / FINAL}")
    say(
        f"reloaded    validation byte perplexity {final['byte_perplexity']:.3f} (uniform guess "
        f"{final['uniform_byte_perplexity']:.2f}), {final['bits_per_byte']:.3f} bits per byte, "
        f"loss {final['loss']:.4f} (in training {final['loss_in_training']:.4f})"
    )
