"""Files and folders that are whole or absent, and what is known of them before they are read."""

import os

from ant_hf.utils.files import unpacked_bytes, whole_folder


def test_an_empty_compressed_file_holds_nothing(tmp_path):
    (tmp_path / "a.txt.gz").touch()
    assert unpacked_bytes(tmp_path / "a.txt.gz") == 0


def test_files_in_folders_within_are_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    flushed, fsync = set(), os.fsync

    def seen(descriptor):
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr("ant_hf.utils.files.os.fsync", seen)
    with whole_folder(tmp_path / "site") as folder:
        (folder / "models").mkdir()
        (folder / "models/model.onnx").write_text("x")
    assert (tmp_path / "site/models/model.onnx").stat().st_ino in flushed
