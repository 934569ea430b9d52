"""Readers of local text files, each in bounded memory and each naming the place of a fault."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError

_READ_BYTES = 1 << 20
# A line of this and nothing else separates documents in a txt file, as in TinyStories.
DOCUMENT_SEPARATOR = "<|endoftext|>"
# Longer texts are cut at a line end, so that one 5 GB file cannot fill the memory.
MAX_DOCUMENT_CHARACTERS = 1_000_000
# Enough of a file to tell text in another encoding from what is no text.
_HEAD_BYTES = 4096


def _open(file: Path) -> io.BufferedIOBase:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")


def _not_utf8(file: Path, offset: int) -> AntError:
    with _open(file) as handle:
        head = handle.read(_HEAD_BYTES)
    read = f"{'gunzip -c' if file.suffix == '.gz' else 'cat'} {shlex.quote(str(file))}"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        hint = f"Convert it: {read} | iconv -f UTF-16 -t UTF-8 > converted.txt"
    elif b"\0" in head:
        hint = "It looks like a binary file and no text: leave it out."
    else:
        hint = f"If it is Latin-1 (older Western text): {read} | iconv -f LATIN1 -t UTF-8 > converted.txt"
    return AntError(f"{file} is not UTF-8: byte offset {offset:,}", hint=hint)


def read_txt(file: Path) -> Iterator[str]:
    """The documents of a txt file: one, or those between separator lines.

    Raises:
        AntError: bytes that are not UTF-8, with their offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset, text = 0, ""
    with _open(file) as handle:
        while chunk := handle.read(_READ_BYTES):
            pending = len(decoder.getstate()[0])
            try:
                text += decoder.decode(chunk)
            except UnicodeDecodeError as error:
                raise _not_utf8(file, offset - pending + error.start) from None
            offset += len(chunk)
            *complete, text = _split_documents(text)
            yield from complete
            while len(text) > MAX_DOCUMENT_CHARACTERS:
                cut = text.rfind("\n", 0, MAX_DOCUMENT_CHARACTERS) + 1 or MAX_DOCUMENT_CHARACTERS
                yield text[:cut]
                text = text[cut:]
    try:
        text += decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise _not_utf8(file, offset - len(decoder.getstate()[0])) from None
    # The last line may be a separator without a line end.
    yield from _split_documents(text + "\n" if text.endswith(DOCUMENT_SEPARATOR) else text)


def _split_documents(text: str) -> list[str]:
    return re.split(rf"(?m)^{re.escape(DOCUMENT_SEPARATOR)}[ \t]*\r?\n", text)


def read_jsonl(file: Path, column: str) -> Iterator[str]:
    """The texts of a jsonl file; blank lines are skipped.

    Raises:
        AntError: a broken line, or one without the column or without text in it, with its number.
    """
    for where, row in read_json_rows(file):
        if column not in row:
            raise missing_column(where, column, list(row))
        yield checked_text(row[column], where, column)


def read_json_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a jsonl file, each with its place for messages; blank lines are skipped.

    Raises:
        AntError: a line that is no JSON object, with its number.
    """
    offset = 0
    with _open(file) as handle:
        for number, line in enumerate(handle, 1):
            try:
                row = json.loads(line.decode("utf-8-sig")) if line.strip() else None
            except UnicodeDecodeError as error:
                raise _not_utf8(file, offset + error.start) from None
            except (ValueError, RecursionError) as error:
                raise AntError(
                    f"{file}, line {number}, is no JSON object: {error}", hint="Mend or remove that line."
                ) from None
            offset += len(line)
            if row is None:
                continue
            if not isinstance(row, dict):
                raise AntError(f"{file}, line {number}, is no JSON object", seen=type(row).__name__)
            yield f"{file}, line {number}", row


def read_parquet(file: Path, column: str) -> Iterator[str]:
    """The texts of a Parquet file, 512 rows at a time.

    Raises:
        AntError: the file is damaged, or has no such column (names those it has).
    """
    if file.suffix == ".gz":
        # Parquet is read from its end, which gzip cannot do: unpack to a temporary file.
        with tempfile.TemporaryDirectory() as folder:
            unpacked = Path(folder) / file.name.removesuffix(".gz")
            with _open(file) as packed, unpacked.open("wb") as handle:
                shutil.copyfileobj(packed, handle, _READ_BYTES)
            yield from _parquet_rows(unpacked, file, column)
    else:
        yield from _parquet_rows(file, file, column)


def _parquet_rows(unpacked: Path, file: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(unpacked) as table:
            if column not in table.schema_arrow.names:
                raise missing_column(str(file), column, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=512, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield checked_text(value, str(file), column)
    except pyarrow.ArrowException as error:
        raise AntError(f"{file} is no readable Parquet file: {' '.join(str(error).split())}") from None


def missing_column(where: str, column: str, columns: list[str]) -> AntError:
    """The error for rows without the text column."""
    return AntError(
        f"{where} has no column {column!r}",
        seen=columns,
        hint="Name the text column: --set corpus.text_column=NAME",
    )


def checked_text(value: Any, where: str, column: str) -> str:
    """The value, if it is text.

    Raises:
        AntError: it is something else.
    """
    if not isinstance(value, str):
        raise AntError(
            f"{where}: column {column!r} holds {type(value).__name__}", expected="text in every row"
        )
    return value
