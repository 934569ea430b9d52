"""Serve the page on this computer alone, until Ctrl-C."""

from __future__ import annotations

import gc
import io
import logging
import socket
import time
from collections.abc import Sequence
from contextlib import redirect_stdout

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ant_hf.demo.page import launch, load_page
from ant_hf.errors import AntError
from ant_hf.utils.console import say

HOST = "127.0.0.1"
# The page's own library needs inline scripts and templates; nothing else may come from anywhere.
_POLICY = (
    b"default-src 'self' 'unsafe-inline' 'unsafe-eval'; img-src 'self' data: blob:; font-src 'self' data:; "
    b"connect-src 'self'; worker-src 'self' blob:; object-src 'none'; form-action 'self'"
)


class OnlyFromHere:
    """Tell the browser to load nothing from other hosts (Content-Security-Policy)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, its answer with the header added."""

        async def with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", _POLICY)]
            await send(message)

        await self.app(scope, receive, with_header)


def serve(models: Sequence[str], port: int | None = None, share: bool = False) -> None:
    """Load the models and serve the page on 127.0.0.1 until Ctrl-C.

    Args:
        models: one folder or Hub id, or two to compare.
        port: default: the first free one from 7860.
        share: also give it a public address, through Gradio's servers, for a week at most.

    Raises:
        AntError: a model cannot be loaded, or the port or the public address cannot be had.
    """
    if port is not None:
        _refuse_busy(port)
    page = load_page(models)
    secured = {} if share else {"middleware": [Middleware(OnlyFromHere)]}
    told = io.StringIO()
    try:
        with redirect_stdout(told):
            launch(page, server_name=HOST, server_port=port, share=share, app_kwargs=secured)
    except OSError as error:
        raise AntError(f"the page cannot be served: {error}", hint="Pass another --port.") from None
    try:
        if share and not page.share_url:
            reason = next(filter(None, told.getvalue().splitlines()), "no reason given").strip(" .")
            hint = "Check the network, or leave out --share to try the model on this computer."
            raise AntError(f"the page did not get a public address: {reason}", hint=hint)
        # Within, because Ctrl-C may come at once.
        say("demo", f"{page.local_url}  (Ctrl-C ends it)")
        if page.share_url:
            say("public", page.share_url)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        say("demo", "ended")
    finally:
        # Open pages keep connections for ever; that they are cut is not an error to report.
        logging.getLogger("uvicorn.error").disabled = True
        page.server.force_exit = True
        page.close(verbose=False)
        # Python would look through all that the libraries hold before it ends: seconds on a busy computer.
        gc.freeze()


def _refuse_busy(port: int) -> None:
    with socket.socket() as trial:
        # As the server will do it: a port that has just been given back is free.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except OSError as error:
            raise AntError(
                f"port {port} of {HOST} cannot be used: {error.strerror}",
                hint="Pass another --port, or leave it out to take the first free one from 7860.",
            ) from None
