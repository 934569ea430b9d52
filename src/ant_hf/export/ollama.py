"""The `Modelfile` from which `ollama create` makes a model of a GGUF file."""

from __future__ import annotations

from ant_hf.model.generation import CARD_SAMPLING


def modelfile(file: str, context: int, license_id: str | None) -> str:
    """A plain completion model with the sampling of the public card.

    The template is the prompt alone: this is no chat model, and Ollama would put one around it.
    """
    lines = [f"FROM ./{file}", "TEMPLATE {{ .Prompt }}", f"PARAMETER num_ctx {context}"]
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters().items()]
    if license_id:
        lines.append(f"LICENSE {license_id}")
    return "\n".join(lines) + "\n"


def _parameters() -> dict[str, float]:
    """The card's sampling under Ollama's names.

    Ollama keeps the 40 likeliest tokens and penalizes the last 64 by default; Transformers, by which the
    card samples, keeps the 50 likeliest and penalizes all of the context.
    """
    return {
        "temperature": CARD_SAMPLING["temperature"],
        "top_p": CARD_SAMPLING["top_p"],
        "top_k": 50,
        "min_p": 0.0,
        "repeat_penalty": CARD_SAMPLING["repetition_penalty"],
        "repeat_last_n": -1,
    }
