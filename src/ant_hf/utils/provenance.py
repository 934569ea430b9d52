"""Where a record comes from (commit, time), and what it must not tell: paths of somebody's machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ant_hf.utils.files import strings_in


def source_commit() -> str | None:
    """The commit of this package's own checkout, `-dirty` with local changes; None outside a checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.check_output(["git", *words], cwd=root, stderr=subprocess.DEVNULL, text=True)  # noqa: S603, S607
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("-dirty" if changes else "")


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def install_command(extra: str) -> str:
    """What installs an optional part of this package; in a checkout, with the versions that were tested."""
    root = Path(__file__).parents[3]
    if not (root / "constraints.txt").exists():
        return f"pip install 'ant-hf[{extra}]'"
    if root == Path.cwd():
        return f"pip install -c constraints.txt -e '.[{extra}]'"
    return f"pip install -c '{root / 'constraints.txt'}' -e '{root}[{extra}]'"


def now() -> str:
    """UTC time, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# Keys of a recipe that hold places: white space is part of a path there, and elsewhere makes a sentence.
_PLACES = ("architecture", "data_dir", "decontaminate", "general", "init_from", "output_dir", "path")
# What the `changes` of a run.json say of a place: "output_dir was '/a/b', is '/c/d'".
_MOVED = re.compile(rf"((?:[\w-]+\.)*(?:{'|'.join(_PLACES)})) was (?:.*, is )?['\"](?:/|\\|[A-Za-z]:)")


def without_paths(value: Any, key: str = "") -> Any:
    """JSON values with every absolute path, of either kind of system, cut down to its last name.

    Args:
        key: the one that holds the value; it says whether white space makes a text a sentence, which stays.
    """
    if isinstance(value, dict):
        return {name: without_paths(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item, key) for item in value]
    if not isinstance(value, str):
        return value
    if key == "what" and (moved := _MOVED.match(value)):
        return f"{moved[1]} was changed"
    if key not in _PLACES and any(character.isspace() for character in value):
        return value
    posix, windows = PurePosixPath(value), PureWindowsPath(value)
    # `/text` alone is a separator or a command, no place.
    if posix.is_absolute() and len(posix.parts) > 2:
        return posix.name
    return windows.name if windows.drive and windows.is_absolute() else value


def paths_in(values: Any) -> Iterator[str]:
    """The texts among JSON values that `without_paths` would change."""
    pairs = zip(strings_in(values), strings_in(without_paths(values)), strict=True)
    return (text for text, public in pairs if text != public)
