"""What a log shows of long work, where there is no terminal for a bar."""

import time

import pytest

from ant_hf.utils.console import progress_bar
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
    with phase("training", "Nothing is lost."), progress_bar("steps", earlier=100) as advance:
        advance(10, 400, "loss 2.500")
        time.sleep(0.4)
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("steps       110 of 400, ")
    assert " left, " in line
    assert line.endswith(", loss 2.500")


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
