"""A model repository on this disk, without the files that nothing here may open."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from ant_hf.errors import AntError
from ant_hf.hub import HubClient, HubUnreachableError
from ant_hf.model.loading import check_hub_id
from ant_hf.release.build import check_repository
from ant_hf.release.files import is_dangerous_name
from ant_hf.release.preflight import read_remote
from ant_hf.utils.console import say


def fetch_model(
    client: HubClient, repository: str, revision: str | None = None
) -> tuple[Path, tuple[str, ...]]:
    """Download a repository into the Hub's cache.

    Returns:
        Its folder, and the files left out because they may hold code or pickles.

    Raises:
        AntError: it is not there, or not readable with this token; the name can be no repository's.
        HubUnreachableError: nobody answers.
    """
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
    left_out = tuple(sorted(path for path in remote.files if is_dangerous_name(path)))
    folder = client.step(
        f"downloading {repository}",
        lambda: snapshot_download(
            repository,
            revision=revision or remote.head,
            token=client.api.token,
            ignore_patterns=[*left_out, "checkpoint-*", "last-checkpoint/*"],
        ),
    )
    return Path(folder), left_out
