"""What a run says about itself while it trains: speed, metrics file, progress bar."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ant_hf.errors import AntError
from ant_hf.utils.console import say
from ant_hf.utils.disk import writing
from ant_hf.utils.files import write_text

_WITHOUT_ROWS = "Put the old file back, or remove it to go on without its rows."


class ThroughputMeter(TrainerCallback):
    """Seconds spent on training steps, with the pauses for evaluation and saving taken out.

    Data loading counts: a run that waits for its data is slow. The clock runs from step to step
    and stops only where an evaluation or a checkpoint follows.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0
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

    def state(self) -> dict[str, float]:
        """What a continued run must know to tell the time of the whole training."""
        return {"seconds": self.seconds, "steps": self.steps}

    def restore(self, state: dict[str, float]) -> None:
        """Take over what `state` returned; steps that were lost to a kill are in neither figure."""
        self.seconds, self.steps = state["seconds"], int(state["steps"])
        self._last = (self.seconds, self.steps, self.loading_seconds)

    def since_last_call(self) -> tuple[float, int, float]:
        """Training seconds, steps, and seconds of loading data, since this was last asked."""
        seconds = self.seconds
        if self._running_since is not None:
            seconds += time.perf_counter() - self._running_since
        then_seconds, then_steps, then_loading = self._last
        self._last = (seconds, self.steps, self.loading_seconds)
        return seconds - then_seconds, self.steps - then_steps, self.loading_seconds - then_loading


class MetricsFile(TrainerCallback):
    """Appends every logged row to `metrics.jsonl`, and goes on from where a checkpoint left it.

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
            say(f"warning     {self.path} is gone; it begins anew from here")
        elif state:
            rows = rows[: state["bytes"]]
            seen = hashlib.sha256(rows).hexdigest()
            if seen != state["sha256"]:
                raise AntError(
                    f"{self.path} was changed",
                    seen=f"sha256 {seen[:12]} of its first {len(rows):,} bytes",
                    expected=f"{state['sha256'][:12]} of {state['bytes']:,} bytes",
                    hint=_WITHOUT_ROWS,
                )
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
        row = {"step": state.global_step, **{key: _finite(logs[key]) for key in logs if key != "epoch"}}
        # Trainer sums up at the end of train(), which is not the end of a run that will be continued.
        if "train_runtime" not in row or state.global_step >= state.max_steps:
            self.append(row)


def _finite(value: Any) -> Any:
    """JSON has no infinity; the gradient norm of a step that fp16 overflowed in is one."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
