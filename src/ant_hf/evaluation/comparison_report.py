"""What a comparison looks like: its figures as PNG, and one page of ours with all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from ant_hf.evaluation.pairing import BETTER, UNCLEAR, WORSE, Pair, Row
from ant_hf.utils.files import write_text
from ant_hf.utils.page import FAINT, INK, PAGE_STYLE, A, B, render_page, svg
from ant_hf.utils.plots import BLUE, ORANGE, saved_figure

REPORT, DIFFERENCES, LEARNING = "comparison.html", "differences.png", "learning.png"
# Of `better`, `worse` and neither, on paper and on the page.
_PAPER = {BETTER: BLUE, WORSE: ORANGE, UNCLEAR: "#7a7f88"}
_PAGE = {BETTER: A, WORSE: B, UNCLEAR: INK}
_MARKERS = {BETTER: ">", WORSE: "<", UNCLEAR: "o"}
_WIDTH = 6.5
Curves = Mapping[str, Sequence[Mapping[str, Any]]]


def write_report(folder: Path, values: dict[str, Any], pairs: Sequence[Pair], curves: Curves) -> None:
    """Write the figures and the page.

    Args:
        values: of comparison.json.
        curves: rows of metrics.jsonl with the held-out score, by model; none: no such figure.
    """
    shown = [pair for pair in pairs if pair.rows]
    with saved_figure(folder / DIFFERENCES, _WIDTH, sum(map(_height, shown))) as figure:
        parts = figure.subfigures(len(shown), 1, height_ratios=list(map(_height, shown)), squeeze=False)
        for part, pair in zip(parts[:, 0], shown, strict=True):
            _draw_differences(part, pair, _PAPER)
    if curves:
        with saved_figure(folder / LEARNING, 6, 4) as figure:
            _draw_learning(figure, curves)
    with mpl.rc_context(PAGE_STYLE):
        page = render_page(
            Path(__file__).with_name("comparison.html.jinja"),
            title=" against ".join(model["name"] for model in values["models"]),
            comparison=values,
            pairs=pairs,
            forests={pair.second: _forest(pair) for pair in shown},
            learning=_learning(curves) if curves else None,
            score=score,
            span=span,
        )
    write_text(folder / REPORT, page)


def score(row: Row, value: float, signed: bool = False) -> str:
    """A value of a figure: shares in percent, bits per byte as they are."""
    sign = "+" if signed else ""
    return f"{value:{sign}.4f}" if row.metric == "bits_per_byte" else f"{100 * value:{sign}.2f}"


def span(row: Row) -> str:
    """The interval of the difference."""
    return " to ".join(score(row, bound, signed=True) for bound in row.interval)


def _panels(pair: Pair) -> list[tuple[str, list[Row]]]:
    """Figures of one unit each, which share an axis."""
    texts = [row for row in pair.rows if row.metric == "bits_per_byte"]
    shares = [row for row in pair.rows if row.metric != "bits_per_byte"]
    return [(unit, rows) for unit, rows in (("percentage points", shares), ("bits per byte", texts)) if rows]


def _height(pair: Pair) -> float:
    """Of its drawing, in inches."""
    return 0.4 + sum(0.9 + 0.3 * len(rows) for _, rows in _panels(pair))


def _draw_differences(figure: Any, pair: Pair, colours: Mapping[str, str]) -> None:
    """The difference and its interval of every figure; to the right the first model is better."""
    panels = _panels(pair)
    heights = [0.9 + 0.3 * len(rows) for _, rows in panels]
    every = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for side, name in (("left", pair.second), ("right", pair.first)):
        every[0].set_title(f"{name} is better", loc=side, fontsize=10, parse_math=False)
    figure.supxlabel(
        "triangle: a sure difference, also after the correction; hollow: not paired by document", fontsize=8
    )
    for axes, (unit, rows) in zip(every, panels, strict=True):
        scale = 1 if unit == "bits per byte" else 100
        for place, row in enumerate(rows):
            value, low, high = (scale * bound for bound in row.advantage)
            colour = colours[row.verdict]
            axes.plot([low, high], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
            fill = colour if row.is_paired else "none"
            axes.plot(value, place, _MARKERS[row.verdict], color=colour, markerfacecolor=fill, markersize=7)
        axes.axvline(0, color=colours.get("zero", "black"), linewidth=1)
        # 0 stands in the middle, so that the side is seen at a glance.
        reach = 1.05 * max(abs(bound) for bound in axes.get_xlim())
        axes.set(xlim=(-reach, reach), ylim=(len(rows) - 0.4, -0.6), xlabel=unit)
        axes.set_yticks(range(len(rows)), [row.label for row in rows], parse_math=False)
        axes.locator_params(axis="x", nbins=7)
        axes.grid(visible=False, axis="y")


def _forest(pair: Pair) -> Markup:
    figure = Figure(figsize=(_WIDTH, _height(pair)), layout="constrained")
    _draw_differences(figure, pair, _PAGE | {"zero": FAINT})
    return svg(figure)


def _draw_learning(figure: Figure, curves: Curves) -> None:
    """Bits per byte of the held-out text by tokens seen."""
    axes = figure.subplots()
    axes.set_title("Held-out text while training", fontsize=12)
    for marker, (name, rows) in zip("os^Dv", curves.items(), strict=False):
        tokens = [row["tokens_seen"] / 1e6 for row in rows]
        bits = [row["eval_bits_per_byte"] for row in rows]
        axes.plot(tokens, bits, marker=marker, label=f"{name}, {bits[-1]:.3f} at the end")
    axes.set(xlabel="tokens seen (millions)", ylabel="bits per byte")
    for text in axes.legend(frameon=False).get_texts():
        text.set_parse_math(False)


def _learning(curves: Curves) -> Markup:
    figure = Figure(figsize=(6, 4), layout="constrained")
    _draw_learning(figure, curves)
    return svg(figure)
