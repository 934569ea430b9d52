"""The training loss where it is more than the model's own: cross-entropy with a z-loss."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import TrainOutput

from ant_hf.data.dataset import IGNORED_LABEL, TrainingOrder, whole_batch
from ant_hf.data.tokens import PackedTokens
from ant_hf.errors import AntError
from ant_hf.model.scoring import score_tokens
from ant_hf.recipe import Recipe
from ant_hf.train.callbacks import MetricsFile, ProgressBar, ThroughputMeter
from ant_hf.train.checkpoints import PROGRESS, SAVING, checkpoint_name, clear_saving, publish
from ant_hf.train.guard import StepGuard
from ant_hf.train.optimizers import muon_adamw
from ant_hf.train.plan import Plan, ran_out_of_memory
from ant_hf.train.precision import Execution
from ant_hf.train.stopping import StopRequest
from ant_hf.utils.disk import writing
from ant_hf.utils.files import read_json, write_json
from ant_hf.utils.metrics import TextScore


def cross_entropy_with_z_loss(coefficient: float) -> Callable[..., torch.Tensor]:
    """For `Trainer(compute_loss_func=...)`: cross-entropy + coefficient x (log Z)^2, mean over targets.

    Z is the softmax's denominator; the term keeps logits from drifting (PaLM, Chowdhery et al. 2022,
    section 5, with 1e-4). Both terms share one log-sum-exp.
    """

    def loss(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        # Label t belongs to the logits of t - 1; the last position has none.
        targets = torch.nn.functional.pad(labels, (0, 1), value=IGNORED_LABEL)[:, 1:]
        counted = targets != IGNORED_LABEL
        logits = outputs.logits.float()
        log_z = logits.logsumexp(-1)
        chosen = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        total = ((log_z - chosen + coefficient * log_z.square()) * counted).sum()
        mean: torch.Tensor = total / (counted.sum() if num_items_in_batch is None else num_items_in_batch)
        return mean

    return loss


class AntTrainer(Trainer):
    """`Trainer` with Muon, bits per byte, tokens per second, a fixed order of blocks, and checkpoints
    that are complete or absent.

    Args:
        recipe: the whole recipe.
        execution: device and precision decided for this machine.
        plan: derived sizes.
        byte_lengths: bytes of text by token id, shape (vocab_size,).
        metrics_file: where rows of metrics go.
        made_of: sha256 of config, tokenizer and tokens, kept in each checkpoint.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        order: TrainingOrder,
        validation: PackedTokens,
        *,
        recipe: Recipe,
        execution: Execution,
        plan: Plan,
        byte_lengths: Sequence[int],
        metrics_file: Path,
        made_of: Mapping[str, str],
    ) -> None:
        z_loss = recipe.training.z_loss
        super().__init__(
            model=model,
            args=args,
            train_dataset=order,
            eval_dataset=validation,  # read by our own evaluate() only
            data_collator=whole_batch,  # type: ignore[arg-type]  # our batches come collated
            compute_loss_func=cross_entropy_with_z_loss(z_loss) if z_loss else None,
        )
        self.recipe = recipe
        self.execution = execution
        self.plan = plan
        self.byte_lengths = byte_lengths
        self.order = order
        self.made_of = made_of
        self.meter = ThroughputMeter()
        self.metrics = MetricsFile(metrics_file)
        self.stop = StopRequest(recipe.training.max_hours, plan.checkpoint_bytes)
        self.guard = StepGuard(
            recipe.training, order, self.metrics, self.stop, self._sum_over_processes, plan.num_processes
        )
        self._is_saving = False
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        # The guard first: it may ask for a save, which stops the meter's clock.
        for callback in (_IntervalsOfNow(), self.guard, self.meter, self.metrics):
            self.add_callback(callback)
        if not args.disable_tqdm:
            self.add_callback(ProgressBar())

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.recipe.training.optimizer == "muon" and self.optimizer is None:
            module: Any = self.model if model is None else model
            self.optimizer = muon_adamw(
                module, set(self.get_decay_parameter_names(module)), self.recipe.training
            )
        return super().create_optimizer(model)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> TrainOutput:  # type: ignore[override]
        """Train, or go on from a checkpoint with the counters and the log it stored.

        Raises:
            AntError: the metrics file or the checkpoint is not what was written.
        """
        progress = None
        if resume_from_checkpoint is not None:
            file = Path(resume_from_checkpoint) / PROGRESS
            progress = read_json(file, "progress of the run", "Remove that checkpoint.")
            self.guard.restore(progress["guard"])
            # Earlier checkpoints have no times.
            if "meter" in progress:
                self.meter.restore(progress["meter"])
        if self.is_world_process_zero():
            self.metrics.begin(progress and progress["metrics"])
        try:
            with self.stop.listening():
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except pickle.UnpicklingError:
            raise AntError(
                f"{resume_from_checkpoint} cannot be loaded: a file of it holds more than tensors",
                hint="Nothing of it was run. Start over with --fresh.",
            ) from None
        except SafetensorError as error:
            raise AntError(f"{resume_from_checkpoint} cannot be loaded: {error}") from None
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            at_once = self.plan.per_device_batch_size
            raise AntError(
                f"a step with {at_once} blocks at once does not fit the memory",
                seen=str(error).splitlines()[0],
                hint=f"Use --set training.per_device_batch_size={max(1, at_once // 2)}; the batch of a step, "
                "and so the recipe, stays as it is. The last checkpoint is kept.",
            ) from None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        with self.meter.loading():
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.guard.add_micro_batch(loss)
        return loss

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Only a tied projection may be missing from a checkpoint; Trainer would warn and go on."""
        missing = set(load_result.missing_keys) - set(getattr(self.model, "_tied_weights_keys", None) or ())
        if missing or load_result.unexpected_keys:
            raise AntError(
                "the checkpoint holds other weights than the model",
                seen=f"missing {sorted(missing)}, unexpected {sorted(load_result.unexpected_keys)}",
            )

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder, SAVING)) if self._is_saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Let Trainer write all its files aside, then give the complete folder its name."""
        started, output_dir = time.perf_counter(), self.metrics.path.parent
        wait = self.accelerator.wait_for_everyone
        needed = self.plan.checkpoint_bytes
        with writing(f"checkpoint {self.state.global_step}", output_dir, needed):
            try:
                if self.args.should_save:
                    clear_saving(output_dir)
                wait()
                self._is_saving = True
                super()._save_checkpoint(model, trial)
                wait()
                if self.args.should_save:
                    progress = {
                        "guard": self.guard.state(),
                        "meter": self.meter.state(),
                        "metrics": self.metrics.state(),
                    }
                    name = checkpoint_name(self.state.global_step)
                    write_json(output_dir / SAVING / name / PROGRESS, progress)
                    keep = self.recipe.training.save_total_limit
                    publish(output_dir, self.state.global_step, self.made_of, keep)
            except BaseException:
                clear_saving(output_dir)
                raise
            finally:
                self._is_saving = False
        wait()
        self.stop.save_took(time.perf_counter() - started)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens seen to every row, speed and MFU to those with a training loss."""
        blocks_seen = self.state.global_step * self.recipe.training.sequences_per_step
        logs["tokens_seen"] = self.order.tokens_before(blocks_seen)
        if "loss" in logs:
            # Trainer forgets the steps between the last row and a checkpoint when it resumes.
            logs["loss"] = self.guard.mean_loss()
            if self.accelerator.scaler is not None:
                logs["skipped_steps"] = self.guard.skipped_steps
            seconds, steps, loading = self.meter.since_last_call()
            if seconds:
                logs["data_loading_share"] = loading / seconds
                logs["tokens_per_second"] = steps * self.plan.tokens_per_step / seconds
                if self.execution.peak_flops:
                    peak = self.execution.peak_flops * self.plan.num_processes
                    logs["mfu"] = logs["tokens_per_second"] * self.plan.flops_per_token / peak
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: PackedTokens | None = None,  # type: ignore[override]
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score validation tokens with the code that later scores the reloaded checkpoint."""
        tokens: Any = eval_dataset or self.eval_dataset
        scores = self.score(tokens, self.recipe.training.eval_max_tokens)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.metrics().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def score(self, tokens: PackedTokens, max_tokens: int | None = None) -> TextScore:
        """Score tokens, or windows of at most `max_tokens` spread over them, over all processes."""
        training = self.recipe.training
        # Each forward pass of FSDP gathers weights from every process, so that all must make the same ones.
        share = (0, 1) if self.is_fsdp_enabled else (self.accelerator.process_index, self.args.world_size)
        # Not unwrap_model(): it takes off accelerate's autocast, and training would go on in fp32.
        model: Any = self.model
        scores = score_tokens(
            model,
            tokens,
            self.byte_lengths,
            context=training.sequence_length,
            batch_size=self.plan.per_device_batch_size,
            max_tokens=max_tokens,
            autocast_dtype=self.execution.autocast_dtype,
            share=share,
        )
        if self.is_fsdp_enabled:
            return scores
        nats, count, size = self._sum_over_processes([scores.nats, scores.tokens, scores.bytes])
        return replace(scores, nats=nats, tokens=int(count), bytes=int(size))

    def whole_model(self) -> tuple[PreTrainedModel, dict[str, torch.Tensor] | None]:
        """The bare model, and its weights where they are spread over processes, which all must ask for."""
        weights = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None
        unwrapped = self.accelerator.unwrap_model(
            self.model, keep_fp32_wrapper=False, keep_torch_compile=False
        )
        return unwrapped, weights

    def _sum_over_processes(self, numbers: list[float]) -> list[float]:
        if self.accelerator.num_processes == 1:
            return numbers
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(sums, reduction="sum").tolist()


class _IntervalsOfNow(TrainerCallback):
    """A continued run keeps the intervals of its arguments; Trainer would take those of the checkpoint."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        state.logging_steps, state.eval_steps = int(args.logging_steps), int(args.eval_steps or 0)
        state.save_steps = int(args.save_steps)
