"""Figures of a run, made from its `metrics.jsonl` alone. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision, and in grey.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PINK]),
    "grid.alpha": 0.3,
    "font.size": 11,
    "figure.dpi": 120,
}


def plot_run(rows: list[dict[str, Any]], folder: Path, title: str) -> list[Path]:
    """Write loss, learning-rate, gradient-norm and throughput figures.

    Args:
        rows: `metrics.jsonl`, one dictionary a row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    training = [row for row in rows if "loss" in row]
    evaluation = [row for row in rows if "eval_loss" in row]
    with mpl.rc_context(STYLE):
        return [
            _loss(training, evaluation, folder / "loss.png", title),
            _line(training, "learning_rate", "learning rate", folder / "learning_rate.png", title),
            _line(
                training, "grad_norm", "gradient norm before clipping", folder / "gradient_norm.png", title
            ),
            _line(training, "tokens_per_second", "tokens per second", folder / "throughput.png", title),
        ]


def _axes(title: str, ylabel: str, xlabel: str = "tokens seen (millions)") -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def _loss(training: list[dict[str, Any]], evaluation: list[dict[str, Any]], path: Path, title: str) -> Path:
    figure, axes = _axes(f"{title}: loss", "loss (nats a token)")
    axes.plot(_millions(training), [row["loss"] for row in training], color=BLUE, label="training")
    if evaluation:
        losses = [row["eval_loss"] for row in evaluation]
        last = evaluation[-1]
        label = (
            f"validation (at the end {last['eval_loss']:.3f} nats a token, "
            f"{last['eval_bits_per_byte']:.3f} bits per byte)"
        )
        axes.plot(_millions(evaluation), losses, color=ORANGE, marker="o", label=label)
    axes.legend(frameon=False)
    figure.savefig(path)
    return path


def _line(rows: list[dict[str, Any]], key: str, label: str, path: Path, title: str) -> Path:
    figure, axes = _axes(f"{title}: {label}", label)
    rows = [row for row in rows if key in row]
    axes.plot(_millions(rows), [row[key] for row in rows], color=BLUE)
    axes.set_ylim(bottom=0)
    figure.savefig(path)
    return path


def _millions(rows: list[dict[str, Any]]) -> list[float]:
    return [row["tokens_seen"] / 1e6 for row in rows]


def plot_fragmentation(report: dict[str, Any], path: Path) -> Path:
    """Write how many tokens words need, and how long tokens are."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.5), layout="constrained")
        words, lengths = figure.subplots(1, 2)
        figure.suptitle(
            f"{report['vocab_size']:,} entries: {report['bytes_per_token']:.2f} bytes a token, "
            f"{report['words_kept_whole']:.1%} of words kept whole"
        )
        _shares(words, report["tokens_per_word_histogram"], "tokens a word needs", "share of words")
        _shares(lengths, report["token_length_histogram"], "bytes a token stands for", "share of tokens used")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return path


def _shares(axes: Any, histogram: dict[str, int], xlabel: str, ylabel: str) -> None:
    total = sum(histogram.values()) or 1
    axes.bar([int(key) for key in histogram], [count / total for count in histogram.values()], color=BLUE)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))


def plot_benchmarks(rows: list[dict[str, Any]], names: list[str], path: Path, title: str) -> Path:
    """Write accuracies as bars with two standard errors, each benchmark's floor, and published figures.

    Args:
        rows: `label`, `value`, `stderr`, `floor` and `published` (accuracy by model name), as fractions.
        names: the published models to show as points.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 1.5 + 0.45 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.set_title(f"{title}: accuracy, bars of two standard errors")
        places = list(range(len(rows)))
        axes.barh(
            places, [row["value"] for row in rows], xerr=[2 * row["stderr"] for row in rows], height=0.6,
            color=BLUE, ecolor="black", capsize=3, label=f"{title} (measured)",
        )  # fmt: skip
        for place, row in zip(places, rows, strict=True):
            if row["floor"] is not None:
                axes.plot([row["floor"]] * 2, [place - 0.4, place + 0.4], color=ORANGE, linewidth=2.5)
        axes.plot([], [], color=ORANGE, linewidth=2.5, label="floor")
        for number, (name, marker) in enumerate(zip(names, "Dosv^", strict=False)):
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
                    values, where, marker, color="white", markeredgecolor="black", label=f"{name} (published)"
                )
        axes.set_yticks(places, [row["label"] for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
        figure.legend(frameon=False, loc="outside lower center", ncols=2 + len(names))
        figure.savefig(path)
    return path
