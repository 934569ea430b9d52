"""Pages of ours: one HTML file that needs nothing else, not even scripts, with its figures as inline SVG.

Text and lines of figures are drawn in placeholder colours, which become variables of the page's style sheet,
so that they follow its theme. Colours of data are Okabe and Ito's two and cividis: told apart with any colour
vision, and in grey. A name from outside is drawn only with `parse_math=False`.
"""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from ant_hf.utils.plots import STYLE

INK, FAINT, A, B = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", A: "var(--a)", B: "var(--b)"}
PAGE_STYLE: dict[Any, Any] = STYLE | {
    "svg.fonttype": "none",
    # The same figure gets the same ids whenever it is drawn.
    "svg.hashsalt": "ant-hf",
    "font.family": "sans-serif",
    "figure.dpi": 72,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), FAINT),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
}


def render_page(template: Path, **values: Any) -> str:
    """A page that extends `page.html.jinja`; every name and text from outside is escaped.

    Args:
        values: what the template knows by name; `title` is needed.
    """
    loader = jinja2.FileSystemLoader([template.parent, Path(__file__).parent])
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=loader
    )
    page = environment.get_template(template.name).render(values)
    numbers = itertools.count()

    def numbered(figure: re.Match[str]) -> str:
        # Equal figures have equal ids, and a page may have no two.
        return re.sub(r'( id="| href="#|url\(#)', rf"\g<1>f{next(numbers)}-", figure[0])

    return re.sub(r"<svg .*?</svg>", numbered, page, flags=re.DOTALL)


def svg(figure: Figure, magnified: float = 1) -> Markup:
    """A figure as an inline element: no header, no ids that could clash, no addresses.

    Args:
        magnified: how large it is shown at least; where there is no room for that, it is moved sideways.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = "<svg" + buffer.getvalue().partition("<svg")[2]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    width = f' style="min-width: {figure.get_figwidth() * 72 * magnified:.0f}px"' if magnified > 1 else ""
    text = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1{width} aria-hidden="true">', text, count=1
    )
    text = re.sub(r"font: [^;\"]*?([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return Markup(re.sub(r">\s+<", "><", text))  # noqa: S704 (matplotlib escapes what it draws)
