"""`README.md` of a repository of GGUF files: every figure is from the record of their verification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ant_hf.card.markdown import Safe, code, table
from ant_hf.card.rendering import fill_template

_PROMPT = "The basic principles of small language models require"
# By name in Ollama.
_FLAGS = {
    "temperature": "temp", "top_k": "top-k", "top_p": "top-p", "min_p": "min-p",
    "repeat_penalty": "repeat-penalty", "repeat_last_n": "repeat-last-n",
}  # fmt: skip


def gguf_repository(repository: str) -> str:
    """Where the GGUF files of a model are published: `owner/name-GGUF`, as is usual on the Hub."""
    return f"{repository}-GGUF"


def render_gguf_card(
    record: Mapping[str, Any],
    repository: str,
    best: str,
    params: Mapping[str, Any],
    original: Mapping[str, Any],
) -> str:
    """The card's text.

    Args:
        record: verified.json of the export, run in llama.cpp too.
        repository: of the model that the files were made of.
        best: the type to start with.
        params: sampling, by Ollama's names.
        original: the metadata of that model's card.
    """
    runs = {name: values for name, values in record["files"].items() if "verified" in values}
    first = next(iter(runs.values()))["verified"]["llama_cpp"]
    kinds = [values["type"] for values in runs.values()]
    target = gguf_repository(repository)
    context = {
        "name": target.rpartition("/")[2],
        "repository": Safe(target),
        "original": Safe(repository),
        "completes": "template" in record["files"],
        "tables": {"files": _files_table(runs)},
        "best": Safe(best.upper()),
        "bytes": first["bytes"],
        "bits": first["bits_per_byte"] - first["bits_per_byte_difference"],
        "prompts": first["prompts"],
        "texts": first["texts"],
        "mixed": Safe(", ".join(kind for kind in kinds if kind[:2] in ("Q4", "Q5"))),
        "flags": Safe(" ".join(f"--{flag} {params[key]}" for key, flag in _FLAGS.items() if key in params)),
        "prompt": Safe(_PROMPT),
        "weights": record["made_of"]["weights_sha256"],
        "versions": record["versions"],
        "notes": record["notes"],
    }
    # No library_name: a format is none, and the Hub knows GGUF by the files.
    data = ModelCardData(
        base_model=repository,
        base_model_relation="quantized",
        language=original.get("language"),
        license=original["license"],
        license_name=original.get("license_name"),
        pipeline_tag="text-generation",
        tags=["gguf", "llama", "small-language-model", "ant-hf"],
    )
    body = fill_template("model_card/gguf.md.jinja", context)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _files_table(runs: Mapping[str, Mapping[str, Any]]) -> Safe:
    rows = []
    for name, values in runs.items():
        run = values["verified"]["llama_cpp"]
        loss, error = run["bits_per_byte_difference"], run["bits_per_byte_difference_stderr"]
        share = loss / (run["bits_per_byte"] - loss)
        # Without a minus before a zero.
        loss, share = round(loss, 4) + 0.0, round(share, 4) + 0.0
        rows.append([
            code(name),
            f"{values['bytes']:,}",
            f"{run['bits_per_byte']:.4f}",
            f"{loss:+.4f} ± {error:.4f} ({share:+.2%})",
            f"{run['prompts_with_equal_output']} of {run['prompts']}",
        ])  # fmt: skip
    header = ["file", "bytes", "bits per byte, in llama.cpp", "loss against the original"]
    return table([*header, "same greedy text"], rows)
