"""Published claims about models, as data, beside which our own figures are shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


def shipped_file(name: str) -> Path:
    """Where a file of model_card/ lies: inside the package in a wheel, in the checkout otherwise."""
    packaged = Path(__file__).with_name(name)
    return packaged if packaged.is_file() else Path(__file__).parents[2] / "model_card" / name


@dataclass(frozen=True)
class PublishedModel:
    """What a public card says of one model."""

    name: str
    repository: str
    source: str
    parameters: int
    """The figure as printed there."""
    parameters_rounded: bool
    """Whether the card gives millions only."""
    architecture: dict[str, Any]
    results: dict[str, dict[str, float]]
    """Accuracies as fractions and perplexities, as printed: lm-eval's task name, then the metric."""
    claims: dict[str, Any] = field(default_factory=dict)
    """The card's other figures, as printed."""


def published_models() -> list[PublishedModel]:
    """Every entry of model_card/published.yaml."""
    entries = yaml.safe_load(shipped_file("published.yaml").read_text(encoding="utf-8"))
    return [PublishedModel(**entry) for entry in entries]


def published_counterpart(config: Any) -> PublishedModel | None:
    """The published model whose architecture `config` (a `PreTrainedConfig`) has, if there is one."""
    for model in published_models():
        if all(getattr(config, key, None) == value for key, value in model.architecture.items()):
            return model
    return None
