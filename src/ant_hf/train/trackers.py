"""Where a run's metrics go besides `metrics.jsonl`: Trainer's integrations, checked before work starts."""

from __future__ import annotations

import os
from importlib.util import find_spec

from ant_hf.errors import AntError
from ant_hf.recipe import Integration
from ant_hf.utils.console import is_first_process

PROJECT = "ant-hf"


def check_reporting(names: list[Integration]) -> None:
    """Find what Trainer would only find after the data is prepared.

    Raises:
        AntError: a package is missing, or wandb has no account to write to and would wait for an answer.
    """
    if not is_first_process():
        return
    for name in names:
        if find_spec(name) is None:
            raise AntError(
                f"training.report_to names {name!r}, which is not installed",
                hint=f"pip install {name} (or leave it out: --report-to none)",
            )
    if "wandb" in names:
        _check_wandb()


def _check_wandb() -> None:
    import wandb

    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    if wandb.setup().settings.mode != "online":
        return
    try:
        known = wandb.login(prompt=False)
    except TypeError:
        # An older wandb, as in Colab's image, without that argument.
        known = bool(wandb.api.api_key)
    if not known:
        raise AntError(
            "training.report_to names wandb, and no account is logged in",
            hint="Run: wandb login (or set WANDB_API_KEY, or WANDB_MODE=offline to keep the metrics here)",
        )
