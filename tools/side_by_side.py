"""Two measured models side by side: a Markdown table on stdout, and a figure of what each learned by tokens.

python tools/side_by_side.py release/Ant-10M docs/recipe/Ant-5M --figure docs/recipe/side-by-side.png

Each folder is named like its model and holds results.json (ant-hf evaluate) and metrics.jsonl (pretrain.py).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from ant_hf.card.markdown import code, table
from ant_hf.errors import AntError
from ant_hf.published import published_models
from ant_hf.utils.files import read_sealed
from ant_hf.utils.metrics import read_metrics
from ant_hf.utils.names import RESULTS
from ant_hf.utils.plots import BLUE, ORANGE, STYLE

# Task, label, metric; (value, standard error) of both models; floor; outputs of both, of rates.
_Figures = tuple[str, str, str, list[tuple[float, float | None]], float | None, list[int]]


def _figures(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[_Figures]:
    """What both models were measured on."""
    for task, values in ours["tasks"].items():
        if task in theirs["tasks"]:
            pair = [(one["value"], one["stderr"]) for one in (values, theirs["tasks"][task])]
            yield task, values["label"], values["metric"], pair, values["floor"], []
    for task, values in ours["perplexity"].items():
        if task in theirs["perplexity"]:
            metric, error = "byte_perplexity", "byte_perplexity_stderr"
            pair = [(one[metric], one[error]) for one in (values, theirs["perplexity"][task])]
            yield task, values["label"], metric, pair, None, []
    if ours.get("degeneration") and theirs.get("degeneration"):
        for way in ("greedy", "sampled"):
            loops = [one["degeneration"][way] for one in (ours, theirs)]
            pair = [(one["loop_rate"], one["stderr"]) for one in loops]
            outputs = [one["outputs"] for one in loops]
            yield "degeneration", f"{way} outputs that end in a loop", "loop_rate", pair, None, outputs


def _shown(value: float, error: float | None, outputs: int | None, scale: int) -> str:
    """With the standard error, if known; where no output did it, with the rate below which it is at 95 %."""
    if outputs and value == 0:
        # The rate at which `outputs` independent ones all stay clear with 5 %.
        return f"none of {outputs} (95 %: below {scale * (1 - 0.05 ** (1 / outputs)):.1f})"
    return f"{scale * value:.2f}" + ("" if error is None else f" ± {scale * error:.2f}")


def _difference(ours: tuple[float, float | None], theirs: tuple[float, float | None], scale: int) -> str:
    (a, a_error), (b, b_error) = ours, theirs
    if not (a or b):
        return ""
    difference = f"{scale * (a - b):+.2f}"
    if a_error is None or b_error is None:
        return difference
    return f"{difference} ± {scale * math.hypot(a_error, b_error):.2f}"


def side_by_side(first: Path, second: Path) -> str:
    """The sets both were measured on, in Markdown; accuracies and loop rates in percent.

    The error of a difference is that of independent samples; on the same items it is smaller, if both tend
    to be right on the same ones.

    Raises:
        AntError: a folder has no results.json, or one that was changed.
    """
    hint = "Measure the model: ant-hf evaluate"
    results = [
        read_sealed(folder / RESULTS, "evaluation results", hint, unsealed_format=None)
        for folder in (first, second)
    ]
    names = (first.name, second.name)
    published = {model.name: model.results for model in published_models()}
    rows = []
    for task, label, metric, pair, floor, outputs in _figures(*results):
        scale = 1 if "perplexity" in metric else 100
        claims = [published.get(name, {}).get(task, {}).get(metric) for name in names]
        rows.append(
            [label, code(metric)]
            + [_shown(*one, count, scale) for one, count in zip(pair, outputs or (None, None), strict=True)]
            + [_difference(*pair, scale)]
            + ["" if value is None else f"{scale * value:.2f}" for value in (floor, *claims)]
        )
    header = ["set", "metric", *names, "difference", "floor", *(f"published {name}" for name in names)]
    return table(header, rows, numbers_from=2)


def plot_learning(first: Path, second: Path, path: Path) -> None:
    """Held-out bits per byte of both runs by tokens seen.

    Raises:
        AntError: a metrics.jsonl is missing, damaged or without a score of the held-out text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.set_title("Held-out text while training")
        for folder, colour, marker in ((first, BLUE, "o"), (second, ORANGE, "s")):
            rows = [row for row in read_metrics(folder / "metrics.jsonl") if "eval_bits_per_byte" in row]
            if not rows:
                raise AntError(
                    f"{folder / 'metrics.jsonl'} has no score of the held-out text",
                    hint="Copy it from the folder of the run.",
                )
            tokens = [row["tokens_seen"] / 1e6 for row in rows]
            bits = [row["eval_bits_per_byte"] for row in rows]
            length = rows[-1]["eval_loss"] / math.log(2) / bits[-1]
            label = f"{folder.name}, {length:.2f} bytes a token ({bits[-1]:.3f} at the end)"
            axes.plot(tokens, bits, marker=marker, color=colour, label=label)
        axes.set_xlabel("tokens seen (millions)")
        axes.set_ylabel("bits per byte")
        axes.legend(frameon=False)
        figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs=2, type=Path, help="the folders of the two models")
    parser.add_argument("--figure", type=Path, required=True, help="where the figure goes")
    options = parser.parse_args()
    first, second = options.models
    try:
        shown = side_by_side(first, second)
        plot_learning(first, second, options.figure)
        print(shown)
    except AntError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
