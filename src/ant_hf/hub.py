"""Talking to the Hub: the token, time limits, retries, and errors as one line without secrets.

huggingface_hub repeats single requests by itself in places, has no time limit by default, and does not
repeat the commit. Here a whole step is repeated, so that what repeats it knows what it may repeat.
"""

from __future__ import annotations

import importlib
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import HfApi, constants, get_session, get_token, set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging, parse_ratelimit_headers  # type: ignore[attr-defined]

from ant_hf.errors import AntError
from ant_hf.utils.console import say

# huggingface_hub 2 speaks through httpx2 and 1 through httpx; what is caught must be what it raises.
httpx: Any = importlib.import_module("httpx" if huggingface_hub.__version__.startswith("1.") else "httpx2")
T = TypeVar("T")
_TRANSIENT = {408, 425, 429}
HOW_TO_LOG_IN = (
    "Create one that may write at https://huggingface.co/settings/tokens, then run: hf auth login "
    "(or set HF_TOKEN)"
)
# Names the repository that a CI job, known to the Hub as a Trusted Publisher, gets an hour's token for
# (huggingface_hub 1.19 or newer): https://huggingface.co/docs/hub/trusted-publishers
_PUBLISHER = "HF_OIDC_RESOURCE"
# The Hub counts requests in windows of five minutes: https://huggingface.co/docs/hub/rate-limits
_LONGEST_WAIT, _LONGEST_ASKED = 60.0, 300.0
_LONGEST_TEXT = 1000
# What a full account is told.
_QUOTA = re.compile(r"quota|storage (limit|space)|exceeded your|upgrade your", re.IGNORECASE)
# Only signed addresses have one, and they run out: of uploads, of their last part, of downloads.
_SIGNATURE = re.compile(r"[?&](x-amz-)?signature=", re.IGNORECASE)
# huggingface_hub's words for what the Hub answers about single files, and hf_xet's for a status.
_BATCH_REFUSED = re.compile(r"LFS batch API returned errors:|Encountered error for file with OID \w+:")
_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})")
_WRITE = "repo.write"


class HubUnreachableError(AntError):
    """The Hub or the line failed in all attempts; later it may work."""


class HubClient:
    """An `HfApi` whose steps are repeated when the Hub or the line fails.

    Args:
        token: of the account; default: the one huggingface_hub finds (HF_TOKEN, or `hf auth login`).
        attempts: how often a step is tried.
        timeout: seconds without a byte after which a request counts as failed.
        anonymous: continue without a token, which is enough to read public repositories.

    Raises:
        AntError: there is no token, or the Hub gives none to this CI job.
    """

    def __init__(
        self, token: str | None = None, attempts: int = 5, timeout: float = 60.0, anonymous: bool = False
    ) -> None:
        self._publishes = None if token else os.environ.get(_PUBLISHER)
        self.attempts, self._timeout = attempts, timeout
        self._token: str | None = None
        if self._publishes:
            self._token = self.step("asking for this CI job's token", self._exchanged)
        else:
            self._token = token or get_token()
        if not self._token and not anonymous:
            raise AntError("no Hub token found", hint=HOW_TO_LOG_IN)
        self.api = HfApi(token=self._token or False)
        # huggingface_hub's own clients wait for ever; keep their hooks and give them a limit.
        hooks = get_session().event_hooks
        set_client_factory(lambda: httpx.Client(event_hooks=hooks, follow_redirects=True, timeout=timeout))
        # Its warnings quote upload addresses, which are signed.
        logging.set_verbosity_error()

    def _exchanged(self) -> str | None:
        """The token that the Hub gives to this CI job for what the job itself is."""
        try:
            return get_token()
        except Exception as error:
            if is_transient(error):
                raise
            raise AntError(
                f"the Hub did not give this CI job a token for {self._publishes}: {self._brief(error)}",
                hint="The repository must exist and name this job as a Trusted Publisher, in "
                f"https://huggingface.co/{self._publishes}/settings, and the job needs the permission "
                "id-token: write. docs/releasing.md has the steps",
            ) from None

    def of_repository(self, repository: str, kind: str = "model") -> HubClient:
        """A client for this repository: in a job of a Trusted Publisher one with a token for it alone.

        Raises:
            AntError: this CI job is not a Trusted Publisher of that repository.
        """
        resource = repository if kind == "model" else f"{kind}s/{repository}"
        if self._publishes in (None, resource):
            return self
        os.environ[_PUBLISHER] = resource
        return HubClient(attempts=self.attempts, timeout=self._timeout)

    @property
    def is_anonymous(self) -> bool:
        """Whether there is no token."""
        return not self._token

    @property
    def missing_or_private(self) -> str:
        """What it means that the Hub finds no repository, and what to do: it does not tell the two apart."""
        seen = "no Hub token was found" if self.is_anonymous else "the Hub token found here may not read it"
        return (
            f"It does not exist, or it is private and {seen}. Check the name; for a private one log in with "
            "an account that may read it: hf auth login"
        )

    def is_unseen(self, error: Exception) -> bool:
        """Whether the Hub shows no such repository to this token, or to none."""
        found = _http_error(error)
        is_hidden = self.is_anonymous and status_of(error) == 401
        return is_hidden or (
            isinstance(found, RepositoryNotFoundError) and not isinstance(found, GatedRepoError)
        )

    def redact(self, text: str) -> str:
        """A text on one line, without this token, anything shaped like one, and signatures of addresses."""
        known = text.replace(self._token, "hf_***") if self._token else text
        known = re.sub(r"\bhf_(?:jwt_|oauth_)?[A-Za-z0-9][\w.-]{7,}", "hf_***", known)
        return " ".join(re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?...", known).split())

    def check_may_write(self, repository: str, kind: str = "model") -> str:
        """The name of the token's account, which must be allowed to write to a repository.

        Args:
            kind: `model` or `space`.

        Raises:
            AntError: the token may only read, belongs to an account without rights under the owner, or is a
                fine-grained one for other repositories (names them, and the right that is missing).
        """
        if self.is_anonymous:
            raise AntError("no Hub token found", hint=HOW_TO_LOG_IN)
        if self._publishes:
            # The Hub has checked the job, and the token is nobody's account.
            return f"the Trusted Publisher of {self._publishes}"
        owner = repository.partition("/")[0]
        # The Hub counts how often this is asked.
        account = self.step("asking who the token belongs to", lambda: self.api.whoami(cache=True))
        name, access = str(account["name"]), account.get("auth", {}).get("accessToken", {})
        if access.get("role") == "read":
            raise AntError(f"the token of {name} may only read", hint=HOW_TO_LOG_IN)
        writable = [org["name"] for org in account.get("orgs", []) if org.get("roleInOrg") != "read"]
        if owner not in (name, *writable):
            raise AntError(
                f"{name} may not write under {owner}",
                seen=owner,
                expected=" or ".join([name, *writable]),
                hint=f"Use --repo {name}/NAME, or log in with another account: hf auth login",
            )
        rights = access.get("fineGrained") or {}
        scopes = [
            (str(scope.get("entity", {}).get("name")), scope.get("entity", {}).get("type", kind))
            for scope in rights.get("scoped", [])
            if _WRITE in scope.get("permissions", [])
        ]
        covers = any(where == owner or (where, what) == (repository, kind) for where, what in scopes)
        if access.get("role") == "fineGrained" and not covers and _WRITE not in rights.get("global", []):
            raise AntError(
                f"the fine-grained token {access.get('displayName')!r} of {name} lacks the right to write "
                f"({_WRITE}) to the {kind} {repository}",
                seen=f"{_WRITE} for {', '.join(where for where, _ in scopes) or 'nothing'}",
                expected=f"{_WRITE} for {owner} (a new repository needs it) or for {repository}",
                hint="Edit the token at https://huggingface.co/settings/tokens: tick the write access to all "
                f"repos of {owner}, or add {repository} under Repositories permissions",
            )
        return name

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
                say("hub", f"{what}: {self._brief(error)}; trying again in {seconds:.0f} s")
                time.sleep(seconds)
            if after_failure and (done := self.step(f"{what}, checking what arrived", after_failure)):
                return done
        raise AssertionError("the last attempt returns or raises")

    def explain(self, what: str, error: Exception, attempts: int = 1) -> AntError:
        """The user's view of an error of huggingface_hub."""
        times = f" ({attempts} attempts)" if attempts > 1 else ""
        kind = HubUnreachableError if is_transient(error) else AntError
        return kind(f"{what} failed{times}: {self._brief(error)}", hint=self._hint(error))

    def _hint(self, error: Exception) -> str:
        found, status = _http_error(error), status_of(error)
        if isinstance(_root(error), OfflineModeIsEnabled):
            return "Unset HF_HUB_OFFLINE"
        if _is_full(error):
            return "Free space in that account, or ask for more; then run the same command again"
        if isinstance(found, GatedRepoError):
            return (
                "Its owner lets only some accounts read it: ask for access on its page on the Hub, then run "
                "hf auth login with that account"
            )
        if self.is_unseen(error):
            return self.missing_or_private
        if isinstance(found, RevisionNotFoundError):
            return "The repository has no commit, tag or branch of this name: check --revision"
        if is_transient(error):
            return "Run the same command again; what has arrived is not sent again"
        if status == 403 and self.is_anonymous:
            return f"Only accounts may do this, and no Hub token was found. {HOW_TO_LOG_IN}"
        if status == 401:
            where = " from the variable HF_TOKEN" if os.environ.get("HF_TOKEN") == self._token else ""
            return f"The token{where} was refused. {HOW_TO_LOG_IN}"
        if status == 403:
            return f"The token may not do this. {HOW_TO_LOG_IN}"
        if status is not None and status not in (409, 412):
            return "Trying again will not help: change what the Hub complains about first"
        return "Run the same command again; what has arrived is not sent again"

    def _brief(self, error: Exception) -> str:
        root = _root(error)
        if isinstance(root, OfflineModeIsEnabled):
            return "offline mode is on"
        if found := _http_error(error):
            detail = getattr(found, "server_message", None) or ""
            # What storages answer is XML.
            detail = "".join(re.findall(r"<Message>(.*?)</Message>", detail, re.DOTALL)) or detail
            who = "storage" if _is_of_storage(found) else "Hub"
            text = f"the {who} answered {found.response.status_code} {detail}"
        elif _BATCH_REFUSED.search(str(root)):
            text = f"the Hub does not accept files: {_BATCH_REFUSED.sub('', str(root)).replace('`', '')}"
        else:
            text = f"{type(root).__name__} {root}"
        return self.redact(text)[:_LONGEST_TEXT].rstrip(" .")


@contextmanager
def hub_or_cache(seconds: float = 5.0) -> Iterator[None]:
    """Downloads of this block come from the Hub if it answers one request in time, else from the caches.

    Left alone, huggingface_hub waits for ever, and datasets asks half a minute for each file.
    """
    modules = ("huggingface_hub.constants", "datasets.config")
    loaded: list[Any] = [sys.modules[name] for name in modules if name in sys.modules]
    before = [module.HF_HUB_OFFLINE for module in loaded]
    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except (httpx.TransportError, OfflineModeIsEnabled):
        for module in loaded:
            module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(loaded, before, strict=True):
            module.HF_HUB_OFFLINE = value


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, if there is one."""
    if found := _http_error(error):
        return found.response.status_code
    in_words = _XET_STATUS.search(str(_root(error)))
    return int(in_words[1]) if in_words else None


def is_transient(error: BaseException) -> bool:
    """Whether the same step may succeed later.

    So it is after time-outs, cut connections, 408, 425, 429 and 5xx, and after anything that a signed address
    of the storage answers: such addresses run out, and the step asks for new ones.
    """
    found, root, status = _http_error(error), _root(error), status_of(error)
    if isinstance(root, OfflineModeIsEnabled) or _is_full(error):
        return False
    if status is not None:
        of_storage = _is_of_storage(found) if found else not re.search(r"/xet-\w+-token", str(root))
        return of_storage or status in _TRANSIENT or status >= 500
    # The second is what hf_xet raises whenever its line fails; the third comes without a status.
    is_of_line = isinstance(root, (httpx.TransportError, ConnectionError))
    return is_of_line or bool(_BATCH_REFUSED.search(str(root)))


def _is_full(error: BaseException) -> bool:
    """Whether the account may store no more; the Hub has no status of its own for it."""
    found = _http_error(error)
    said = (found and found.server_message) or str(_root(error))
    return status_of(error) != 429 and bool(_QUOTA.search(said))


def _is_of_storage(error: HfHubHTTPError) -> bool:
    """Whether a signed address answered, and not the Hub itself, of which we ask for nothing by PUT."""
    request = error.response.request
    is_elsewhere = request.url.host != httpx.URL(constants.ENDPOINT).host
    is_signed = request.method == "PUT" or bool(_SIGNATURE.search(str(request.url)))
    return is_signed or (is_elsewhere and "X-Error-Code" not in error.response.headers)


def _http_error(error: BaseException | None) -> HfHubHTTPError | None:
    """The Hub's answer may be the cause of another error, as in uploads by threads."""
    while error is not None:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            return error
        error = error.__cause__
    return None


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None and not isinstance(error, httpx.TransportError):
        error = error.__cause__
    return error


def _wait(error: BaseException, attempt: int) -> float:
    """Seconds before the next attempt: what the Hub asks for, else 1, 2, 4, ... with some spread."""
    headers = found.response.headers if (found := _http_error(error)) else {}
    if (asked := headers.get("Retry-After", "")).isdecimal():
        return min(float(asked), _LONGEST_ASKED)
    if status_of(error) == 429 and (limit := parse_ratelimit_headers(headers)):
        # Counted in whole seconds.
        return min(limit.reset_in_seconds + 1.0, _LONGEST_ASKED)
    return min(2.0 ** (attempt - 1) * random.uniform(0.8, 1.2), _LONGEST_WAIT)
