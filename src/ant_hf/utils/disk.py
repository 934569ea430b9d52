"""Room on the disk: checked before hours are spent, and named when a write fails all the same."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ant_hf.errors import AntError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Rust libraries give the number in the text; PyTorch's archive writer only says that it stopped short.
_FULL_IN_WORDS = re.compile(
    r"No space left|quota exceeded|File too large|os error (27|28|122)|PytorchStreamWriter|inline_container"
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


def check_room(what: str, folder: Path, needed: int) -> None:
    """Refuse to begin what cannot be stored.

    Raises:
        AntError: fewer bytes are free than needed.
    """
    if (free := free_bytes(folder)) < needed:
        raise AntError(
            f"no room for {what} in {folder}",
            seen=f"{free:,} bytes free",
            expected=f"at least {needed:,} bytes",
            hint="Free some space, set another folder with --output-dir, or lower training.save_total_limit.",
        )


def free_bytes(folder: Path) -> int:
    """Bytes this user may still write where `folder` is or will be."""
    there = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    return shutil.disk_usage(there).free
