"""The numbers of every step: what would spoil the weights stops the run, what looks odd is written down."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ant_hf.data.dataset import TrainingOrder
from ant_hf.errors import AntError
from ant_hf.recipe import TrainingRecipe
from ant_hf.train.callbacks import MetricsFile
from ant_hf.train.stopping import REASONS, StopRequest
from ant_hf.utils.console import say

# Window of OLMo-core's SkipStepOptimizer, which wants half of it filled before it judges.
_SPIKE_WINDOW = 128
_BLOCKS_SHOWN = 16


class StepGuard(TrainerCallback):
    """Looks at loss and gradient of every optimizer step, before they reach the weights.

    It waits for the device once a step, and over several processes sums four numbers a step. The
    norm of Ant-10M's gradients takes 2.2 ms on two busy CPU cores, of a quickstart step's 900.

    Args:
        order: names the blocks of a step.
        sum_over_processes: adds up a list of numbers over all processes.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        order: TrainingOrder,
        metrics: MetricsFile,
        stop: StopRequest,
        sum_over_processes: Callable[[list[float]], list[float]],
        num_processes: int,
    ) -> None:
        self.recipe = recipe
        self.order = order
        self.metrics = metrics
        self.stop = stop
        self.stopped_by: str | None = None
        self.skipped_steps = 0
        self._skipped_in_a_row = 0
        self._sum, self._num_processes = sum_over_processes, num_processes
        self._micro_losses: list[torch.Tensor] = []
        self._loss = 0.0
        self._recent: deque[float] = deque(maxlen=_SPIKE_WINDOW)
        self._since_last_row: list[float] = []

    def add_micro_batch(self, loss: torch.Tensor) -> None:
        """Take in the loss of one forward pass, scaled so that a step's add up to its mean."""
        self._micro_losses.append(loss.detach().float())

    def mean_loss(self) -> float:
        """Mean loss over all processes of the steps since this was last asked."""
        losses, self._since_last_row = self._since_last_row, []
        return math.fsum(losses) / len(losses) if losses else math.nan

    def blocks(self, step: int) -> list[int]:
        """Blocks of the packed split that optimizer step `step` (from 1) reads, over all processes."""
        size = self.recipe.sequences_per_step
        return [self.order.block_index(position) for position in range((step - 1) * size, step * size)]

    def state(self) -> dict[str, Any]:
        """What a continued run must know to log what the uninterrupted one would."""
        return {
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self._skipped_in_a_row,
            "losses_since_last_row": self._since_last_row,
            "recent_losses": list(self._recent),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.skipped_steps = state["skipped_steps"]
        self._skipped_in_a_row = state["skipped_in_a_row"]
        self._since_last_row = list(state["losses_since_last_row"])
        self._recent.extend(state["recent_losses"])

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        loss = torch.stack(self._micro_losses).sum()
        self._micro_losses = []
        self._loss, gradient_norm = torch.stack([loss, norm.to(loss)]).tolist()
        step = state.global_step + 1
        if not math.isfinite(self._loss):
            raise self._refused("loss", self._loss, step, state)
        # Under fp16 an infinite gradient means too large a scale: the scaler skips the step and lowers it.
        if not math.isfinite(gradient_norm) and _scaler(optimizer) is None:
            raise self._refused("gradient norm", gradient_norm, step, state)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        if _scaler(optimizer) is None or not optimizer.step_was_skipped:
            self._skipped_in_a_row = 0
            return
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= self.recipe.max_skipped_steps:
            step = state.global_step + 1
            raise AntError(
                f"fp16 overflowed in {self._skipped_in_a_row} steps in a row, up to step {step} "
                f"({self._record('skipped', math.inf, step, state)})",
                expected=f"fewer than training.max_skipped_steps, {self.recipe.max_skipped_steps}",
                hint="The last checkpoint is kept. Lower training.learning_rate, or try "
                "--set training.precision=fp32, in another folder or with --fresh",
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        numbers = [self._loss / self._num_processes, *self.stop.after_step()]
        loss, *requests = self._sum(numbers) if self._num_processes > 1 else numbers
        self._since_last_row.append(loss)
        self._look_for_spike(loss, state)
        reason = next((name for name, votes in zip(REASONS, requests, strict=True) if votes), None)
        if reason and state.global_step < state.max_steps:
            self.stopped_by = reason
            control.should_save = control.should_training_stop = True

    def _look_for_spike(self, loss: float, state: TrainerState) -> None:
        recent, limit = self._recent, self.recipe.spike_deviations
        if limit is not None and len(recent) >= _SPIKE_WINDOW // 2:
            mean, deviation = statistics.fmean(recent), statistics.pstdev(recent)
            if loss > mean + limit * deviation:
                blocks = self._record("spike_loss", loss, state.global_step, state, recent_mean=mean)
                say(
                    f"warning     loss {loss:.3f} at step {state.global_step:,} is "
                    f"{(loss - mean) / max(deviation, 1e-12):.1f} deviations above its recent mean "
                    f"{mean:.3f} ({blocks})"
                )
        recent.append(loss)

    def _refused(self, what: str, value: float, step: int, state: TrainerState) -> AntError:
        return AntError(
            f"the {what} is {value} at step {step} ({self._record(what, value, step, state)})",
            hint="That step was not taken and the last checkpoint is kept. Lower training.learning_rate, or "
            "try --set training.precision=fp32, in another folder or with --fresh",
        )

    def _record(self, what: str, value: float, step: int, state: TrainerState, **more: float) -> str:
        """Write a row with all blocks of a step to the metrics, and return them short for a message."""
        blocks = self.blocks(step)
        key = what if what.startswith("spike") else f"stopped_by_{what.replace(' ', '_')}"
        if state.is_world_process_zero:
            # JSON has no infinity, and other readers of it no NaN.
            shown = value if math.isfinite(value) else str(value)
            self.metrics.append({"step": step, key: shown, **more, "blocks": blocks})
        rest = len(blocks) - _BLOCKS_SHOWN
        shown_blocks = ", ".join(str(block) for block in blocks[:_BLOCKS_SHOWN])
        more_blocks = f" and {rest} more, all in {self.metrics.path.name}" if rest > 0 else ""
        return f"blocks {shown_blocks}{more_blocks}"


def _scaler(optimizer: Any) -> Any:
    """The gradient scaler of accelerate's optimizer, which only fp16 has."""
    return getattr(optimizer, "scaler", None)
