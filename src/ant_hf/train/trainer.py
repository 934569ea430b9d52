"""A `Trainer` that logs what small-model people compare, and whose checkpoints are complete or absent."""

from __future__ import annotations

import contextlib
import logging
import math
import pickle
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from safetensors import SafetensorError, safe_open
from transformers import (
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import TrainOutput

from ant_hf.data.dataset import TrainingOrder, whole_batch
from ant_hf.data.tokens import PackedTokens
from ant_hf.errors import AntError
from ant_hf.model.architecture import build_model
from ant_hf.model.loss import return_loss_only
from ant_hf.model.scoring import score_tokens
from ant_hf.train.averaging import RunningMean, load_mean
from ant_hf.train.callbacks import REASONS, MetricsFile, Progress, StepGuard, StopRequest, ThroughputMeter
from ant_hf.train.checkpoints import (
    PROGRESS,
    checkpoint_name,
    checkpoints,
    damage,
    remove_unsealed,
    seal,
    step_of,
)
from ant_hf.train.distributed import check_fsdp
from ant_hf.train.optimizers import muon_adamw
from ant_hf.train.setup import Setup
from ant_hf.utils.console import say
from ant_hf.utils.files import read_json, write_json, writing
from ant_hf.utils.metrics import TextScore
from ant_hf.utils.names import METRICS, WEIGHTS
from ant_hf.utils.stopping import phase, stopped_by_signals
from ant_hf.utils.workers import interrupts_held


@dataclass(frozen=True)
class RunData:
    """What a run reads."""

    order: TrainingOrder
    validation: PackedTokens
    byte_lengths: Sequence[int]
    """Bytes of text by token id, shape (vocab_size,)."""


# Trainer's warnings about a run that continues: a tied projection is stored once, and what was changed in the
# recipe is told where the run says that it continues.
_TOLD = re.compile(
    r"missing keys in the checkpoint model loaded: \['lm_head\.weight'\]"
    r"|do not match the ones in the `trainer_state\.json`"
)


@contextlib.contextmanager
def _without_what_is_told() -> Iterator[None]:
    def is_news(record: logging.LogRecord) -> bool:
        return not _TOLD.search(record.getMessage())

    loggers = [logging.getLogger(f"transformers.{name}") for name in ("trainer", "trainer_utils")]
    for logger in loggers:
        logger.addFilter(is_news)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_news)


class AntTrainer(Trainer):
    """`Trainer` with Muon, bits per byte, tokens per second, a fixed order of blocks, and checkpoints
    that are complete or absent.

    The model is freshly initialised, or that of the setup's base, and the metrics go to the folder of the
    arguments.

    Args:
        made_of: sha256 of config, tokenizer and tokens, kept in each checkpoint.

    Raises:
        AntError: FSDP was asked for in a way that would not be done, or not be saved as whole files.
    """

    def __init__(self, setup: Setup, data: RunData, made_of: Mapping[str, str]) -> None:
        recipe, plan = setup.recipe.training, setup.plan
        attention = setup.execution.attn_implementation
        model = build_model(setup.config, recipe.seed, attention)
        if setup.base:
            model.load_state_dict(setup.base.weights())
        # Trainer's own compilation takes in what accelerate wraps around the model.
        return_loss_only(model, recipe.z_loss, setup.execution.compiled)
        super().__init__(
            model=model,
            args=setup.arguments,
            train_dataset=data.order,
            eval_dataset=data.validation,  # read by our own evaluate() only
            data_collator=whole_batch,  # type: ignore[arg-type]  # our batches come collated
        )
        check_fsdp(getattr(self.accelerator.state, "fsdp_plugin", None))
        if self.is_fsdp_enabled and recipe.average_last:
            raise AntError(
                "training.average_last does not work with weights that are spread over processes (FSDP)",
                hint="Leave one of the two out. It works with DDP: accelerate launch --multi_gpu",
            )
        self.setup, self.data, self.made_of = setup, data, made_of
        self.folder = Path(str(setup.arguments.output_dir))
        self.meter = ThroughputMeter(setup.execution.torch_compile)
        self.metrics = MetricsFile(self.folder / METRICS)
        self.mean = RunningMean(recipe)
        self.stop = StopRequest(recipe.max_hours, plan.checkpoint_bytes)
        self.guard = StepGuard(
            recipe,
            data.order,
            self.metrics,
            self.stop,
            self._sum_over_processes,
            plan.num_processes,
            one_step_late=setup.execution.device == "cuda",
        )
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.progress = Progress()
        # The guard first: it may ask for a save, which stops the meter's clock.
        own = (_OfNow(self), self.guard, self.meter, self.metrics, _Sealing(self), self.progress)
        for callback in own:
            self.add_callback(callback)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        recipe = self.setup.recipe.training
        if recipe.optimizer == "muon" and self.optimizer is None:
            module: Any = self.model if model is None else model
            self.optimizer = muon_adamw(module, set(self.get_decay_parameter_names(module)), recipe)
        return super().create_optimizer(model)

    @_without_what_is_told()
    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> TrainOutput:  # type: ignore[override]
        """Train, or continue from a checkpoint with the counters and the log it stored.

        Raises:
            AntError: the metrics file or the checkpoint is not what was written.
        """
        checkpoint, progress = None, None
        if resume_from_checkpoint is not None:
            checkpoint = Path(resume_from_checkpoint)
            progress = read_json(checkpoint / PROGRESS, "progress of the run", "Remove that checkpoint.")
            self.guard.restore(progress["guard"])
            # Earlier checkpoints have no times.
            if "meter" in progress:
                self.meter.restore(progress["meter"])
            self.mean.restore(checkpoint, step_of(checkpoint), progress.get("averaged_steps", []))
        if self.is_world_process_zero():
            self.metrics.begin(progress and progress["metrics"])
        try:
            if checkpoint:
                self._check_names(checkpoint / WEIGHTS)
                state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
                if self.is_past_best(state):
                    return self._without_training(state)
            kept = f"The checkpoints saved before are kept in {self.folder}. Run the same command again."
            # What is trained without a save, as to measure it, is not a loss.
            request = None if self.args.save_strategy == "no" else self.stop.on_signal
            shown: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if not self.args.disable_tqdm:
                shown = self.progress.shown(step_of(checkpoint) if checkpoint else 0)
            with phase("training", kept), stopped_by_signals(request), self._saving_whole(), shown:
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except pickle.UnpicklingError:
            raise AntError(
                f"{resume_from_checkpoint} cannot be loaded: one of its files contains more than tensors",
                hint="No code in it was run. Start over with --fresh.",
            ) from None
        except SafetensorError as error:
            raise AntError(f"{resume_from_checkpoint} cannot be loaded: {error}") from None
        except RuntimeError as error:
            if "InvalidCxxCompiler" in str(error) and self.setup.recipe.training.torch_compile == "on":
                raise AntError(
                    "training.torch_compile is 'on', and there is no C++ compiler",
                    hint="Install g++ or clang, or use --set training.torch_compile=off",
                ) from None
            if not should_reduce_batch_size(error):
                raise
            at_once = self.setup.plan.per_device_batch_size
            lower = (
                f"Use --set training.per_device_batch_size={at_once // 2}: the batch of a step, and so the "
                "result, stays the same."
                if at_once > 1
                else "Lower training.sequence_length or train a smaller model, in another folder."
            )
            raise AntError(
                f"a step with {at_once} block{'s'[: at_once > 1]} at once does not fit into memory",
                seen=str(error).splitlines()[0],
                hint=f"{lower} The last checkpoint is kept.",
            ) from None

    def is_past_best(self, state: TrainerState) -> bool:
        """Whether the held-out loss has not been better for `early_stopping_patience` evaluations."""
        training, best = self.setup.recipe.training, state.best_global_step
        patience = training.early_stopping_patience
        if not (self.setup.recipe.keeps_best and patience and best):
            return False
        # One each `eval_steps`, and one at the end of the run.
        return state.global_step // training.eval_steps - best // training.eval_steps >= patience

    def _without_training(self, state: TrainerState) -> TrainOutput:
        """What `train` leaves of a run that had ended before its last step: the best weights."""
        self.state = state
        state.best_model_checkpoint = str(self.folder / checkpoint_name(state.best_global_step or 0))
        self._load_best_model()
        return TrainOutput(state.global_step, math.nan, {})

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        if problem := damage(best):
            raise AntError(
                f"{best}, the run's best checkpoint, is damaged: {problem}", hint="Start over with --fresh."
            )
        self._check_names(best / WEIGHTS)
        super()._load_best_model()

    def stopped_by(self) -> str | None:
        """What ended the training before the run's end: one of REASONS.

        A signal that came while the last step was saved counts too: nobody is to wait for the end of the run.
        """
        votes = torch.tensor(self.stop.after_step()[:2], device=self.args.device)
        requests = self._sum_over_processes(votes).tolist()
        late = next((name for name, asked in zip(REASONS, requests, strict=False) if asked), None)
        step = checkpoint_name(self.state.global_step)
        is_saved = step in {path.name for path in checkpoints(self.folder)}
        return self.guard.stopped_by or (late if is_saved else None)

    @contextlib.contextmanager
    def _saving_whole(self) -> Iterator[None]:
        """Leave nothing of a save that failed, and say so where there was no room for it."""
        try:
            yield
        except BaseException:
            if self.args.should_save:
                remove_unsealed(self.folder)
            what = f"checkpoint {self.state.global_step}"
            with writing(what, self.folder, self.setup.plan.checkpoint_bytes):
                raise

    def _check_names(self, weights: Path) -> None:
        """Only a tied projection may be missing from a checkpoint; Trainer would warn and continue."""
        model: Any = self.model
        own, tied = set(model.state_dict()), set(getattr(model, "_tied_weights_keys", None) or ())
        with safe_open(weights, framework="pt") as file:
            saved = set(file.keys())
        if (missing := own - tied - saved) or saved - own:
            raise AntError(
                "the checkpoint has other weights than the model",
                seen=f"missing {sorted(missing)}, unexpected {sorted(saved - own)}",
                hint="Start over with --fresh.",
            )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        with self.meter.loading():
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        # Ctrl-C in a terminal would reach the compilers too, whose end would end the run.
        with interrupts_held() if self.meter.compiles else contextlib.nullcontext():
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.guard.add_micro_batch(loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Of the gradients before clipping; Trainer's public hooks do not show it."""
        self.guard.gradient_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self.guard.gradient_norm

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As the plan counts them; Trainer's own walks through all modules for every micro-batch."""
        return round(inputs["input_ids"].numel() * self.setup.plan.flops_per_token)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens seen to every row, speed and MFU to those with a training loss."""
        plan, peak_flops = self.setup.plan, self.setup.execution.peak_flops
        blocks_seen = self.state.global_step * self.setup.recipe.training.sequences_per_step
        logs["tokens_seen"] = self.data.order.tokens_before(blocks_seen)
        if "loss" in logs:
            # Trainer forgets the steps between the last row and a checkpoint when it resumes.
            logs["loss"] = self.guard.mean_loss()
            if self.accelerator.scaler is not None:
                logs["skipped_steps"] = self.guard.skipped_steps
            seconds, steps, loading = self.meter.since_last_call()
            if steps:
                logs["data_loading_share"] = loading / seconds
                logs["tokens_per_second"] = steps * plan.tokens_per_step / seconds
                if peak_flops:
                    flops = logs["tokens_per_second"] * plan.flops_per_token
                    logs["mfu"] = flops / (peak_flops * plan.num_processes)
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: PackedTokens | None = None,  # type: ignore[override]
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score validation tokens with the code that later scores the reloaded checkpoint."""
        scores = self.score(self.setup.recipe.training.eval_max_tokens)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.metrics().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def score(self, max_tokens: int | None = None) -> TextScore:
        """Score the validation split, or at most `max_tokens` spread over it, over all processes."""
        # Each forward pass of FSDP gathers weights from every process, so that all must make the same ones.
        share = (0, 1) if self.is_fsdp_enabled else (self.accelerator.process_index, self.args.world_size)
        # Not unwrap_model(): it takes off accelerate's autocast, and training would continue in fp32.
        model: Any = self.model
        scores = score_tokens(
            model,
            self.data.validation,
            self.data.byte_lengths,
            context=self.setup.recipe.training.sequence_length,
            batch_size=self.setup.plan.per_device_batch_size,
            max_tokens=max_tokens,
            autocast_dtype=self.setup.execution.autocast_dtype,
            share=share,
        )
        if self.is_fsdp_enabled or self.args.world_size == 1:
            return scores
        sums = [scores.nats, scores.tokens, scores.bytes]
        summed = self._sum_over_processes(torch.tensor(sums, dtype=torch.float64, device=self.args.device))
        nats, count, size = summed.tolist()
        return replace(scores, nats=nats, tokens=int(count), bytes=int(size))

    def load_mean(self) -> None:
        """Go over to the mean of the last checkpoints, which the newest one holds."""
        # As in `score`, autocast stays.
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        load_mean(model, self.folder / checkpoint_name(self.state.global_step))

    def whole_model(self) -> tuple[PreTrainedModel, dict[str, torch.Tensor] | None]:
        """The bare model, and its weights where they are spread over processes, which all must ask for."""
        weights = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None
        unwrapped = self.accelerator.unwrap_model(
            self.model, keep_fp32_wrapper=False, keep_torch_compile=False
        )
        return unwrapped, weights

    def _sum_over_processes(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(numbers, reduction="sum") if self.args.world_size > 1 else numbers


class _OfNow(TrainerCallback):
    """A continued run has intervals and folder of its arguments; Trainer would take the checkpoint's."""

    def __init__(self, trainer: AntTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.best_global_step:
            state.best_model_checkpoint = str(self._trainer.folder / checkpoint_name(state.best_global_step))
        state.logging_steps, state.eval_steps = int(args.logging_steps), int(args.eval_steps or 0)
        state.save_steps = int(args.save_steps)


class _Sealing(TrainerCallback):
    """Makes a checkpoint of what Trainer wrote, once every process has written its part."""

    def __init__(self, trainer: AntTrainer) -> None:
        self._trainer = trainer
        self._began = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    # An evaluation comes between the step and its save.
    on_evaluate = on_step_end

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        trainer = self._trainer
        trainer.accelerator.wait_for_everyone()
        if args.should_save:
            folder = trainer.folder / checkpoint_name(state.global_step)
            trainer.mean.add(folder, state.global_step)
            counters = {
                "averaged_steps": trainer.mean.steps,
                "guard": trainer.guard.state(),
                "meter": trainer.meter.state(),
                "metrics": trainer.metrics.state(),
            }
            write_json(folder / PROGRESS, counters)
            keep = trainer.setup.recipe.training.save_total_limit
            best = state.best_global_step if trainer.setup.recipe.keeps_best else None
            seal(folder, trainer.made_of, keep, best)
        if trainer.is_past_best(state):
            control.should_training_stop = True
            best = state.best_global_step
            say("stopping", f"at step {state.global_step:,}: the held-out loss was lowest at step {best:,}")
        trainer.accelerator.wait_for_everyone()
        trainer.stop.save_took(time.perf_counter() - self._began)
