"""Figures of a run, made from its `metrics.jsonl` alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision, and in grey.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
# Shape, fill and edge: one tells two points apart where the others do not.
_MARKERS = (
    ("D", "black", "white"), ("o", "white", "black"), ("^", "#F0E442", "black"), ("s", PINK, "black"),
    ("v", GREEN, "black"),
)  # fmt: skip
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PINK]),
    "grid.alpha": 0.3,
    "font.size": 11,
    "figure.dpi": 150,
}


# What plot_run draws over the tokens seen: the key of a row, the file, and what the axis says.
_CURVES = (
    ("loss", "loss", "loss (nats per token)"),
    ("learning_rate", "learning_rate", "learning rate"),
    ("grad_norm", "gradient_norm", "gradient norm before clipping"),
    ("tokens_per_second", "throughput", "tokens per second"),
)


@contextmanager
def saved_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of a size in inches, saved at the end of the block.

    A phone shows 5 inches at their size: the wider a figure, the smaller its letters there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path)


def plot_run(rows: list[dict[str, Any]], folder: Path, title: str) -> list[Path]:
    """Write loss, learning-rate, gradient-norm and throughput figures.

    Args:
        rows: `metrics.jsonl`, one dictionary per row.
    """

    def curve(axes: Any, rows: list[dict[str, Any]], key: str, **style: Any) -> None:
        drawn = [row for row in rows if key in row]
        axes.plot([row["tokens_seen"] / 1e6 for row in drawn], [row[key] for row in drawn], **style)

    training = [row for row in rows if "loss" in row]
    for key, name, label in _CURVES:
        with saved_figure(folder / f"{name}.png", 6, 4) as figure:
            axes = figure.subplots()
            axes.set_title(f"{title}: {label if key != 'loss' else key}")
            axes.set_xlabel("tokens seen (millions)")
            axes.set_ylabel(label)
            curve(axes, training, key, color=BLUE, label="training")
            if key != "loss":
                axes.set_ylim(bottom=0)
                continue
            if last := next((row for row in reversed(rows) if "eval_loss" in row), None):
                label = (
                    f"validation (the last: {last['eval_loss']:.3f} nats, "
                    f"{last['eval_bits_per_byte']:.3f} bits per byte)"
                )
                curve(axes, rows, "eval_loss", color=ORANGE, marker="o", label=label)
            axes.legend(frameon=False)
    return [folder / f"{name}.png" for _, name, _ in _CURVES]


def plot_fragmentation(report: dict[str, Any], path: Path) -> Path:
    """Write how many tokens words need, and how long tokens are."""
    with saved_figure(path, 6.5, 4) as figure:
        figure.suptitle(
            f"{report['vocab_size']:,} entries: {report['bytes_per_token']:.2f} bytes per token, "
            f"{report['words_kept_whole']:.1%} of words kept whole"
        )
        for axes, key, xlabel, ylabel in zip(
            figure.subplots(1, 2),
            ("tokens_per_word_histogram", "token_length_histogram"),
            ("tokens a word needs", "bytes a token stands for"),
            ("share of words", "share of tokens used"),
            strict=True,
        ):
            histogram = {int(key): count for key, count in report[key].items()}
            total = sum(histogram.values()) or 1
            axes.bar(list(histogram), [count / total for count in histogram.values()], color=BLUE)
            axes.set_xlabel(xlabel)
            axes.set_ylabel(ylabel)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
    return path


def plot_benchmarks(rows: list[dict[str, Any]], names: list[str], path: Path, title: str) -> Path:
    """Write accuracies as bars with two standard errors, each benchmark's floor, and published figures.

    Args:
        rows: `label`, `value`, `interval`, `floor` and `published` (accuracy by model name), as fractions.
        names: the published models to show as points.
    """
    with saved_figure(path, 6.5, 1.8 + 0.45 * len(rows)) as figure:
        axes = figure.subplots()
        axes.set_title(f"{title}: accuracy, with two standard errors")
        places = list(range(len(rows)))
        bounds = [row["interval"] or (row["value"], row["value"]) for row in rows]
        errors = [
            [abs(row["value"] - pair[k]) for row, pair in zip(rows, bounds, strict=True)] for k in (0, 1)
        ]
        axes.barh(
            places, [row["value"] for row in rows], xerr=errors, height=0.6,
            color=BLUE, ecolor="black", capsize=3, label=f"{title} (measured)",
        )  # fmt: skip
        for place, row in zip(places, rows, strict=True):
            if row["floor"] is not None:
                axes.plot([row["floor"]] * 2, [place - 0.4, place + 0.4], color=ORANGE, linewidth=2.5)
        axes.plot([], [], color=ORANGE, linewidth=2.5, label="floor")
        for number, (name, (marker, fill, edge)) in enumerate(zip(names, _MARKERS, strict=False)):
            # Off the middle of the bar, where its error is.
            beside = 0.8 * (number + 0.5) / len(names) - 0.4 if len(names) > 1 else 0.2
            shown = [
                (row["published"][name], place + beside)
                for place, row in enumerate(rows)
                if name in row["published"]
            ]
            if shown:
                values, where = zip(*shown, strict=True)
                axes.plot(
                    values, where, marker, color=fill, markeredgecolor=edge, markersize=9,
                    label=f"{name} (published)",
                )  # fmt: skip
        axes.set_yticks(places, [row["label"] for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
        figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return path


def plot_board(rows: Sequence[Any], title: str, score: str, path: Path) -> Path:
    """Write the score of every model against its parameters; ours filled, published ones hollow.

    Args:
        rows: with `name`, `parameters`, `score` (None: not drawn), `is_measured` and `tuned_on`.
        score: what the number is called.
    """
    groups = (
        (True, False, "measured here", "D", BLUE),
        (False, False, "published by the authors", "o", "white"),
        (False, True, "published, tuned on a set's training questions", "^", "#F0E442"),
    )
    drawn = sorted((row for row in rows if row.score is not None), key=lambda row: row.score)
    with saved_figure(path, 6, 5.5) as figure:
        axes = figure.subplots()
        axes.set_title(title)
        axes.set_xscale("log")
        axes.set_xlabel("parameters (millions)")
        axes.set_ylabel(score)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(axis="x", which="minor", labelsize=10)
        for measured, tuned, label, marker, fill in groups:
            own = [row for row in drawn if row.is_measured is measured and bool(row.tuned_on) is tuned]
            if own:
                axes.plot(
                    [row.parameters / 1e6 for row in own], [row.score for row in own], marker, label=label,
                    color=fill, markeredgecolor="black", markersize=9,
                )  # fmt: skip
        sizes = [row.parameters for row in drawn]
        for row in drawn:
            # Towards the middle, where there is room.
            is_large = row.parameters**2 > min(sizes) * max(sizes)
            axes.annotate(
                row.name.rpartition("/")[2], (row.parameters / 1e6, row.score),
                xytext=(-7 if is_large else 7, 5), textcoords="offset points", fontsize=10,
                ha="right" if is_large else "left", fontweight="bold" if row.is_measured else "normal",
            )  # fmt: skip
        axes.margins(x=0.25, y=0.1)
        figure.legend(frameon=False, loc="outside lower center", ncols=1)
    return path
