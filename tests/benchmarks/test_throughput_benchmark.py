"""benchmarks/throughput.py from its command line to its JSON, with a model of two layers."""

import json
from types import SimpleNamespace

import pytest
from commands import ROOT, in_a_process, run_here

BENCHMARK = ROOT / "benchmarks/throughput.py"


def test_a_wrong_shape_is_explained():
    result = run_here("python", BENCHMARK, "--shapes", "4by1024")
    assert result.returncode == 2
    assert "'4by1024': must look like 8x256,4x1024" in result.stderr


def test_idle_share_counts_overlapping_kernels_once(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    from contenders import _idle_share

    def event(start, end, device="CUDA"):
        time_range = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(time_range=time_range, device_type=SimpleNamespace(name=device))

    # Busy from 10 to 14 and from 18 to 20; what the CPU does is no kernel.
    events = [event(18, 20), event(10, 13), event(11, 12), event(12, 14), event(0, 99, "CPU")]
    assert _idle_share(SimpleNamespace(events=lambda: events)) == pytest.approx(0.4)


@pytest.mark.slow
def test_every_contender_trains_and_is_measured(tmp_path):
    config = json.loads((ROOT / "configs/llama_ant10m.json").read_text())
    config |= {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 64, "head_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ["--architecture", str(tmp_path / "config.json"), "--json", str(tmp_path / "figures.json")]
    result = in_a_process("python", BENCHMARK, "--shapes", "2x64", "--rounds", "1", *options)
    assert result.returncode == 0, result.stderr
    assert "bare loop" in result.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures["rows"]) >= 6
    for row in figures["rows"]:
        assert "error" not in row, row
        assert row["tokens_per_second"] > 0
        assert row["peak_memory_bytes"] > 50e6
    assert figures["ceilings"]["float32_matrix_flops"] > 1e9
    assert figures["conditions"]["device_name"]
