"""What may lie in a release folder: safetensors, texts without secrets or paths, nothing that runs."""

from __future__ import annotations

import contextlib
import getpass
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ant_hf.errors import AntError
from ant_hf.utils.files import read_json
from ant_hf.utils.names import RELEASE
from ant_hf.utils.provenance import paths_in

_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}
_TRAINING_STATE = re.compile(r"^(optimizer|scheduler|rng_state|scaler|training_args|trainer_state)\b")
_RUNS = {".py", ".so", ".sh", ".exe", ".dll", ".ipynb"}
_TEXTS = {".json", ".jsonl", ".md", ".txt", ".yaml", ".yml", ".jinja", ""}
# The tokens of the Hub, of GitHub, of OpenAI, of AWS and private keys.
_SECRETS = re.compile(
    r"\bhf_(?:jwt_|oauth_)?[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
# In the middle of any text, where only the usual places can be told from other words.
_PATHS = re.compile(
    r"(?<![\w.:/~-])/(?:home|root|Users|tmp|var|mnt|media|data|opt|srv|work|workspace|scratch|kaggle|content)/[\w.-]+"
    r"|\b[A-Za-z]:\\{1,2}(?:Users|Documents|home|temp|data)\b"
)
# Accounts that say nothing of a person, and are words of their own.
_NOBODY = re.compile("root|user|ubuntu|admin|runner|kaggle|jovyan|nobody|app|vscode|codespace", re.IGNORECASE)
# Vocabularies hold pieces of any text; secrets in them would still be found.
_VOCABULARIES = {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model"}


def file_problems(folder: Path, owner: str = "") -> list[str]:
    """Everything in a folder that must not be published, one line each.

    Args:
        owner: the Hub account it will belong to, whose name is not a secret.
    """
    return [
        f"{path.relative_to(folder).as_posix()}: {problem}"
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
        for problem in _problems(path, owner)
    ]


def dangerous_files(folder: Path) -> list[str]:
    """Files beside the weights that a loader might execute: reasons not to load at all."""
    return [
        f"{path.name}: {problem}"
        for path in sorted(folder.iterdir())
        if path.is_file()
        for problem in _executable(path)
    ]


def is_dangerous_name(name: str) -> bool:
    """Whether a file of this name has no place in a released repository."""
    path = PurePosixPath(name)
    return path.suffix in _PICKLES | _RUNS or bool(_TRAINING_STATE.match(path.name))


def _problems(path: Path, owner: str) -> Iterator[str]:
    # A downloaded snapshot links into the Hub's cache: what counts is what it links to.
    if not path.is_file():
        yield "a link to a file that does not exist"
        return
    if _TRAINING_STATE.match(path.name):
        yield "training state"
    yield from _executable(path)
    if path.suffix not in _TEXTS:
        return
    text = path.read_bytes().decode("utf-8", "replace")
    if match := _SECRETS.search(text):
        yield f"what looks like an access token: {match[0][:6]}..."
    if path.name in _VOCABULARIES:
        return
    if match := _PATHS.search(text):
        yield f"an absolute path: {match[0]}"
    elif path.suffix == ".json":
        # Damaged JSON is not a reason here: loading and reading name it.
        with contextlib.suppress(ValueError):
            yield from (f"an absolute path: {found}" for found in [*paths_in(json.loads(text))][:1])
    user = _user()
    if user and user != owner and re.search(rf"(?<!\w){re.escape(user)}(?!\w)", text):
        yield f"the name of this computer's user: {user}"


def _executable(path: Path) -> Iterator[str]:
    with path.open("rb") as handle:
        head = handle.read(4)
    # Protocol 2 and later, or the zip that torch.save writes.
    is_pickle = (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05") or head == b"PK\x03\x04"
    if path.suffix in _PICKLES or is_pickle:
        yield "a pickle, or a file that may hold one: weights must be in safetensors"
    if path.suffix in _RUNS:
        yield "code: the model must load without it"


def _user() -> str | None:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        return None
    return user if len(user) > 2 and not _NOBODY.fullmatch(user) else None


def read_release(folder: Path, hint: str) -> dict[str, Any]:
    """The record of a release folder: `repository`, and `files` with the `sha256` of each.

    Raises:
        AntError: it is missing or does not list hashes.
    """
    release = read_json(folder / RELEASE, "release record", hint)
    files = release.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(values, dict) and "sha256" in values for values in files.values()
    ):
        raise AntError(f"{folder / RELEASE} lists no files with their sha256", hint=hint)
    return release
