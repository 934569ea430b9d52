"""A run's metrics in the trackers it names, read back from what the real packages wrote."""

import dataclasses
import json
import os
import sqlite3
import subprocess
import sys

import pytest
import yaml
from conftest import tiny_values
from transformers.integrations import INTEGRATION_TO_CALLBACK

from ant_hf.errors import AntError
from ant_hf.recipe import Integration, load_recipe
from ant_hf.train import setup as run_setup
from ant_hf.train.pretrain import dry_run, pretrain
from ant_hf.utils.metrics import read_metrics

# Our own figures, under the names Trainer's integrations give them.
OURS = {
    "train/tokens_per_second": "tokens_per_second",
    "train/tokens_seen": "tokens_seen",
    "train/mfu": "mfu",
    "train/loss": "loss",
    "eval/bits_per_byte": "eval_bits_per_byte",
    "eval/byte_perplexity": "eval_byte_perplexity",
}


def figures_of(rows):
    """What a tracker must hold: by name the value at each step."""
    figures = {
        shown: {row["step"]: row[ours] for row in rows if ours in row and "train_runtime" not in row}
        for shown, ours in OURS.items()
    }
    assert all(len(values) >= 2 for values in figures.values())
    return figures


@pytest.fixture
def write(shared, tmp_path):
    def write(**training):
        values = tiny_values(shared, tmp_path / "run", **training)
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    return write


@pytest.fixture
def known_peak(monkeypatch):
    """This CPU with a peak from a data sheet, as a GPU has, so that there is an MFU to report."""
    choose = run_setup.choose_execution
    monkeypatch.setattr(
        run_setup, "choose_execution", lambda recipe: dataclasses.replace(choose(recipe), peak_flops=1e12)
    )


def test_tensorboard_files_hold_the_same_figures_as_the_metrics_file(write, known_peak, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pretrain(load_recipe(write(report_to=["tensorboard"])))
    (file,) = (tmp_path / "run" / "tensorboard").rglob("events.*")
    events = EventAccumulator(str(file)).Reload()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for shown, expected in figures_of(rows).items():
        seen = {event.step: event.value for event in events.Scalars(shown)}
        assert seen == pytest.approx(expected, rel=1e-6), shown


def test_another_tracker_does_not_make_it_another_run(write, tmp_path, capsys):
    first = load_recipe(write(report_to=[]))
    pretrain(first)
    pretrain(load_recipe(write(report_to="tensorboard")))
    assert "exists already" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "meant"), [("none", []), (["none"], []), ("wandb", ["wandb"])])
def test_the_shorter_forms_of_transformers_are_read(write, given, meant):
    assert load_recipe(write(report_to=given)).training.report_to == meant


@pytest.mark.parametrize("given", [["wandbb"], ["none", "wandb"], "everything", 3])
def test_an_unknown_name_is_refused_with_the_known_ones(write, given):
    with pytest.raises(AntError, match=r"training\.report_to") as caught:
        load_recipe(write(report_to=given))
    assert given == 3 or "'trackio' or 'wandb'" in str(caught.value)


def test_every_name_is_one_of_trainers():
    assert set(Integration.__args__) <= set(INTEGRATION_TO_CALLBACK)


def test_a_package_that_is_not_there_is_named_before_any_work(write, monkeypatch, tmp_path):
    monkeypatch.setattr(run_setup, "find_spec", lambda name: None)
    with pytest.raises(AntError, match=r"'swanlab', which is not installed.*pip install swanlab"):
        dry_run(load_recipe(write(report_to=["swanlab"])))
    assert not (tmp_path / "run").exists()


# A process of its own, because trackers leave threads and services behind.
WITHOUT_NETWORK = """
import dataclasses, json, socket, sys
from pathlib import Path
connect = socket.socket.connect
def connect_here_only(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        Path("network.txt").write_text(repr(address))
        raise OSError("no network")
    return connect(self, address)
socket.socket.connect = connect_here_only
from ant_hf.train import setup as run_setup
choose = run_setup.choose_execution
run_setup.choose_execution = lambda recipe: dataclasses.replace(choose(recipe), peak_flops=1e12)
if "wandb" in sys.argv:
    import wandb
    log = wandb.Run.log
    def noted(self, data, *arguments, **options):
        with Path("logged.jsonl").open("a") as file:
            file.write(json.dumps(data) + "\\n")
        return log(self, data, *arguments, **options)
    wandb.Run.log = noted
from ant_hf.cli.main import pretrain_app, run
try:
    run(pretrain_app)
finally:
    if "wandb" in sys.argv:
        Path("summary.json").write_text(json.dumps({name: wandb.run.summary[name] for name in NAMES}))
"""


def wandb_rows(folder):
    """What wandb was given to log, checked against its own summary, the last value of each name."""
    rows = [json.loads(line) for line in (folder / "logged.jsonl").read_text().splitlines()]
    last = {name: value for row in rows for name, value in row.items()}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == pytest.approx({name: last[name] for name in OURS})
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert file.stat().st_size > 1000
    return rows


def trackio_rows(folder):
    with sqlite3.connect(folder / "trackio" / "ant-hf.db") as connection:
        for (row,) in connection.execute("select metrics from metrics where run_name = 'tiny' order by step"):
            yield json.loads(row)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "read"), [("wandb", wandb_rows), ("trackio", trackio_rows)])
def test_a_tracker_holds_our_figures_without_touching_the_network(write, tmp_path, name, read):
    pytest.importorskip(name, reason=f"{name} is not installed")
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    environment |= {"TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path)}
    script = WITHOUT_NETWORK.replace("NAMES", repr(list(OURS)))
    command = [sys.executable, "-c", script, "--config", str(write()), "--report-to", name]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "network.txt").exists()
    seen = list(read(tmp_path))
    for shown, expected in figures_of(read_metrics(tmp_path / "run" / "metrics.jsonl")).items():
        at_steps = {row["train/global_step"]: row[shown] for row in seen if shown in row}
        assert at_steps == pytest.approx(expected), shown


@pytest.mark.slow
def test_wandb_without_an_account_is_refused_instead_of_waiting_for_an_answer(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    script = "from ant_hf.train.setup import check_reporting; check_reporting(['wandb'])"
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment | {"HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert "no account is logged in. Run: wandb login" in result.stderr
    # To a folder on this machine it may write.
    offline = environment | {"HOME": str(tmp_path), "WANDB_MODE": "offline"}
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=offline).returncode == 0
