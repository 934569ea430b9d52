"""Hashes, JSON, and writes that are whole or absent: shared by every stage; and room on the disk for them."""

from __future__ import annotations

import bz2
import codecs
import errno
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shlex
import shutil
import tempfile
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ant_hf.errors import AntError

_SEAL_KEY = "values_sha256"
# Enough of a file to tell text in another encoding from what is not text.
_HEAD_BYTES, _GUESSABLE_BYTES = 4096, 64
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_WIDE = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces.

    Raises:
        AntError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as handle:
            while piece := handle.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise AntError(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def check_file(path: Path, expected: object, problem: str, hint: str) -> None:
    """Check a file against the hash recorded for it.

    Raises:
        AntError: "PATH `problem`", with both hashes; or the file cannot be read.
    """
    check_hash(f"{path} {problem}", file_sha256(path), expected, hint)


def check_hash(problem: str, seen: object, expected: object, hint: str | None = None) -> None:
    """Hold one hash against another.

    Raises:
        AntError: `problem`, with the first twelve digits of both.
    """
    if seen != expected:
        wanted = str(expected)[:12] if expected else "one in the file"
        raise AntError(problem, seen=f"sha256 {str(seen)[:12]}", expected=wanted, hint=hint)


def fingerprint(values: Any) -> str:
    """Hex digest of JSON values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def check_made_of(folder: Path, what: str, record: dict[str, Any], inputs: Any) -> None:
    """Refuse an artefact that was made of other inputs than today's.

    Args:
        record: holds `inputs` and their fingerprint `inputs_sha256`, as stored with the artefact.

    Raises:
        AntError: the fingerprints differ; names both, and the inputs that differ.
    """
    listing = "".join(f"\n  - {line}" for line in differences(record.get("inputs"), inputs))
    check_hash(
        f"{folder} holds {what} made of other text or settings:{listing}\n",
        record.get("inputs_sha256"),
        fingerprint(inputs),
        f"Remove {folder}, or use another folder: --set data_dir=FOLDER",
    )


def differences(before: Any, now: Any, free: Container[str] = ()) -> list[str]:
    """`key was a, is b` for every dotted key in which two mappings differ, except the `free` ones.

    Of lists of files, with their hashes: which ones.
    """
    old, new = dict(_flat(before if isinstance(before, dict) else {})), dict(_flat(now))
    return [
        _difference(key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in free
    ]


def _difference(key: str, was: Any, now: Any) -> str:
    lists = [was, now]
    if not all(isinstance(files, list) and files and _is_file(files[0]) for files in lists):
        return f"{key} was {was!r}, is {now!r}"
    before, after = ({file["name"]: file["sha256"] for file in files} for files in lists)
    changes = [f"{name} is gone" for name in before if name not in after]
    changes += [f"{name} is new" for name in after if name not in before]
    changes += [f"{name} was changed" for name in before if after.get(name, before[name]) != before[name]]
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    # Without a change of a file, their order is another.
    return f"{key}: {', '.join(changes[:3]) or 'other order'}{more}"


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and {"name", "sha256"} <= value.keys()


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def strings_in(value: Any) -> Iterator[str]:
    """Every text among JSON values, in order; keys are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_in(item)


def write_json(path: Path, values: Any) -> None:
    """Write JSON to a temporary name, flush it to the disk, then rename: a kill leaves old or new."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text as `write_json` does, line ends as they are; a failed write leaves no trace."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush_folder(folder: Path, files: bool = True) -> None:
    """Wait until a folder's files and their names are on the disk, so that a rename never overtakes them."""
    for path in [*folder.rglob("*"), folder] if files else [folder]:
        # Windows flushes neither folders nor files opened for reading.
        if (path.is_file() or path.is_dir()) and os.name == "posix":
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_sealed(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object together with the fingerprint of its own values."""
    plain = json.loads(json.dumps(values))
    write_json(path, {**plain, _SEAL_KEY: fingerprint(plain)})


def read_sealed(path: Path, what: str, hint: str, unsealed_format: int | None = 1) -> dict[str, Any]:
    """Read what `write_sealed` wrote.

    Args:
        unsealed_format: the `format_version` that had no seal yet, if there was one.

    Raises:
        AntError: as `read_json`; or the values are not those that were sealed (names both hashes).
    """
    values = read_json(path, what, hint)
    recorded = values.pop(_SEAL_KEY, None)
    is_unsealed = unsealed_format is not None and values.get("format_version", 1) == unsealed_format
    if recorded is not None or not is_unsealed:
        check_hash(f"{what} {path} was changed after it was written", fingerprint(values), recorded, hint)
    return values


def read_json(path: Path, what: str, hint: str) -> dict[str, Any]:
    """Read a JSON object that an earlier stage wrote.

    Raises:
        AntError: the file is missing or damaged; `hint` says what makes it again.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AntError(f"{what} not found: {path}", hint=hint) from None
    except (ValueError, OSError, RecursionError) as error:
        raise AntError(f"{what} {path} cannot be read: {error}", hint=hint) from None
    if not isinstance(values, dict):
        raise AntError(f"{what} {path} is damaged", seen=type(values).__name__, hint=hint)
    return values


def _zstd(raw: BinaryIO) -> io.BufferedReader:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))


# By suffix: the kind, what unpacks it here, and what does so in a shell.
_UNPACK: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    ".gz": ("gzip", gzip.open, "gunzip -c"),
    ".bz2": ("bzip2", bz2.open, "bunzip2 -c"),
    ".xz": ("xz", lzma.open, "xz -dc"),
    ".zst": ("zstd", _zstd, "zstd -dc"),
}
COMPRESSIONS = tuple(_UNPACK)
_AS_IT_IS = ("readable", nullcontext, "cat")
# What the libraries raise for damaged or cut files; of bz2 and pyarrow it is an OSError without a number.
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)


@contextmanager
def opened(file: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, unpacked if its name ends in .gz, .bz2, .xz or .zst.

    Raises:
        AntError: the file cannot be read, or is cut short or damaged; also while it is read in the block.
    """
    kind, unpack, _ = _UNPACK.get(file.suffix.lower(), _AS_IT_IS)
    try:
        with file.open("rb") as raw, unpack(raw) as handle:
            yield handle
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.strerror:
            raise AntError(f"{file} cannot be read: {error.strerror}") from None
        raise AntError(f"{file} is not a complete {kind} file: {error}") from None


def unpacked_bytes(file: Path) -> int:
    """About how many bytes a file has once it is unpacked, by its first megabyte."""
    size = file.stat().st_size
    _, unpack, _ = _UNPACK.get(file.suffix.lower(), _AS_IT_IS)
    if unpack is nullcontext or not size:
        return size
    with file.open("rb") as raw:
        head = raw.read(1 << 20)
    read = 0
    with suppress(*_DAMAGED), unpack(io.BytesIO(head)) as handle:
        while piece := handle.read(1 << 16):
            read += len(piece)
    return size * max(read, len(head)) // len(head)


def not_utf8(file: Path, offset: int, key: str = "") -> AntError:
    """The error for a text file in another encoding, with what to type for the likely one.

    Args:
        offset: of a byte that no UTF-8 text has there.
        key: of the recipe, that names the encoding of such a file, if there is one.
    """
    with opened(file) as handle:
        # Whole characters of any width, with the one in question amid them.
        handle.read(max(0, offset - _HEAD_BYTES // 2) // 4 * 4)
        head = handle.read(_HEAD_BYTES)
    read = f"{_UNPACK.get(file.suffix.lower(), _AS_IT_IS)[2]} {shlex.quote(str(file))}"
    if likely := _likely_encoding(head):
        name, description = likely
        hint = f"If it is {description}: {read} | iconv {name} -t UTF-8 > converted.txt"
        if key and name.startswith("-f "):
            hint += f". Or read it as it is: --set {key}={name.removeprefix('-f ')}"
    else:
        hint = "It looks like a binary file and not like text: leave it out."
    return AntError(f"{file} is not UTF-8: byte offset {offset:,}", hint=hint)


def _likely_encoding(head: bytes) -> tuple[str, str] | None:
    """The likely encoding of bytes that are not UTF-8: iconv's options, and words; None for no text."""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return f"-f {name}", name
    if b"\0" in head:
        # The right one gives letters and spaces on few of Unicode's pages; the zeros are from ASCII.
        texts = {name: head[: len(head) // 4 * 4].decode(name, errors="replace") for name in _WIDE}
        fitting = [
            name for name, text in texts.items() if _readable(text) > 0.9 and re.search(r"[\n -~]", text)
        ]
        best = min(fitting, key=lambda name: len({ord(letter) >> 8 for letter in texts[name]}), default=None)
        return (f"-f {best}", f"{best} without a byte-order mark") if best else None
    controls = sum(byte < 32 and not chr(byte).isspace() for byte in head)
    if controls > len(head) // 20:
        return None
    text = head.decode("utf-8", errors="replace")
    high = sum(byte >= 128 for byte in head)
    if sum(letter > "\x7f" for letter in text) > 2 * text.count("\ufffd"):
        return "-c -f UTF-8", "UTF-8 with some damaged bytes, to be left out"
    if high > len(head) // 4 and len(head) > _GUESSABLE_BYTES:
        with suppress(ImportError):
            from charset_normalizer import from_bytes

            if match := from_bytes(head).best():
                name = match.encoding.upper().replace("_", "-").replace("UTF-16-", "UTF-16")
                name = name.replace("EUC-JIS-2004", "EUC-JP")
                return f"-f {name}", f"{name} (a guess)"
    if any(0x80 <= byte < 0xA0 for byte in head):
        return "-f CP1252", "Windows-1252 (Western text)"
    return "-f LATIN1", "Latin-1 (older Western text)"


def _readable(text: str) -> float:
    """The share of letters, digits, spaces and ASCII signs in a text."""
    return sum(c.isalnum() or c.isspace() or "!" <= c <= "~" for c in text) / max(len(text), 1)


def read_json_rows(
    file: Path, may_be_cut: bool = False, unique_keys: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its place for messages; blank lines are skipped.

    Args:
        may_be_cut: leave out a last line without a line end, which a kill cut short.
        unique_keys: refuse an object that has a key twice, instead of taking the last; slower.

    Raises:
        AntError: as `opened`; or a line is not UTF-8 or no JSON object, with its number.
    """
    offset, pairs = 0, _unique if unique_keys else None
    with opened(file) as handle:
        for number, line in enumerate(handle, 1):
            if may_be_cut and not line.endswith(b"\n"):
                return
            where = f"{file}, line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=pairs) if line.strip() else None
            except UnicodeDecodeError as error:
                raise not_utf8(file, offset + error.start) from None
            except (ValueError, RecursionError) as error:
                if b"\0" in line:
                    raise not_utf8(file, offset + line.index(0)) from None
                raise _no_object(where, str(error), line, number) from None
            offset += len(line)
            if isinstance(row, dict):
                yield where, row
            elif row is not None:
                raise _no_object(where, f"it is of type {type(row).__name__}", line, number)


def _no_object(where: str, reason: str, line: bytes, number: int) -> AntError:
    is_array = number == 1 and line.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    return AntError(
        f"{where}, is not a JSON object: {reason}",
        hint="The file is one JSON array, but must have one object per line: jq -c '.[]' OLD > NEW "
        "(text to train on can stay as it is if the name ends in .json)."
        if is_array
        else "Repair or remove that line.",
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"a key is given twice, among {', '.join(key for key, _ in pairs)}")
    return values


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `target` once the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        flush_folder(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    partial.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def inventory(folder: Path, without: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Size in bytes and sha256 of every file, by its name in the folder."""
    return {
        name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (name := path.relative_to(folder).as_posix()) not in without
    }


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Rust libraries give the number in the text; PyTorch's archive writer and NumPy say that they stopped short.
_FULL_IN_WORDS = re.compile(
    r"No space left|quota exceeded|File too large|os error (27|28|122)|PytorchStreamWriter|inline_container"
    r"|requested and \d+ written|problem writing element"
)


def is_full(error: BaseException) -> bool:
    """Whether an error of any library below us means that the bytes did not fit."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return bool(_FULL_IN_WORDS.search(str(error)))


@contextmanager
def writing(what: str, folder: Path, needed: int | Callable[[], int]) -> Iterator[None]:
    """Turn a write that did not fit into one error with the bytes needed and the bytes free.

    Put it around the block that also removes what was half written, so that the figure is what a
    second attempt would find.

    Args:
        needed: bytes of the whole artefact, or a function that estimates them at the moment of failure.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, AntError) or not is_full(error):
            raise
        bytes_needed = needed if isinstance(needed, int) else needed()
        reason = (isinstance(error, OSError) and error.strerror) or "the file could not be written to its end"
        raise AntError(
            f"no room for {what} in {folder}: {reason}",
            seen=f"{free_bytes(folder):,} bytes free",
            expected=f"about {bytes_needed:,} bytes",
            hint="Free some space (a quota counts too) and run the same command again; "
            "what was there before is kept.",
        ) from None


def check_room(
    what: str,
    folder: Path,
    needed: int,
    otherwise: str = "set another folder with --output-dir, or lower training.save_total_limit",
) -> None:
    """Refuse to begin what cannot be stored.

    Args:
        otherwise: what to do if no space can be freed.

    Raises:
        AntError: fewer bytes are free than needed.
    """
    if (free := free_bytes(folder)) < needed:
        raise AntError(
            f"no room for {what} in {folder}",
            seen=f"{free:,} bytes free",
            expected=f"at least {needed:,} bytes",
            hint=f"Free some space, {otherwise}.",
        )


def check_writable(folder: Path, option: str) -> None:
    """Refuse to begin what could not be stored in the end.

    Args:
        option: what to type for another place.

    Raises:
        AntError: nothing can be written where the folder is or will be.
    """
    if not is_writable(folder):
        raise AntError(f"{folder.absolute()} cannot be written", hint=f"Name another place with {option}")


def check_output_file(file: Path, option: str) -> None:
    """The same for a file that the option names.

    Raises:
        AntError: it is a folder, or nothing can be written where it will be.
    """
    if file.is_dir():
        raise AntError(f"{file} is a folder", hint=f"Name a file: {option} {file / 'NAME'}")
    check_writable(file.parent, f"{option} FILE")


def is_writable(folder: Path) -> bool:
    """Whether a file can be made where a folder is or will be; it is tried: rights say nothing of a disk."""
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)):
            return True
    except OSError:
        return False


def nearest(folder: Path) -> Path:
    """The folder itself, or the first above it that is there."""
    return next(path for path in [folder, *folder.absolute().parents] if path.exists())


def free_bytes(folder: Path) -> int:
    """Bytes this user may still write where `folder` is or will be."""
    return shutil.disk_usage(nearest(folder)).free
