"""benchmarks/drift.py: the plot of all paths, without training them."""

import pytest
from commands import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.parametrize("table", ["_CPU", "_CUDA"])
def test_every_path_is_drawn(table, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import drift

    paths = getattr(drift, table)
    drift.plot({name: {"losses": [2.0, 1.0 + 0.1 * at]} for at, name in enumerate(paths)}, tmp_path)
    assert (tmp_path / "drift.png").stat().st_size > 10_000
