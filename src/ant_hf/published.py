"""Published claims about models, as data, beside which our own figures are shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from ant_hf.utils.names import shipped_file


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
    entries = yaml.safe_load(shipped_file("model_card/published.yaml").read_text(encoding="utf-8"))
    return [PublishedModel(**entry) for entry in entries]


def published_counterpart(config: Any) -> PublishedModel | None:
    """The published model whose architecture `config` (a `PreTrainedConfig`) has, if there is one."""
    for model in published_models():
        if all(getattr(config, key, None) == value for key, value in model.architecture.items()):
            return model
    return None
