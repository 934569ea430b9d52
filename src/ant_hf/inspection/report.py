"""The report: one HTML file, a page of ours. No name from outside is drawn in its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from ant_hf.inspection.examination import CANDIDATES, Inspection, side_by_side
from ant_hf.inspection.findings import findings
from ant_hf.inspection.fragments import surprise_colours, surprise_step
from ant_hf.utils.page import PAGE_STYLE, A, B, render_page, svg

TEMPLATE = "report.html.jinja"
# Enough to read; each takes about half a kilobyte with its tip.
SHOWN_FRAGMENTS = 500
# Of the first model's curves and of the second's.
_CURVES: tuple[dict[str, Any], ...] = ({"color": A, "linestyle": "-"}, {"color": B, "linestyle": "--"})
_KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Inches. A phone shows about as many, so that its letters are as large as they are drawn here.
_WIDTH = 5.2
# More cells than this leave no room for numbers in them.
_ANNOTATED = 24
# Points of such a number at most, and what a cell is wider than the number is high.
_DIGIT, _CELL = 10, 2.2


def render_report(inspections: Sequence[Inspection]) -> str:
    """The HTML page of one or two models. Every name and text from outside is escaped by the template."""
    with mpl.rc_context(PAGE_STYLE):
        return render_page(
            Path(__file__).with_name(TEMPLATE),
            title=f"Inside {' and '.join(each.name for each in inspections)}",
            models=inspections,
            facts=side_by_side([each.facts for each in inspections]),
            ledger=side_by_side([dict(each.ledger.rows) for each in inspections]),
            components=_component_figure(inspections),
            ranks=_rank_figure(inspections),
            spectra=[_spectrum(inspections, kind) for kind in _kinds(inspections)],
            maps=_maps(inspections),
            norms=[_embedding_figure(each) for each in inspections],
            colours={theme: surprise_colours(theme) for theme in ("light", "dark")},
            shown=SHOWN_FRAGMENTS,
            candidates=CANDIDATES,
            findings=findings,
            surprise_step=surprise_step,
            exp=math.exp,
            zip=zip,
        )


def _axes(width: float, height: float, title: str, xlabel: str, ylabel: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=12)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def _in_percent(axis: Any) -> None:
    axis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))


def _component_figure(inspections: Sequence[Inspection]) -> Markup:
    names, counts = zip(*side_by_side([dict(each.ledger.rows) for each in inspections]), strict=True)
    figure, axes = _axes(_WIDTH, 0.8 + 0.36 * len(names), "Parameters by component", "millions", "")
    height = 0.8 / len(inspections)
    for index, (millions, colour) in enumerate(zip(np.divide(counts, 1e6).T, (A, B), strict=False)):
        places = np.arange(len(names)) + (index - (len(inspections) - 1) / 2) * height
        axes.barh(places, millions, height * 0.9, color=colour)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return svg(figure)


def _rank_figure(inspections: Sequence[Inspection]) -> Markup:
    title, share = "Dimensions in use, by layer", "effective rank / hidden size"
    figure, axes = _axes(_WIDTH, 3.2, title, "layer (0: embeddings)", share)
    for each, style in zip(inspections, _CURVES, strict=False):
        axes.plot(each.activations.hidden_rank / each.activations.hidden_size, marker="o", **style)
    axes.set_ylim(0, 1)
    _in_percent(axes.yaxis)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return svg(figure)


def _kinds(inspections: Sequence[Inspection]) -> list[str]:
    found = {matrix.name for each in inspections for matrix in each.matrices}
    return [kind for kind in _KINDS if kind in found] + sorted(found - set(_KINDS))


def _spectrum(inspections: Sequence[Inspection], kind: str) -> Markup:
    """Singular values over the largest of one kind of matrix: band and median over the layers."""
    figure, axes = _axes(3.4, 2.6, kind, "singular value, of all", "over the largest")
    share = np.linspace(0, 1, 60)
    for each, style in zip(inspections, _CURVES, strict=False):
        spectra = [matrix.singular_values for matrix in each.matrices if matrix.name == kind]
        curves = [
            np.interp(share, np.linspace(0, 1, len(values)), values / max(values[0], 1e-30))
            for values in spectra
        ]
        if curves:
            band = np.min(curves, 0), np.max(curves, 0)
            axes.fill_between(share, *band, color=style["color"], alpha=0.2, linewidth=0)
            axes.plot(share, np.median(curves, 0), **style)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    _in_percent(axes.xaxis)
    _in_percent(axes.yaxis)
    return svg(figure)


def _maps(inspections: Sequence[Inspection]) -> dict[str, list[Markup]]:
    """Maps by layer of each model, in the same limits, so that colours can be compared."""
    shapes = {
        # Title, what the rows are, and upper limit unless it is the largest value.
        "rank": ("Effective rank / full rank", "", 1.0),
        "rms": ("Root mean square of the weights", "", None),
        "entropy": ("Attention entropy / largest possible", "head", 1.0),
        "writes": ("What a head writes / median head", "head", None),
    }
    maps, figures = {}, [_by_layer(each) for each in inspections]
    for name, (title, ylabel, limit) in shapes.items():
        rows = [each[name] for each in figures]
        top = limit or max(float(np.nanmax(values)) for each in rows for values in each.values())
        maps[name] = [_map(each, title, ylabel, top) for each in rows]
    return maps


def _by_layer(inspection: Inspection) -> dict[str, dict[str, np.ndarray]]:
    """Rows of each map: figures of a kind of matrix, or of a head, by layer; nan where there is none."""
    layers, kinds = inspection.ledger.num_hidden_layers, _kinds([inspection])
    rows = {name: {kind: np.full(layers, np.nan) for kind in kinds} for name in ("rank", "rms")}
    for matrix in inspection.matrices:
        rows["rank"][matrix.name][matrix.layer] = matrix.rank_share
        rows["rms"][matrix.name][matrix.layer] = matrix.rms
    entropy = inspection.activations.entropy
    writes = np.reshape([head.write_share for head in inspection.heads], entropy.shape)
    for name, values in (("entropy", entropy), ("writes", writes)):
        rows[name] = {str(head): column for head, column in enumerate(values.T)}
    return rows


def _map(rows: dict[str, np.ndarray], title: str, ylabel: str, top: float) -> Markup:
    """Named rows of one value a layer, as colours between 0 and `top`."""
    names, values = list(rows), np.stack(list(rows.values()))
    figure, axes = _axes(_WIDTH, min(1.3 + 0.32 * len(names), 7), title, "layer", ylabel)
    axes.grid(visible=False)
    mesh = axes.pcolormesh(values, cmap="cividis", vmin=0, vmax=top, edgecolor="face", linewidth=0.2)
    step = -(-len(names) // 16)
    axes.set_yticks(np.arange(0, len(names), step) + 0.5, names[::step])
    across = -(-values.shape[1] // 24)
    axes.set_xticks(np.arange(0, values.shape[1], across) + 0.5, range(0, values.shape[1], across))
    axes.invert_yaxis()
    magnified = 1.0
    if max(values.shape) <= _ANNOTATED:
        # Of the width, names and the colour bar take a quarter.
        digit = min(_DIGIT, _WIDTH * 72 * 0.75 / values.shape[1] / _CELL)
        magnified = _DIGIT / digit
        for (row, column), value in np.ndenumerate(values):
            axes.text(
                column + 0.5, row + 0.5, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=digit,
                color="#000000" if value > top / 2 else "#ffffff",
            )  # fmt: skip
    figure.colorbar(mesh, ax=axes, pad=0.01).outline.set_visible(False)
    return svg(figure, magnified)


def _embedding_figure(inspection: Inspection) -> Markup:
    counts, norms = inspection.embeddings.counts, inspection.embeddings.norms
    seen = counts > 0
    xlabel = f"occurrences in {'training' if inspection.embeddings.from_training else 'the text'}"
    figure, axes = _axes(_WIDTH, 3.2, "Embedding norms", xlabel, "Euclidean norm of the row")
    # Thousands of points: a small picture inside the figure, in a colour that both themes show.
    axes.scatter(counts[seen], norms[seen], s=5, color="#4a90c8", alpha=0.6, rasterized=True)
    axes.set_xscale("symlog", linthresh=1)
    if not seen.all():
        style: dict[str, Any] = {"s": 22, "marker": "x", "color": "#d55e00", "linewidths": 1}
        axes.scatter(counts[~seen], norms[~seen], **style, rasterized=True)
    axes.set(xlim=(-0.3, None), ylim=(0, None))
    return svg(figure)
