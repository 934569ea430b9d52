"""Decide, before any Hugging Face library is imported, whether this process may ask the Hub.

Those libraries read their switches at import, and without a network they retry every file for half a
minute. Standard library only.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

_SECONDS = 5.0


def choose_network(model: str, data_dir: Path | None) -> None:
    """Set HF_HUB_OFFLINE when everything is local, or when the Hub does not answer."""
    # Bars of the libraries would be drawn over ours.
    _set("TQDM_DISABLE", "1")
    _set("HF_HUB_DISABLE_TELEMETRY", "1")
    if data_dir is not None:
        _set("HF_DATASETS_OFFLINE", "1")
    if (data_dir is not None and Path(model).is_dir()) or not _hub_answers():
        _set("HF_HUB_OFFLINE", "1")


def _set(name: str, value: str) -> None:
    """The user's own setting wins."""
    if not os.environ.get(name):
        os.environ[name] = value


def _hub_answers() -> bool:
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        # Only the proxy knows; the libraries will find out.
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=_SECONDS):
            return True
    except OSError:
        return False
