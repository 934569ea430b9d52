"""One way to silence the libraries below us: what is worth saying, our own code says."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LIBRARIES = ("transformers", "huggingface_hub", "datasets", "lm_eval", "torch.onnx")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No notes below errors and no progress bars of the libraries that are loaded."""
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    shown = list(_shown_bars())
    for hide, _ in shown:
        hide()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for _, show in shown:
            show()


def _shown_bars() -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """What hides and what shows the bars of each library that is loaded and shows them."""
    if "transformers" in sys.modules:
        from transformers.utils import logging as bars

        if bars.is_progress_bar_enabled():
            yield bars.disable_progress_bar, bars.enable_progress_bar
    if "datasets" in sys.modules:
        import datasets

        if not datasets.are_progress_bars_disabled():
            yield datasets.disable_progress_bars, datasets.enable_progress_bars
