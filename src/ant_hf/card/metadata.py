"""The card's YAML head: real Hub keys only, and the results as the Hub shows them (`model-index`)."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ant_hf.card.benchmarks import Row
from ant_hf.card.inputs import CardInputs
from ant_hf.card.markdown import plain
from ant_hf.errors import AntError

# Keys of the Hub's model card specification that we use. ModelCardData would let a misspelt one pass.
KEYS = {
    "language", "license", "license_name", "library_name", "pipeline_tag", "tags", "datasets", "metrics",
    "co2_eq_emissions", "model-index",
}  # fmt: skip
_TAGS = ["llama", "small-language-model", "trained-from-scratch", "ant-hf"]
_DATASET_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_LICENSE_ID = re.compile(r"^[a-z0-9][a-z0-9.+-]*$")
# Where the Hub keeps each set: dataset, configuration, split.
_SETS: dict[str, tuple[str, str | None, str]] = {
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "piqa": ("ybisk/piqa", None, "validation"),
    "winogrande": ("allenai/winogrande", "winogrande_xl", "validation"),
    "mmlu": ("cais/mmlu", "all", "test"),
    "sciq": ("allenai/sciq", None, "test"),
    "boolq": ("google/boolq", None, "validation"),
    "hellaswag": ("Rowan/hellaswag", None, "validation"),
    "blimp": ("nyu-mll/blimp", None, "train"),
    "lambada_openai": ("EleutherAI/lambada_openai", None, "test"),
    "openbookqa": ("allenai/openbookqa", "main", "test"),
    "arithmark_2.0": ("AxiomicLabs/ArithMark-2.0", None, "train"),
    "wikitext": ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test"),
}


def card_data(
    inputs: CardInputs, rows: list[Row], wikitext: dict[str, Any] | None, co2: dict[str, Any] | None
) -> ModelCardData:
    """The metadata; only complete sets that exist on the Hub enter the `model-index`."""
    if not _LICENSE_ID.match(inputs.license):
        raise AntError(
            "the licence is no Hub licence id", seen=inputs.license, expected="for example apache-2.0 or mit"
        )
    corpus = inputs.recipe["corpus"]
    dataset = corpus["path"] if corpus["source"] == "hub" else None
    results = [_accuracy(inputs, row) for row in rows if row.complete and row.task in _SETS]
    if wikitext and wikitext["complete"]:
        results += [_perplexity(wikitext, key) for key in ("byte_perplexity", "bits_per_byte")]
    emissions: dict[str, Any] = {"co2_eq_emissions": co2} if co2 else {}
    data = ModelCardData(
        model_name=inputs.name,
        language="en",
        license=inputs.license,
        license_name="see-card" if inputs.license == "other" else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[*_TAGS, "gguf"] if inputs.exported else _TAGS,
        datasets=[dataset] if dataset and _DATASET_ID.match(dataset) else None,
        metrics=["accuracy", "perplexity"] if results else None,
        eval_results=results or None,
        **emissions,
    )
    if not results:
        # Without results there is no model-index to hold the name, and `model_name` is no key of a card.
        data.model_name = None
    if unknown := sorted(data.to_dict().keys() - KEYS):
        raise AntError("the card's metadata has keys that the Hub does not know", seen=unknown)
    return data


def _accuracy(inputs: CardInputs, row: Row) -> EvalResult:
    dataset, config, split = _SETS[row.task]
    return EvalResult(
        task_type="text-generation",
        task_name="Zero-shot, lm-evaluation-harness",
        dataset_type=dataset,
        dataset_name=plain(row.label),
        dataset_config=config,
        dataset_split=split,
        metric_type=row.metric,
        metric_name=f"{row.metric} (standard error {row.stderr:.4f})",
        metric_value=round(row.value, 4),
    )


def _perplexity(values: dict[str, Any], key: str) -> EvalResult:
    dataset, config, split = _SETS["wikitext"]
    return EvalResult(
        task_type="text-generation",
        task_name="Language modelling",
        dataset_type=dataset,
        dataset_name=plain(values["label"]),
        dataset_config=config,
        dataset_split=split,
        metric_type=key,
        metric_name=key.replace("_", " "),
        metric_value=round(values[key], 4),
    )
