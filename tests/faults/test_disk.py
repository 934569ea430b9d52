"""A full disk while packing, saving, exporting, logging: one line with the bytes, and the old files kept."""

import errno
import os
import resource
import shutil
import signal
import subprocess
from contextlib import contextmanager

import pytest
from faultlog import tried

from ant_hf.data.packing import make_tokens
from ant_hf.data.tokenizer import make_tokenizer
from ant_hf.errors import AntError
from ant_hf.model.loading import load_final
from ant_hf.train import pretrain as pretraining
from ant_hf.train.callbacks import MetricsFile
from ant_hf.train.checkpoints import checkpoints, damage, newest_checkpoint
from ant_hf.train.pretrain import pretrain
from ant_hf.train.run_folder import RunRecord, open_run_folder
from ant_hf.train.trainer import AntTrainer
from ant_hf.utils.files import check_room, is_full

FULL = r"no room for {} in .*; saw '[\d,]+ bytes free'; expected about [\d,]+ bytes\. Free some space"


@contextmanager
def files_up_to(size):
    """No file may grow past `size` bytes, as under a quota of one file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder, leave):
    """Take all space of a file system but `leave` bytes."""
    free = shutil.disk_usage(folder).free
    (folder / "ballast").write_bytes(b"\0" * max(0, free - leave))


def on_disk(recipe, disk):
    return recipe.model_copy(update={"output_dir": str(disk / "run"), "data_dir": str(disk / "data")})


def test_full_while_training_the_tokenizer(make_recipe, small_disk):
    recipe = on_disk(make_recipe(), small_disk)
    fill(small_disk, 20_000)
    with tried("disk full while writing the tokenizer") as trial:
        with pytest.raises(AntError, match=FULL.format("the tokenizer")) as refused:
            make_tokenizer(recipe, 64)
        trial.message = refused.value
        assert not list((small_disk / "data").glob("[!.]*"))


def test_full_while_packing(make_recipe, small_disk):
    recipe = on_disk(make_recipe(), small_disk)
    make_tokenizer(recipe, 64)
    fill(small_disk, 100_000)
    with tried("disk full while packing") as trial:
        with pytest.raises(AntError, match=FULL.format("the packed tokens")) as refused:
            make_tokens(recipe)
        trial.message = refused.value
        assert not (small_disk / "data" / "tokens").exists()
        assert not list((small_disk / "data").glob(".*partial"))
        (small_disk / "ballast").unlink()
        make_tokens(recipe)  # the same command again


def test_too_small_for_the_checkpoints_is_said_before_training(make_recipe, small_disk):
    recipe = on_disk(make_recipe(), small_disk)
    make_tokenizer(recipe, 64)
    make_tokens(recipe)
    fill(small_disk, 400_000)
    with tried("disk too small for the checkpoints, at the start") as trial:
        with pytest.raises(
            AntError, match=r"no room for the checkpoints and the final model in .* saw '[\d,]+ bytes free'"
        ) as refused:
            pretrain(recipe)
        trial.message = refused.value
        assert not checkpoints(small_disk / "run")


def test_full_while_saving(make_recipe, small_disk, monkeypatch):
    recipe = on_disk(make_recipe(), small_disk)
    original = AntTrainer._save_checkpoint

    def save(self, model, trial):
        if self.state.global_step == 8:
            fill(small_disk, 150_000)
        original(self, model, trial)

    monkeypatch.setattr(AntTrainer, "_save_checkpoint", save)
    with tried("disk full while saving a checkpoint") as trial:
        with pytest.raises(AntError, match=FULL.format("checkpoint 8")) as refused:
            pretrain(recipe)
        trial.message = refused.value
        folder = small_disk / "run"
        assert [path.name for path in checkpoints(folder)] == ["checkpoint-4"]
        assert damage(folder / "checkpoint-4") is None
        assert not (folder / "checkpoint-8").exists()
    monkeypatch.undo()
    (small_disk / "ballast").unlink()
    pretrain(recipe)
    assert open_run_folder(recipe).is_finished


def test_full_while_exporting(make_recipe, small_disk, monkeypatch):
    recipe = on_disk(make_recipe(), small_disk)
    original = pretraining.export_final

    def export(*arguments):
        fill(small_disk, 60_000)
        return original(*arguments)

    monkeypatch.setattr(pretraining, "export_final", export)
    with tried("disk full while exporting the final model") as trial:
        with pytest.raises(AntError, match=FULL.format("the final model")) as refused:
            pretrain(recipe)
        trial.message = refused.value
        assert not (small_disk / "run" / "final").exists()
        assert newest_checkpoint(small_disk / "run").name == "checkpoint-8"
    monkeypatch.undo()
    (small_disk / "ballast").unlink()
    pretrain(recipe)
    load_final(small_disk / "run" / "final")


@pytest.mark.parametrize("limit", [5_000, 60_000, 125_000, 200_000])
def test_a_quota_while_saving(make_recipe, monkeypatch, limit):
    """Wherever the limit falls: in the weights, the moments or a small file."""
    recipe = make_recipe()
    original = AntTrainer._save_checkpoint

    def save(self, model, trial):
        with files_up_to(limit if self.state.global_step == 8 else 10**9):
            original(self, model, trial)

    monkeypatch.setattr(AntTrainer, "_save_checkpoint", save)
    with tried("quota reached while saving a checkpoint") as trial:
        with pytest.raises(AntError, match=FULL.format("checkpoint 8")) as refused:
            pretrain(recipe)
        trial.message = refused.value
        assert newest_checkpoint(open_run_folder(recipe).path).name == "checkpoint-4"


def test_a_quota_while_logging_and_recording(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.begin(None)
    file.append({"step": 1, "loss": 1.0})
    with tried("disk full while logging") as trial:
        with files_up_to(40), pytest.raises(AntError, match=FULL.format("a row of metrics")) as refused:
            file.append({"step": 2, "loss": 1.0, "learning_rate": 1e-3})
        trial.message = refused.value
    record = RunRecord(recipe={}, environment={}, resumed_from_steps=[])
    record.write(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    with tried("disk full while writing the run record") as trial:
        with files_up_to(40), pytest.raises(AntError, match=FULL.format("the run record")) as refused:
            record.write(tmp_path)
        trial.message = refused.value
        assert (tmp_path / "run.json").read_bytes() == before
        assert not list(tmp_path.glob(".*partial"))


def test_room_is_asked_where_the_folder_will_be(tmp_path):
    check_room("nothing", tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(AntError, match=r"expected at least 1,000,000,000,000,000,000 bytes"):
        check_room("everything", tmp_path / "not" / "there", 10**18)


def test_only_full_disks_are_called_so():
    assert is_full(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert is_full(RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"))
    assert not is_full(FileNotFoundError(errno.ENOENT, "gone"))
    assert not is_full(RuntimeError("shapes do not fit"))
