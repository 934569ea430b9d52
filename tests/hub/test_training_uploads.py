"""`push_to_hub`: checkpoints go up during the training, and another machine continues from the last one."""

import json
import os
import shutil
import signal
import sys
import threading
from types import SimpleNamespace

import pytest
import yaml
from conftest import tiny_values
from huggingface_hub import HfApi
from safetensors.torch import load_file

from ant_hf.errors import AntError, Interrupted, RunStopped
from ant_hf.recipe import load_recipe
from ant_hf.train.pretrain import pretrain as train
from ant_hf.train.uploads import CheckpointUploads
from ant_hf.utils.files import write_sealed
from ant_hf.utils.stopping import stopped_by_signals
from hub.conftest import READ_TOKEN, WRITE_TOKEN

REPO = "GODELEV/training"


@pytest.fixture
def recipes(shared, tmp_path):
    """A function that writes a pushing recipe for a machine of its own; the tokens are packed there."""

    def make(machine, **training):
        # Each machine has them elsewhere, and with white space in the name.
        texts = tmp_path / f"texts of {machine}"
        shutil.copytree(shared, texts)
        values = tiny_values(texts, tmp_path / machine / "run", push_to_hub=True, hub_model_id=REPO)
        values["training"] |= training
        file = tmp_path / f"{machine}.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    return make


@pytest.fixture
def pretrain(here, capfd):
    """A function that trains recipes one after the other; returns what was said."""

    def run(*files):
        capfd.readouterr()
        said = []
        for file in files:
            train(load_recipe(file))
            said.append(capfd.readouterr().out)
        return said

    return run


def test_another_machine_goes_on_from_the_last_checkpoint_that_arrived(hub, recipes, pretrain, tmp_path):
    # A step 4 that gives way to step 8 before the thread takes it would leave nothing to continue from.
    first, second = recipes("first", hub_always_push=True), recipes("second")
    # Step 4 arrives. From then on the Hub refuses every commit: step 8 and the final model are lost to it.
    fault = hub.faults.add("POST", "/commit/", 403, times=99, skip=1)
    (said,) = pretrain(first)
    assert fault.met == 2, said
    assert "step 8 was not sent, but the training continues" in said
    assert "run the same command again to continue" in said
    assert (tmp_path / "first" / "run" / "checkpoint-8").is_dir()
    final = load_file(tmp_path / "first" / "run" / "final" / "model.safetensors")

    repository = hub.repository(REPO)
    assert repository.state["private"]
    files = set(repository.files())
    assert {"config.json", "model.safetensors", "tokenizer.json", "last-checkpoint/optimizer.pt"} <= files
    assert not [name for name in files if "training_args" in name or "tokens/" in name]
    assert str(tmp_path) not in repository.content("run.json").decode()

    secret = WRITE_TOKEN.encode()
    assert [p for p in tmp_path.rglob("*") if p.is_file() and secret in p.read_bytes()] == []
    assert WRITE_TOKEN not in said

    hub.faults.clear()
    resumed, finished = pretrain(second, first)
    assert f"the checkpoint of step 4 was downloaded from {REPO}" in resumed
    assert "resuming    from step 4" in resumed
    again = load_file(tmp_path / "second" / "run" / "final" / "model.safetensors")
    assert all((again[name] == tensor).all() for name, tensor in final.items())
    rows = [json.loads(line) for line in (tmp_path / "second/run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    # The first machine's run is finished: the same command sends what had not arrived.
    assert "1 uploads to" in finished
    titles = [commit["title"] for commit in repository.history()]
    assert titles.count("Training in progress, step 8") == 1
    sent = repository.content("model.safetensors")
    assert sent == (tmp_path / "first" / "run" / "final" / "model.safetensors").read_bytes()


def test_a_run_out_of_time_leaves_when_its_last_checkpoint_has_arrived(hub, here, recipes, capsys):
    hub.faults.add("POST", "/commit/", "slow", times=1, delay=1)
    with pytest.raises(RunStopped):
        train(load_recipe(recipes("machine", max_hours=0.0001)))
    # Now, because nothing waits for the thread of the uploads when the process ends.
    repository = hub.repository(REPO)
    state = json.loads(repository.content("last-checkpoint/trainer_state.json"))
    assert state["global_step"] == 1
    # The weights have two names there, and went over the line once.
    assert repository.content("model.safetensors") == repository.content("last-checkpoint/model.safetensors")
    assert hub.received_bytes == sum(path.stat().st_size for path in (repository.folder / "lfs").iterdir())
    said = capsys.readouterr().out
    assert "1 uploads to" in said
    assert "stopped     by training.max_hours at step 1 of 8" in said


def test_another_machine_finds_the_length_of_a_run_in_its_text(hub, here, recipes, capsys):
    length = {"num_train_epochs": 0.02, "max_steps": 1000}
    with pytest.raises(RunStopped):
        train(load_recipe(recipes("first", max_hours=0.0001, **length)))
    train(load_recipe(recipes("second", **length)))
    assert "resuming    from step 1" in capsys.readouterr().out


@pytest.mark.slow
def test_a_hub_that_is_slow_or_down_changes_nothing_in_the_training(hub, recipes, pretrain, tmp_path):
    slow, down = recipes("slow", save_steps=1, save_total_limit=1), recipes("down", hub_strategy="every_save")
    hub.faults.add("POST", "/commit/", "slow", times=1, delay=3)
    hub.faults.add("GET", "/api/whoami-v2", 503, times=6, skip=3)
    slow_said, _ = pretrain(slow, slow)
    # While step 1 was on its way, newer checkpoints took the place of those that waited.
    assert "is not sent, because a newer one" in slow_said
    remote = hub.repository(REPO)
    state = json.loads(remote.content("last-checkpoint/trainer_state.json"))
    assert state["global_step"] == 8
    shutil.rmtree(tmp_path / "slow")
    hub.repository(REPO).folder.rename(tmp_path / "away")
    (down_said,) = pretrain(down)
    assert "training continues, and every save tries again" in down_said
    assert (tmp_path / "down" / "run" / "final" / "model.safetensors").is_file()
    assert not [name for name in hub.repository(REPO).files() if name.startswith("last-checkpoint")]


def test_what_cannot_work_is_said_before_anything_is_spent(hub, here, recipes, monkeypatch, tmp_path):
    recipe = load_recipe(recipes("machine"))
    hub.faults.add("GET", f"/api/models/{REPO}", 503, times=99)
    # The waits between attempts are of no interest here.
    monkeypatch.setattr("ant_hf.hub.time.sleep", lambda seconds: None)
    for token, problem in (
        (None, "no Hub token found"),
        (READ_TOKEN, "may only read"),
        (WRITE_TOKEN, "not known whether GODELEV/training holds a checkpoint of this run"),
    ):
        monkeypatch.setenv("HF_TOKEN", token or "")
        with pytest.raises(AntError, match=problem):
            train(recipe)
    assert not list((tmp_path / "machine").rglob("*.json"))


def uploads_by(step, folder):
    """Uploads of a run in `folder` whose steps are done by `step`."""
    client = SimpleNamespace(api=HfApi(token=False), step=step, redact=str)
    training = {
        "hub_model_id": REPO,
        "hub_private_repo": True,
        "hub_strategy": "end",
        "hub_always_push": True,
    }
    recipe = SimpleNamespace(training=SimpleNamespace(**training), output_dir=str(folder))
    write_sealed(folder / "run.json", {})
    (folder / "final").mkdir()
    return CheckpointUploads(client, recipe)


def test_the_end_waits_a_bounded_time_and_what_still_waits_then_is_left(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("ant_hf.train.uploads._WAIT_SECONDS", 0.2)
    answer, asked = threading.Event(), []

    def step(what, call):
        asked.append(what)
        answer.wait(60)

    uploads = uploads_by(step, tmp_path)
    uploads.finish(tmp_path / "final")
    uploads.finish(tmp_path / "final")
    assert (
        capsys.readouterr().out.count(
            "the final model was not sent, but the training continues: the upload did not end within 0 s"
        )
        == 2
    )
    answer.set()
    uploads._client.api.run_as_future(int).result(60)
    # The first was under way; the second is not begun.
    assert (asked, uploads.sent) == ([f"creating {REPO}", "sending the final model"], ["the final model"])


def test_ctrl_c_while_the_uploads_are_waited_for_leaves_without_them(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    answer = threading.Event()

    def step(what, call):
        if what.startswith("creating"):
            os.kill(os.getpid(), signal.SIGINT)
        answer.wait(60)

    uploads = uploads_by(step, tmp_path)
    with pytest.raises(Interrupted), stopped_by_signals():
        uploads.finish(tmp_path / "final")
    answer.set()
    uploads._client.api.run_as_future(int).result(60)
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"stopped     by SIGINT while sending the final model to {REPO}. All of it is in")
    assert line.endswith("Run the same command again to send the rest.")


def test_recipe_names_the_repository(recipes):
    with pytest.raises(AntError, match=r"training\.hub_model_id is missing"):
        load_recipe(recipes("x", hub_model_id=None))


def test_a_model_of_the_hub_is_trained_further(hub, here, shared, trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr("ant_hf.train.before_after._DOCUMENTS", 2)
    base = shutil.copytree(trained_run / "final", tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    api = HfApi()
    api.create_repo("GODELEV/base")
    commit = api.upload_folder(repo_id="GODELEV/base", folder_path=base).oid
    shutil.rmtree(base)
    values = tiny_values(shared, tmp_path / "tuned", init_from="GODELEV/base", max_steps=4, save_steps=4)
    del values["architecture"], values["tokenizer"]
    file = tmp_path / "tuned.yaml"
    file.write_text(yaml.safe_dump(values))
    train(load_recipe(file))
    record = json.loads((tmp_path / "tuned/run.json").read_text())
    named = {key: record["base"][key] for key in ("name", "repository", "revision", "license")}
    assert named == {
        "name": "GODELEV/base",
        "repository": "GODELEV/base",
        "revision": commit,
        "license": "mit",
    }
    with pytest.raises(AntError, match="GODELEV/missing"):
        train(load_recipe(file, ["training.init_from=GODELEV/missing", f"output_dir={tmp_path / 'other'}"]))
    assert not (tmp_path / "other").exists()
