"""A release folder becomes a Hub repository: one commit, read back, then tagged."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, snapshot_download
from rich.table import Table

from ant_hf.errors import AntError
from ant_hf.hub import HubClient, status_of
from ant_hf.release.preflight import Plan, Remote, compare, preflight, read_remote
from ant_hf.utils.console import say, show
from ant_hf.utils.files import file_sha256, read_json
from ant_hf.utils.names import CARD, RELEASE

_CONFLICT = (409, 412)


def publish(
    client: HubClient,
    folder: Path,
    repository: str,
    private: bool = False,
    tag: str | None = None,
    prune: bool = False,
    yes: bool = False,
    kind: str = "model",
) -> str | None:
    """Show what would happen and, with `yes`, do it.

    Args:
        folder: a release folder, as `make_release` writes it, or a Space's, as `make_space` does.
        tag: name of the version; default: the next free v1, v2, ...
        prune: remove files from the repository that the release does not have.
        kind: `model` or `space`.

    Returns:
        The commit that holds the release; None after a dry run.

    Raises:
        AntError: refused before the first byte, a conflict, or a failure after all attempts. The release
            folder stays as it is, and the same command continues.
    """
    release = check_release(folder, repository)
    plan = preflight(client, folder, repository, private, tag, prune, kind)
    _show(plan, folder)
    if not yes:
        say("dry run     nothing was sent; add --yes to publish")
        return None
    try:
        commit = _upload(client, folder, plan)
        _read_back(client, plan, commit, folder, release)
        _tag(client, plan, commit)
    except AntError as error:
        raise AntError(f"{error}. The release itself is whole, in {folder}") from None
    say(f"published   {client.api.endpoint}/{plan.address} at {commit[:12]}, tagged {plan.tag}")
    return commit


def check_release(folder: Path, repository: str) -> dict[str, Any]:
    """Hold every file of a release folder to release.json.

    Raises:
        AntError: a file differs, is missing or was added, or the card was made for another repository.
    """
    release = read_json(
        folder / RELEASE, "release record", "Make it: ant-hf card MODEL_FOLDER --repo OWNER/NAME"
    )
    if release.get("repository") != repository:
        raise AntError(
            f"the card in {folder} was made for another repository",
            seen=release.get("repository"),
            expected=repository,
        )
    files = release.get("files", {})
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {RELEASE}
    if odd := sorted(there ^ files.keys()):
        raise AntError(f"{folder} is not what {RELEASE} says", seen=odd, hint="Make it anew: ant-hf card")
    for name, expected in files.items():
        if (seen := file_sha256(folder / name)) != expected["sha256"]:
            raise AntError(
                f"{folder / name} was changed after the gate",
                seen=f"sha256 {seen[:12]}",
                expected=expected["sha256"][:12],
                hint="Make the release anew: ant-hf card",
            )
    return release


def _show(plan: Plan, folder: Path) -> None:
    table = Table(title=f"Release to {plan.address}", title_justify="left")
    table.add_column("file")
    table.add_column("bytes", justify="right")
    table.add_column("what happens")
    words = {"same": "is there already", "kept": "only there, stays", "removed": "only there, is removed"}
    for name, state in plan.states.items():
        size = f"{(folder / name).stat().st_size:,}" if (folder / name).is_file() else ""
        table.add_row(name, size, words.get(state, state))
    show(table)
    visibility = "private" if plan.private else "public"
    where = f"exists, head {plan.remote.head[:12]}" if plan.remote else "will be created"
    say(f"account     {plan.user}, may write")
    say(f"repository  {plan.address}: {where}, {visibility}")
    say(f"commit      one, with {len(plan.changes)} changes; then read back and tagged {plan.tag}")


def _upload(client: HubClient, folder: Path, plan: Plan) -> str:
    """Create the repository if needed and make the one commit; returns the commit that has the release."""
    remote = plan.remote
    if remote is None:
        client.step(
            f"creating {plan.address}",
            lambda: client.api.create_repo(
                plan.repository,
                private=plan.private,
                exist_ok=True,
                repo_type=plan.kind,
                space_sdk="gradio" if plan.kind == "space" else None,
            ),
        )
        remote = read_remote(client, plan.repository, plan.kind)
        if remote is None:
            raise AntError(f"{plan.address} was created and cannot be read")
    if not plan.changes:
        say("commit      nothing to change")
        return remote.head
    start = remote

    def arrived() -> str | None:
        """The head, if it holds the whole release; a conflict, if it holds anything else that is new."""
        now = read_remote(client, plan.repository, plan.kind)
        if now is None or now.head == start.head:
            return None
        if _holds(folder, now, plan):
            return now.head
        raise _conflict(plan.address, start, now)

    def commit() -> str:
        commit = client.api.create_commit(
            plan.repository,
            operations=_operations(folder, plan),
            commit_message=f"Release {plan.tag}",
            parent_commit=start.head,
            repo_type=plan.kind,
        )
        return commit.oid

    # The Hub says 409 or 412 for a moved head, which `arrived` tells from being busy with another change.
    return client.step("uploading", commit, after_failure=arrived, also=_CONFLICT)


def _operations(folder: Path, plan: Plan) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Made anew for each attempt: huggingface_hub marks those it has sent."""
    return [
        CommitOperationDelete(path)
        if plan.states[path] == "removed"
        else CommitOperationAdd(path_in_repo=path, path_or_fileobj=folder / path)
        for path in plan.changes
    ]


def _holds(folder: Path, remote: Remote, plan: Plan) -> bool:
    states = compare(folder, remote, prune=True)
    expected = {path: "removed" for path, state in plan.states.items() if state == "kept"}
    return {path: state for path, state in states.items() if state != "same"} == expected


def _conflict(repository: str, before: Remote, now: Remote) -> AntError:
    return AntError(
        f"{repository} was changed by someone else in the meantime; nothing was overwritten",
        seen=f"head {now.head[:12]}",
        expected=before.head[:12],
        hint="Look at what changed there, then run the same command again",
    )


def _read_back(client: HubClient, plan: Plan, commit: str, folder: Path, release: dict[str, Any]) -> None:
    """Download what was published into an empty cache and compare every hash.

    Raises:
        AntError: a file came back with other bytes.
    """
    expected = {name: values["sha256"] for name, values in release["files"].items()}
    expected[RELEASE] = file_sha256(folder / RELEASE)
    with tempfile.TemporaryDirectory() as cache:

        def download() -> Path:
            return Path(
                snapshot_download(
                    plan.repository,
                    repo_type=plan.kind,
                    revision=commit,
                    cache_dir=cache,
                    token=client.api.token,
                    allow_patterns=list(expected),
                )
            )

        snapshot = client.step("reading back", download)
        for name, sha256 in expected.items():
            path = snapshot / name
            seen = file_sha256(path) if path.is_file() else "nothing"
            if seen != sha256:
                raise AntError(
                    f"{plan.address} gives back another {name} than was sent",
                    seen=f"sha256 {seen[:12]}",
                    expected=sha256[:12],
                    hint="It was not tagged. Run the same command again",
                )
    say(f"read back   {len(expected)} files, all with the hashes of {RELEASE}; {CARD} is valid")


def _tag(client: HubClient, plan: Plan, commit: str) -> None:
    if plan.remote and commit == plan.remote.head and commit in plan.remote.tags.values():
        return

    def tag() -> None:
        try:
            client.api.create_tag(plan.repository, tag=plan.tag, revision=commit, repo_type=plan.kind)
        except Exception as error:
            if status_of(error) != 409:
                raise
            # Ours, if an earlier answer was lost.
            tags = {
                t.name: t.target_commit
                for t in client.api.list_repo_refs(plan.repository, repo_type=plan.kind).tags
            }
            if tags.get(plan.tag) != commit:
                raise AntError(
                    f"the tag {plan.tag} was taken meanwhile", hint="Pass another one: --tag NAME"
                ) from None

    client.step(f"tagging {plan.tag}", tag)
