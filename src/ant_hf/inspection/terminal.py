"""An inspection on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ant_hf.inspection.examination import Inspection, side_by_side
from ant_hf.inspection.findings import findings
from ant_hf.inspection.fragments import surprise_colours, surprise_step
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
        for table in (_fragments, _next, _extremes):
            show(table(each))


def _table(title: str, *columns: str, numbers: bool = False) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if numbers and index else "left")
    return table


def _facts(inspections: Sequence[Inspection]) -> Table:
    table = _table("Shape", "", *(each.name for each in inspections))
    for name, facts in side_by_side([each.facts for each in inspections]):
        table.add_row(name, *facts)
    table.add_section()
    for name, counts in side_by_side([dict(each.ledger.rows) for each in inspections]):
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table


def _layers(inspections: Sequence[Inspection]) -> Table:
    columns = ("weights, rank / full", "stream, rank / width", "attention entropy")
    several = len(inspections) > 1
    heads = (f"{each.name}\n{name}" if several else name for each in inspections for name in columns)
    table = _table("By layer", "layer", *heads)
    for layer in range(max(each.ledger.num_hidden_layers for each in inspections)):
        cells = [cell for each in inspections for cell in _layer(each, layer)]
        table.add_row(str(layer), *cells)
    return table


def _layer(inspection: Inspection, layer: int) -> list[str]:
    if layer >= inspection.ledger.num_hidden_layers:
        return ["", "", ""]
    seen = inspection.activations
    ranks = [matrix.rank_share for matrix in inspection.matrices if matrix.layer == layer]
    stream = seen.hidden_rank[layer + 1] / seen.hidden_size
    return [_range(ranks), f"{stream:.0%}", _range(seen.entropy[layer])]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def _findings(inspection: Inspection) -> Table:
    table = _table(f"What stands out in {inspection.name}", "", "topic", "found")
    marks = {True: "!", False: "\u2713", None: "?"}
    for topic, notable, sentence in findings(inspection):
        table.add_row(marks[notable], topic, sentence, style="bold" if notable else None)
    seen, embeddings = inspection.activations, inspection.embeddings
    logits = f"standard deviation {seen.logit_std:.2f}, the largest {seen.logit_max:.1f} above the mean"
    table.add_row("", "logits", logits)
    correlation = f"rank correlation of norm and frequency {embeddings.rank_correlation:.2f}"
    table.add_row("", "embeddings", f"{correlation}, counted in {embeddings.counted}")
    return table


def _fragments(inspection: Inspection) -> Table:
    reading = inspection.reading
    styles = [f"{text} on {background}" for background, text in surprise_colours("dark")]
    line, scale = Text(), Text("nats ")
    for fragment in reading.fragments[:_SHOWN_FRAGMENTS]:
        line.append(fragment.text, style=styles[surprise_step(fragment.nats)])
        line.append(" ")
    for step, style in enumerate(styles):
        scale.append(f" {step}{'+' if style is styles[-1] else ''} ", style=style)
    table = Table(show_header=False, caption_justify="left")
    table.add_row(line)
    table.add_row(scale)
    table.caption = (
        f"{len(reading.fragments):,} tokens, {reading.bits_per_byte:.3f} bits per byte; "
        f"mean entropy {inspection.entropy_bits:.2f} bits; "
        f"{inspection.invalid_utf8_share:.3%} on invalid UTF-8"
    )
    return table


def _next(inspection: Inspection) -> Table:
    expected = inspection.next
    title = (
        f"After {inspection.position:,} tokens, {inspection.before} : {expected.entropy_bits:.2f} bits, "
        f"{expected.invalid_utf8_share:.3%} on invalid UTF-8"
    )
    table = _table(title, "next token", "id", "probability", "", numbers=True)
    best = expected.candidates[0].probability
    for token_id, _, text, probability in expected.candidates:
        bar = Text("\u2588" * round(20 * probability / best), justify="left")
        table.add_row(text, str(token_id), f"{probability:.2%}", bar)
    return table


def _extremes(inspection: Inspection) -> Table:
    columns = [name for which in ("most", "least") for name in (f"{which} predictable", "nats", "times")]
    table = _table(f"Fragments of {inspection.name}", *columns)
    for pair in zip(*inspection.reading.extremes(_EXTREMES), strict=True):
        table.add_row(*(cell for it in pair for cell in (it.text, f"{it.nats:.2f}", str(it.count))))
    return table
