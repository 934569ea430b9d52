"""Files and folders that are whole or absent, and what is known of them before they are read."""

import os

from ant_hf.utils.files import differences, unpacked_bytes, whole_folder


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


def test_of_lists_of_files_only_what_changed_is_named():
    before = {"files": [{"name": f"{n}.txt", "sha256": str(n)} for n in range(9)]}
    now = {
        "files": [*before["files"][1:8], {"name": "8.txt", "sha256": "x"}, {"name": "9.txt", "sha256": "9"}]
    }
    assert differences(before, now) == ["files: 0.txt is gone, 9.txt is new, 8.txt was changed"]
    many = {"files": [{"name": f"{n}.md", "sha256": str(n)} for n in range(40)]}
    assert differences(before, many) == ["files: 0.txt is gone, 1.txt is gone, 2.txt is gone and 46 more"]
    assert differences({"files": before["files"][::-1]}, before) == ["files: other order"]
    assert differences({"files": ["a"]}, {"files": ["b"]}) == ["files was ['a'], is ['b']"]
