"""Callbacks by themselves, driven as Trainer drives them."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ant_hf.errors import AntError
from ant_hf.train import callbacks
from ant_hf.train.callbacks import MetricsFile, ThroughputMeter
from ant_hf.utils.metrics import read_metrics

ARGS = SimpleNamespace(device=torch.device("cpu"))


def control(evaluate=False, save=False, stop=False):
    return SimpleNamespace(should_evaluate=evaluate, should_save=save, should_training_stop=stop)


def test_speed_leaves_evaluation_out_and_keeps_waiting_for_data(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: clock.now)
    meter = ThroughputMeter()

    def step(seconds, **flags):
        meter.on_step_begin(ARGS, None, control())
        clock.now += seconds
        meter.on_step_end(ARGS, None, control(**flags))

    step(1.0)
    clock.now += 0.5  # waiting for the data of the next step
    step(1.0, evaluate=True)
    clock.now += 100.0  # evaluation
    assert meter.since_last_call() == (2.5, 2, 0.0)
    step(2.0, save=True)
    clock.now += 100.0  # saving
    step(2.0)
    assert meter.since_last_call() == (4.0, 2, 0.0)
    meter.on_train_end(ARGS, None, control(stop=True))
    assert (meter.seconds, meter.steps) == (6.5, 4)


def test_the_step_that_compiles_is_in_no_rate(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: clock.now)
    meter = ThroughputMeter(compiles=True)
    for seconds in (60.0, 1.0, 1.0):
        meter.on_step_begin(ARGS, None, control())
        clock.now += seconds
        meter.on_step_end(ARGS, None, control())
        if seconds == 60.0:
            # Trainer logs the first step: there is no rate yet.
            assert meter.since_last_call()[1] == 0
    assert meter.since_last_call() == (2.0, 2, 0.0)
    meter.on_train_end(ARGS, None, control(stop=True))
    assert meter.tokens_per_second(100) == 100.0
    assert (meter.compile_seconds, meter.seconds, meter.steps) == (60.0, 62.0, 3)
    # Another sitting compiles again.
    again = ThroughputMeter(compiles=True)
    again.restore(meter.state())
    for seconds in (40.0, 1.0):
        again.on_step_begin(ARGS, None, control())
        clock.now += seconds
        again.on_step_end(ARGS, None, control())
    again.on_train_end(ARGS, None, control(stop=True))
    assert again.tokens_per_second(100) == 100.0
    assert (again.compile_seconds, again.steps) == (100.0, 5)


def test_metrics_file_goes_on_from_the_checkpoint(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.begin(None)
    for step in (1, 2, 3):
        file.append({"step": step, "loss": 1.0 / step})
        if step == 2:
            kept = file.state()
    with file.path.open("a") as handle:
        handle.write('{"step": 4, "lo')  # killed while writing
    assert [row["step"] for row in read_metrics(file.path)] == [1, 2, 3]
    file.begin(kept)
    file.append({"step": 3, "loss": 0.1})
    rows = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 0.5), (3, 0.1)]
    file.path.write_text(file.path.read_text().replace("0.5", "0.4"))
    with pytest.raises(AntError, match=r"metrics\.jsonl was changed; saw 'sha256 .*expected"):
        file.begin(kept)


@pytest.fixture
def as_on_windows(monkeypatch):
    """Text written without a word on its line ends gets CRLF, and what is open for reading is not flushed."""
    fcntl = pytest.importorskip("fcntl", reason="Windows needs no imitation of itself")
    path_open, fsync = Path.open, os.fsync

    def translating(self, mode="r", buffering=-1, encoding=None, errors=None, newline=None):
        if "b" not in mode and mode != "r" and newline is None:
            newline = "\r\n"
        return path_open(self, mode, buffering, encoding, errors, newline)

    def refusing(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        fsync(descriptor)

    monkeypatch.setattr(Path, "open", translating)
    monkeypatch.setattr(os, "fsync", refusing)


def test_metrics_file_is_the_same_to_the_byte_on_windows(tmp_path, as_on_windows):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.begin(None)
    file.append({"step": 1, "loss": 1.0})
    kept, rows = file.state(), file.path.read_bytes()
    assert rows == b'{"step": 1, "loss": 1.0}\n'
    file.append({"step": 2, "loss": 0.5})
    file.begin(kept)
    assert file.path.read_bytes() == rows
    assert file.state() == kept


def test_rows_with_other_line_ends_stay_as_they_are(tmp_path, as_on_windows):
    # As an editor may have left them.
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.path.write_bytes(b'{"step": 1, "loss": 1.0}\r\n')
    kept = file.state()
    file.begin(kept)
    assert file.state() == kept


def test_the_sum_of_a_stopped_run_is_no_row(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    state = SimpleNamespace(is_world_process_zero=True, global_step=3, max_steps=8)
    file.on_log(ARGS, state, control(), logs={"train_runtime": 1.0, "train_loss": 2.0})
    assert not file.path.exists()
    state.global_step = 8
    file.on_log(ARGS, state, control(), logs={"train_runtime": 1.0, "train_loss": 2.0})
    assert read_metrics(file.path)[0]["train_loss"] == 2.0


def test_only_the_first_process_writes(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    state = SimpleNamespace(is_world_process_zero=False, global_step=1)
    file.on_train_begin(ARGS, state, control())
    file.on_log(ARGS, state, control(), logs={"loss": 1.0})
    assert not file.path.exists()
