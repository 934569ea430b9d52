"""Readers of local text files, each in bounded memory and each naming the place of a fault."""

from __future__ import annotations

import codecs
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError
from ant_hf.utils.files import not_utf8, opened
from ant_hf.utils.files import read_json_rows as read_json_rows

_READ_BYTES = 1 << 20
# A line of this and nothing else separates documents in a txt file, as in TinyStories.
DOCUMENT_SEPARATOR = "<|endoftext|>"
_SEPARATOR_LINE = re.compile(rf"(?m)^{re.escape(DOCUMENT_SEPARATOR)}[ \t]*\r?\n")
# Longer texts are cut at a line end, so that one 5 GB file cannot fill the memory.
MAX_DOCUMENT_CHARACTERS = 1_000_000


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
