"""Files of `model_card/` that the package carries."""

from __future__ import annotations

from pathlib import Path


def shipped_file(name: str) -> Path:
    """Where a file of model_card/ lies: inside the package in a wheel, in the checkout otherwise."""
    packaged = Path(__file__).with_name(name)
    return packaged if packaged.is_file() else Path(__file__).parents[2] / "model_card" / name
