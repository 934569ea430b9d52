"""The report: one HTML file that needs nothing else, not even scripts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from ant_hf.inspection.colours import SURPRISE_STEPS, surprise_colours, surprise_step
from ant_hf.inspection.examination import CANDIDATES, Inspection
from ant_hf.inspection.figures import (
    component_figure,
    embedding_figure,
    head_map,
    matrix_map,
    number_ids,
    rank_figure,
    spectrum_figures,
)
from ant_hf.inspection.findings import findings
from ant_hf.inspection.fragments import by_predictability
from ant_hf.utils.files import write_text

TEMPLATE = "report.html.jinja"
# Enough to read; each takes about half a kilobyte with its tip.
SHOWN_FRAGMENTS = 500
_TIP_CANDIDATES = 5
EXTREMES = 12


def write_report(inspections: Sequence[Inspection], path: Path) -> None:
    """Write one or two models' report, whole or not at all."""
    write_text(path, render_report(inspections))


def render_report(inspections: Sequence[Inspection]) -> str:
    """The page's HTML. Every name and text from outside is escaped by the template."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8"))
    page = template.render(
        title=" and ".join(each.name for each in inspections),
        models=[_model(each) for each in inspections],
        facts=_side_by_side([each.facts for each in inspections]),
        components=component_figure(inspections),
        ledger=_ledger(inspections),
        ranks=rank_figure(inspections),
        spectra=spectrum_figures(inspections),
        colours={
            theme: [surprise_colours(step, theme) for step in range(SURPRISE_STEPS)]
            for theme in ("light", "dark")
        },
        maps=_maps(inspections),
        text_source=inspections[0].text_source,
        shown=SHOWN_FRAGMENTS,
        candidates=CANDIDATES,
    )
    return number_ids(page)


def _model(inspection: Inspection) -> dict[str, Any]:
    reading = inspection.reading
    steps = Counter(surprise_step(f.nats) for f in reading.fragments if f.nats is not None)
    often = by_predictability(reading.fragments, min_count=3) or by_predictability(reading.fragments)
    worst = sorted(inspection.matrices, key=lambda matrix: -matrix.largest_deviation)[:5]
    return {
        "it": inspection,
        "findings": findings(inspection),
        "fragments": _fragments(inspection),
        "steps": [steps[step] / max(reading.scored, 1) for step in range(SURPRISE_STEPS)],
        "most": often[:EXTREMES],
        "least": often[::-1][:EXTREMES],
        "outliers": worst,
        "embeddings": embedding_figure(inspection),
        "unseen": [inspection.entries.text(index) for index in inspection.embeddings.unseen],
        "next": _candidates(inspection, inspection.place.expected.candidates),
    }


def _fragments(inspection: Inspection) -> list[dict[str, Any]]:
    """The first fragments with what their tips show."""
    reading = inspection.reading
    pairs = list(zip(reading.fragments, reading.expected, strict=True))[:SHOWN_FRAGMENTS]
    return [
        {
            "it": fragment,
            "step": surprise_step(fragment.nats),
            "hex": fragment.raw.hex(" ").upper(),
            "breaks": fragment.raw.endswith(b"\n"),
            "p": math.exp(-(fragment.nats or 0.0)),
            "bits": expected and expected.entropy_bits,
            "candidates": expected and _candidates(inspection, expected.candidates[:_TIP_CANDIDATES]),
        }
        for fragment, expected in pairs
    ]


def _candidates(inspection: Inspection, candidates: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"it": each, "text": inspection.entries.text(each.token_id)} for each in candidates]


def _side_by_side(columns: Sequence[list[tuple[str, str]]]) -> list[tuple[str, list[str]]]:
    """Rows of a name and each model's value."""
    return [(row[0][0], [value for _, value in row]) for row in zip(*columns, strict=True)]


def _ledger(inspections: Sequence[Inspection]) -> list[tuple[str, list[int]]]:
    names = dict.fromkeys(name for each in inspections for name, _ in each.ledger.rows)
    return [(name, [dict(each.ledger.rows).get(name, 0) for each in inspections]) for name in names]


def _maps(inspections: Sequence[Inspection]) -> dict[str, list[Any]]:
    """Maps of each model in the same limits, so that colours can be compared."""
    rms = max(matrix.rms for each in inspections for matrix in each.matrices)
    writes = [_by_head(each) for each in inspections]
    largest = max(float(values.max()) for values in writes)
    return {
        "rank": [
            matrix_map(each, "rank_share", "Effective rank / full rank", (0, 1)) for each in inspections
        ],
        "rms": [matrix_map(each, "rms", "Root mean square of the weights", (0, rms)) for each in inspections],
        "entropy": [
            head_map(each.activations.entropy, "Attention entropy / largest possible", (0, 1))
            for each in inspections
        ],
        "writes": [head_map(values, "What a head writes / median head", (0, largest)) for values in writes],
    }


def _by_head(inspection: Inspection) -> Any:
    shares = inspection.activations.entropy * 0
    for head in inspection.heads:
        shares[head.layer, head.head] = head.write_share
    return shares
