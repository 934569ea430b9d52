"""What a recipe means on this machine: sizes, device, arguments and the trainer made of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, TrainingArguments

from ant_hf.data.dataset import TrainingOrder
from ant_hf.errors import AntError
from ant_hf.model.architecture import Ledger, build_model, load_config, parameter_ledger
from ant_hf.recipe import Recipe, TrainingRecipe
from ant_hf.train.distributed import check_fsdp
from ant_hf.train.plan import Plan, choose_micro_batch, show_plan
from ant_hf.train.precision import Execution, choose_execution
from ant_hf.train.trackers import PROJECT, check_reporting
from ant_hf.train.trainer import AntTrainer
from ant_hf.utils.console import say
from ant_hf.utils.hardware import keep_freed_memory, threads_per_process

# The first process may tokenise a whole corpus while the others wait for it.
_WAIT_SECONDS = 24 * 3600


def training_arguments(recipe: TrainingRecipe, execution: Execution, output_dir: Path) -> TrainingArguments:
    """The recipe in Trainer's words; creating them also joins the other processes."""
    # The only way to tell Trainer's TensorBoard callback where to write.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(output_dir / "tensorboard")
    return TrainingArguments(
        output_dir=str(output_dir),
        max_steps=recipe.max_steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_scheduler_type,
        lr_scheduler_kwargs=_scheduler_kwargs(recipe),
        warmup_steps=recipe.warmup_steps,
        # The fused kernel skips an overflowed step by itself, unseen: accelerate would count it as
        # taken and Trainer would move the schedule on.
        optim="adamw_torch" if execution.precision == "fp16" else "adamw_torch_fused",
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.adam_beta1,
        adam_beta2=recipe.adam_beta2,
        max_grad_norm=recipe.max_grad_norm,
        bf16=execution.precision == "bf16",
        fp16=execution.precision == "fp16",
        torch_compile=execution.torch_compile,
        use_cpu=execution.device == "cpu",
        seed=recipe.seed,
        # TrainingOrder has shuffled already.
        train_sampling_strategy="sequential",
        dataloader_num_workers=recipe.dataloader_num_workers,
        dataloader_pin_memory=execution.device == "cuda",
        # From pinned memory, so that the copy of a batch goes on beside the step before.
        accelerator_config={"non_blocking": execution.device == "cuda"},
        remove_unused_columns=False,
        logging_steps=recipe.logging_steps,
        logging_first_step=True,
        # The guard must see a NaN; Trainer would put the running mean in its place.
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=recipe.eval_steps,
        save_strategy="steps",
        save_steps=recipe.save_steps,
        save_total_limit=recipe.save_total_limit,
        report_to=[*recipe.report_to],
        project=PROJECT,
        ddp_timeout=_WAIT_SECONDS,
        ddp_find_unused_parameters=False,
    )


def _scheduler_kwargs(recipe: TrainingRecipe) -> dict[str, Any]:
    if recipe.lr_scheduler_type == "cosine_with_min_lr":
        return {"min_lr_rate": recipe.min_lr_rate}
    return {
        # The steps between warmup and decay are the stable ones.
        "num_decay_steps": recipe.max_steps - recipe.decay_begins,
        "decay_type": "linear",
        "min_lr_ratio": recipe.min_lr_rate,
    }


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything decided before data is touched."""

    recipe: Recipe
    config: PreTrainedConfig
    ledger: Ledger
    execution: Execution
    plan: Plan
    arguments: TrainingArguments


def set_up(recipe: Recipe, output_dir: Path) -> Setup:
    """Decide everything that needs no data, and show it.

    Raises:
        AntError: recipe, architecture and machine do not fit each other.
    """
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
        keep_freed_memory()
    check_reporting(training.report_to)
    arguments = training_arguments(training, execution, output_dir)
    arguments.run_name = recipe.name
    _use_one_gpu(arguments)
    micro_batch = partial(choose_micro_batch, config, execution, training.sequence_length)
    plan = Plan.of(recipe, config, ledger, arguments.world_size, micro_batch)
    arguments.per_device_train_batch_size = plan.per_device_batch_size
    arguments.gradient_accumulation_steps = plan.gradient_accumulation_steps
    show_plan(recipe, ledger, execution, plan, config)
    return Setup(recipe, config, ledger, execution, plan, arguments)


def _use_one_gpu(arguments: TrainingArguments) -> None:
    """Keep one process to one GPU: over several, Trainer (DataParallel) would multiply the recipe's batch."""
    if arguments.n_gpu > 1:
        say(
            f"note        one process uses one of the {arguments.n_gpu} GPUs; for all of them: "
            f"accelerate launch --num_processes {arguments.n_gpu} pretrain.py ..."
        )
        arguments._n_gpu = 1


def make_trainer(
    setup: Setup,
    order: TrainingOrder,
    validation: Any,
    byte_lengths: list[int],
    metrics_file: Path,
    made_of: Mapping[str, str],
) -> AntTrainer:
    """The model, freshly initialised, and the trainer around it."""
    seed = setup.recipe.training.seed
    trainer = AntTrainer(
        build_model(setup.config, seed, setup.execution.attn_implementation),
        setup.arguments,
        order,
        validation,
        recipe=setup.recipe,
        execution=setup.execution,
        plan=setup.plan,
        byte_lengths=byte_lengths,
        metrics_file=metrics_file,
        made_of=made_of,
    )
    check_fsdp(getattr(trainer.accelerator.state, "fsdp_plugin", None))
    return trainer
