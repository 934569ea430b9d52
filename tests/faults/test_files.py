"""Every file we read, cut short, flipped, emptied, replaced or closed: refused by name, or made again.

A new artefact joins by one line in ARTEFACTS: its file in a finished run, and what reads it.
"""

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import tiny_values
from faultlog import tried

from ant_hf.data.packing import make_tokens
from ant_hf.data.tokenizer import make_tokenizer
from ant_hf.errors import AntError
from ant_hf.evaluation.results import SCHEMA, previous_results, write_results
from ant_hf.model.architecture import load_config
from ant_hf.model.loading import load_final
from ant_hf.model.scoring import score_folder
from ant_hf.recipe import Recipe
from ant_hf.train.callbacks import MetricsFile
from ant_hf.train.checkpoints import PROGRESS, checkpoints, newest_checkpoint, seal
from ant_hf.train.run_folder import open_run_folder
from ant_hf.utils.files import file_sha256
from ant_hf.utils.metrics import read_metrics
from ant_hf.utils.names import SEAL


def read_tokens(run, recipe):
    make_tokens(recipe)


def read_tokens_to_score(run, recipe):
    score_folder(run / "final", run / "tokens", 64)


def read_tokenizer(run, recipe):
    make_tokenizer(recipe, 64)


def read_model(run, recipe):
    load_final(run / "final")


def read_only_checkpoint(run, recipe):
    for old in checkpoints(run)[:-1]:
        shutil.rmtree(old)
    newest_checkpoint(run)


def read_record(run, recipe):
    open_run_folder(recipe)


def read_log(run, recipe):
    saved = json.loads((checkpoints(run)[-1] / PROGRESS).read_text())
    MetricsFile(run / "metrics.jsonl").begin(saved["metrics"])


IDENTITY = {"weights_sha256": "a", "tokenizer_sha256": "b", "config_sha256": "c"}
CONDITIONS = dict.fromkeys(
    ("dtype", "device", "context_length", "bos_policy", "limit", "data", "versions"), "as it was"
)


def read_results(run, recipe):
    previous_results(run / "final", IDENTITY, CONDITIONS)


def write_evaluation(folder):
    """The three files of an evaluation, which the tiny run does not have."""
    tasks = {f"set {i}": {"value": 0.5, "stderr": 0.01} for i in range(20)}
    values = {"schema": SCHEMA, "model": IDENTITY, "conditions": CONDITIONS, "tasks": tasks}
    samples, harness = [{"task": "boolq", "acc": 1.0}], {"results": {"boolq": {"acc,none": 1.0}}}
    write_results(folder, values, samples, harness, keep=False)


ARTEFACTS = {
    "training shard": ("tokens/train-00000.bin", read_tokens),
    "validation shard": ("tokens/validation-00000.bin", read_tokens_to_score),
    "token manifest": ("tokens/manifest.json", read_tokens),
    "tokenizer": ("tokenizer/tokenizer.json", read_tokenizer),
    "tokenizer's settings": ("tokenizer/tokenizer_config.json", read_tokenizer),
    "tokenizer's record": ("tokenizer/training.json", read_tokenizer),
    "fragmentation report": ("tokenizer/fragmentation.json", read_tokenizer),
    "final weights": ("final/model.safetensors", read_model),
    "final config": ("final/config.json", read_model),
    "final generation config": ("final/generation_config.json", read_model),
    "final tokenizer": ("final/tokenizer.json", read_model),
    "final tokenizer's settings": ("final/tokenizer_config.json", read_model),
    "checkpoint's weights": ("checkpoint-8/model.safetensors", read_only_checkpoint),
    "checkpoint's optimizer": ("checkpoint-8/optimizer.pt", read_only_checkpoint),
    "checkpoint's schedule": ("checkpoint-8/scheduler.pt", read_only_checkpoint),
    "checkpoint's random state": ("checkpoint-8/rng_state.pth", read_only_checkpoint),
    "checkpoint's counters": ("checkpoint-8/trainer_state.json", read_only_checkpoint),
    "checkpoint's progress": ("checkpoint-8/progress.json", read_only_checkpoint),
    "checkpoint's seal": ("checkpoint-8/checkpoint.json", read_only_checkpoint),
    "run record": ("run.json", read_record),
    "metrics": ("metrics.jsonl", read_log),
    "results": ("final/results.json", read_results),
    "lm-eval's results": ("final/lm_eval_results.json", read_results),
    "samples": ("final/samples.jsonl", read_results),
}
# A flip in a hashed file shows both hashes; one in the file that holds the hashes may break its syntax first.
HASHED = {
    name
    for name in ARTEFACTS
    if name not in ("token manifest", "tokenizer's record", "checkpoint's seal", "run record", "results")
}


def cut(at):
    return lambda path: os.truncate(path, int(path.stat().st_size * at))


def flip(at):
    def change(path):
        data = bytearray(path.read_bytes())
        data[int((len(data) - 1) * at)] ^= 0x10
        path.write_bytes(data)

    return change


def make_folder(path):
    path.unlink()
    path.mkdir()


def remove(path):
    path.unlink()


DAMAGES = {
    "empty": [cut(0)],
    "cut short": [cut(0.01), cut(0.5), cut(0.999)],
    "one byte flipped": [flip(0), flip(0.3), flip(0.7), flip(1)],
    "replaced by a folder": [make_folder],
    "missing": [remove],
}
# Gone is another matter than damaged: these are made again, or were only for people.
MADE_ANEW = {
    ("metrics", "missing"),
    ("metrics", "empty"),
    ("run record", "missing"),
    ("token manifest", "missing"),
    # A folder without it is a save that was cut short.
    ("checkpoint's seal", "missing"),
}
MADE_ANEW |= {("tokenizer's record", "missing")}
MADE_ANEW |= {(name, "missing") for name in ("results", "lm-eval's results", "samples")}


@pytest.fixture
def run(tiny_run):
    """A copy of a finished run that any user may enter."""
    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o755)  # noqa: PTH101
        folder = Path(scratch) / "run"
        shutil.copytree(tiny_run, folder)
        write_evaluation(folder / "final")
        yield folder


@pytest.fixture
def recipe(run, shared):
    return Recipe.model_validate(tiny_values(shared, run))


CASES = [(name, damage) for name in ARTEFACTS for damage in DAMAGES if (name, damage) not in MADE_ANEW]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_damaged_files_are_refused_by_name(name, damage, run, recipe):
    relative, read = ARTEFACTS[name]
    pristine = (run / relative).read_bytes()
    for spoil in DAMAGES[damage]:
        path = run / relative
        spoil(path)
        with tried(f"{name}: {damage}") as trial:
            with pytest.raises(AntError) as refused:
                read(run, recipe)
            text = trial.message = str(refused.value)
            assert path.name in text
            if damage in ("cut short", "one byte flipped") and name in HASHED:
                # By size or by hash: what was found, and what was written.
                assert "expected" in text
                assert "sha256" in text or "bytes" in text
        if path.is_dir():
            path.rmdir()
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pristine)
        if relative.startswith("checkpoint"):
            continue
        read(run, recipe)  # put back, it is read again


def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, recipe, capsys):
    flip(0.5)(run / "checkpoint-8" / "optimizer.pt")
    with tried("newest of two checkpoints damaged") as trial:
        assert newest_checkpoint(run).name == "checkpoint-4"
        trial.message = " ".join(capsys.readouterr().out.split())
        assert "checkpoint-8 is skipped and moved to" in trial.message
        assert "optimizer.pt has sha256" in trial.message
        assert (run / "incomplete" / "checkpoint-8" / "optimizer.pt").exists()


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", ".nfs0000000000a1b2c3"])
def test_files_that_systems_leave_lying_about_are_no_damage(name, run, capsys):
    stray = run / "checkpoint-8" / name
    stray.write_bytes(b"x")
    assert newest_checkpoint(run).name == "checkpoint-8"
    # There already while the checkpoint is sealed, it may change or go.
    (run / "checkpoint-8" / SEAL).unlink()
    seal(run / "checkpoint-8", {}, keep=2)
    stray.write_bytes(b"xy")
    assert newest_checkpoint(run).name == "checkpoint-8"
    stray.unlink()
    assert newest_checkpoint(run).name == "checkpoint-8"
    assert "warning" not in capsys.readouterr().out


def test_a_stray_file_that_an_older_seal_names_is_held_to_it(run):
    stray, sealed = run / "checkpoint-8" / ".DS_Store", run / "checkpoint-8" / SEAL
    stray.write_bytes(b"x")
    values = json.loads(sealed.read_text())
    values["files"][stray.name] = {"bytes": 1, "sha256": file_sha256(stray)}
    sealed.write_text(json.dumps(values))
    assert newest_checkpoint(run).name == "checkpoint-8"
    stray.write_bytes(b"xy")
    assert newest_checkpoint(run).name == "checkpoint-4"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "scaler.pt", "notes.txt"])
def test_other_files_that_the_seal_does_not_name_are_refused(name, run, capsys):
    (run / "checkpoint-8" / name).write_bytes(b"x")
    assert newest_checkpoint(run).name == "checkpoint-4"
    assert f"{name} is missing, or not listed in checkpoint.json" in " ".join(capsys.readouterr().out.split())


def test_what_can_be_made_anew_is(run, recipe, capsys):
    with tried("tokens folder without its record") as trial:
        before = (run / "tokens/manifest.json").read_bytes()
        (run / "tokens/manifest.json").unlink()
        read_tokens(run, recipe)
        assert (run / "tokens/manifest.json").read_bytes() == before
        trial.message = next(line for line in capsys.readouterr().out.splitlines() if "ed" in line)
    (run / "metrics.jsonl").unlink()
    with tried("metrics: missing or empty") as trial:
        read_log(run, recipe)
        trial.message = capsys.readouterr().out.strip()
        assert "metrics.jsonl is missing; its rows start again" in trial.message


def test_a_tokenizer_without_its_record_may_be_anyones_and_is_left_alone(run, recipe):
    (run / "tokenizer/training.json").unlink()
    before = (run / "tokenizer/tokenizer.json").read_bytes()
    with tried("tokenizer folder without its record") as trial:
        with pytest.raises(AntError, match="but not the record of its training") as refused:
            read_tokenizer(run, recipe)
        trial.message = refused.value
    assert (run / "tokenizer/tokenizer.json").read_bytes() == before


def test_a_run_without_its_record_is_not_continued(run, recipe):
    (run / "run.json").unlink()
    with tried("run record: missing") as trial:
        with pytest.raises(AntError, match=r"checkpoints, but no run\.json") as refused:
            open_run_folder(recipe)
        trial.message = refused.value


@pytest.mark.parametrize("damage", ["cut short", "one byte flipped", "replaced by a folder"])
def test_damaged_metrics_are_refused_by_line_when_drawn(damage, run):
    path = run / "metrics.jsonl"
    if damage == "cut short":
        cut(0.5)(path)
        assert read_metrics(path)  # the last line alone is lost
        return
    if damage == "replaced by a folder":
        make_folder(path)
    else:
        data = path.read_bytes()
        path.write_bytes(data.replace(b"{", b"k", 1))
    with pytest.raises(AntError, match=r"metrics\.jsonl"):
        read_metrics(path)


@contextmanager
def as_stranger(path):
    """Nobody may read `path`, and this process is not the superuser meanwhile."""
    path.chmod(0)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)
        path.chmod(0o644)


@pytest.mark.parametrize("name", ARTEFACTS)
def test_unreadable_files_are_refused_by_name(name, run, recipe, shared, capsys):
    relative, read = ARTEFACTS[name]
    for old in checkpoints(run)[:-1]:
        shutil.rmtree(old)
    # A stranger must be able to read all but the one file.
    for path in [run, *run.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    for folder in [shared, *shared.parents][:4]:
        folder.chmod(folder.stat().st_mode | 0o055)
    with tried(f"{name}: unreadable") as trial, as_stranger(run / relative):
        with pytest.raises(AntError) as refused:
            read(run, recipe)
        trial.message = str(refused.value)
    assert Path(relative).name in trial.message
    assert "ermission denied" in trial.message


def test_a_config_may_be_no_file_or_no_json(tmp_path):
    path = tmp_path / "config.json"
    for content in (b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000):
        path.write_bytes(content)
        with tried("architecture config: damaged") as trial:
            with pytest.raises(AntError, match=r"config\.json") as refused:
                load_config(path)
            trial.message = refused.value
