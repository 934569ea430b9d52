"""A repository on the Hub: what it holds, what a release would change, one commit, read back, then tagged."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, RepoCard
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash
from rich.table import Column, Table

from ant_hf.errors import AntError
from ant_hf.hub import HubClient, HubUnreachableError
from ant_hf.release.files import is_dangerous_name, read_release
from ant_hf.utils.console import say, show
from ant_hf.utils.files import check_file, check_hash, file_sha256
from ant_hf.utils.names import CARD, LAST_CHECKPOINT, RELEASE

_NAME = re.compile(
    r"(?!.*(?:--|\.\.))[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?<![.-])(?<!\.git)"
)
# Made by the Hub itself.
_THEIRS = {".gitattributes"}
_CONFLICT = (409, 412)


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
        files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
        return Remote(head, bool(info.private), files, {tag.name: tag.target_commit for tag in tags})

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


@dataclass(frozen=True)
class Changes:
    """What a publication would do."""

    folder: Path
    repository: str
    kind: str
    """`model` or `space`."""
    user: str
    remote: Remote | None
    """None if the repository is to be created."""
    private: bool
    tag: str
    states: dict[str, str]
    """What happens to each file, as `compare` says it."""

    @property
    def address(self) -> str:
        """Where the repository is seen, below the Hub's own address."""
        return f"spaces/{self.repository}" if self.kind == "space" else self.repository

    @property
    def paths(self) -> list[str]:
        """Files of the commit."""
        return [path for path, state in self.states.items() if state in ("new", "changed", "removed")]


def publish(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    tag: str | None = None,
    prune: bool = False,
    yes: bool = False,
    kind: str = "model",
    client: HubClient | None = None,
) -> str | None:
    """Show what would happen and, with `yes`, do it.

    Args:
        folder: a release folder, as `make_release` writes it, or a Space's, as `make_space` does.
        repo: `owner/name` on the Hub, the one that the card was made for.
        private: create the repository as a private one.
        tag: name of the version; default: the next free v1, v2, ...
        prune: remove files from the repository that the release does not have.
        kind: `model` or `space`.
        client: default: one with the token that huggingface_hub finds.

    Returns:
        The commit that holds the release; None after a dry run.

    Raises:
        AntError: refused before the first byte, a conflict, or a failure after all attempts. The release
            folder stays as it is, and the same command continues.
    """
    folder, client = Path(folder), client or HubClient()
    sha256 = _check_release(folder, repo)
    changes = _preflight(client, folder, repo, private, tag, prune, kind)
    _show(changes)
    if not yes:
        say("dry run     nothing was sent; add --yes to publish")
        return None
    try:
        commit = _upload(client, changes)
        _read_back(client, changes, commit, sha256)
        _tag(client, changes, commit)
    except AntError as error:
        raise AntError(f"{error}. The release itself is whole, in {folder}") from None
    say(f"published   {client.api.endpoint}/{changes.address} at {commit[:12]}, tagged {changes.tag}")
    return commit


def _check_release(folder: Path, repository: str) -> dict[str, str]:
    """Hold every file of a release folder to release.json.

    Returns:
        sha256 by file.

    Raises:
        AntError: a file differs, is missing or was added, or the card was made for another repository.
    """
    release = read_release(folder, "Make it: ant-hf card MODEL_FOLDER --repo OWNER/NAME")
    if release.get("repository") != repository:
        raise AntError(
            f"the card in {folder} was made for another repository",
            seen=release.get("repository"),
            expected=repository,
        )
    expected = {name: values["sha256"] for name, values in release["files"].items()}
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {RELEASE}
    if odd := sorted(there ^ expected.keys()):
        raise AntError(f"{folder} is not what {RELEASE} says", seen=odd, hint="Make it anew: ant-hf card")
    for name, sha256 in expected.items():
        check_file(folder / name, sha256, "was changed after the gate", "Make the release anew: ant-hf card")
    return expected | {RELEASE: file_sha256(folder / RELEASE)}


def _preflight(
    client: HubClient, folder: Path, repository: str, private: bool, tag: str | None, prune: bool, kind: str
) -> Changes:
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

    def validate() -> None:
        try:
            RepoCard((folder / CARD).read_text(encoding="utf-8")).validate(repo_type=kind)
        except ValueError as error:
            raise AntError(f"the Hub refuses the card's metadata: {client.redact(str(error))}") from None

    client.step("validating the card", validate)
    states = compare(folder, remote, prune)
    left = [path for path, state in states.items() if state == "kept" and is_dangerous_name(path)]
    # A Space is code anyway.
    if left and kind == "model":
        raise AntError(
            f"{repository} holds files that a release must not have beside it",
            seen=left[:5],
            hint="Remove them with --prune",
        )
    tags = remote.tags if remote else {}
    if tag in tags:
        hint = "Pass another one: --tag NAME"
        raise AntError(f"the tag {tag} exists already", seen=tags[tag][:12], hint=hint)
    numbers = [int(name[1:]) for name in tags if name[:1] == "v" and name[1:].isdecimal()]
    tag = tag or f"v{max(numbers, default=0) + 1}"
    return Changes(folder, repository, kind, user, remote, remote.private if remote else private, tag, states)


def _account(client: HubClient, owner: str) -> str:
    """The token's account, which must be allowed to write under `owner`."""
    account, access = client.account()
    name = str(account["name"])
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
    return name


def _may_write(rights: dict[str, Any], owner: str) -> bool:
    if "repo.write" in rights.get("global", []):
        return True
    return any(
        "repo.write" in scope.get("permissions", [])
        and scope.get("entity", {}).get("name", "").partition("/")[0] == owner
        for scope in rights.get("scoped", [])
    )


def _show(changes: Changes) -> None:
    columns = ("file", Column("bytes", justify="right"), "what happens")
    table = Table(*columns, title=f"Release to {changes.address}", title_justify="left")
    words = {"same": "is there already", "kept": "only there, stays", "removed": "only there, is removed"}
    for name, state in changes.states.items():
        path = changes.folder / name
        table.add_row(name, f"{path.stat().st_size:,}" if path.is_file() else "", words.get(state, state))
    show(table)
    where = f"exists, head {changes.remote.head[:12]}" if changes.remote else "will be created"
    say(f"account     {changes.user}, may write")
    say(f"repository  {changes.address}: {where}, {'private' if changes.private else 'public'}")
    say(f"commit      one, with {len(changes.paths)} changes; then read back and tagged {changes.tag}")


def _upload(client: HubClient, changes: Changes) -> str:
    """Create the repository if needed and make the one commit; returns the commit that has the release."""
    repo, kind, api = changes.repository, changes.kind, client.api
    if changes.remote is None:
        private, sdk = changes.private, "gradio" if kind == "space" else None
        client.step(
            f"creating {changes.address}",
            lambda: api.create_repo(repo, private=private, exist_ok=True, repo_type=kind, space_sdk=sdk),
        )
    start = changes.remote or read_remote(client, repo, kind)
    if start is None:
        raise AntError(f"{changes.address} was created and cannot be read")
    if not changes.paths:
        say("commit      nothing to change")
        return start.head

    def commit() -> str:
        # Made anew for each attempt: huggingface_hub marks those it has sent.
        operations = [
            CommitOperationDelete(path)
            if changes.states[path] == "removed"
            else CommitOperationAdd(path_in_repo=path, path_or_fileobj=changes.folder / path)
            for path in changes.paths
        ]
        message = f"Release {changes.tag}"
        return api.create_commit(
            repo, operations, commit_message=message, parent_commit=start.head, repo_type=kind
        ).oid

    def arrived() -> str | None:
        """The head, if it holds the whole release; a conflict, if it holds anything else that is new."""
        now = read_remote(client, repo, kind)
        if now is None or now.head == start.head:
            return None
        states = compare(changes.folder, now, prune=False)
        others = {path: state for path, state in states.items() if state != "same"}
        if others == {path: state for path, state in changes.states.items() if state == "kept"}:
            return now.head
        raise AntError(
            f"{changes.address} was changed by someone else in the meantime; nothing was overwritten",
            seen=f"head {now.head[:12]}",
            expected=start.head[:12],
            hint="Look at what changed there, then run the same command again",
        )

    # The Hub says 409 or 412 for a moved head, which `arrived` tells from being busy with another change.
    return client.step("uploading", commit, after_failure=arrived, also=_CONFLICT)


def _read_back(client: HubClient, changes: Changes, commit: str, expected: dict[str, str]) -> None:
    """Download what was published into an empty cache and compare every hash.

    Raises:
        AntError: a file came back with other bytes.
    """
    repo, kind = changes.repository, changes.kind
    with tempfile.TemporaryDirectory() as cache:
        snapshot = client.step(
            "reading back",
            lambda: client.api.snapshot_download(
                repo, repo_type=kind, revision=commit, cache_dir=cache, allow_patterns=list(expected)
            ),
        )
        for name, sha256 in expected.items():
            path = Path(snapshot, name)
            check_hash(
                f"{changes.address} gives back another {name} than was sent",
                file_sha256(path) if path.is_file() else "nothing",
                sha256,
                "It was not tagged. Run the same command again",
            )
    say(f"read back   {len(expected)} files, all with the hashes of {RELEASE}; {CARD} is valid")


def _tag(client: HubClient, changes: Changes, commit: str) -> None:
    if changes.remote and commit == changes.remote.head and commit in changes.remote.tags.values():
        return

    def tag() -> str | None:
        repository, kind, api = changes.repository, changes.kind, client.api
        # There already, it is ours if an earlier answer was lost.
        api.create_tag(repository, tag=changes.tag, revision=commit, repo_type=kind, exist_ok=True)
        tags = api.list_repo_refs(repository, repo_type=kind).tags
        return next((each.target_commit for each in tags if each.name == changes.tag), None)

    if client.step(f"tagging {changes.tag}", tag) != commit:
        raise AntError(f"the tag {changes.tag} was taken meanwhile", hint="Pass another one: --tag NAME")


def fetch_model(client: HubClient, repository: str, revision: str | None = None) -> tuple[Path, list[str]]:
    """Download a repository into the Hub's cache.

    Returns:
        Its folder, and the files left out because they may hold code or pickles.

    Raises:
        AntError: it is not there, or not readable with this token; the name can be no repository's.
        HubUnreachableError: nobody answers.
    """
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
    revision, ignored = revision or remote.head, [*left_out, "checkpoint-*", f"{LAST_CHECKPOINT}/*"]
    folder = client.step(
        f"downloading {repository}",
        lambda: client.api.snapshot_download(repository, revision=revision, ignore_patterns=ignored),
    )
    return Path(folder), left_out
