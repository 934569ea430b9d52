"""What watches a run while it trains: speed, metrics, requests to stop, and the numbers of every step."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ant_hf.data.dataset import TrainingOrder
from ant_hf.errors import AntError
from ant_hf.recipe import TrainingRecipe
from ant_hf.utils.console import Advance, is_first_process, progress_bar, say
from ant_hf.utils.files import check_hash, write_text, writing

_WITHOUT_ROWS = "Put the old file back, or remove it to continue without its rows."


class ThroughputMeter(TrainerCallback):
    """Seconds spent on training steps, with the pauses for evaluation and saving taken out.

    Data loading counts: a run that waits for its data is slow. The clock runs from step to step
    and stops only where an evaluation or a checkpoint follows.

    Args:
        compiles: the first step of this process compiles the model; it is in no rate.
    """

    def __init__(self, compiles: bool = False) -> None:
        self.seconds = 0.0
        self.steps = 0
        self.compile_seconds, self.compile_steps = 0.0, 0
        """Seconds and number of the steps that compiled; `seconds` and `steps` have them too."""
        self.compiles = compiles
        self.loading_seconds = 0.0
        self._running_since: float | None = None
        self._last = (0.0, 0, 0.0)

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Around what fetches the batches of a step: the loop does nothing else meanwhile."""
        started = time.perf_counter()
        if self._running_since is None:
            self._running_since = started
        yield
        self.loading_seconds += time.perf_counter() - started

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self._running_since is None:
            self._running_since = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.steps += 1
        pauses = control.should_evaluate or control.should_save or control.should_training_stop
        # Work queued on a GPU belongs to the steps and not to the pause.
        if args.device.type == "cuda" and (pauses or self.compiles):
            torch.cuda.synchronize()
        if self.compiles:
            self.compiles = False
            self.compile_seconds += self._running()
            self.compile_steps += 1
            self._last = (self.seconds + self._running(), self.steps, self.loading_seconds)
        if pauses:
            self._stop()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._stop()

    def _running(self) -> float:
        return 0.0 if self._running_since is None else time.perf_counter() - self._running_since

    def _stop(self) -> None:
        self.seconds += self._running()
        self._running_since = None

    def tokens_per_second(self, tokens_per_step: int) -> float:
        """Over all steps but those that compiled; 0 if there are no others."""
        steps, seconds = self.steps - self.compile_steps, self.seconds - self.compile_seconds
        return steps * tokens_per_step / max(seconds, 1e-9)

    def state(self) -> dict[str, float]:
        """What a continued run must know to tell the time of the whole training."""
        return {
            "seconds": self.seconds,
            "steps": self.steps,
            "compile_seconds": self.compile_seconds,
            "compile_steps": self.compile_steps,
        }

    def restore(self, state: dict[str, float]) -> None:
        """Take over what `state` returned; steps that were lost to a kill are in neither figure."""
        self.seconds, self.steps = state["seconds"], int(state["steps"])
        # Earlier checkpoints have none.
        self.compile_seconds = state.get("compile_seconds", 0.0)
        self.compile_steps = int(state.get("compile_steps", 0))
        self._last = (self.seconds, self.steps, self.loading_seconds)

    def since_last_call(self) -> tuple[float, int, float]:
        """Training seconds, steps, and seconds of loading data, since this was last asked."""
        seconds = self.seconds + self._running()
        then_seconds, then_steps, then_loading = self._last
        self._last = (seconds, self.steps, self.loading_seconds)
        return seconds - then_seconds, self.steps - then_steps, self.loading_seconds - then_loading


class MetricsFile(TrainerCallback):
    """Appends every logged row to `metrics.jsonl`, and continues from where a checkpoint left it.

    A checkpoint stores the length and hash of the file, so that the rows after it can be cut off
    to the byte, and rows that were changed since are noticed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def state(self) -> dict[str, Any]:
        """Length and hash of the rows so far, flushed to the disk."""
        self.path.touch()
        # For writing too: Windows flushes no file that is open for reading alone.
        with self.path.open("rb+") as handle:
            os.fsync(handle.fileno())
            rows = handle.read()
        return {"bytes": len(rows), "sha256": hashlib.sha256(rows).hexdigest()}

    def begin(self, state: dict[str, Any] | None) -> None:
        """Cut the file back to what `state` described; None begins an empty one.

        Raises:
            AntError: the rows before the checkpoint are not those that were written.
        """
        try:
            rows = self.path.read_bytes() if state and self.path.exists() else b""
        except OSError as error:
            raise AntError(f"{self.path} cannot be read: {error.strerror}", hint=_WITHOUT_ROWS) from None
        if state and not rows and state["bytes"]:
            say("warning", f"{self.path} is missing; its rows start again from this step")
        elif state:
            rows = rows[: state["bytes"]]
            seen = hashlib.sha256(rows).hexdigest()
            check_hash(f"{self.path} was changed", seen, state["sha256"], _WITHOUT_ROWS)
        try:
            write_text(self.path, rows.decode())
        except OSError as error:
            raise AntError(f"{self.path} cannot be written: {error.strerror}", hint=_WITHOUT_ROWS) from None

    def append(self, row: dict[str, Any]) -> None:
        """Add one row."""
        line = json.dumps(row) + "\n"
        with (
            writing("a row of metrics", self.path, len(line)),
            self.path.open("a", encoding="utf-8", newline="\n") as handle,
        ):
            handle.write(line)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if logs is None or not state.is_world_process_zero:
            return
        # Trainer's epoch counts the run as one; tokens_seen says how far the text has been read.
        row: dict[str, Any] = {"step": state.global_step, **logs}
        row.pop("epoch", None)
        # JSON has no infinity; the gradient norm of a step that fp16 overflowed in is one.
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        # Trainer sums up at the end of train(), which is not the end of a run that will be continued.
        if "train_runtime" not in row or state.global_step >= state.max_steps:
            self.append(row)


_SHOWN = {
    "loss": "loss {:.3f}",
    "eval_bits_per_byte": "validation {:.3f} bits per byte",
    "tokens_per_second": "{:,.0f} tokens per second",
}


class Progress(TrainerCallback):
    """A bar of the steps with the latest figures; a line every half minute where there is no terminal."""

    def __init__(self) -> None:
        self._figures: dict[str, str] = {}
        self._advance: Advance = lambda done, total, figures="": None

    @contextlib.contextmanager
    def shown(self, steps_before: int) -> Iterator[None]:
        """Show it while a block trains, after so many steps of an earlier one."""
        with progress_bar("training", earlier=steps_before) as self._advance:
            yield

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self._advance(1, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        *_: Any,
        logs: dict[str, float] | None = None,
        **__: Any,
    ) -> None:
        logs = logs or {}
        self._figures |= {key: form.format(logs[key]) for key, form in _SHOWN.items() if key in logs}
        self._advance(0, state.max_steps, ", ".join(self._figures.values()))


# Until a save has been measured: slower than any disk we met, faster than a network mount in trouble.
_ASSUMED_BYTES_PER_SECOND = 20e6
_SAVE_MARGIN = 1.5
REASONS = ("SIGINT", "SIGTERM", "training.max_hours")


class StopRequest:
    """Whether the run should save and leave, asked once after each optimizer step.

    The time budget counts from the start of the process, preparation included. It leaves room for
    the longest step seen (with its evaluation) and for one and a half times the longest save.

    Args:
        max_hours: the budget; None for none.
        checkpoint_bytes: size of a checkpoint, for the time of the first save.
        clock: seconds since the epoch.
        started: when the process began, by the same clock.
    """

    def __init__(
        self,
        max_hours: float | None,
        checkpoint_bytes: int,
        clock: Callable[[], float] = time.time,
        started: float | None = None,
    ) -> None:
        self._budget = None if max_hours is None else max_hours * 3600
        self._clock = clock
        self._started = psutil.Process().create_time() if started is None else started
        self._save_seconds = checkpoint_bytes / _ASSUMED_BYTES_PER_SECOND
        self._save_measured = False
        self._step_seconds = 0.0
        self._last_step: float | None = None
        self._signal: signal.Signals | None = None

    def save_took(self, seconds: float) -> None:
        """Learn how long a checkpoint takes on this disk."""
        self._save_seconds = max(seconds, self._save_seconds) if self._save_measured else seconds
        self._save_measured = True

    def after_step(self) -> list[float]:
        """One number for each of REASONS: 1 where it asks to stop."""
        now = self._clock()
        if self._last_step is not None:
            self._step_seconds = max(self._step_seconds, now - self._last_step)
        self._last_step = now
        needed = self._step_seconds + _SAVE_MARGIN * self._save_seconds
        out_of_time = self._budget is not None and now - self._started + needed >= self._budget
        return [
            float(self._signal is signal.SIGINT),
            float(self._signal is signal.SIGTERM),
            float(out_of_time),
        ]

    def on_signal(self, number: signal.Signals) -> None:
        """Take the first SIGINT or SIGTERM as a request, and say what follows and how long it may take."""
        self._signal = number
        if is_first_process():
            seconds = math.ceil(self._step_seconds + self._save_seconds)
            took = f", in about {seconds} s" if self._step_seconds else ""
            text = f"saving a checkpoint after this step{took}, then ending; a second signal ends it at once"
            # Not print(): a handler may interrupt one. A notebook's stderr has no number.
            os.write(2, f"\n{number.name}: {text}\n".encode())


# Window of OLMo-core's SkipStepOptimizer, which wants half of it filled before it judges.
_SPIKE_WINDOW = 128
_BLOCKS_SHOWN = 16


class _Reading:
    """Numbers of one step on their way from the device; reading them waits until they are there."""

    def __init__(self, step: int, numbers: torch.Tensor) -> None:
        self.step, self._numbers, self._copied = step, numbers, None
        if numbers.device.type == "cuda":
            # A copy into pageable memory would wait for the device here and now.
            self._numbers = torch.empty_like(numbers, device="cpu", pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[float]:
        if self._copied is not None:
            self._copied.synchronize()
        return self._numbers.tolist()


class StepGuard(TrainerCallback):
    """Looks at loss and gradient norm of every optimizer step, so that nothing non-finite is ever saved.

    On a CPU it looks before a step reaches the weights. On a GPU that would make the device wait for
    Python in every step. There the numbers are read one step later, and always before a log row, an
    evaluation, a save and the end.

    Args:
        order: names the blocks of a step.
        sum_over_processes: adds up a tensor over all processes.
        one_step_late: read the numbers of a step after the next one was queued.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        order: TrainingOrder,
        metrics: MetricsFile,
        stop: StopRequest,
        sum_over_processes: Callable[[torch.Tensor], torch.Tensor],
        num_processes: int,
        one_step_late: bool = False,
    ) -> None:
        self.recipe = recipe
        self.order = order
        self.metrics = metrics
        self.stop = stop
        self.gradient_norm: torch.Tensor | float = math.nan
        """Before clipping, over all processes; whoever clips the gradients sets it."""
        self.stopped_by: str | None = None
        self.skipped_steps = 0
        self._skipped_in_a_row = 0
        self._sum, self._num_processes, self._late = sum_over_processes, num_processes, one_step_late
        self._micro_losses: list[torch.Tensor] = []
        self._numbers = torch.zeros(2)
        self._unread: deque[_Reading] = deque()
        self._recent: deque[float] = deque(maxlen=_SPIKE_WINDOW)
        self._since_last_row: list[float] = []

    def add_micro_batch(self, loss: torch.Tensor) -> None:
        """Take in the loss of one forward pass, scaled so that a step's add up to its mean."""
        # A copy: the memory of a compiled graph may be written again by the next micro-batch.
        self._micro_losses.append(loss.detach().float().clone())

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
        self, args: Any, state: TrainerState, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        loss = torch.stack(self._micro_losses).sum()
        self._micro_losses = []
        norm = self.gradient_norm
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        self._numbers = torch.stack([loss, torch.as_tensor(norm).to(loss)])
        if not self._late:
            loss_now, norm_now = self._numbers.tolist()
            self._check(state.global_step + 1, loss_now, norm_now, state, optimizer)

    def _check(self, step: int, loss: float, norm: float, state: TrainerState, optimizer: Any) -> None:
        if not math.isfinite(loss):
            raise self._refused("loss", loss, step, state)
        # Under fp16 an infinite gradient means too large a scale: the scaler skips the step and lowers it.
        if not math.isfinite(norm) and _scaler(optimizer) is None:
            raise self._refused("gradient norm", norm, step, state)

    def on_optimizer_step(
        self, args: Any, state: TrainerState, control: Any, optimizer: Any = None, **_: Any
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
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        requests = torch.tensor(self.stop.after_step(), dtype=torch.float32)
        numbers = torch.cat([self._numbers / self._num_processes, requests.to(self._numbers.device)])
        self._unread.append(_Reading(state.global_step, self._sum(numbers)))
        ends = state.global_step >= state.max_steps
        needed = control.should_log or control.should_evaluate or control.should_save or ends
        unread = 1 if self._late and not needed else 0
        while len(self._unread) > unread:
            reading = self._unread.popleft()
            loss, norm, *votes = reading.read()
            self._check(reading.step, loss, norm, state, optimizer)
            self._since_last_row.append(loss)
            self._look_for_spike(loss, reading.step, state)
            reason = next((name for name, asked in zip(REASONS, votes, strict=True) if asked), None)
            # Out of time after the last step, what is left to do is less than to continue another day.
            if reason and (not ends or reason in signal.Signals.__members__):
                self.stopped_by = self.stopped_by or reason
                control.should_save = control.should_training_stop = True
                unread = 0

    def _look_for_spike(self, loss: float, step: int, state: TrainerState) -> None:
        recent, limit = self._recent, self.recipe.spike_deviations
        if limit is not None and len(recent) >= _SPIKE_WINDOW // 2:
            # statistics.pstdev takes a millisecond for 128 numbers, and a GPU's step few more.
            mean, deviation = float(np.mean(recent)), float(np.std(recent))
            if loss > mean + limit * deviation:
                blocks = self._record("spike_loss", loss, step, state, recent_mean=mean)
                say(
                    "warning",
                    f"loss {loss:.3f} at step {step:,} is "
                    f"{(loss - mean) / max(deviation, 1e-12):.1f} standard deviations above its recent mean "
                    f"{mean:.3f} ({blocks})",
                )
        recent.append(loss)

    def _refused(self, what: str, value: float, step: int, state: TrainerState) -> AntError:
        return AntError(
            f"the {what} is {value} at step {step} ({self._record(what, value, step, state)})",
            hint="Nothing of that step was saved, and the last checkpoint is kept. "
            "Lower training.learning_rate, or try --set training.precision=fp32, "
            "in another folder or with --fresh",
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
