"""A dry run refuses what the run would refuse, says how long it takes, and leaves every file as it was."""

import os
import re
import shutil
import socket

import pytest
from conftest import tiny_recipe, tiny_values

from ant_hf.data.survey import Survey
from ant_hf.errors import AntError
from ant_hf.recipe import Recipe
from ant_hf.train import estimates
from ant_hf.train import pretrain as pretraining
from ant_hf.train.estimates import TrainingRate
from ant_hf.train.pretrain import dry_run, pretrain
from ant_hf.utils.files import read_sealed, write_json, write_sealed

RATE = TrainingRate(0.5, 512, 1000.0, 500.0, memory_bytes={"process": 10**9})


@pytest.fixture(autouse=True)
def known_rate(monkeypatch):
    monkeypatch.setattr(pretraining, "measure_training", lambda setup: RATE)


def everything(folder):
    """Every path below a folder, with the time it was written at."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def other_text(values, folder):
    (folder / "other.txt").write_text("\n<|endoftext|>\n".join(f"Chapter {i} of this." for i in range(99)))
    values["corpus"]["path"] = str(folder / "other.txt")


def another_encoding(values, folder):
    texts = folder / "texts"
    texts.mkdir()
    shutil.copy(values["corpus"]["path"], texts / "a.jsonl")
    (texts / "b.txt").write_bytes("Grüße".encode("latin-1"))
    values["corpus"]["path"], values["data_dir"] = str(texts), str(folder / "new")


def blank(values, folder):
    (folder / "blank.txt").write_text(" \n")
    values["corpus"]["path"], values["data_dir"] = str(folder / "blank.txt"), str(folder / "new")


def damaged(values, folder):
    shard = folder / "data" / "tokens" / "train-00000.bin"
    shard.write_bytes(b"\1" + shard.read_bytes()[1:])


def foreign_tokenizer(values, folder):
    (folder / "data" / "tokenizer" / "training.json").unlink()


def broken_set(values, folder):
    sets = folder / "sets"
    sets.mkdir()
    (sets / "boolq.jsonl").write_text('{"passage": "words"}\nno json\n')
    values["corpus"]["decontaminate"], values["data_dir"] = str(sets), str(folder / "new")


def another_run(values, folder):
    write_json(
        folder / "run" / "run.json",
        {
            "recipe": values | {"sample_prompt": "x", "name": "theirs"},
            "environment": {},
            "resumed_from_steps": [],
        },
    )


def key(name, value):
    def change(values, folder):
        *sections, last = name.split(".")
        for section in sections:
            values = values[section]
        values[last] = value

    return change


REFUSED = {
    "no such file": (key("corpus.path", "/nowhere/text.jsonl"), "corpus not found"),
    "another text than was packed": (
        other_text,
        r"made of other text or settings:\n.*corpus\.files: .* is gone, other\.txt is new\n",
    ),
    "another split": (key("corpus.validation_fraction", 0.3), r"corpus.validation_fraction was 0\.15"),
    "another tokenizer": (key("tokenizer.split_digits", False), "tokenizer.split_digits was True"),
    "another column": (key("corpus.text_column", "body"), "has no column 'body'"),
    "another encoding": (another_encoding, r"b\.txt is not UTF-8"),
    "nothing but blanks": (blank, "no text to train on"),
    "damaged tokens": (damaged, r"train-00000\.bin is damaged"),
    "a tokenizer from elsewhere": (foreign_tokenizer, "but not the record of its training"),
    "no folder of sets": (key("corpus.decontaminate", "/nowhere"), "folder of evaluation sets not found"),
    "a broken set": (broken_set, r"boolq\.jsonl, line 2"),
    "another run": (another_run, "holds another run"),
    "a folder that is a file": (lambda values, folder: (folder / "run").touch(), "is a file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_run_refuses_is_refused_before_any_table(shared, prepared, tmp_path, capsys, case):
    change, words = REFUSED[case]
    shutil.copytree(prepared, tmp_path / "data")
    values = tiny_values(shared, tmp_path / "run") | {"data_dir": str(tmp_path / "data")}
    change(values, tmp_path)
    recipe = Recipe.model_validate(values)
    before = everything(tmp_path)
    with pytest.raises(AntError, match=words) as dry:
        dry_run(recipe)
    assert everything(tmp_path) == before
    assert "Plan of" not in capsys.readouterr().out
    with pytest.raises(AntError) as real:
        pretrain(recipe)
    assert str(real.value) == str(dry.value)


def test_a_missing_text_leaves_no_folder(make_recipe, tmp_path, capsys):
    recipe = make_recipe()
    corpus = recipe.corpus.model_copy(update={"path": str(tmp_path / "no.txt")})
    before = everything(tmp_path)
    with pytest.raises(AntError, match="corpus not found"):
        pretrain(recipe.model_copy(update={"corpus": corpus}))
    assert everything(tmp_path) == before
    assert capsys.readouterr().out == ""


def test_the_hubs_token_is_asked_for_at_once(make_recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("ant_hf.hub.get_token", lambda: None)
    recipe = make_recipe(push_to_hub=True, hub_model_id="owner/name")
    with pytest.raises(AntError, match="no Hub token found"):
        dry_run(recipe)
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(make_recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("ant_hf.utils.files.free_bytes", lambda folder: 1000)
    for run in (dry_run, pretrain):
        with pytest.raises(AntError, match="no room for the tokens and the checkpoints and the final model"):
            run(make_recipe(data_dir=tmp_path / "new"))
        assert not (tmp_path / "new").exists()


def test_without_the_hub_all_but_the_text_is_told_and_the_fault_last(make_recipe, capsys):
    recipe = make_recipe()
    corpus = recipe.corpus.model_copy(update={"source": "hub", "path": "owner/name", "max_tokens": 1_000_000})
    with pytest.raises(AntError, match="the Hub dataset 'owner/name' cannot be read"):
        dry_run(recipe.model_copy(update={"corpus": corpus, "data_dir": None}))
    said = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    for row in ("over about 1,000,000 tokens", "text not read", "training 4 s", "tokens 2.0 MB"):
        assert row in said


def test_a_training_text_below_one_block_is_refused(make_recipe, monkeypatch):
    few = Survey("a few words", is_whole=True, train_tokens=63, validation_tokens=9, packing_seconds=1.0)
    monkeypatch.setattr(pretraining, "survey", lambda *_, **__: few)
    with pytest.raises(AntError, match="the train split is smaller than one block; saw '63 tokens'"):
        dry_run(make_recipe())


def test_a_folder_in_use_is_told(make_recipe, tmp_path):
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": "now"}
    write_json(tmp_path / "run" / ".run.owner.json", owner)
    with pytest.raises(AntError, match=f"in use by process {os.getpid()}"):
        dry_run(make_recipe())
    # One that died left its name behind, and holds nothing.
    write_json(tmp_path / "run" / ".run.owner.json", owner | {"pid": 2**30})
    dry_run(make_recipe())


@pytest.fixture
def stopped(tiny_run, tmp_path, shared):
    """A run that was stopped after its last checkpoint, which is damaged."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(run / "final")
    record = read_sealed(run / "run.json", "run record", "")
    write_sealed(run / "run.json", record | {"status": "stopped", "final": None})
    (run / "checkpoint-8" / "optimizer.pt").write_bytes(b"")
    return tiny_recipe(shared, run)


@pytest.mark.parametrize(("fresh", "steps"), [(False, "4 steps"), (True, "8 steps")])
def test_a_run_to_go_on_with_is_looked_at_and_left_alone(stopped, tmp_path, capsys, fresh, steps):
    before = everything(tmp_path)
    dry_run(stopped, fresh)
    assert everything(tmp_path) == before
    said = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert f": {steps}" in said
    assert "tokenizer done already" in said
    assert ("a run would remove the run in" if fresh else "checkpoint-8 is skipped") in said


def test_a_finished_run_is_said_to_be_finished(tiny_run, shared, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    recipe = tiny_recipe(shared, run)
    before = everything(tmp_path)
    dry_run(recipe)
    assert everything(tmp_path) == before
    said = capsys.readouterr().out
    assert "exists already" in said
    # And what another run, with --fresh, would take.
    assert "Plan of " in said
    assert "Time, disk and memory" in said


def test_the_plan_of_a_run_has_the_same_lines(make_recipe, monkeypatch, capsys):
    monkeypatch.setattr(estimates, "_TOLD_AFTER_SECONDS", 0.0)
    pretrain(make_recipe())
    said = capsys.readouterr().out
    for row in ("text", "tokenizer", "packing", "training", "disk"):
        assert re.search(rf"│ {row} +│", said), row
    assert "shown after the first steps" in said
    assert said.index("│ disk") < said.index("to go: training") < said.index("final  ")


def test_a_dry_run_tells_time_and_room_and_writes_nothing(make_recipe, capsys, tmp_path):
    recipe = make_recipe(max_steps=100, data_dir=tmp_path / "new")
    before = everything(tmp_path)
    dry_run(recipe)
    assert everything(tmp_path) == before
    said = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "512 tokens (8 per device)" in said
    assert "51,200 tokens" in said
    # As many as will be packed.
    assert "over 89,709 tokens" in said
    for row in (
        "tokenizer under 1 s",
        "packing under 1 s",
        "training 50 s: 100 steps",
        "evaluation 50 s: 25 x",
    ):
        assert row in said
    for row in ("at the end", "in all", "disk", "GB are free", "memory about 1.0 of", "nothing was written"):
        assert row in said
    assert "published" not in said
