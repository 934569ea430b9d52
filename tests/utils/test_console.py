"""What a log shows of long work, where there is no terminal for a bar."""

import re
import time

import pytest
from rich.table import Table

from ant_hf.utils.console import progress_bar, say, show
from ant_hf.utils.stopping import phase


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr("ant_hf.utils.console._LINE_SECONDS", 0.1)


def test_work_that_reports_nothing_is_told_too(capsys):
    """A library may compute for minutes without a word to us."""
    with phase("exporting", "Nothing is lost."):
        time.sleep(0.4)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("exporting, 0:00:0") for line in lines)


def test_the_innermost_work_speaks_with_rate_time_left_and_figures(capsys):
    with phase("training", "Nothing is lost."), progress_bar("steps", "GFLOP", earlier=100) as advance:
        advance(10, 400, "loss 2.500")
        time.sleep(0.4)
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("steps       110 of 400 GFLOP, ")
    assert " left, " in line
    assert line.endswith(", loss 2.500")


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_keeps_the_count_and_the_time_left(capsys, monkeypatch, width):
    monkeypatch.setattr("ant_hf.utils.console._on_terminal", lambda: True)
    for name, value in (("TTY_COMPATIBLE", "1"), ("TERM", "xterm"), ("COLUMNS", str(width))):
        monkeypatch.setenv(name, value)
    with progress_bar("training") as advance:
        for _ in range(3):
            advance(100, 1115, "loss 4.921, 5,502 tokens per second, validation 1.303 bits per byte")
            time.sleep(0.2)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).replace("\r", "\n").splitlines()
    last = [line for line in lines if "300 of 1,115" in line][-1]
    assert re.search(r"left 0:00:0\d loss 4\.9", last), last
    assert len(last) <= width


def test_quick_work_says_nothing(capsys):
    with phase("training", "Nothing is lost."), progress_bar("steps") as advance:
        advance(1, 2)
    assert capsys.readouterr().err == ""


def test_other_processes_than_the_first_say_nothing(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with phase("training", "Nothing is lost."), progress_bar("steps") as advance:
        time.sleep(0.15)
        advance(1, 2)
    assert capsys.readouterr().err == ""


def test_brackets_and_colons_of_names_are_shown_as_they_are(capsys):
    table = Table("head [bold]", title="runs/[old] :b:")
    table.add_row("fp32 [warm] a:b:c")
    show(table)
    say("run", "[bold]x:b:y")
    said = capsys.readouterr().out
    for text in ("head [bold]", "runs/[old] :b:", "fp32 [warm] a:b:c", "[bold]x:b:y"):
        assert text in said
