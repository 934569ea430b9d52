"""The quick part of `make soak`: a few kills, one process and two."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize(("processes", "kills"), [(1, 5), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_killed_runs_end_as_the_uninterrupted_one(processes, kills, tmp_path):
    command = [sys.executable, "tests/faults/kills.py", "--processes", str(processes), "--kills", str(kills)]
    command += ["--work", str(tmp_path / "work"), "--tally", str(tmp_path / "tally.json")]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"ANT_HF_KILL_STEPS": "16"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    tally = json.loads((tmp_path / "tally.json").read_text())
    assert tally["kills"] == kills
    assert tally["failures"] == []
    assert tally["runs_equal"] == tally["runs_finished"] >= 1
    assert tally["lost_steps"] == tally["corrupt_resumes"] == 0
