"""Figures of the report as inline SVG that follows the page's theme.

Text and lines are drawn in placeholder colours, which become variables of the page's style sheet; no
name from outside is ever drawn, so that nothing has to be escaped here. Colours of data are Okabe and
Ito's two and cividis: told apart with any colour vision, and in grey.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from ant_hf.inspection.examination import Inspection
from ant_hf.utils.plots import STYLE

_INK, _FAINT, _A, _B = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {_INK: "var(--ink)", _FAINT: "var(--faint)", _A: "var(--a)", _B: "var(--b)"}
_SERIES = ((_A, "-"), (_B, "--"))
_STYLE: dict[Any, Any] = STYLE | {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _FAINT,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "figure.dpi": 72,
}
_KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# More cells than this leave no room for numbers in them.
_ANNOTATED = 24


def _svg(figure: Figure, salt: str) -> Markup:
    """A figure as an inline element: no header, no ids that could clash, no addresses."""
    with mpl.rc_context({"svg.hashsalt": salt}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text, count=1)
    text = re.sub(r"font: [^;\"]*?(\d+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return Markup(re.sub(r">\s+<", "><", text))  # noqa: S704 (matplotlib escapes what it draws)


def number_ids(page: str) -> str:
    """Put each figure's number before its ids: equal figures have equal ones, and a page may have no two."""
    numbers = itertools.count()

    def numbered(figure: re.Match[str]) -> str:
        return re.sub(r'( id="| href="#|url\(#)', rf"\g<1>f{next(numbers)}-", figure[0])

    return re.sub(r"<svg .*?</svg>", numbered, page, flags=re.DOTALL)


def _axes(width: float, height: float, title: str, xlabel: str, ylabel: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=12)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def component_figure(inspections: Sequence[Inspection]) -> Markup:
    """Parameters by component as bars, models beside each other."""
    names = list(dict.fromkeys(name for each in inspections for name, _ in each.ledger.rows))
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(6.5, 0.8 + 0.36 * len(names), "Parameters by component", "millions", "")
        height = 0.8 / len(inspections)
        for index, (each, (colour, _)) in enumerate(zip(inspections, _SERIES, strict=False)):
            counts = dict(each.ledger.rows)
            places = np.arange(len(names)) + (index - (len(inspections) - 1) / 2) * height
            axes.barh(places, [counts.get(name, 0) / 1e6 for name in names], height * 0.9, color=colour)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        return _svg(figure, "components")


def rank_figure(inspections: Sequence[Inspection]) -> Markup:
    """Effective rank of the residual stream by layer."""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(
            6.5, 3.6, "Dimensions in use, by layer", "layer (0: embeddings)", "effective rank / hidden size"
        )
        for each, (colour, line) in zip(inspections, _SERIES, strict=False):
            seen = each.activations
            axes.plot(seen.hidden_rank / seen.hidden_size, color=colour, linestyle=line, marker="o")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
        axes.xaxis.get_major_locator().set_params(integer=True)
        return _svg(figure, "rank")


def spectrum_figures(inspections: Sequence[Inspection]) -> list[Markup]:
    """One figure a kind of matrix: singular values over the largest, band and median over the layers."""
    kinds = _kinds(inspections)
    with mpl.rc_context(_STYLE):
        return [_spectrum(inspections, kind) for kind in kinds]


def _spectrum(inspections: Sequence[Inspection], kind: str) -> Markup:
    figure, axes = _axes(3.4, 2.6, kind, "singular value, of all", "over the largest")
    share = np.linspace(0, 1, 60)
    for each, (colour, line) in zip(inspections, _SERIES, strict=False):
        curves = [
            np.interp(share, np.linspace(0, 1, len(values)), values / max(values[0], 1e-30))
            for matrix in each.matrices
            if matrix.name == kind
            for values in (matrix.singular_values,)
        ]
        if curves:
            axes.fill_between(
                share, np.min(curves, 0), np.max(curves, 0), color=colour, alpha=0.2, linewidth=0
            )
            axes.plot(share, np.median(curves, 0), color=colour, linestyle=line)
    axes.set_ylim(0, 1)
    axes.set_xlim(0, 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
    return _svg(figure, f"spectrum {kind}")


def matrix_map(inspection: Inspection, key: str, title: str, limits: tuple[float, float]) -> Markup:
    """A figure of every matrix (`key` names it) as a map, kinds by layers."""
    kinds = _kinds([inspection])
    values = np.full((len(kinds), inspection.ledger.num_hidden_layers), np.nan)
    for matrix in inspection.matrices:
        values[kinds.index(matrix.name), matrix.layer] = getattr(matrix, key)
    return _map(values, title, limits, "layer", "", kinds)


def head_map(values: np.ndarray, title: str, limits: tuple[float, float]) -> Markup:
    """Figures by layer and head, shape (layers, heads), as a map."""
    return _map(values.T, title, limits, "layer", "head", [str(head) for head in range(values.shape[1])])


def _map(
    values: np.ndarray, title: str, limits: tuple[float, float], xlabel: str, ylabel: str, rows: list[str]
) -> Markup:
    with mpl.rc_context(_STYLE):
        height = min(1.3 + 0.32 * values.shape[0], 7)
        figure, axes = _axes(6.5, height, title, xlabel, ylabel)
        axes.grid(visible=False)
        mesh = axes.pcolormesh(
            values, cmap="cividis", vmin=limits[0], vmax=limits[1], edgecolor="face", linewidth=0.2
        )
        step = -(-len(rows) // 16)
        axes.set_yticks(np.arange(0, len(rows), step) + 0.5, rows[::step])
        across = -(-values.shape[1] // 24)
        axes.set_xticks(np.arange(0, values.shape[1], across) + 0.5, range(0, values.shape[1], across))
        axes.invert_yaxis()
        if max(values.shape) <= _ANNOTATED:
            middle = sum(limits) / 2
            for (row, column), value in np.ndenumerate(values):
                axes.text(
                    column + 0.5, row + 0.5, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=8,
                    color="#000000" if value > middle else "#ffffff",
                )  # fmt: skip
        figure.colorbar(mesh, ax=axes, pad=0.01).outline.set_visible(False)
        return _svg(figure, title)


def embedding_figure(inspection: Inspection) -> Markup:
    """Norm of every embedding row against how often its token occurs."""
    embeddings = inspection.embeddings
    seen = embeddings.counts > 0
    where = "training" if embeddings.from_training else "the text"
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(
            6.5, 3.6, "Embedding norms", f"occurrences in {where}", "Euclidean norm of the row"
        )
        # Thousands of points: a small picture inside the figure, in a colour that both themes show.
        axes.scatter(
            embeddings.counts[seen], embeddings.norms[seen], s=5, color="#4a90c8", alpha=0.6, rasterized=True
        )
        axes.set_xscale("symlog", linthresh=1)
        if (~seen).any():
            norms = embeddings.norms[~seen]
            axes.scatter(0 * norms, norms, s=22, marker="x", color="#d55e00", linewidths=1, rasterized=True)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=-0.3)
        return _svg(figure, "embeddings")


def _kinds(inspections: Sequence[Inspection]) -> list[str]:
    found = {matrix.name for each in inspections for matrix in each.matrices}
    return [kind for kind in _KINDS if kind in found] + sorted(found - set(_KINDS))
