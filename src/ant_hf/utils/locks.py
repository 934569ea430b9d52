"""One writer a folder, held by the operating system, so that a dead process holds nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from ant_hf.errors import AntError
from ant_hf.utils.console import say
from ant_hf.utils.files import read_json, write_json
from ant_hf.utils.names import RELEASE, SEAL
from ant_hf.utils.provenance import now

_OWNER = ".{}.owner.json"
# By the files that tell it; whatever is written into such a folder would be taken for a part of it.
_WHOLE = {RELEASE: "a release", SEAL: "a checkpoint", "*.safetensors": "a model"}


@contextmanager
def locked(folder: Path, name: str, wait: bool = False) -> Iterator[None]:
    """Hold a folder's lock for the length of a block.

    The lock itself is the system's (`flock`), which ends with its process however that dies. The
    file beside it only says who holds it, for the message.

    Args:
        name: what is locked; different names in one folder do not exclude each other.
        wait: wait for the other process instead of refusing.

    Raises:
        AntError: another process holds it (names the process), or see `check_usable`.
    """
    check_usable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        # A read-only mount of prepared data: nobody can write there, so nothing needs to be held.
        yield
        return
    lock, owner = FileLock(folder / f".{name}.lock"), folder / _OWNER.format(name)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if not wait:
            raise _in_use(folder, name) from None
        say(
            "waiting",
            f"{folder} is in use by {_described(folder, name)}; this command waits until it is free",
        )
        lock.acquire()
    try:
        if owner.exists():
            say(
                "lock",
                f"{_described(folder, name)} has ended without unlocking the folder; this run takes over",
            )
        write_json(owner, {"pid": os.getpid(), "host": socket.gethostname(), "since": now()})
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def check_usable(folder: Path) -> None:
    """Refuse a folder that no run or data can be put into.

    Raises:
        AntError: it is a file, or the folder of a model, a checkpoint or a release.
    """
    hint = "Name another folder: --output-dir FOLDER, or --set data_dir=FOLDER for the data."
    if folder.exists() and not folder.is_dir():
        raise AntError(f"{folder} is a file, and a folder is needed", hint=hint)
    if what := next((_WHOLE[files] for files in _WHOLE if any(folder.glob(files))), None):
        raise AntError(f"{folder} holds {what}, and nothing may be added to it", hint=hint)


def check_free(folder: Path, name: str) -> None:
    """Look whether a folder's lock could be taken, as far as that shows without touching it.

    Raises:
        AntError: a process of this machine that is alive holds it.
    """
    owner = owner_of(folder, name)
    if owner.get("host") == socket.gethostname() and psutil.pid_exists(int(owner.get("pid", 0))):
        raise _in_use(folder, name)


def _in_use(folder: Path, name: str) -> AntError:
    return AntError(
        f"{folder} is in use by {_described(folder, name)}",
        hint="Wait until it ends, stop it, or name another folder: --output-dir FOLDER",
    )


def owner_of(folder: Path, name: str) -> dict[str, Any]:
    """Process, host and time of whoever holds a folder's lock; empty if nobody says so."""
    try:
        return read_json(folder / _OWNER.format(name), "lock", "")
    except AntError:
        return {}


def _described(folder: Path, name: str) -> str:
    if owner := owner_of(folder, name):
        return f"process {owner.get('pid')} on {owner.get('host')} (since {owner.get('since')})"
    return "another process"
