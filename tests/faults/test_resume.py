"""Going on: from which checkpoint, with which changes, and when not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from faultlog import tried
from safetensors.torch import load_file

from ant_hf.errors import AntError, RunStopped
from ant_hf.train.callbacks import StopRequest, ThroughputMeter
from ant_hf.train.checkpoints import damage, newest_checkpoint
from ant_hf.train.pretrain import pretrain
from ant_hf.train.run_folder import open_run_folder
from ant_hf.utils.files import read_sealed, write_sealed
from ant_hf.utils.locks import locked
from ant_hf.utils.metrics import read_metrics


def at_step(monkeypatch, step, action):
    """Do something as the step after `step` begins."""
    original = ThroughputMeter.on_step_begin

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == step:
            action()
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(ThroughputMeter, "on_step_begin", on_step_begin)


def assert_equal_runs(first, second):
    one, two = (load_file(path / "final" / "model.safetensors") for path in (first, second))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    rows = [
        [
            (row["step"], row["loss"], row["grad_norm"])
            for row in read_metrics(path / "metrics.jsonl")
            if "loss" in row
        ]
        for path in (first, second)
    ]
    assert rows[0] == rows[1]


@pytest.fixture
def cut_run(make_recipe, monkeypatch):
    """A recipe and the folder of its run, left after step 6 of 8 with checkpoints of steps 2, 4 and 6."""

    def cut(**training):
        recipe = make_recipe(save_steps=2, save_total_limit=3, **training)
        at_step(monkeypatch, 6, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe)
        monkeypatch.undo()
        return recipe, open_run_folder(recipe).path

    return cut


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_leaves(make_recipe, monkeypatch, capfd, name):
    whole, stopped = make_recipe("whole", logging_steps=4), make_recipe("stopped", logging_steps=4)
    pretrain(whole)
    with tried(f"{name} while training") as trial:
        at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), getattr(signal, name)))
        with pytest.raises(RunStopped) as left:
            pretrain(stopped)
        monkeypatch.undo()
        trial.message = left.value
        assert f"stopped by {name} at step 3 of 8" in str(left.value)
        assert "Run the same command again to continue" in str(left.value)
        assert "saving a checkpoint after this step" in capfd.readouterr().err
        record = json.loads((open_run_folder(stopped).path / "run.json").read_text())
        assert (record["status"], record["stopped"]["step"]) == ("stopped", 3)
        pretrain(stopped)
        assert_equal_runs(open_run_folder(stopped).path, open_run_folder(whole).path)


def test_the_command_ends_with_code_75(shared, tmp_path):
    """As a scheduler does it: SIGTERM to the process, the same command again later."""
    from kills import write_recipe

    with tried("SIGTERM to the command, exit code 75") as trial:
        recipe = write_recipe(tmp_path, "run", max_steps=4000, save_steps=4000, eval_steps=4000)
        command = [sys.executable, "pretrain.py", "--config", str(recipe)]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            while not read_metrics(tmp_path / "run" / "metrics.jsonl"):
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            text = process.stdout.read()
        assert process.returncode == 75
        trial.message = text.strip().splitlines()[-1]
        assert "Run the same command again to continue" in trial.message
        assert newest_checkpoint(tmp_path / "run") is not None


def test_the_time_budget_leaves_room_for_a_save():
    clock = iter([100.0, 110.0, 120.0, 130.0])
    stop = StopRequest(60 / 3600, 20_000_000, clock=lambda: next(clock), started=75.0)
    stop.save_took(8.0)
    # 60 s from 75 to 135; a step takes 10 s, one and a half saves 12 s: 110 + 22 is the last that fits.
    assert [stop.after_step()[2] for _ in range(3)] == [0.0, 0.0, 1.0]


def test_the_time_budget_ends_a_run_that_goes_on_later(make_recipe):
    whole = make_recipe("whole", max_steps=3)
    pretrain(whole)
    with tried("training.max_hours used up") as trial:
        short = make_recipe("short", max_steps=3, max_hours=1e-9)
        for step in (1, 2):
            with pytest.raises(RunStopped) as left:
                pretrain(short)
            assert f"by training.max_hours at step {step} of 3" in str(left.value)
        trial.message = left.value
        pretrain(short)
        assert_equal_runs(open_run_folder(short).path, open_run_folder(whole).path)


def test_an_unfinished_save_is_skipped_and_kept(cut_run, capsys):
    recipe, folder = cut_run()
    with tried("checkpoint folder left by a killed save") as trial:
        (folder / "checkpoint-6" / "checkpoint.json").unlink()
        pretrain(recipe)
        text = capsys.readouterr().out
        trial.message = next(line for line in text.splitlines() if line.startswith("warning"))
        assert "the checkpoint of step 6 was not saved completely; it is moved to" in text
        assert (folder / "incomplete" / "checkpoint-6" / "model.safetensors").exists()
        assert "resuming    from step 4" in text


def test_old_checkpoints_go_only_after_the_new_one_is_complete(cut_run, monkeypatch):
    from ant_hf.train import checkpoints as resume

    recipe, folder = cut_run()
    recipe = recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"save_total_limit": 1, "save_steps": 1})}
    )
    seen = []
    original = resume._remove

    def remove(checkpoint):
        newest = resume.checkpoints(folder)[-1]
        seen.append((checkpoint.name, newest.name, damage(newest)))
        original(checkpoint)

    monkeypatch.setattr(resume, "_remove", remove)
    pretrain(recipe)
    assert ("checkpoint-6", "checkpoint-7", None) in seen
    assert all(problem is None for *_, problem in seen)


def test_changes_that_are_allowed_are_made_and_recorded(cut_run, capsys):
    recipe, folder = cut_run()
    changed = recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"eval_steps": 1, "logging_steps": 2})}
    )
    pretrain(changed)
    assert "changed     training.eval_steps was 4, is 1" in capsys.readouterr().out
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval_loss" in row] == [4, 7, 8]
    record = json.loads((folder / "run.json").read_text())
    assert record["changes"][0]["step"] == 6
    assert "training.logging_steps was 1, is 2" in record["changes"][0]["what"]
    assert record["recipe"]["training"]["eval_steps"] == 1


def test_another_number_of_processes_is_allowed_and_recorded(cut_run, capsys):
    recipe, folder = cut_run()
    record = read_sealed(folder / "run.json", "run record", "")
    record["environment"]["num_processes"] = 2
    write_sealed(folder / "run.json", record)
    pretrain(recipe)
    assert "changed     num_processes was 2, is 1" in capsys.readouterr().out
    changes = json.loads((folder / "run.json").read_text())["changes"]
    assert changes[0]["what"] == ["num_processes was 2, is 1"]


@pytest.mark.slow
def test_two_processes_may_become_one(make_recipe, tmp_path, monkeypatch):
    from kills import Attempt, write_recipe

    recipe = write_recipe(tmp_path, "run", max_hours=1e-9)
    attempt = Attempt(recipe, 2, True, tmp_path / "log")
    assert attempt.wait(180)
    assert "stopped     by training.max_hours at step 1" in attempt.log.read_text()
    command = [sys.executable, "pretrain.py", "--config", str(recipe)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 75, result.stderr
    assert "changed     num_processes was 2, is 1" in result.stdout
    assert "resuming    from step 1" in result.stdout


@pytest.mark.parametrize("what", ["tokens", "tokenizer", "config", "learning_rate"])
def test_another_run_is_refused_with_both_values(cut_run, shared, tmp_path, what):
    config = tmp_path / "config.json"
    config.write_text((shared / "config.json").read_text())
    recipe, folder = cut_run()
    recipe = recipe.model_copy(update={"architecture": str(config)})
    record = json.loads((folder / "run.json").read_text())
    with tried(f"run continued with another {what.replace('_', ' ')}") as trial:
        if what == "learning_rate":
            training = recipe.training.model_copy(update={"learning_rate": 0.02})
            recipe = recipe.model_copy(
                update={"architecture": record["recipe"]["architecture"], "training": training}
            )
            expected = r"training\.learning_rate was 0\.01, is 0\.02"
        elif what == "config":
            config.write_text(config.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 500.0'))
            recipe = recipe.model_copy(update={"architecture": record["recipe"]["architecture"]})
            original = (shared / "config.json").read_text()
            (shared / "config.json").write_text(config.read_text())
            expected = r"different config\n.*rope_theta was 10000\.0, is 500\.0"
        elif what == "tokenizer":
            tokenizer = recipe.tokenizer.model_copy(update={"split_digits": False})
            recipe = recipe.model_copy(update={"tokenizer": tokenizer})
            expected = r"tokenizer\.split_digits was True, is False"
        else:
            corpus = recipe.corpus.model_copy(update={"validation_fraction": 0.3})
            recipe = recipe.model_copy(
                update={"architecture": record["recipe"]["architecture"], "corpus": corpus}
            )
            expected = r"corpus\.validation_fraction was 0\.15, is 0\.3"
        try:
            with pytest.raises(AntError, match=expected) as refused:
                pretrain(recipe)
            trial.message = refused.value
        finally:
            if what == "config":
                (shared / "config.json").write_text(original)
        assert damage(folder / "checkpoint-6") is None


def test_a_checkpoint_of_another_run_is_refused(cut_run, make_recipe):
    recipe, folder = cut_run()
    with tried("checkpoint brought in from a run on other tokens") as trial:
        seal = json.loads((folder / "checkpoint-6" / "checkpoint.json").read_text())
        seal["made_of"]["tokens"] = "0" * 64
        (folder / "checkpoint-6" / "checkpoint.json").write_text(json.dumps(seal))
        with pytest.raises(
            AntError, match=r"checkpoint-6 was made with different tokens; saw .* expected"
        ) as refused:
            pretrain(recipe)
        trial.message = refused.value


def test_fresh_names_the_run_it_removes(cut_run, capsys):
    recipe, folder = cut_run()
    pretrain(recipe, fresh=True)
    assert f"removing the run in {folder}: 'tiny', running, started" in capsys.readouterr().out


def test_a_second_run_in_the_folder_is_refused_while_the_first_lives(make_recipe, capsys):
    recipe = make_recipe()
    folder = open_run_folder(recipe).path
    script = (
        "import sys, time; from pathlib import Path; from ant_hf.utils.locks import locked\n"
        "with locked(Path(sys.argv[1]), 'run'):\n    print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with tried("second run started in a folder in use") as trial:
            for fresh in (False, True):
                with pytest.raises(AntError, match=f"is in use by process {first.pid} on") as refused:
                    pretrain(recipe, fresh=fresh)
            trial.message = refused.value
        first.kill()
    with tried("stale lock of a killed process") as trial, locked(folder, "run"):
        text = capsys.readouterr().out
        trial.message = next(line for line in text.splitlines() if line.startswith("lock"))
        assert f"process {first.pid} on" in text
        assert "this run takes over" in text


@pytest.mark.parametrize("file", ["model.safetensors", "release.json", "checkpoint.json"])
@pytest.mark.parametrize("key", ["output_dir", "data_dir"])
def test_nothing_is_written_into_the_folder_of_another_thing(make_recipe, tmp_path, key, file):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / file).write_text("{}")
    # A release has the record of its run.
    (folder / "run.json").write_text("{}")
    recipe = make_recipe().model_copy(update={key: str(folder)})
    for fresh in (False, True):
        with pytest.raises(AntError, match=r"other holds a \w+, and nothing may be added to it"):
            pretrain(recipe, fresh=fresh)
    assert sorted(path.name for path in folder.iterdir()) == sorted([file, "run.json"])
    # Nor into a new folder that would hold the run.
    assert key == "output_dir" or not (tmp_path / "run" / "run.json").exists()


def test_a_run_without_data_of_its_own_is_no_data_dir(make_recipe, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("{}")
    recipe = make_recipe().model_copy(update={"data_dir": str(tmp_path / "other")})
    with pytest.raises(AntError, match="keeps its data elsewhere"):
        pretrain(recipe)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["run.json"]
    assert not (tmp_path / "run").exists()
