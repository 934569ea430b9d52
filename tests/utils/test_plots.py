"""Figures as they are seen in a README and on a phone."""

from types import SimpleNamespace

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from ant_hf.utils.plots import plot_benchmarks, plot_board, plot_fragmentation, plot_run

# Points that a phone has for a picture, and letters that can be read on it.
_PHONE, _LEGIBLE = 366, 8


@pytest.fixture
def drawn(monkeypatch):
    """Figures in the order in which they are saved."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, _: figures.append(figure))
    return figures


def test_published_models_differ_in_shape_and_fill(drawn, tmp_path):
    names = ["Ant-5M", "Ant-10M", "C", "D", "E"]
    published = {name: 0.2 + place / 20 for place, name in enumerate(names)}
    row = {"label": "PIQA", "value": 0.5, "stderr": 0.01, "floor": 0.5, "published": published}
    row["interval"] = (0.48, 0.52)
    plot_benchmarks([row, row], names, tmp_path / "benchmarks.png", "run")
    (figure,) = drawn
    points = [line for line in figure.axes[0].get_lines() if "published" in line.get_label()]
    assert len(points) == len(names)
    for look in (lambda line: line.get_marker(), lambda line: line.get_markerfacecolor()):
        assert len({look(line) for line in points}) == len(names)
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} > {f"{name} (published)" for name in names}


def test_letters_can_be_read_on_a_phone(drawn, tmp_path):
    row = {"loss": 2.0, "learning_rate": 1e-3, "grad_norm": 1.0, "tokens_per_second": 9.0, "tokens_seen": 1e6}
    plot_run([row], tmp_path, "run")
    counts = {"tokens_per_word_histogram": {"1": 2}, "token_length_histogram": {"3": 1}}
    plot_fragmentation(
        {"vocab_size": 9, "bytes_per_token": 3.0, "words_kept_whole": 0.5, **counts}, tmp_path / "f.png"
    )
    rows = [
        SimpleNamespace(name="a/b", parameters=9_000_000, score=70.0, is_measured=True, tuned_on=None),
        SimpleNamespace(name="c/d", parameters=6_000_000, score=71.0, is_measured=False, tuned_on=["blimp"]),
        SimpleNamespace(name="e/f", parameters=8_000_000, score=None, is_measured=False, tuned_on=None),
    ]
    plot_board(rows, "Board", "score", tmp_path / "board.png")
    # A row without a score has no place; the others have their names, and kinds of their own.
    texts = {text.get_text() for text in drawn[-1].findobj(mpl.text.Text)}
    assert {"b", "d"} <= texts
    assert "f" not in texts
    assert len({line.get_marker() for line in drawn[-1].axes[0].get_lines()}) == 2
    assert len(drawn) == 6
    for figure in drawn:
        letters = [text.get_size() for text in figure.findobj(mpl.text.Text) if text.get_text()]
        assert min(letters) / (figure.get_figwidth() * 72) * _PHONE >= _LEGIBLE
