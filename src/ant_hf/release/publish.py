"""A repository on the Hub: what it holds, what a release would change, one commit, read back, then tagged."""

from __future__ import annotations

import glob
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, RepoCard
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash
from rich.table import Column, Table

from ant_hf.errors import AntError
from ant_hf.hub import HOW_TO_LOG_IN, HubClient, HubUnreachableError
from ant_hf.release.files import is_dangerous_name, read_release
from ant_hf.utils.console import say, show
from ant_hf.utils.files import check_file, check_hash, file_sha256
from ant_hf.utils.names import CARD, LAST_CHECKPOINT, RELEASE
from ant_hf.utils.stopping import phase

_NAME = re.compile(
    r"(?!.*(?:--|\.\.))[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?<![.-])(?<!\.git)"
)
# What git takes as the name of a reference.
_TAG = re.compile(
    r"(?!.*(?:\.\.|//|@\{))[^\s~^:?*\[\\\x00-\x1f\x7f./-][^\s~^:?*\[\\\x00-\x1f\x7f]*(?<![./])(?<!\.lock)"
)
# Made by the Hub itself.
_THEIRS = {".gitattributes"}
_CONFLICT = (409, 412)


def check_repository(repository: str) -> None:
    """Raise AntError for a name that the Hub does not accept."""
    if not _NAME.fullmatch(repository):
        raise AntError(
            "the repository's name is not valid",
            seen=repository,
            expected="owner/name of letters, digits, '-', '_' and '.'",
            hint="For example --repo GODELEV/Ant-10M",
        )


@dataclass(frozen=True)
class Remote:
    """A repository as it is now."""

    head: str
    private: bool
    files: dict[str, RepoFile]
    tags: dict[str, str]
    """Commit by name."""
    branches: tuple[str, ...]


def read_remote(
    client: HubClient, repository: str, kind: str = "model", revision: str | None = None
) -> Remote | None:
    """The repository's state; None if there is none (or it is another's private one).

    Args:
        revision: commit, tag or branch that head and files are of; default: the newest commit.
    """

    def read() -> Remote | None:
        try:
            info = client.api.repo_info(repository, repo_type=kind, revision=revision)
        except HfHubHTTPError as error:
            if client.is_unseen(error):
                return None
            raise
        head = info.sha or ""
        entries = client.api.list_repo_tree(repository, recursive=True, revision=head, repo_type=kind)
        refs = client.api.list_repo_refs(repository, repo_type=kind)
        files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
        tags = {tag.name: tag.target_commit for tag in refs.tags}
        return Remote(head, bool(info.private), files, tags, tuple(branch.name for branch in refs.branches))

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
    user: str | None
    """None without a token."""
    remote: Remote | None
    """None if the repository is to be created."""
    private: bool
    tag: str
    is_tagged: bool
    """Whether nothing changes and the tag is there already."""
    unknown: str | None
    """Why it is not known what the repository holds."""
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
        folder: a release folder, as `make_release` writes it, or that of its GGUF files or its Space, as
            `make_gguf_release` and `make_space` do.
        repo: `owner/name` on the Hub, the one that the card was made for.
        private: create the repository as a private one.
        tag: name of the version; default: the next free v1, v2, ...
        prune: remove files from the repository that the release does not have.
        kind: `model` or `space`.
        client: default: one with the token that huggingface_hub finds; to see the plan takes none.

    Returns:
        The commit that holds the release; None after a dry run.

    Raises:
        AntError: refused before the first byte, a conflict, or a failure after all attempts. The release
            folder stays as it is, and the same command continues.
    """
    folder, client = Path(folder), (client or HubClient(anonymous=True)).of_repository(repo, kind)
    sha256 = _check_release(folder, repo)
    with phase("asking the Hub", "Nothing was sent. Run the same command again."):
        changes = _preflight(client, folder, repo, private, tag, prune, kind, must_know=yes)
    _show(changes)
    if client.is_anonymous and yes:
        raise AntError("no Hub token found, so nothing was sent", hint=HOW_TO_LOG_IN)
    if client.is_anonymous:
        say("token", f"none found, and publishing needs one. {HOW_TO_LOG_IN}")
    if not yes:
        say("dry run", "nothing was sent; add --yes to publish")
        return None
    again = "Run the same command again; what has arrived is not sent twice."
    try:
        with phase(f"sending {folder}", f"The repository changes only in the last step, one commit. {again}"):
            commit = _upload(client, changes)
        with phase("reading back", f"The commit is on the Hub, but not yet checked and tagged. {again}"):
            _read_back(client, changes, commit, sha256)
            _tag(client, changes, commit)
    except AntError as error:
        raise AntError(f"{error}. The release itself is complete, in {folder}") from None
    where = f"{client.api.endpoint}/{changes.address} at {commit[:12]}"
    if changes.is_tagged:
        say("unchanged", f"{where} already holds this release, tagged {changes.tag}")
    else:
        say("published", f"{where}, tagged {changes.tag}")
    return commit


def _check_release(folder: Path, repository: str) -> dict[str, str]:
    """Check every file of a release folder against release.json.

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
            hint=f"Make it for this one: ant-hf card MODEL_FOLDER --repo {repository}",
        )
    expected = {name: values["sha256"] for name, values in release["files"].items()}
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {RELEASE}
    if odd := sorted(there ^ expected.keys()):
        raise AntError(
            f"{folder} has files that {RELEASE} does not list, or lacks some that it lists",
            seen=odd,
            hint="Make the release again: ant-hf card MODEL_FOLDER --repo OWNER/NAME",
        )
    for name, sha256 in expected.items():
        check_file(folder / name, sha256, "was changed after the gate", "Make the release again: ant-hf card")
    return expected | {RELEASE: file_sha256(folder / RELEASE)}


def _preflight(
    client: HubClient,
    folder: Path,
    repository: str,
    private: bool,
    tag: str | None,
    prune: bool,
    kind: str,
    must_know: bool,
) -> Changes:
    """Check token, name, metadata and what is there.

    Args:
        must_know: a Hub that does not answer is an error, and not a gap in the plan.

    Raises:
        AntError: anything that would fail later, or that the user must decide.
    """
    if tag is not None and not _TAG.fullmatch(tag):
        raise AntError("git does not accept this name of a tag", seen=tag, hint="For example --tag v1.0")
    user, remote, unknown = None, None, None
    try:
        user = None if client.is_anonymous else client.check_may_write(repository, kind)
        remote = read_remote(client, repository, kind)
        client.step("validating the card", lambda: _validate_card(client, folder, kind))
    except HubUnreachableError as error:
        if must_know:
            raise
        unknown = str(error)
    if remote and private and not remote.private:
        raise AntError(
            f"{repository} is public, but --private was given",
            hint="Change the repository's visibility on the Hub first, or leave --private out",
        )
    states = compare(folder, remote, prune)
    if unknown:
        states = dict.fromkeys(states, "unknown")
    left = [path for path, state in states.items() if state == "kept" and is_dangerous_name(path)]
    # A Space is code anyway.
    if left and kind == "model":
        raise AntError(
            f"{repository} holds files that a release must not have beside it",
            seen=left[:5],
            hint="Remove them with --prune",
        )
    tag, is_tagged = _choose_tag(repository, tag, remote, not states.keys() - _unchanged(states))
    is_private = remote.private if remote else private
    return Changes(folder, repository, kind, user, remote, is_private, tag, is_tagged, unknown, states)


def _unchanged(states: dict[str, str]) -> set[str]:
    return {path for path, state in states.items() if state in ("same", "kept")}


def _validate_card(client: HubClient, folder: Path, kind: str) -> None:
    try:
        RepoCard((folder / CARD).read_text(encoding="utf-8")).validate(repo_type=kind)
    except ValueError as error:
        raise AntError(f"the Hub refuses the card's metadata: {client.redact(str(error))}") from None


def _choose_tag(
    repository: str, wanted: str | None, remote: Remote | None, is_unchanged: bool
) -> tuple[str, bool]:
    """The tag of the release, and whether it is there already.

    Raises:
        AntError: the tag that is wanted names another commit, or it is a branch.
    """
    tags, head = (remote.tags, remote.head) if remote else ({}, "")
    if wanted in (remote.branches if remote else ("main",)):
        raise AntError(
            f"{wanted} is already a branch, so it cannot be a tag", hint="Pass another name: --tag NAME"
        )
    here = [name for name, commit in tags.items() if is_unchanged and commit == head]
    if wanted is None and here:
        return here[-1], True
    if wanted in here:
        return wanted, True
    if wanted in tags:
        raise AntError(
            f"the tag {wanted} exists already, at another commit",
            seen=tags[wanted][:12],
            expected=head[:12] if is_unchanged else "the commit that would be made now",
            hint="Pass another name: --tag NAME; or delete the tag first: "
            f"hf repos tag delete {repository} {wanted}",
        )
    numbers = [int(name[1:]) for name in tags if name[:1] == "v" and name[1:].isdecimal()]
    return wanted or f"v{max(numbers, default=0) + 1}", False


def _show(changes: Changes) -> None:
    columns = ("file", Column("bytes", justify="right"), "what happens")
    table = Table(*columns, title=f"Release to {changes.address}", title_justify="left")
    words = {
        "same": "is there already",
        "kept": "is only there, stays",
        "removed": "is only there, is removed",
        "unknown": "is sent if it is not there",
    }
    sizes = {
        name: (changes.folder / name).stat().st_size
        for name in changes.states
        if (changes.folder / name).is_file()
    }
    for name, state in changes.states.items():
        table.add_row(name, f"{sizes[name]:,}" if name in sizes else "", words.get(state, state))
    show(table)
    visibility = "private" if changes.private else "public"
    if changes.unknown:
        where = f"what it holds is not known: {changes.unknown}"
    elif changes.remote:
        where = f"exists, head {changes.remote.head[:12]}, {visibility}"
    else:
        where = f"will be created, {visibility}"
        where += "" if changes.user else " (or exists and is private, which cannot be seen without a token)"
    size = sum(sizes.get(name, 0) for name in changes.paths)
    what = "none, because nothing changes"
    if changes.unknown:
        what = "one, with the files that are not there yet"
    elif changes.paths:
        what = f"one, with {len(changes.paths)} changes, {size:,} bytes"
    then = f"the tag {changes.tag} is there already" if changes.is_tagged else f"tagged {changes.tag}"
    say("account", f"{f'{changes.user}, may write' if changes.user else 'not known'}")
    say("repository", f"{changes.address}: {where}")
    say("commit", f"{what}; then read back; {then}")


def _upload(client: HubClient, changes: Changes) -> str:
    """Create the repository if needed and make the one commit; returns the commit that has the release."""
    repo, kind, api = changes.repository, changes.kind, client.api
    if changes.remote is None:
        private, sdk = changes.private, None
        if kind == "space":
            sdk = RepoCard.load(changes.folder / CARD, ignore_metadata_errors=True).data.get("sdk")
        client.step(
            f"creating {changes.address}",
            lambda: api.create_repo(repo, private=private, exist_ok=True, repo_type=kind, space_sdk=sdk),
        )
    start = changes.remote or read_remote(client, repo, kind)
    if start is None:
        raise AntError(
            f"{changes.address} was created, but the Hub does not show it", hint="Run the same command again."
        )
    if changes.private and not start.private:
        raise AntError(
            f"{changes.address} was created by someone else in the meantime and is public; nothing was sent"
        )
    if not changes.paths:
        return start.head

    def commit() -> str:
        # Made again for each attempt: huggingface_hub marks those it has sent.
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
                f"{changes.address} returns another {name} than was sent",
                file_sha256(path) if path.is_file() else "nothing",
                sha256,
                "The commit was not tagged. Run the same command again",
            )
    say("read back", f"{len(expected)} files, all with the hashes of {RELEASE}; {CARD} is valid")


def _tag(client: HubClient, changes: Changes, commit: str) -> None:
    if changes.is_tagged:
        return

    def tag() -> str | None:
        repository, kind, api = changes.repository, changes.kind, client.api
        # There already, it is ours if an earlier answer was lost.
        api.create_tag(repository, tag=changes.tag, revision=commit, repo_type=kind, exist_ok=True)
        tags = api.list_repo_refs(repository, repo_type=kind).tags
        return next((each.target_commit for each in tags if each.name == changes.tag), None)

    if client.step(f"tagging {changes.tag}", tag) != commit:
        raise AntError(
            f"someone else created the tag {changes.tag} in the meantime",
            hint="Pass another name: --tag NAME",
        )


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
    say("hub", f"{repository} is not a folder here; asking the Hub")
    try:
        remote = read_remote(client, repository, revision=revision)
    except HubUnreachableError:
        raise HubUnreachableError(
            f"{repository} is not a folder here and cannot be fetched from the Hub",
            hint="Check the name of the folder, or the network",
        ) from None
    if remote is None:
        raise AntError(
            f"{repository} is neither a folder here nor a repository that can be read",
            hint=client.missing_or_private,
        )
    left_out = sorted(path for path in remote.files if is_dangerous_name(path))
    head, ignored = remote.head, [*map(glob.escape, left_out), "checkpoint-*", f"{LAST_CHECKPOINT}/*"]
    folder = client.step(
        f"downloading {repository}",
        lambda: client.api.snapshot_download(repository, revision=head, ignore_patterns=ignored),
    )
    return Path(folder), left_out
