"""docs/performance.md: its tables of training speed are what was measured."""

import json

import pytest
from commands import ROOT
from records import table_rows

PAGE = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
RECORDS = ROOT / "docs/performance"


@pytest.mark.parametrize("name", ["throughput", "throughput-4x1024-amd", "candidates", "candidates-amd"])
def test_every_measured_speed_stands_in_a_table(name):
    rows = {tuple(cells[at : at + 2]) for cells in table_rows(PAGE) for at in range(len(cells) - 1)}
    for row in json.loads((RECORDS / f"{name}.json").read_text())["rows"]:
        assert (f"{row['tokens_per_second']:,.0f}", f"{row['ratio_to_first']:.2f}") in rows, row["contender"]


def test_drift_is_what_was_measured():
    rows = {cells[0]: cells for cells in table_rows(PAGE)}
    for name, values in json.loads((RECORDS / "drift.json").read_text()).items():
        assert rows[name][3] == f"{values['mean_loss_of_last_quarter']:.4f}", name
