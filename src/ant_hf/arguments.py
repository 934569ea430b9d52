"""A recipe in the words of `TrainingArguments`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ant_hf.precision import Execution
from ant_hf.recipe import TrainingRecipe
from ant_hf.reporting import PROJECT

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
