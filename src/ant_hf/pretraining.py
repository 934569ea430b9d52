"""One run from recipe to `final/`: plan, prepare, train or resume, export, reload, report."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, TrainingArguments
from transformers.utils import logging

from ant_hf.architecture import Ledger, build_model, load_config, parameter_ledger
from ant_hf.artefacts import file_sha256
from ant_hf.checkpoints import WEIGHTS, export_final, generate_sample, load_final
from ant_hf.dataset import PackedDataset, TrainingOrder
from ant_hf.errors import AntError
from ant_hf.evaluation.perplexity import TokenScores, score_tokens
from ant_hf.hub.training import fetch_checkpoint, finish_uploads, start_uploads
from ant_hf.metrics import read_metrics
from ant_hf.plan import Plan, show_plan
from ant_hf.plots import plot_run
from ant_hf.precision import Execution, choose_execution
from ant_hf.preparation import make_tokenizer, make_tokens
from ant_hf.processes import threads_per_process
from ant_hf.recipe import Recipe
from ant_hf.report import is_first_process, say
from ant_hf.run_folder import FINAL, METRICS, PLOTS, RunFolder, open_run_folder
from ant_hf.run_record import environment, now, peak_memory_bytes
from ant_hf.tokenizer import PAD, load_tokenizer, token_byte_lengths
from ant_hf.tokens import MANIFEST, TRAIN, VALIDATION, PackedTokens
from ant_hf.training import AntTrainer, training_arguments

# How far the reloaded model's loss may lie from the trained one's; 16-bit against fp32 differs by far less.
_RELOAD_TOLERANCE = 0.005


@dataclasses.dataclass(frozen=True)
class _Setup:
    """Everything decided before data is touched."""

    recipe: Recipe
    config: PreTrainedConfig
    ledger: Ledger
    execution: Execution
    plan: Plan
    arguments: TrainingArguments


def pretrain(recipe: Recipe, fresh: bool = False, dry_run: bool = False) -> None:
    """Run a recipe to its end, or continue it from its newest checkpoint.

    Args:
        fresh: remove the run in the output folder first.
        dry_run: print the plan, run one micro-batch through model and optimizer, write nothing.

    Raises:
        AntError: anything in the recipe, the data or the folder that the user must mend.
    """
    if not is_first_process():
        logging.set_verbosity_error()
    # A bar for each 40 MB file would tear up the bar of the training.
    logging.disable_progress_bar()
    if dry_run:
        _dry_run(recipe)
        return
    setup = _set_up(recipe, Path(recipe.output_dir))
    # The first process alone removes and makes files; the others come after and find them.
    with setup.arguments.main_process_first(local=False, desc="preparing data"):
        fetch_checkpoint(recipe, fresh)
        folder = open_run_folder(recipe, fresh and is_first_process())
        if not folder.is_finished and is_first_process():
            make_tokenizer(recipe, setup.config.max_position_embeddings)
            make_tokens(recipe)
    if folder.is_finished:
        say(f"finished    {folder.path / FINAL} is there already ({folder.record['finished']})")
        _say_result(folder.record["final"], folder.path)
        finish_uploads(start_uploads(recipe), folder.path / FINAL)
        return
    record = folder.record or _new_record(setup)
    hashes = {
        "config": file_sha256(Path(recipe.architecture)),
        "tokenizer": file_sha256(recipe.tokenizer_dir / "tokenizer.json"),
        "tokens": file_sha256(recipe.tokens_dir / MANIFEST),
    }
    for name, seen in hashes.items():
        if record.setdefault("sha256", hashes)[name] != seen:
            raise AntError(
                f"{folder.path} was started with another {name}",
                seen=f"sha256 {seen[:12]}",
                expected=record["sha256"][name][:12],
                hint="Put the old one back, or start over with --fresh",
            )
    _train_and_finish(setup, folder, record)


def _set_up(recipe: Recipe, output_dir: Path) -> _Setup:
    config = load_config(recipe.architecture)
    training = recipe.training
    if recipe.tokenizer.vocab_size != config.vocab_size:
        raise AntError(
            f"tokenizer.vocab_size is {recipe.tokenizer.vocab_size} and {recipe.architecture} has "
            f"vocab_size {config.vocab_size}",
            hint="Make them equal",
        )
    if training.sequence_length > config.max_position_embeddings:
        raise AntError(
            f"training.sequence_length is {training.sequence_length}",
            expected=f"at most the max_position_embeddings of {recipe.architecture}, "
            f"{config.max_position_embeddings}",
        )
    ledger = parameter_ledger(config)
    execution = choose_execution(training)
    if execution.device == "cpu":
        # accelerate launch exports OMP_NUM_THREADS=1, which would leave all other cores idle.
        torch.set_num_threads(training.cpu_threads or threads_per_process())
    arguments = training_arguments(training, execution, output_dir)
    plan = Plan.of(recipe, config, ledger, arguments.world_size)
    arguments.per_device_train_batch_size = plan.per_device_batch_size
    arguments.gradient_accumulation_steps = plan.gradient_accumulation_steps
    show_plan(recipe, ledger, execution, plan, config)
    return _Setup(recipe, config, ledger, execution, plan, arguments)


def _new_record(setup: _Setup) -> dict[str, Any]:
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
    }


def _train_and_finish(setup: _Setup, folder: RunFolder, record: dict[str, Any]) -> None:
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
    trainer = _trainer(
        setup,
        TrainingOrder(blocks, positions, recipe.training.seed),
        validation,
        token_byte_lengths(tokenizer),
        folder.path / METRICS,
    )
    say(f"training    {positions / len(blocks):.2f} passes over {len(training):,} tokens")
    if folder.checkpoint:
        step = int(folder.checkpoint.name.removeprefix("checkpoint-"))
        say(f"resuming    from step {step:,} ({folder.checkpoint})")
        record["resumed_from_steps"].append(step)
    uploads = start_uploads(recipe, trainer)
    if is_first_process():
        folder.write_record(record)
    trainer.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)
    in_training = trainer.score(validation)
    if is_first_process():
        record["training_seconds"] = round(trainer.meter.seconds, 1)
        record["tokens_per_second"] = round(
            trainer.meter.steps * setup.plan.tokens_per_step / max(trainer.meter.seconds, 1e-9), 1
        )
        record["exported_sha256"] = export_final(
            trainer.accelerator.unwrap_model(
                trainer.model, keep_fp32_wrapper=False, keep_torch_compile=False
            ),
            recipe.tokenizer_dir,
            folder.path / FINAL,
        )
        _finish(setup, folder, record, validation, in_training, started)
        finish_uploads(uploads, folder.path / FINAL)
    trainer.accelerator.wait_for_everyone()


def _trainer(
    setup: _Setup, order: TrainingOrder, validation: Any, byte_lengths: list[int], metrics_file: Path
) -> AntTrainer:
    seed = setup.recipe.training.seed
    return AntTrainer(
        build_model(setup.config, seed, setup.execution.attn_implementation),
        setup.arguments,
        order,
        validation,
        recipe=setup.recipe,
        execution=setup.execution,
        plan=setup.plan,
        byte_lengths=byte_lengths,
        metrics_file=metrics_file,
    )


def _finish(
    setup: _Setup,
    folder: RunFolder,
    record: dict[str, Any],
    validation: PackedTokens,
    in_training: TokenScores,
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
        recipe.training.sequence_length,
        recipe.training.per_device_batch_size,
        recipe.training.eval_max_tokens,
    )
    difference = scores.loss / in_training.loss - 1
    if abs(difference) > _RELOAD_TOLERANCE:
        raise AntError(
            f"{folder.path / FINAL}, reloaded, does not reproduce the trained model: validation loss "
            f"{scores.loss:.4f} against {in_training.loss:.4f} in training",
            expected=f"a difference of at most {_RELOAD_TOLERANCE:.1%}",
            hint="Do not use it; please report this run's run.json",
        )
    sample = generate_sample(model, tokenizer, recipe.sample_prompt)
    plot_run(read_metrics(folder.path / METRICS), folder.path / PLOTS, recipe.name)
    record |= {
        "status": "finished",
        "finished": now(),
        "final": {
            **scores.metrics(),
            "uniform_byte_perplexity": scores.uniform_byte_perplexity(setup.config.vocab_size),
            "tokens": scores.tokens,
            "bytes": scores.bytes,
            "context_tokens": recipe.training.sequence_length,
            "dtype": "float32",
            "loss_in_training": in_training.loss,
            "weights_sha256": file_sha256(folder.path / FINAL / WEIGHTS),
        },
        "sample": sample,
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
    say(f"\nsample      {sample}\n")
    say("next        look at the curves:     " + str(folder.path / PLOTS / "loss.png"))
    say(f"            let it write:           ant-hf generate {folder.path / FINAL} --prompt 'And he said'")
    say(
        "            the full-size model:    accelerate launch pretrain.py --config "
        "configs/recipes/ant10m.yaml"
    )


def _say_result(final: dict[str, Any], path: Path) -> None:
    say(f"final       {path / FINAL}")
    say(
        f"reloaded    validation byte perplexity {final['byte_perplexity']:.3f} (uniform guess "
        f"{final['uniform_byte_perplexity']:.2f}), {final['bits_per_byte']:.3f} bits per byte, "
        f"loss {final['loss']:.4f} (in training {final['loss_in_training']:.4f})"
    )


class _RandomTokens(PackedTokens):
    """Stands in for packed text in a dry run, which needs shapes and no data."""

    def __init__(self, length: int, vocab_size: int) -> None:
        self.split, self._length, self._vocab_size = TRAIN, length, vocab_size

    def __len__(self) -> int:
        return self._length

    def slice(self, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
        return np.random.default_rng(start).integers(self._vocab_size, size=stop - start).astype(np.uint16)


def _dry_run(recipe: Recipe) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        setup = _set_up(recipe, Path(scratch))
        arguments = setup.arguments
        arguments.max_steps, arguments.gradient_accumulation_steps = 1, 1
        arguments.save_strategy = arguments.eval_strategy = "no"
        arguments.report_to = []
        arguments.disable_tqdm = True
        blocks_at_once = setup.plan.per_device_batch_size * setup.plan.num_processes
        tokens = _RandomTokens(blocks_at_once * recipe.training.sequence_length, setup.config.vocab_size)
        order = TrainingOrder(PackedDataset(tokens, recipe.training.sequence_length, 0), blocks_at_once, 0)
        trainer = _trainer(setup, order, tokens, [1] * setup.config.vocab_size, Path(scratch) / METRICS)
        trainer.train()
        loss = read_metrics(Path(scratch) / METRICS)[0]["loss"] if is_first_process() else 0.0
        say(
            f"dry run     one micro-batch of {blocks_at_once} blocks took {trainer.meter.seconds:.1f} s, "
            f"loss {loss:.2f} on random tokens (ln vocab_size = {np.log(setup.config.vocab_size):.2f}); "
            "nothing was written"
        )
