"""Packing by tasks gives the folder that packing in one process gives, whatever goes wrong."""

import dataclasses
import gzip
import importlib
import json
import re
import shutil
import sys

import pyarrow
import pyarrow.parquet
import pytest
from records import pack
from typer.testing import CliRunner

from ant_hf.cli.main import app
from ant_hf.data.packing_tasks import merge, pack_with_workers, plan_packing
from ant_hf.errors import AntError


@pytest.fixture
def files(tmp_path, chapters):
    """Four files of three kinds, with duplicates inside and across them, empty ones and a lone surrogate."""
    folder = tmp_path / "corpus"
    folder.mkdir()

    def jsonl(texts):
        return "".join(json.dumps({"text": text}) + "\n" for text in texts)

    first = [" \n", chapters[0], "two\ud800", *chapters[1:15], chapters[3]]
    (folder / "a.jsonl").write_text(jsonl(first))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(jsonl([chapters[0], "", *chapters[15:30]]).encode()))
    texts = [*chapters[30:45], chapters[14], chapters[29], "\t"]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / "c.parquet")
    (folder / "d.txt").write_text("\n<|endoftext|>\n".join([*chapters[45:60], chapters[45], ""]))
    return folder


@pytest.fixture
def recipe(make_recipe, files, tiny_run, tmp_path):
    recipe = make_recipe(data_dir=tmp_path / "data")
    corpus = recipe.corpus.model_copy(update={"path": str(files)})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tokenizer").symlink_to(tiny_run / "tokenizer")
    return recipe.model_copy(update={"corpus": corpus})


def packed_by_one(recipe, folder):
    folder.mkdir()
    (folder / "tokenizer").symlink_to(recipe.tokenizer_dir)
    recipe = recipe.model_copy(update={"data_dir": str(folder)})
    pack(recipe)
    return contents(recipe.tokens_dir)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("max_tokens", [None, 30_000])
def test_number_of_tasks_changes_nothing(recipe, tmp_path, monkeypatch, max_tokens):
    """Also with chunks far smaller than the corpus, where the limit falls between two files."""
    monkeypatch.setattr("ant_hf.data.packing.CHUNK_CHARACTERS", 10_000)
    corpus = recipe.corpus.model_copy(update={"max_tokens": max_tokens})
    recipe = recipe.model_copy(update={"corpus": corpus})
    packing = plan_packing(recipe)
    for rank in (2, 0, 1):
        packing.encode(rank, world_size=3)
    merge(packing)
    assert contents(recipe.tokens_dir) == packed_by_one(recipe, tmp_path / "single")


@pytest.mark.slow
def test_a_failed_task_alone_is_done_again(recipe, files, tmp_path):
    good = (files / "d.txt").read_bytes()
    (files / "d.txt").write_bytes(good + b"\xff")
    with pytest.raises(AntError, match=r"1 of 4 tasks failed:\n  - .*d\.txt is not UTF-8") as caught:
        pack_with_workers(recipe, workers=2)
    assert "Run the same command again" in str(caught.value)
    assert not recipe.tokens_dir.exists()
    packing = plan_packing(recipe)
    assert [packing.is_encoded(index) for index in range(4)] == [True, True, True, False]
    parts = {
        packing.part(index): (packing.part(index) / "part.json").stat().st_mtime_ns for index in range(3)
    }
    with pytest.raises(AntError, match="1 of 4 tasks failed"):
        pack_with_workers(recipe, workers=2)
    # Repaired, it is another corpus, and still only that file is encoded.
    (files / "d.txt").write_bytes(good)
    repaired = plan_packing(recipe)
    assert repaired.inputs != packing.inputs
    assert {part: (part / "part.json").stat().st_mtime_ns for part in map(repaired.part, range(3))} == parts
    pack_with_workers(recipe, workers=1)
    assert contents(recipe.tokens_dir) == packed_by_one(recipe, tmp_path / "single")


LARGE, OTHER = "large " * 100_000, "other " * 100_000
QUOTED = "A document that has these thirteen words in a row is kept out of it."


@pytest.mark.parametrize(
    ("texts", "max_tokens", "counts"),
    [
        ([LARGE, *[LARGE] * 7, *[" "] * 3], None, (11, 3, 7, 0, 0)),
        # The limit is reached where the corpus has nothing more to keep, and where it has.
        ([LARGE, *[LARGE] * 7, *[" "] * 3], 1, (11, 3, 7, 0, 0)),
        ([LARGE, " ", OTHER, " "], 1, (3, 1, 0, 0, 1)),
        ([LARGE, QUOTED, QUOTED, " "], None, (4, 1, 1, 1, 0)),
        ([" ", "", "\t"], None, (3, 3, 0, 0, 0)),
        ([QUOTED, QUOTED], None, (2, 0, 1, 1, 0)),
    ],
    ids=["at the end", "limit at the end", "limit before the end", "contaminated", "empty only", "no chunk"],
)
def test_documents_after_the_last_full_chunk_are_counted(recipe, tmp_path, texts, max_tokens, counts):
    """In one process and by tasks, each text in a file of its own."""
    corpus, sets = tmp_path / "texts", tmp_path / "sets"
    corpus.mkdir()
    sets.mkdir()
    for index, text in enumerate(texts):
        (corpus / f"{index:02d}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (sets / "questions.jsonl").write_text(json.dumps({"text": QUOTED}) + "\n")
    changes = {"path": str(corpus), "decontaminate": str(sets), "max_tokens": max_tokens}
    changes["validation_fraction"] = 0.0
    recipe = recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update=changes)})
    packing = plan_packing(recipe)
    packing.encode()
    documents = merge(packing)["documents"]
    names = ("read", "empty", "duplicate", "contaminated", "past_limit")
    assert tuple(documents[name] for name in names) == counts
    assert contents(recipe.tokens_dir) == packed_by_one(recipe, tmp_path / "single")


def test_a_killed_task_is_done_again_and_the_tokens_are_the_same(recipe, tmp_path, monkeypatch):
    packing = plan_packing(recipe)
    packing.encode(0, world_size=4)

    class KilledError(BaseException):
        pass

    def killed(*_):
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("ant_hf.data.packing.Encoder.encode", killed)
        with pytest.raises(KilledError):
            packing.encode(2, world_size=4)
    with pytest.raises(AntError, match=r"3 of 4 files are not encoded yet.*b\.jsonl\.gz"):
        merge(packing)
    first = (packing.part(0) / "part.json").stat().st_mtime_ns
    packing.encode()
    assert (packing.part(0) / "part.json").stat().st_mtime_ns == first
    merge(packing)
    assert contents(recipe.tokens_dir) == packed_by_one(recipe, tmp_path / "single")


@pytest.mark.parametrize("name", ["ids.bin", "documents.bin", "part.json"])
def test_damaged_parts_are_refused_by_name(recipe, tmp_path, monkeypatch, name):
    part = plan_packing(recipe).part(1)

    def damage_and_merge(packing):
        data = bytearray((part / name).read_bytes())
        data[len(data) // 2] ^= 1
        (part / name).write_bytes(data)
        return merge(packing)

    with monkeypatch.context() as patched:
        patched.setattr("ant_hf.data.packing_tasks.merge", damage_and_merge)
        with pytest.raises(AntError, match=rf"00001-\w+/{re.escape(name)}.*Remove .*00001") as caught:
            pack_with_workers(recipe, workers=1)
    assert not recipe.tokens_dir.exists()
    # What the message says to do.
    shutil.rmtree(re.search(r"Remove (\S+) and run the same command again", str(caught.value))[1])
    pack_with_workers(recipe, workers=1)
    assert contents(recipe.tokens_dir) == packed_by_one(recipe, tmp_path / "single")


def test_other_files_and_tokenizers_have_parts_of_their_own(recipe, files):
    before = plan_packing(recipe)
    (files / "a.jsonl").write_text('{"text": "changed"}\n')
    now = plan_packing(recipe)
    assert now.part(0) != before.part(0)
    assert now.part(1) == before.part(1)
    other = dataclasses.replace(now, inputs={**now.inputs, "tokenizer_sha256": "0"})
    assert other.part(1) != now.part(1)


def test_only_files_are_handed_out(recipe):
    corpus = recipe.corpus.model_copy(update={"source": "embedded", "path": None})
    with pytest.raises(
        AntError, match=r"only local files can be packed.*saw 'corpus.source embedded'.*hf download"
    ):
        plan_packing(recipe.model_copy(update={"corpus": corpus}))


def test_command_with_workers_writes_what_one_process_writes(recipe, files, tmp_path):
    (tmp_path / "data" / "tokenizer").unlink()
    arguments = ["pack", "--config", str(tmp_path / "run.yaml"), "--data", str(files), "--workers", "2"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "reused, hashes verified" in result.output
    assert "70 documents read: 4 empty, 5 duplicates" in result.output
    assert contents(recipe.tokens_dir) == packed_by_one(recipe, tmp_path / "single")
    left = {path.name for path in recipe.tokens_dir.parent.iterdir() if not path.name.startswith(".")}
    assert left == {"tokenizer", "tokens"}
    manifest = pack_with_workers(recipe, workers=2)
    assert manifest["splits"]["validation"]["documents"] > 0


def test_missing_extra_is_one_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "datatrove.pipeline.base", None)
    monkeypatch.delitem(sys.modules, "ant_hf.data.datatrove_steps", raising=False)
    with pytest.raises(AntError, match=r"need datatrove.*pip install .*\[cluster\]'"):
        importlib.import_module("ant_hf.data.datatrove_steps")
