"""The files behind what a user names as a corpus, and what lies beside them and is left out."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ant_hf.data.readers import KINDS, kind_of, read_texts
from ant_hf.errors import AntError, missing_file
from ant_hf.utils.files import COMPRESSIONS
from ant_hf.utils.names import expand_home

_READ = f"{', '.join(KINDS)}, each also with {', '.join(COMPRESSIONS)}"
# A download brings a README of its own: Markdown is text where nothing else is, or where it is named.
_MARKDOWN = (".md", ".markdown")
# Settings and tables of other things lie beside text too: these are text where they have the column.
_SOMETIMES_TEXT = (".json", ".csv", ".tsv")
_NAMES_SHOWN = 6
# Why a file is left out; that it is of another kind is seen from its name.
_ANOTHER_KIND, _NO_ROWS = "", "no readable rows with this text column"


def find_files(patterns: Iterable[str], column: str, encoding: str = "utf-8") -> tuple[list[Path], list[str]]:
    """The files to read, sorted, and the names of those left out, with the reason where there is another.

    Args:
        patterns: files, folders (searched whole, links followed) and globs.

    Raises:
        AntError: one of them has nothing that can be read, or is a file of another kind.
    """
    named: set[Path] = set()
    found: dict[Path, str | None] = {}
    for pattern in patterns:
        path = Path(expand_home(pattern))
        if path.is_file():
            named.add(path)
            if kind_of(path) not in ("", *KINDS):
                hint = f"If it is plain text, copy it to a name that says so: cp {path.name} {path.stem}.txt"
                raise AntError(f"{path} is not a kind of file that can be read", expected=_READ, hint=hint)
        elif path.exists() and not path.is_dir():
            raise AntError(f"{path} is not a file", hint="Text is read twice: save it to a file first.")
        elif not path.exists() and not glob.has_magic(pattern):
            raise missing_file(pattern, "corpus", "Pass a file, a folder or a quoted glob.")
        here: dict[Path, str | None] = {}
        for match in [path] if path.exists() else _matching(path):
            if match.is_dir():
                # A link to a folder above it would bring in what lies beside it.
                for file in _files_below(match, set(match.resolve().parents)):
                    here[file] = _reason(file, file.relative_to(match).parts, column, encoding)
            else:
                here[match] = None if match in named else _reason(match, (), column, encoding)
        if None not in here.values():
            for file in [file for file, reason in here.items() if reason == _NO_ROWS]:
                # Its own error says which columns there are.
                next(read_texts(file, column, encoding), None)
            seen = listed([_shown(file, reason) for file, reason in sorted(here.items())]) or "no file"
            raise AntError(f"no file matches {pattern}", seen=seen, expected=_READ)
        found |= here
    # What is named is read, whatever the folder that it is in says of it.
    read = {file for file, reason in found.items() if reason is None} | named
    if any(kind_of(file) not in _MARKDOWN for file in read):
        read -= {file for file in read - named if kind_of(file) in _MARKDOWN}
    left_out = [_shown(file, found[file]) for file in sorted(found.keys() - read)]
    return sorted(read), [name for name in left_out if name]


def listed(names: Sequence[str]) -> str:
    """Names in a line, the first few of many."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _matching(path: Path) -> list[Path]:
    """What a glob finds. A folder of exactly that name is not a pattern: `corpus [v2]/*.txt`."""
    there = next(parent for parent in path.parents if parent.exists())
    found = glob.glob(str(path.relative_to(there)), root_dir=there, recursive=True)  # noqa: PTH207
    return [there / name for name in found]


def _files_below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """All files of a folder and of folders linked there, each folder once.

    Raises:
        OSError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    links: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        seen.add(Path(root).resolve())
        folders[:] = [name for name in folders if Path(root, name).resolve() not in seen]
        links += [Path(root, name) for name in folders if Path(root, name).is_symlink()]
        yield from (Path(root, name) for name in names)
    for link in sorted(links):
        if link.resolve() not in seen:
            yield from _files_below(link, seen)


def _reason(file: Path, parts: tuple[str, ...], column: str, encoding: str) -> str | None:
    """Why a file is left out; None for one that is read.

    Args:
        parts: of its path in the folder that is searched.
    """
    kind = kind_of(file)
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return "hidden"
    if kind not in KINDS:
        return _ANOTHER_KIND
    if not file.is_file():
        return "no file, or a broken link"
    if file.stat().st_size == 0:
        return "empty"
    if kind in _SOMETIMES_TEXT:
        try:
            next(read_texts(file, column, encoding), None)
        except AntError:
            return _NO_ROWS
    return None


def _shown(file: Path, reason: str | None) -> str:
    """Its name and why it is left out; nothing for a hidden file that was never text."""
    if reason == "hidden" and kind_of(file) not in KINDS:
        return ""
    return f"{file.name} ({reason})" if reason else file.name
