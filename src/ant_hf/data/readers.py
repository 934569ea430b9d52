"""The texts in one file, by its kind: in bounded memory, and a fault is named with its place."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError
from ant_hf.utils.files import COMPRESSIONS, not_utf8, opened, read_json_rows, unpacked_bytes

_READ_BYTES = 1 << 20
# A line of this and nothing else separates documents in a txt file, as in TinyStories.
DOCUMENT_SEPARATOR = "<|endoftext|>"
_SEPARATOR_LINE = re.compile(rf"(?m)^{re.escape(DOCUMENT_SEPARATOR)}[ \t]*\r?\n")
# Longer texts are cut at a line end, so that one 5 GB file cannot fill the memory.
MAX_DOCUMENT_CHARACTERS = 1_000_000
# Zeros in more than one byte of so many are not UTF-8; Russian in UTF-16 has them only at its spaces.
_BYTES_A_ZERO, _FEW_ZEROS = 50, 4
# So many nulls may be an accident in a small file; beyond so many, a large one is not read to its end.
_FEW_NULLS, _MANY_NULLS = 10, 1000
# An error so near to the end of what was read of a JSON file may be in a word that continues.
_LONGEST_JSON_WORD = 12
_NAME_SHOWN = 60

# With its place for messages.
Row = tuple[str, dict[str, Any]]
Rows = Iterator[Row]


def kind_of(file: Path) -> str:
    """The suffix that says how a file is read, in lower case and without that of a compression."""
    name = Path(file.name.lower())
    return Path(name.stem if name.suffix in COMPRESSIONS else name).suffix


def read_texts(file: Path, column: str, encoding: str = "utf-8") -> Iterator[str]:
    """The texts in a file of one of `KINDS`, or without a suffix.

    Args:
        encoding: of a file that does not say it by its kind: JSON and Parquet are UTF-8.

    Raises:
        AntError: it is empty, damaged, in another encoding, or has no text in that column.
    """
    if file.stat().st_size == 0:
        raise AntError(f"{file} is empty", hint="Remove it or fill it.")
    rows = _ROWS.get(kind_of(file))
    return texts_of(rows(file, column, encoding), column) if rows else _read_txt(file, encoding)


def text_bytes(file: Path, column: str) -> int:
    """About how much text a file holds."""
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet

        with suppress(OSError, ValueError):
            table = pyarrow.parquet.read_metadata(file)
            groups = [table.row_group(index) for index in range(table.num_row_groups)]
            chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
            return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == column)
    return unpacked_bytes(file)


def decoded(file: Path, encoding: str | None = None) -> Iterator[str]:
    """A file as text, a megabyte at a time.

    Args:
        encoding: None for a kind of file that has no other than UTF-8.

    Raises:
        AntError: bytes that are not of that encoding, with their offset, or far too many zeros for UTF-8.
    """
    key = "corpus.encoding" if encoding else ""
    codec = codecs.lookup(encoding or "utf-8").name
    is_utf8 = codec == "utf-8"
    decoder, offset = codecs.getincrementaldecoder("utf-8-sig" if is_utf8 else codec)(), 0
    with opened(file) as handle:
        while True:
            chunk = handle.read(_READ_BYTES)
            pending = len(decoder.getstate()[0])
            if is_utf8 and chunk.count(0) > max(_FEW_ZEROS, len(chunk) // _BYTES_A_ZERO):
                raise not_utf8(file, offset + chunk.index(0), key)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeError as error:
                place = offset - pending + getattr(error, "start", 0)
                if is_utf8:
                    raise not_utf8(file, place, key) from None
                raise AntError(
                    f"{file} is not {encoding}: {error}",
                    seen=f"about byte {place:,}",
                    hint="Set corpus.encoding to what the file is, or leave it out for UTF-8.",
                ) from None
            # Some decoders leave the mark of the byte order in the text.
            yield text if offset or is_utf8 else text.removeprefix("\ufeff")
            if not chunk:
                return
            offset += len(chunk)


def _read_txt(file: Path, encoding: str) -> Iterator[str]:
    """The documents of a txt file: one, or those between separator lines."""
    text = ""
    for chunk in decoded(file, encoding):
        *complete, text = _SEPARATOR_LINE.split(text + chunk)
        yield from complete
        while len(text) > MAX_DOCUMENT_CHARACTERS and chunk:
            cut = text.rfind("\n", 0, MAX_DOCUMENT_CHARACTERS) + 1 or MAX_DOCUMENT_CHARACTERS
            yield text[:cut]
            text = text[cut:]
    # The last line may be a separator without a line end.
    yield from _SEPARATOR_LINE.split(text + "\n" if text.endswith(DOCUMENT_SEPARATOR) else text)


def _json_objects(file: Path) -> Rows:
    """Those of a JSON array, or one after the other."""
    chunks, decoder, between = decoded(file), json.JSONDecoder(), re.compile(r"[\s,]*")
    text, place, number = next(chunks).lstrip(), 0, 0
    end = "]" if text.startswith("[") else ""
    place = len(end)
    while True:
        place = between.match(text, place).end()  # type: ignore[union-attr]  # the empty text matches too
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            at = getattr(error, "pos", 0)
            may_go_on = at >= len(text) - _LONGEST_JSON_WORD or "Unterminated" in str(error)
            if may_go_on and (more := next(chunks, "")):
                text, place = text[place:] + more, 0
                continue
            if text[place:].strip() == end:
                return
            raise AntError(
                f"{file}, object {number + 1:,}, is not JSON: {error}", hint="Repair or remove it."
            ) from None
        number += 1
        where = f"{file}, object {number:,}"
        if not isinstance(value, dict):
            raise AntError(
                f"{where}, is not a JSON object", seen=type(value).__name__, hint="Repair or remove it."
            )
        yield where, value


def _csv_rows(file: Path, column: str, encoding: str) -> Rows:
    """Of a table with a first line of names, separated by commas, semicolons, tabs or bars."""
    csv.field_size_limit(2**31 - 1)
    names = re.split("[\r\n]", next(decoded(file, encoding)), maxsplit=1)[0]
    tables = {mark: next(csv.reader([names], delimiter=mark)) for mark in ",;\t|"}
    mark = next((mark for mark, found in tables.items() if column in found), ",")
    if column not in tables[mark]:
        raise missing_column(str(file), column, max(tables.values(), key=len))
    marked = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    with opened(file) as handle:
        text = io.TextIOWrapper(handle, marked, newline="")  # type: ignore[type-var]
        rows = csv.DictReader(text, delimiter=mark, strict=True)
        try:
            for row in rows:
                yield f"{file}, line {rows.line_num:,}", row
        except csv.Error as error:
            raise AntError(
                f"{file}, line {rows.reader.line_num:,}, is not a line of a table: {error}",
                hint="Repair or remove it.",
            ) from None
        except UnicodeError:
            # Names the place in the file; this error knows that of a buffer.
            for _ in decoded(file, encoding):
                pass


def _parquet_rows(file: Path, column: str) -> Rows:
    import pyarrow
    import pyarrow.parquet

    is_packed = file.suffix.lower() in COMPRESSIONS
    with opened(file) as handle, tempfile.TemporaryFile() as unpacked:
        if is_packed:
            # Parquet is read from its end, which a compressed stream cannot do.
            shutil.copyfileobj(handle, unpacked, _READ_BYTES)
        number = 0
        try:
            with pyarrow.parquet.ParquetFile(unpacked if is_packed else handle) as table:
                if column not in table.schema_arrow.names:
                    raise missing_column(str(file), column, table.schema_arrow.names)
                for batch in table.iter_batches(batch_size=512, columns=[column]):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{file}, row {number:,}", row
        except pyarrow.ArrowException as error:
            raise AntError(
                f"{file} cannot be read as Parquet: {' '.join(str(error).split())}",
                hint="Copy or download it again.",
            ) from None


_ROWS: dict[str, Callable[[Path, str, str], Rows]] = {
    ".jsonl": lambda file, column, encoding: read_json_rows(file),
    ".ndjson": lambda file, column, encoding: read_json_rows(file),
    ".json": lambda file, column, encoding: _json_objects(file),
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": lambda file, column, encoding: _parquet_rows(file, column),
}
KINDS = (".txt", ".text", ".md", ".markdown", *_ROWS)


def texts_of(rows: Iterable[Row], column: str) -> Iterator[str]:
    """The text in each row; null is an empty text, in up to half of the rows.

    Args:
        rows: with their place for messages.

    Raises:
        AntError: the column is missing (names those there are), holds something else, or mostly nulls.
    """
    read = nulls = 0
    first = ""
    for where, row in rows:
        if column not in row:
            raise missing_column(where, column, list(row))
        text = row[column]
        read += 1
        if text is None:
            nulls, first, text = nulls + 1, first or where, ""
            if nulls > max(_MANY_NULLS, read // 2):
                break
        elif not isinstance(text, str):
            raise AntError(
                f"{where}: column {column!r} holds {type(text).__name__}", expected="text in every row"
            )
        yield text
    if nulls > max(_FEW_NULLS, read // 2):
        raise AntError(
            f"column {column!r} is null in {nulls:,} of the first {read:,} rows, first in {first}",
            expected="text in at least half of the rows",
            hint="Name the column that holds the text: --set corpus.text_column=NAME, or remove these rows.",
        )


def missing_column(where: str, column: str, columns: list[str]) -> AntError:
    """The error for rows without the text column."""
    return AntError(
        f"{where} has no column {column!r}",
        # Of a file that is not a table they are its first line, however long.
        seen=[name[:_NAME_SHOWN] for name in columns],
        hint="Name the text column: --set corpus.text_column=NAME",
    )
