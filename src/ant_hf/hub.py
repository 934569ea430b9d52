"""Talking to the Hub: the token, time limits, retries, and errors as one line without secrets.

huggingface_hub repeats single requests by itself in places, has no time limit by default, and does not
repeat the commit. Here a whole step is repeated, so that what repeats it knows what it may repeat.
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, constants, get_session, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import logging

from ant_hf.errors import AntError
from ant_hf.utils.console import say

T = TypeVar("T")
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_HOW_TO_LOG_IN = (
    "Make one that may write at https://huggingface.co/settings/tokens, then run: hf auth login "
    "(or set HF_TOKEN)"
)
_LONGEST_WAIT = 60.0


class HubUnreachableError(AntError):
    """The Hub or the line failed in all attempts; later it may work."""


class HubClient:
    """An `HfApi` whose steps are repeated when the Hub or the line fails.

    Args:
        token: of the account; default: the one huggingface_hub finds (HF_TOKEN, or `hf auth login`).
        attempts: how often a step is tried.
        timeout: seconds without a byte after which a request counts as failed.
        anonymous: go on without a token, which is enough to read public repositories.

    Raises:
        AntError: there is no token.
    """

    def __init__(
        self, token: str | None = None, attempts: int = 5, timeout: float = 60.0, anonymous: bool = False
    ) -> None:
        self._token = token or get_token()
        if not self._token and not anonymous:
            raise AntError("no Hub token found", hint=_HOW_TO_LOG_IN)
        self.attempts = attempts
        self.api = HfApi(token=self._token or False)
        # huggingface_hub's own clients wait for ever; keep their hooks and give them a limit.
        hooks = get_session().event_hooks
        set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=timeout))
        # Its warnings quote upload addresses, which are signed.
        logging.set_verbosity_error()

    def redact(self, text: str) -> str:
        """A text without this token, and without anything shaped like one."""
        known = text.replace(self._token, "hf_***") if self._token else text
        return re.sub(r"\bhf_[A-Za-z0-9]{8,}", "hf_***", known)

    def account(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the Hub says of the token's owner, and of the token: its `role` may be `read`."""
        account = self.step("asking who the token belongs to", self.api.whoami)
        return account, account.get("auth", {}).get("accessToken", {})

    def step(
        self,
        what: str,
        call: Callable[[], T],
        after_failure: Callable[[], T | None] | None = None,
        also: tuple[int, ...] = (),
    ) -> T:
        """Do one step, again after transient failures.

        Args:
            what: the step in words, for messages.
            after_failure: looks whether the step was done although its answer was lost; its result,
                if not None, is the step's.
            also: further statuses after which the step is tried again.

        Raises:
            AntError: the step failed for good; one line, says what to do.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return call()
            except AntError:
                raise
            except Exception as error:
                if attempt == self.attempts or not (is_transient(error) or status_of(error) in also):
                    raise self.explain(what, error, attempt) from None
                seconds = _wait(error, attempt)
                say(f"hub         {what}: {self._brief(error)}; trying again in {seconds:.0f} s")
                time.sleep(seconds)
            if after_failure and (done := self.step(f"{what}, looking what arrived", after_failure)):
                return done
        raise AssertionError("the last attempt returns or raises")

    def explain(self, what: str, error: Exception, attempts: int = 1) -> AntError:
        """The user's view of an error of huggingface_hub."""
        times = f" ({attempts} attempts)" if attempts > 1 else ""
        status = status_of(error)
        hint = "Run the same command again; what has arrived is not sent again"
        if isinstance(error, OfflineModeIsEnabled):
            hint = "Unset HF_HUB_OFFLINE"
        elif status == 401:
            hint = f"The token was refused. {_HOW_TO_LOG_IN}"
        elif status == 403:
            hint = f"The token may not do this. {_HOW_TO_LOG_IN}"
        elif isinstance(error, RepositoryNotFoundError):
            hint = "Check --repo; a private repository needs a token of its owner"
        kind = HubUnreachableError if is_transient(error) else AntError
        return kind(f"{what} failed{times}: {self._brief(error)}", hint=hint)

    def _brief(self, error: Exception) -> str:
        status = status_of(error)
        if isinstance(error, OfflineModeIsEnabled):
            return "offline mode is on"
        if status is not None:
            detail = getattr(_http_error(error), "server_message", None) or ""
            return self.redact(f"the Hub answered {status} {detail}".strip())
        root = _root(error)
        return self.redact(f"{type(root).__name__} {' '.join(str(root).split())[:200]}".strip())


@contextmanager
def hub_or_cache(seconds: float = 5.0) -> Iterator[None]:
    """Downloads of this block come from the Hub if it answers one request in time, else from the caches.

    By themselves huggingface_hub waits for ever, and datasets asks half a minute for each file.
    """
    modules = ("huggingface_hub.constants", "datasets.config")
    loaded: list[Any] = [sys.modules[name] for name in modules if name in sys.modules]
    before = [module.HF_HUB_OFFLINE for module in loaded]
    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except (httpx2.TransportError, OfflineModeIsEnabled):
        for module in loaded:
            module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(loaded, before, strict=True):
            module.HF_HUB_OFFLINE = value


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, if there is one."""
    found = _http_error(error)
    return found.response.status_code if found is not None and found.response is not None else None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: time-outs, cut connections, 429 and 5xx."""
    status = status_of(error)
    return status in _TRANSIENT if status is not None else isinstance(_root(error), httpx2.TransportError)


def _http_error(error: BaseException | None) -> HfHubHTTPError | None:
    """The Hub's answer may be the cause of another error, as in uploads by threads."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error
        error = error.__cause__
    return None


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None and not isinstance(error, httpx2.TransportError):
        error = error.__cause__
    return error


def _wait(error: BaseException, attempt: int) -> float:
    """Seconds before the next attempt: what the Hub asks for, else 1, 2, 4, ... with some spread."""
    found = _http_error(error)
    asked = found.response.headers.get("Retry-After", "") if found is not None and found.response else ""
    seconds = float(asked) if asked.isdecimal() else 2.0 ** (attempt - 1) * random.uniform(0.8, 1.2)
    return min(seconds, _LONGEST_WAIT)
