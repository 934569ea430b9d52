"""What is shown of a study: the table, the plot and the page, all from its record alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ant_hf.studies.record import Cell, Estimate, Prediction, StudyRecord
from ant_hf.studies.scaling_law import Law
from ant_hf.studies.scores import Score, all_scores
from ant_hf.utils.console import COMPACT
from ant_hf.utils.plots import STYLE, saved_figure

_TEMPLATE = "page.md.jinja"
_COLOURS = STYLE["axes.prop_cycle"].by_key()["color"]
# Numbers that far apart are drawn on a logarithmic axis.
_LOGARITHMIC_FROM = 6
_NOT_MEASURED = "-"
_SAME = "same"


@dataclass(frozen=True)
class Row:
    """A cell of a study as the tables show it."""

    name: str
    size: str
    """Parameters."""
    tokens: str
    seeds: int
    figures: list[str]
    """One for each score: the mean, with the standard deviation over its seeds where there are several."""
    less_best: str
    """Of the first score: the difference from the best cell of the same budget, or that it may be chance."""


def results_table(record: StudyRecord) -> Table:
    """The table for the terminal."""
    table = Table(title=record.question, caption=noise_in_words(record), **COMPACT)
    for number, name in enumerate(columns(record)):
        # A long name continues below; a number is never cut.
        head = name.replace(" ", "\n") if number else name
        table.add_column(head, justify="right" if number else "left", no_wrap=number > 0)
    table.columns[0].max_width = 24
    for row in rows_of(record):
        table.add_row(row.name, row.size, row.tokens, str(row.seeds), *row.figures, row.less_best)
    return whole(table)


def whole(table: Table) -> Table:
    """The table as wide as it needs to be: a narrower terminal breaks its lines, and no number is cut."""
    wide = Console(width=500, markup=False, emoji=False)
    title, table.title, caption, table.caption = table.title, None, table.caption, None
    needed = Measurement.get(wide, wide.options, table).maximum
    table.title, table.caption = title, caption
    table.width = max(needed, 60)
    return table


def columns(record: StudyRecord) -> list[str]:
    """Heads of the table."""
    labels = [score.label for score in _scores(record)]
    return ["run", "parameters", "tokens", "seeds", *labels, "against the best"]


def rows_of(record: StudyRecord) -> list[Row]:
    """The cells in the order of the study file."""
    return [
        Row(
            cell.name,
            short(cell.facts["parameters"]),
            short(cell.facts["tokens"]),
            len(cell.rows),
            [_figure(cell, score, number == 0) for number, score in enumerate(_scores(record))],
            _less_best(record, cell),
        )
        for cell in record.cells
    ]


def _best(record: StudyRecord, budget: tuple[str, float]) -> Cell | None:
    """The cell of a budget with the best mean of the first score, if there is one."""
    score = _scores(record)[0]
    cells = [cell for cell in record.cells if record.budget(cell) == budget]
    own = [cell for cell in cells if cell.values(score.name) and not cell.broken]
    if not own or score.better is None:
        return None
    return (min if score.better == "lower" else max)(own, key=lambda cell: cell.mean(score.name))


def noise_in_words(record: StudyRecord) -> str:
    """How far apart equal runs are, and what follows from it for the differences."""
    score = _scores(record)[0]
    noise = record.noise(score.name)
    if noise is None:
        return "Every run has only one seed: any difference may be chance."
    return (
        f"Another seed moves {score.label} by {_number(noise, score)} (one standard deviation, pooled over "
        f'all runs with several seeds). "{_SAME}": within two standard errors of the best; it may be chance.'
    )


def _less_best(record: StudyRecord, cell: Cell) -> str:
    score, best = _scores(record)[0], _best(record, record.budget(cell))
    if best is None or not cell.values(score.name):
        return ""
    if cell.name == best.name:
        return "best"
    difference = cell.mean(score.name) - best.mean(score.name)
    shown = f"{'+' if difference >= 0 else '-'}{_number(abs(difference), score)}"
    noise = record.noise(score.name)
    if noise is None:
        return shown
    error = noise * math.sqrt(1 / len(cell.values(score.name)) + 1 / len(best.values(score.name)))
    return f"{shown} ({_SAME})" if abs(difference) <= 2 * error else shown


def _scores(record: StudyRecord) -> list[Score]:
    table = all_scores()
    return [table[name] for name in record.scores]


def _figure(cell: Cell, score: Score, is_first: bool) -> str:
    if cell.broken and len(cell.broken) == len(cell.rows):
        return f"broke: {cell.broken[0]}" if is_first else _NOT_MEASURED
    if not cell.values(score.name):
        return _NOT_MEASURED
    shown = _number(cell.mean(score.name), score)
    # What follows from the recipe alone has none.
    if (deviation := cell.deviation(score.name)) is not None and len(set(cell.values(score.name))) > 1:
        shown += f" ± {_number(deviation, score)}"
    if cell.broken and is_first:
        shown += f" ({len(cell.broken)} of {len(cell.rows)} broke)"
    return shown


def _number(value: float, score: Score) -> str:
    return score.form.format(value)


def short(value: float) -> str:
    """A count as people write it: 9.90M, 27.0M, 2.98B."""
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.0f}"


def page(record: StudyRecord) -> str:
    """The page in Markdown."""
    environment = jinja2.Environment(
        # Markdown of our own records, and no HTML.
        autoescape=False,  # noqa: S701
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
    )
    environment.filters |= {"short": short, "interval": _interval, "cell": _cell_of_table}
    return environment.get_template(_TEMPLATE).render(
        record=record,
        columns=columns(record),
        rows=rows_of(record),
        noise=noise_in_words(record),
        what_is_drawn=what_is_drawn(record),
        compared=_compared,
        notes=_notes(record),
        minutes=sum({row.sha256["run"]: row.minutes or 0.0 for row in record.runs}.values()),
    )


def _cell_of_table(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _interval(estimate: Estimate, form: str = "{:.3f}") -> str:
    def shown(value: float) -> str:
        return short(value) if form == "short" else form.format(value)

    return f"{shown(estimate.value)} ({shown(estimate.low)} to {shown(estimate.high)})"


def _compared(prediction: Prediction) -> str:
    """How far the prediction is from what was measured or published."""
    reference = prediction.reference
    if reference is None:
        return _NOT_MEASURED
    error = prediction.loss.value / reference - 1
    where = "within" if prediction.loss.holds(reference) else "outside"
    return f"{error:+.1%}, {where} the interval"


# What some of the scores are, where their name does not say it.
_NOTES = {
    "bits_per_byte": "bits per byte are of all held-out text, from the exported model in float32",
    "loss": "the loss is of all held-out text, from the exported model in float32; it compares runs of one "
    "vocabulary only",
    "gradient_noise": "gradient noise is the standard deviation of the gradient's norm over its mean, of the "
    "logged steps of the second half of the run",
    "weight_rank": "matrix rank is the effective rank (Roy and Vetterli 2007) as a share of the largest "
    "possible one, the mean over all linear matrices of the layers",
    "hidden_rank": "hidden rank is the same of the hidden states after the last layer, on the first held-out "
    "tokens",
    "loop_rate": "the greedy loop rate is the share of greedy continuations that end in a repeated span",
    "tokens_per_second": "tokens per second are of training steps, on a machine that may have had other work",
}


def _notes(record: StudyRecord) -> list[str]:
    budgets = len({record.budget(cell) for cell in record.cells})
    notes = ["the best is sought among runs of the same compute or tokens"] if budgets > 1 else []
    notes += [
        f"“{'” and “'.join(cell.name for cell in cells)}” are one model, trained once"
        for cells in record.models
        if len(cells) > 1
    ]
    return notes + [_NOTES[name] for name in record.scores if name in _NOTES]


@dataclass(frozen=True)
class _Drawn:
    """What the figure shows."""

    y: Score
    x: str | None
    """None: the cells one below the other."""
    lines: str | None


def _drawn(record: StudyRecord) -> _Drawn:
    plot = record.plot
    axes = list(dict.fromkeys(axis for cell in record.cells for axis in cell.rows[0].point))
    y = all_scores()[plot.y or record.scores[0]]
    x = plot.x or (axes[0] if axes else None)
    others = [axis for axis in axes if axis != x]
    lines = plot.lines or (others[0] if others else None)
    if x is None or sum(cell.x(x) is not None for cell in record.cells) < 2:
        return _Drawn(y, None, None)
    return _Drawn(y, x, lines)


def what_is_drawn(record: StudyRecord) -> str:
    """The figure in words."""
    drawn = _drawn(record)
    if record.fit:
        return "Loss of every run by tokens, with the fitted law, and the residuals of the fit"
    text = f"{drawn.y.label} of each run" if drawn.x is None else f"{drawn.y.label} by {_words(drawn.x)}"
    if drawn.lines:
        text += f", a line for each {_words(drawn.lines)}"
    broken = "; runs that broke are not drawn" if any(cell.broken for cell in record.cells) else ""
    return f"{text}; bars are one standard deviation over seeds{broken}"


def _words(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def draw(record: StudyRecord, path: Path) -> None:
    """Write the figure of a study."""
    drawn = _drawn(record)
    if record.fit:
        _draw_law(record, path)
    elif drawn.x is None:
        _draw_dots(record, drawn, path)
    else:
        _draw_lines(record, drawn, path)


def _draw_dots(record: StudyRecord, drawn: _Drawn, path: Path) -> None:
    """The cells one below the other."""
    shown = [cell for cell in record.cells if cell.values(drawn.y.name)]
    with saved_figure(path, 6.5, 1.4 + 0.42 * max(1, len(shown))) as figure:
        axes = figure.subplots()
        places = list(range(len(shown)))
        axes.errorbar(
            [cell.mean(drawn.y.name) for cell in shown],
            places,
            xerr=[cell.deviation(drawn.y.name) or math.nan for cell in shown],
            fmt="o",
            capsize=4,
        )
        axes.set_yticks(places, [cell.name for cell in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        # Beside long names there is room for few numbers.
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel(_better(drawn.y))


def _better(score: Score) -> str:
    return score.label + (f" ({score.better} is better)" if score.better else "")


def _draw_lines(record: StudyRecord, drawn: _Drawn, path: Path) -> None:
    """Means over x, a line for each point of an axis."""
    assert drawn.x is not None
    series: dict[str, list[tuple[Any, float, float]]] = {}
    for cell in record.cells:
        if cell.values(drawn.y.name) and (x := cell.x(drawn.x)) is not None:
            point = cell.rows[0].point
            if drawn.lines and drawn.lines not in point:
                # On no line: it stands in the table.
                continue
            name = point[drawn.lines] if drawn.lines else ""
            mean, deviation = cell.mean(drawn.y.name), cell.deviation(drawn.y.name) or math.nan
            series.setdefault(name, []).append((x, mean, deviation))
    every = [x for points in series.values() for x, _, _ in points]
    is_numeric = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in every)
    places = {str(x): number for number, x in enumerate(dict.fromkeys(map(str, every)))}
    with saved_figure(path, 6.5, 4.2) as figure:
        axes = figure.subplots()
        for number, (name, points) in enumerate(series.items()):
            own = sorted(points, key=lambda point: point[0]) if is_numeric else points
            # Bars at one place would hide each other where x is not a number.
            beside = 0.0 if is_numeric else 0.12 * (number - (len(series) - 1) / 2)
            axes.errorbar(
                [x if is_numeric else places[str(x)] + beside for x, _, _ in own],
                [mean for _, mean, _ in own],
                yerr=[deviation for _, _, deviation in own],
                marker="osD^v<>"[number % 7],
                # Dashed and hollow: again the first colour.
                linestyle="--" if number >= len(_COLOURS) else "-",
                markerfacecolor="white" if number >= len(_COLOURS) else None,
                capsize=4,
                label=name,
            )
        if is_numeric:
            _scale(axes, every)
        else:
            axes.set_xticks(range(len(places)), list(places))
        axes.set_xlabel(_words(drawn.x))
        axes.set_ylabel(_better(drawn.y))
        if any(series):
            title = _words(drawn.lines) if drawn.lines else None
            figure.legend(frameon=False, loc="outside lower center", ncols=3, title=title, fontsize=9)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis where the values are far apart, with the values themselves as its ticks."""
    distinct = sorted(set(values))
    # None where every run that would be drawn broke.
    if not distinct or distinct[0] <= 0 or distinct[-1] / distinct[0] < _LOGARITHMIC_FROM:
        return
    axes.set_xscale("log")
    if len(distinct) <= 8:
        axes.set_xticks(distinct, [f"{x:g}" if x < 100_000 else short(x) for x in distinct])
        axes.xaxis.set_minor_locator(NullLocator())


def _draw_law(record: StudyRecord, path: Path) -> None:
    """The runs and the law over the tokens, a colour for each size; below it the residuals."""
    assert record.fit
    law = Law(**{name: estimate.value for name, estimate in record.fit.parameters.items()})
    held_out = {prediction.name for prediction in record.fit.held_out}
    cells = [cell for cell in record.cells if cell.name in held_out or cell.name in record.fit.residuals]
    sizes = sorted({cell.facts["non_embedding_parameters"] for cell in cells})
    tokens = np.geomspace(min(c.facts["tokens"] for c in cells), max(c.facts["tokens"] for c in cells), 50)
    with saved_figure(path, 6.5, 6.5) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        for number, size in enumerate(sizes):
            colour = _COLOURS[number % len(_COLOURS)]
            again = number >= len(_COLOURS)
            style = {"color": colour, "linestyle": "--" if again else "-"}
            upper.plot(tokens / 1e6, law.loss(size, tokens), linewidth=1, label=short(size), **style)
            for cell in cells:
                if cell.facts["non_embedding_parameters"] != size:
                    continue
                x, mean, marker = cell.facts["tokens"] / 1e6, cell.mean("loss"), "s" if again else "o"
                own = {"color": colour, "markerfacecolor": "white" if cell.name in held_out else colour}
                upper.errorbar(x, mean, yerr=cell.deviation("loss") or math.nan, fmt=marker, capsize=4, **own)
                fitted = law.loss(size, cell.facts["tokens"])
                lower.plot(x, 100 * (mean / fitted - 1), marker, **own)
        upper.set_ylabel("held-out loss (nats per token)")
        lower.set_ylabel("measured minus\nfitted (%)")
        lower.set_xlabel("tokens (millions); hollow: held out of the fit")
        lower.axhline(0, color="black", linewidth=1)
        # Whole steps are a little off the tokens that were asked for.
        _scale(lower, [float(f"{cell.facts['tokens'] / 1e6:.2g}") for cell in cells])
        figure.legend(
            frameon=False, loc="outside lower center", ncols=4, title="non-embedding parameters", fontsize=9
        )
