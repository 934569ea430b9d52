"""Hashes and whole-or-absent writes, shared by every stage."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def fingerprint(values: Any) -> str:
    """Hex digest of JSON values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def check_made_of(folder: Path, what: str, recorded: object, inputs: Any) -> None:
    """Refuse an artefact that was made of other inputs than those of now.

    Args:
        recorded: the fingerprint of inputs stored with the artefact.

    Raises:
        AntError: the fingerprints differ; names both.
    """
    if recorded != (wanted := fingerprint(inputs)):
        raise AntError(
            f"{folder} holds {what} made of other text or settings",
            seen=f"inputs sha256 {str(recorded)[:12]}",
            expected=wanted[:12],
            hint=f"Remove {folder} or set another data_dir.",
        )


def write_json(path: Path, values: Any) -> None:
    """Write JSON to a temporary name, flush it to the disk, then rename: a kill leaves old or new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as handle:
        json.dump(values, handle, indent=2, ensure_ascii=False)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def read_json(path: Path, what: str, hint: str) -> dict[str, Any]:
    """Read a JSON object that an earlier stage wrote.

    Raises:
        AntError: the file is missing or damaged; `hint` says what makes it anew.
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


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `target` once the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    partial.replace(target)
    shutil.rmtree(old, ignore_errors=True)
