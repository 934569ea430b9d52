"""An inspection on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ant_hf.inspection.colours import surprise_colours, surprise_step
from ant_hf.inspection.examination import Inspection
from ant_hf.inspection.findings import findings
from ant_hf.inspection.fragments import by_predictability
from ant_hf.utils.console import say, show

_SHOWN_FRAGMENTS = 120
_EXTREMES = 8


def print_inspection(inspections: Sequence[Inspection]) -> None:
    """Show one or two models: shape, layers, findings, then the text as each reads it."""
    show(_facts(inspections))
    show(_layers(inspections))
    for each in inspections:
        show(_findings(each))
        say(f"{each.name} reads {each.text_source}; colours: loss in nats")
        show(_fragments(each))
        show(_next(each))
        show(_extremes(each))


def _table(title: str, *columns: str, numbers: bool = False) -> Table:
    table = Table(title=escape(title), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if numbers and index else "left")
    return table


def _facts(inspections: Sequence[Inspection]) -> Table:
    table = _table("Shape", "", *(each.name for each in inspections))
    for row in zip(*(each.facts for each in inspections), strict=True):
        table.add_row(row[0][0], *(escape(value) for _, value in row))
    table.add_section()
    names = dict.fromkeys(name for each in inspections for name, _ in each.ledger.rows)
    for name in names:
        table.add_row(name, *(f"{dict(each.ledger.rows).get(name, 0):,}" for each in inspections))
    return table


def _layers(inspections: Sequence[Inspection]) -> Table:
    """Effective ranks and attention by layer, for each model."""
    columns = ("weights, rank / full", "stream, rank / width", "attention entropy")
    table = _table("By layer", "layer", *(f"{each.name}\n{name}" for each in inspections for name in columns))
    for layer in range(max(each.ledger.num_hidden_layers for each in inspections)):
        cells: list[str] = []
        for each in inspections:
            if layer >= each.ledger.num_hidden_layers:
                cells += ["", "", ""]
                continue
            ranks = [matrix.rank_share for matrix in each.matrices if matrix.layer == layer]
            stream = each.activations.hidden_rank[layer + 1] / each.activations.hidden_size
            entropy = each.activations.entropy[layer]
            cells += [_range(ranks), f"{stream:.0%}", _range(entropy)]
        table.add_row(str(layer), *cells)
    return table


def _range(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:.2f} to {ordered[-1]:.2f}"


def _findings(inspection: Inspection) -> Table:
    table = _table(f"What stands out in {inspection.name}", "", "topic", "found")
    marks = {True: "!", False: "\u2713", None: "?"}
    for finding in findings(inspection):
        table.add_row(
            marks[finding.notable],
            finding.topic,
            escape(finding.sentence),
            style="bold" if finding.notable else None,
        )
    seen = inspection.activations
    table.add_row(
        "",
        "logits",
        f"standard deviation {seen.logit_std:.2f}, the largest {seen.logit_max:.1f} above the mean",
    )
    embeddings = inspection.embeddings
    correlation = f"rank correlation of norm and frequency {embeddings.rank_correlation:.2f}"
    table.add_row("", "embeddings", escape(f"{correlation}, counted in {embeddings.counted}"))
    return table


def _fragments(inspection: Inspection) -> Table:
    """The first fragments in colour; without colours, with the whole nats behind each."""
    line = Text()
    reading = inspection.reading
    for fragment in reading.fragments[:_SHOWN_FRAGMENTS]:
        background, text = surprise_colours(surprise_step(fragment.nats), "dark")
        line.append(fragment.text, style=f"{text} on {background}")
        line.append(" ")
    table = Table(show_header=False, caption_justify="left")
    table.add_row(line)
    scale = Text("nats ")
    for step in range(10):
        background, text = surprise_colours(step, "dark")
        scale.append(f" {step}{'+' if step == 9 else ''} ", style=f"{text} on {background}")
    table.add_row(scale)
    table.caption = (
        f"{len(reading.fragments):,} tokens, {reading.bits_per_byte:.3f} bits per byte; "
        f"mean entropy {inspection.entropy_bits:.2f} bits; "
        f"{inspection.invalid_utf8_share:.3%} on invalid UTF-8"
    )
    return table


def _next(inspection: Inspection) -> Table:
    place = inspection.place
    title = (
        f"After {place.position:,} tokens, {place.before} : {place.expected.entropy_bits:.2f} bits, "
        f"{place.expected.invalid_utf8_share:.3%} on invalid UTF-8"
    )
    table = _table(title, "next token", "id", "probability", "", numbers=True)
    best = place.expected.candidates[0].probability
    for each in place.expected.candidates:
        table.add_row(
            escape(inspection.entries.text(each.token_id)), str(each.token_id), f"{each.probability:.2%}",
            Text("\u2588" * round(20 * each.probability / best), justify="left"),
        )  # fmt: skip
    return table


def _extremes(inspection: Inspection) -> Table:
    fragments = inspection.reading.fragments
    ordered = by_predictability(fragments, min_count=3) or by_predictability(fragments)
    columns = [name for which in ("most", "least") for name in (f"{which} predictable", "nats", "times")]
    table = _table(f"Fragments of {inspection.name}", *columns)
    for pair in zip(ordered[:_EXTREMES], ordered[::-1], strict=False):
        cells = [(escape(each.text), f"{each.nats:.2f}", str(each.count)) for each in pair]
        table.add_row(*cells[0], *cells[1])
    return table
