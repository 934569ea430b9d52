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


@dataclass(frozen=True)
class PublishedRow:
    """What the authors of a model print for the sets of public boards."""

    name: str
    parameters: int
    results: dict[str, dict[str, str]]
    """As printed, accuracies in %: lm-eval's task name, then the metric."""
    source: str
    looked_up: str
    tokens: str | None = None
    tuned_on: list[str] | None = None
    """Sets whose own training questions were trained on; None where the authors say nothing."""


def published_models() -> list[PublishedModel]:
    """The public cards of model_card/published.yaml."""
    return [PublishedModel(**entry) for entry in _published()["models"]]


def published_rows() -> list[PublishedRow]:
    """The rows for boards of model_card/published.yaml."""
    return [PublishedRow(**entry) for entry in _published()["rows"]]


def _published() -> dict[str, list[dict[str, Any]]]:
    text = shipped_file("model_card/published.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def published_counterpart(config: Any) -> PublishedModel | None:
    """The published model whose architecture `config` (a `PreTrainedConfig`) has, if there is one."""
    for model in published_models():
        if all(getattr(config, key, None) == value for key, value in model.architecture.items()):
            return model
    return None
