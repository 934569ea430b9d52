"""huggingface_hub in this process against another Hub: it reads its environment at import, once."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from huggingface_hub import close_session, constants, hf_api
from huggingface_hub.utils import _auth, _http, logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars


@contextmanager
def at_hub(endpoint: str, home: Path, **environment: str) -> Iterator[None]:
    """What `HF_ENDPOINT` and `HF_HOME` would set in a new process, and `environment` besides.

    The clients are unmodified; those that a command has set up are gone afterwards.
    """
    values = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    factory, level = _http._GLOBAL_CLIENT_FACTORY, logging.get_verbosity()
    bars = not are_progress_bars_disabled()
    close_session()
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    with (
        mock.patch.multiple(constants, **values),
        mock.patch.object(hf_api.api, "endpoint", endpoint),
        # Tokens of CI jobs are kept for the life of a process.
        mock.patch.object(_auth, "_OIDC_TOKEN_CACHE", None),
        mock.patch.dict(os.environ, environment),
        warnings.catch_warnings(),
    ):
        # It uploads in a way that its HTTP library would have otherwise; no test of ours is about that.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="huggingface_hub|httpx2")
        os.environ.pop("HF_HUB_OFFLINE", None)
        try:
            yield
        finally:
            _http.set_client_factory(factory)
            logging.set_verbosity(level)
            if bars:
                enable_progress_bars()
