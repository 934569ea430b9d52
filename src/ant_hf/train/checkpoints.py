"""Checkpoints a run continues from: complete or absent, and checked against their hashes before use.

Trainer writes `checkpoint-N/` file by file. Once every process has written its part, the files are hashed
and flushed, and the seal (`checkpoint.json`) is written last: a folder without one is incomplete. A kill
at any moment leaves the checkpoints that were there and at most one unfinished folder, which the next start
moves to `incomplete/`. The price is one read of what was just written, and waiting for the disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ant_hf.errors import AntError
from ant_hf.utils.console import say
from ant_hf.utils.files import check_hash, file_sha256, flush_folder, inventory, read_json, write_json
from ant_hf.utils.names import SEAL, WEIGHTS

INCOMPLETE = "incomplete"
PROGRESS = "progress.json"
_FORMAT_VERSION = 1
_REQUIRED = {WEIGHTS, "scheduler.pt", "trainer_state.json", PROGRESS}
# The second is what accelerate writes under FSDP.
_OPTIMIZERS = {"optimizer.pt", "optimizer.bin"}
# What file managers of Windows put into every folder they show.
_STRAYS = {"thumbs.db", "desktop.ini"}


def checkpoint_name(step: int) -> str:
    """The folder name Trainer gives a step's checkpoint."""
    return f"{PREFIX_CHECKPOINT_DIR}-{step}"


def step_of(checkpoint: Path) -> int:
    """The optimizer steps a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))


def checkpoints(output_dir: Path) -> list[Path]:
    """The sealed `checkpoint-N` folders, oldest first."""
    return [path for path in _folders(output_dir) if (path / SEAL).exists()]


def _unsealed(output_dir: Path) -> list[Path]:
    return [path for path in _folders(output_dir) if not (path / SEAL).exists()]


def _folders(output_dir: Path) -> list[Path]:
    found = [
        path
        for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.is_dir() and path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdecimal()
    ]
    return sorted(found, key=step_of)


def seal(checkpoint: Path, made_of: Mapping[str, str], keep: int, best: int | None = None) -> None:
    """Make a checkpoint of a folder whose files are all written, then remove older ones.

    Args:
        made_of: sha256 of config, tokenizer and tokens, kept in the seal.
        keep: how many checkpoints stay; none is removed before the new one is complete.
        best: step of one that stays beside them.
    """
    strays = tuple(path.name for path in checkpoint.iterdir() if _is_stray(path.name))
    files = inventory(checkpoint, without=(SEAL, *strays))
    flush_folder(checkpoint)
    values = {"format_version": _FORMAT_VERSION, "step": step_of(checkpoint), "made_of": dict(made_of)}
    write_json(checkpoint / SEAL, values | {"files": files})
    flush_folder(checkpoint)
    flush_folder(checkpoint.parent, files=False)
    for old in checkpoints(checkpoint.parent)[:-keep]:
        if step_of(old) != best:
            _remove(old)


def _remove(checkpoint: Path) -> None:
    """Take the name away first: a kill while removing must not leave half a checkpoint."""
    nameless = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(nameless, ignore_errors=True)
    checkpoint.replace(nameless)
    shutil.rmtree(nameless, ignore_errors=True)


def remove_unsealed(output_dir: Path) -> None:
    """Remove what a failed save left."""
    for path in _unsealed(output_dir):
        shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(output_dir: Path, look_only: bool = False) -> Path | None:
    """The newest checkpoint whose files all have their hashes; others are set aside with a warning.

    Args:
        look_only: warn, and leave every file where it is.

    Raises:
        AntError: all checkpoints are damaged, so that continuing would mean starting over.
    """
    if not look_only:
        _clear_away(output_dir)
    damaged: list[tuple[Path, str]] = []
    for candidate in reversed(checkpoints(output_dir)):
        problem = damage(candidate)
        if problem is None:
            for path, text in damaged:
                kept = "" if look_only else f" and moved to {_set_aside(path)}"
                say("warning", f"{path} is skipped{kept}: {text}")
            return candidate
        damaged.append((candidate, problem))
    if damaged:
        listing = "\n".join(f"  - {path.name}: {text}" for path, text in damaged)
        raise AntError(
            f"every checkpoint in {output_dir} is damaged:\n{listing}\n"
            "Put the old files back, or start over with --fresh"
        )
    return None


def _clear_away(output_dir: Path) -> None:
    """Remove what a kill left of removed checkpoints, and set aside what it left of a save."""
    for leftover in output_dir.glob(f".{PREFIX_CHECKPOINT_DIR}-*.old"):
        shutil.rmtree(leftover, ignore_errors=True)
    for unsealed in _unsealed(output_dir):
        # Only the latest such folder is kept.
        remove_unsealed(output_dir / INCOMPLETE)
        step, moved = step_of(unsealed), _set_aside(unsealed)
        say("warning", f"the checkpoint of step {step:,} was not saved completely; it is moved to {moved}")


def _set_aside(checkpoint: Path) -> Path:
    target = checkpoint.parent / INCOMPLETE / checkpoint.name
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    checkpoint.replace(target)
    return target


def damage(checkpoint: Path) -> str | None:
    """What keeps a folder from being a complete checkpoint; None if nothing does."""
    try:
        seal = read_json(checkpoint / SEAL, "the seal", "It is written last.")
    except AntError as error:
        return str(error)
    files = seal.get("files")
    if seal.get("format_version") != _FORMAT_VERSION or not isinstance(files, dict):
        return f"{SEAL} has the format of another version"
    try:
        names = {path.name for path in checkpoint.iterdir()} - {SEAL}
        there = {name for name in names if name in files or not _is_stray(name)}
        if unexpected := sorted(there ^ (files.keys() | _REQUIRED)):
            return f"{', '.join(unexpected)} is missing, or not listed in {SEAL}"
        if not there & _OPTIMIZERS:
            return "optimizer.pt is missing"
        for name, expected in files.items():
            problem = _file_damage(checkpoint / name, expected)
            if problem:
                return problem
    except AntError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    return None


def _is_stray(name: str) -> bool:
    """Whether systems leave files of this name lying about (.DS_Store, .nfs...); Trainer reads none of them.

    Any other file that the seal does not name is refused: Trainer loads what it finds, pickles included.
    """
    return name.startswith(".") or name.lower() in _STRAYS


def _file_damage(path: Path, expected: Any) -> str | None:
    values = expected if isinstance(expected, dict) else {}
    if not path.is_file():
        return f"{path.name} is not a file"
    if (size := path.stat().st_size) != values.get("bytes"):
        return f"{path.name} has {size} bytes, expected {values.get('bytes')} by {SEAL}"
    if (seen := file_sha256(path)) != values.get("sha256"):
        return f"{path.name} has sha256 {seen[:12]}, expected {str(values.get('sha256'))[:12]} by {SEAL}"
    return None


def check_trained_with(checkpoint: Path, now: Mapping[str, str]) -> None:
    """Refuse a checkpoint that was trained with another config, tokenizer or tokens.

    Raises:
        AntError: names the first that differs, and both hashes.
    """
    before = read_json(checkpoint / SEAL, "the seal", "").get("made_of")
    for name, wanted in now.items():
        seen = before.get(name) if isinstance(before, dict) else None
        hint = f"Put the old {name} back, or start over with --fresh"
        check_hash(f"{checkpoint} was made with different {name}", seen, wanted, hint)
