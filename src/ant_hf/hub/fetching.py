"""A model repository on this disk, without the files that nothing here may open."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from ant_hf.errors import AntError
from ant_hf.hub.client import HubClient
from ant_hf.hub.preflight import read_remote
from ant_hf.release.files import is_dangerous_name


def fetch_model(
    client: HubClient, repository: str, revision: str | None = None
) -> tuple[Path, tuple[str, ...]]:
    """Download a repository into the Hub's cache.

    Returns:
        Its folder, and the files left out because they may hold code or pickles.

    Raises:
        AntError: it is not there, or not readable with this token.
    """
    remote = read_remote(client, repository)
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
