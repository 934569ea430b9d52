"""A repository on the Hub: its name, its state, how it differs from a folder here, and its files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from ant_hf.errors import AntError
from ant_hf.hub import HubClient, HubUnreachableError
from ant_hf.release.files import is_dangerous_name
from ant_hf.utils.console import say
from ant_hf.utils.files import file_sha256
from ant_hf.utils.names import LAST_CHECKPOINT

_NAME = re.compile(
    r"(?!.*(?:--|\.\.))[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?<![.-])(?<!\.git)"
)
# Made by the Hub itself.
_THEIRS = {".gitattributes"}


def check_repository(repository: str) -> None:
    """Refuse a name that the Hub does not take.

    Raises:
        AntError: it has another form than `owner/name`.
    """
    if not _NAME.fullmatch(repository):
        raise AntError(
            "the repository's name is not valid",
            seen=repository,
            expected="owner/name of letters, digits, '-', '_' and '.'",
            hint="For example GODELEV/Ant-10M",
        )


@dataclass(frozen=True)
class Remote:
    """A repository as it is now."""

    head: str
    private: bool
    files: dict[str, RepoFile]
    tags: dict[str, str]
    """Commit by name."""


def read_remote(client: HubClient, repository: str, kind: str = "model") -> Remote | None:
    """The repository's state; None if there is none (or it is another's private one)."""

    def read() -> Remote | None:
        try:
            info = client.api.repo_info(repository, repo_type=kind)
        except RepositoryNotFoundError:
            return None
        head = info.sha or ""
        entries = client.api.list_repo_tree(repository, recursive=True, revision=head, repo_type=kind)
        tags = client.api.list_repo_refs(repository, repo_type=kind).tags
        return Remote(
            head=head,
            private=bool(info.private),
            files={entry.path: entry for entry in entries if isinstance(entry, RepoFile)},
            tags={tag.name: tag.target_commit for tag in tags},
        )

    return client.step(f"reading {repository}", read)


def compare(folder: Path, remote: Remote | None, prune: bool) -> dict[str, str]:
    """`new`, `changed` or `same` by file of the folder; `kept`, or `removed` to `prune`, for other files."""
    there = remote.files if remote else {}
    states = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        states[name] = "new" if name not in there else "same" if _is_same(path, there[name]) else "changed"
    for name in sorted(there.keys() - states.keys() - _THEIRS):
        states[name] = "removed" if prune else "kept"
    return states


def _is_same(path: Path, there: RepoFile) -> bool:
    """Whether a file here has the bytes of one there, by hash."""
    if path.stat().st_size != there.size:
        return False
    if there.lfs:
        return file_sha256(path) == there.lfs.sha256
    return git_hash(path.read_bytes()) == there.blob_id


def fetch_model(client: HubClient, repository: str, revision: str | None = None) -> tuple[Path, list[str]]:
    """Download a repository into the Hub's cache.

    Returns:
        Its folder, and the files left out because they may hold code or pickles.

    Raises:
        AntError: it is not there, or not readable with this token; the name can be no repository's.
        HubUnreachableError: nobody answers.
    """
    # Brings torch, which those who publish do not need.
    from ant_hf.model.loading import check_hub_id

    check_hub_id(repository)
    check_repository(repository)
    # A mistyped `release/Ant-10M` has the form of a repository's name; said before the wait for a Hub.
    say(f"hub         {repository} is no folder here; asking the Hub")
    try:
        remote = read_remote(client, repository)
    except HubUnreachableError:
        raise HubUnreachableError(
            f"{repository} is no folder here and cannot be had from the Hub",
            hint="Check the name of the folder, or the network",
        ) from None
    if remote is None:
        raise AntError(
            f"neither a folder nor a repository that can be read: {repository}",
            hint="Check the name; a private repository needs a token of its owner",
        )
    left_out = sorted(path for path in remote.files if is_dangerous_name(path))
    folder = client.step(
        f"downloading {repository}",
        lambda: client.api.snapshot_download(
            repository,
            revision=revision or remote.head,
            ignore_patterns=[*left_out, "checkpoint-*", f"{LAST_CHECKPOINT}/*"],
        ),
    )
    return Path(folder), left_out
