"""What a run says about itself while it trains: speed, metrics file, progress bar, non-finite stop."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ant_hf.errors import AntError
from ant_hf.metrics import read_metrics


class ThroughputMeter(TrainerCallback):
    """Seconds spent on training steps, with the pauses for evaluation and saving taken out.

    Data loading counts: a run that waits for its data is slow. The clock runs from step to step
    and stops only where an evaluation or a checkpoint follows.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0
        self._running_since: float | None = None
        self._last = (0.0, 0)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._running_since is None:
            self._running_since = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.steps += 1
        if control.should_evaluate or control.should_save or control.should_training_stop:
            # Work queued on a GPU belongs to the steps and not to the pause.
            if args.device.type == "cuda":
                torch.cuda.synchronize()
            self._stop()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._running_since is not None:
            self.seconds += time.perf_counter() - self._running_since
            self._running_since = None

    def since_last_call(self) -> tuple[float, int]:
        """Training seconds and steps since this was last asked."""
        seconds = self.seconds
        if self._running_since is not None:
            seconds += time.perf_counter() - self._running_since
        then_seconds, then_steps = self._last
        self._last = (seconds, self.steps)
        return seconds - then_seconds, self.steps - then_steps


class MetricsFile(TrainerCallback):
    """Appends every logged row to `metrics.jsonl`; on resume, drops rows past the checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        kept = [row for row in read_metrics(self.path) if row["step"] <= state.global_step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not state.global_step:
            kept = []
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or not state.is_world_process_zero:
            return
        # Trainer's epoch counts the run as one; tokens_seen says how far the text has been read.
        row = {"step": state.global_step, **{key: value for key, value in logs.items() if key != "epoch"}}
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")


class ProgressBar(ProgressCallback):
    """Trainer's bar with the latest figures in it, instead of a printed dictionary a log."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        bar: Any = self.training_bar
        if bar is None or not logs:
            return
        shown = {"loss": "loss", "eval_bits_per_byte": "val bits/byte", "tokens_per_second": "tok/s"}
        for key, label in shown.items():
            if key in logs:
                self._figures[label] = f"{logs[key]:,.0f}" if label == "tok/s" else f"{logs[key]:.3f}"
        bar.set_postfix(self._figures)

    def __init__(self) -> None:
        super().__init__()
        self._figures: dict[str, str] = {}


class NonFiniteGuard(TrainerCallback):
    """Stops a run at the first logged loss that is no number.

    A checkpoint saved between two logs may already hold it. The gradient norm is left alone:
    under fp16 an infinite one only means a skipped step.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise AntError(
                f"the loss is {loss} at step {state.global_step}",
                hint="Lower training.learning_rate, or try --set training.precision=fp32; "
                "start over with --fresh",
            )
