"""Everything that can be known to be wrong before the first byte is sent, and what would change."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import RepoCard
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from ant_hf.errors import AntError
from ant_hf.hub import HubClient
from ant_hf.release.files import is_dangerous_name
from ant_hf.utils.files import file_sha256

# Made by the Hub itself.
_THEIRS = {".gitattributes"}


@dataclass(frozen=True)
class Remote:
    """A repository as it is now."""

    head: str
    private: bool
    files: dict[str, RepoFile]
    tags: dict[str, str]
    """Commit by name."""


@dataclass(frozen=True)
class Plan:
    """What a publication would do."""

    repository: str
    user: str
    remote: Remote | None
    """None if the repository is to be created."""
    private: bool
    tag: str
    states: dict[str, str] = field(default_factory=dict)
    """`new`, `changed` or `same` by file of the release; `kept` or `removed` for other files there."""
    kind: str = "model"
    """Or `space`."""

    @property
    def address(self) -> str:
        """Where the repository is seen, below the Hub's own address."""
        return f"spaces/{self.repository}" if self.kind == "space" else self.repository

    @property
    def changes(self) -> list[str]:
        return [path for path, state in self.states.items() if state in ("new", "changed", "removed")]


def preflight(
    client: HubClient,
    folder: Path,
    repository: str,
    private: bool,
    tag: str | None,
    prune: bool,
    kind: str = "model",
) -> Plan:
    """Check token, name, metadata and what is there.

    Raises:
        AntError: anything that would fail later, or that the user must decide.
    """
    user = _account(client, repository.partition("/")[0])
    remote = read_remote(client, repository, kind)
    if remote and private and not remote.private:
        raise AntError(
            f"{repository} is public and --private was given",
            hint="Change the repository's visibility on the Hub first, or leave --private out",
        )
    _metadata(client, (folder / "README.md").read_text(encoding="utf-8"), kind)
    states = compare(folder, remote, prune)
    left = [path for path, state in states.items() if state == "kept" and is_dangerous_name(path)]
    # A Space is code anyway.
    if left and kind == "model":
        raise AntError(
            f"{repository} holds files that a release must not have beside it",
            seen=left[:5],
            hint="Remove them with --prune",
        )
    wanted = tag or _next_tag(remote)
    _check_tag(remote, wanted, given=tag is not None)
    return Plan(repository, user, remote, remote.private if remote else private, wanted, states, kind)


def _account(client: HubClient, owner: str) -> str:
    """The token's account, which must be allowed to write under `owner`."""
    account = client.step("asking who the token belongs to", client.api.whoami)
    name, access = account["name"], account.get("auth", {}).get("accessToken", {})
    if access.get("role") == "read":
        raise AntError(
            f"the token of {name} may only read",
            hint="Make one that may write at https://huggingface.co/settings/tokens, then run: hf auth login",
        )
    if access.get("role") == "fineGrained" and not _may_write(access.get("fineGrained", {}), owner):
        raise AntError(
            f"the fine-grained token of {name} has no write permission for repositories of {owner}",
            hint="Add it at https://huggingface.co/settings/tokens",
        )
    writable = [org["name"] for org in account.get("orgs", []) if org.get("roleInOrg") != "read"]
    if owner not in (name, *writable):
        raise AntError(
            f"{name} may not write under {owner}",
            seen=owner,
            expected=" or ".join([name, *writable]),
            hint=f"Publish as --repo {name}/NAME, or log in with another account: hf auth login",
        )
    return str(name)


def _may_write(rights: dict[str, Any], owner: str) -> bool:
    if "repo.write" in rights.get("global", []):
        return True
    return any(
        "repo.write" in scope.get("permissions", [])
        and scope.get("entity", {}).get("name", "").partition("/")[0] == owner
        for scope in rights.get("scoped", [])
    )


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


def _metadata(client: HubClient, card: str, kind: str) -> None:
    def validate() -> None:
        try:
            RepoCard(card).validate(repo_type=kind)
        except ValueError as error:
            raise AntError(f"the Hub refuses the card's metadata: {client.redact(str(error))}") from None

    client.step("validating the card", validate)


def compare(folder: Path, remote: Remote | None, prune: bool) -> dict[str, str]:
    """The state of every file here and there."""
    there = remote.files if remote else {}
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    states = {}
    for name in names:
        same = name in there and is_same(folder / name, there[name])
        states[name] = "same" if same else "changed" if name in there else "new"
    for name in sorted(there.keys() - states.keys() - _THEIRS):
        states[name] = "removed" if prune else "kept"
    return states


def is_same(path: Path, there: RepoFile) -> bool:
    """Whether a file here has the bytes of one there, by hash."""
    if path.stat().st_size != there.size:
        return False
    if there.lfs:
        return file_sha256(path) == there.lfs.sha256
    data = path.read_bytes()
    # Git's own name of these bytes, no protection.
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == there.blob_id


def _next_tag(remote: Remote | None) -> str:
    numbers = [
        int(name[1:]) for name in (remote.tags if remote else {}) if name[:1] == "v" and name[1:].isdecimal()
    ]
    return f"v{max(numbers, default=0) + 1}"


def _check_tag(remote: Remote | None, tag: str, given: bool) -> None:
    if given and remote and tag in remote.tags:
        raise AntError(
            f"the tag {tag} exists already", seen=remote.tags[tag][:12], hint="Pass another one: --tag NAME"
        )
