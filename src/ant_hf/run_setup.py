"""What a recipe means on this machine: sizes, device, arguments and the trainer made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, TrainingArguments

from ant_hf.architecture import Ledger, build_model, load_config, parameter_ledger
from ant_hf.arguments import training_arguments
from ant_hf.dataset import TrainingOrder
from ant_hf.errors import AntError
from ant_hf.machines import check_fsdp
from ant_hf.micro_batch import choose_micro_batch
from ant_hf.plan import Plan, show_plan
from ant_hf.precision import Execution, choose_execution
from ant_hf.processes import keep_freed_memory, threads_per_process
from ant_hf.recipe import Recipe
from ant_hf.report import say
from ant_hf.reporting import check_reporting
from ant_hf.training import AntTrainer


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
