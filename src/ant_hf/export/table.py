"""What an export's verification saw, for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

_COLUMNS = ("MB", "logits", "texts", "greedy", "nats", "tokens/s")


def verified_table(record: dict[str, Any]) -> Table:
    """One row a verified file."""
    table = Table(
        title=f"{record['name']}: verified against Transformers in float32",
        title_justify="left",
        caption="logits: largest difference; texts: cut into the same tokens; greedy: prompts continued "
        "alike; nats: difference of a token's mean likelihood in llama.cpp; tokens/s: one output there",
        caption_justify="left",
    )
    table.add_column("file", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for name, values in record["files"].items():
        if "verified" in values:
            # An ONNX graph keeps its weights in a file beside it.
            size = sum(other["bytes"] for path, other in record["files"].items() if path.startswith(name))
            table.add_row(name, f"{size / 1e6:.1f}", *_cells(values["verified"]))
    return table


def _cells(verified: dict[str, Any]) -> list[str]:
    if (onnx := verified.get("onnxruntime")) is not None:
        return [f"{onnx['largest_logit_difference']:.1e}", "", _outputs(onnx), "", ""]
    difference = f"{verified['transformers']['largest_logit_difference']:.1e}"
    if (run := verified["llama_cpp"]) is None:
        return [difference, *["not run"] * 4]
    return [
        difference,
        f"{run['texts_with_equal_tokens']:,}",
        _outputs(run),
        f"{run['nats_per_token_difference']:+.4f}",
        f"{run['tokens_per_second']:,.0f}",
    ]


def _outputs(run: dict[str, Any]) -> str:
    return f"{run['prompts_with_equal_output']}/{run['prompts']}"
