"""Load the models and start the page, here or in a Space."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

# Read when Gradio is imported: nobody is told that this page was opened.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import torch

from ant_hf.demo.look import launch_options
from ant_hf.demo.page import build_page
from ant_hf.model.loading import load_subject


def load_page(models: Sequence[str]) -> gr.Blocks:
    """The page of one or two model folders or Hub ids, in fp32 on the GPU if there is one.

    Raises:
        AntError: a model cannot be loaded.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return build_page([load_subject(model, "float32", device) for model in models])


def launch(page: gr.Blocks, **where: Any) -> gr.Blocks:
    """Start the page's server in a thread.

    Raises:
        OSError: there is no free port.
    """
    page.launch(
        **launch_options(),
        **where,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
    )
    return page


def serve_space(models: Sequence[str]) -> None:
    """Serve the page where GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say, as they do in a Space."""
    launch(load_page(models)).block_thread()
