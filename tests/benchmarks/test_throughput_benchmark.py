"""benchmarks/throughput.py from its command line to its JSON, with a model of two layers."""

import io
import json
import subprocess
import sys
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

    # Busy from 10 to 14 and from 18 to 20; what the CPU does is not a kernel.
    events = [event(18, 20), event(10, 13), event(11, 12), event(12, 14), event(0, 99, "CPU")]
    assert _idle_share(SimpleNamespace(events=lambda: events)) == pytest.approx(0.4)


def test_a_gpu_round_gives_its_memory_back_and_survives_a_failing_profiler(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    import contenders

    freed = []

    class Failing:
        def __init__(self, **_):
            pass

        def start(self):
            pass

        def stop(self):
            raise RuntimeError("CUPTI is busy")

    monkeypatch.setattr(contenders.torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(contenders.torch.cuda, "empty_cache", lambda: freed.append(True))
    monkeypatch.setattr(contenders.torch.profiler, "profile", Failing)
    monkeypatch.setattr(contenders.sys, "stdin", io.StringIO("round\nprofile\n"))
    monkeypatch.setattr(contenders.sys, "__stdout__", sys.stdout)
    pacer, steps = contenders.Pacer(4, "cuda"), 0
    while pacer.step_done():
        steps += 1
    # A warm-up, a round and a profile; each of the last two begins with a step that is not timed.
    assert steps + 1 == contenders.WARM_UP_STEPS + (1 + 4) + (1 + contenders.PROFILED_STEPS)
    ready, measured, profiled = map(json.loads, capsys.readouterr().out.splitlines())
    assert ready == "ready"
    assert measured["seconds"] >= 0
    assert profiled["profiler_error"] == "CUPTI is busy"
    assert len(freed) == 3


def test_the_error_of_a_contender_is_named_and_not_the_advice_below_it(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    from rounds import Contender, _Worker

    spec = {"sequence_length": 64, "blocks": 2, "precision": "bf16"}
    worker = _Worker(Contender("ours", spec), tmp_path, 0)
    worker._log.write_text("Traceback:\ntorch.OutOfMemoryError: 80 GB\n\nSet VERBOSE=1 for more\n")
    monkeypatch.setattr(worker, "_process", SimpleNamespace(stdout=io.StringIO("")))
    worker._answer()
    assert worker.figures()["error"] == "torch.OutOfMemoryError: 80 GB"


def test_a_contender_that_was_ended_while_it_waited_stops_no_other(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    from rounds import Contender, _Worker

    spec = {"sequence_length": 64, "blocks": 2, "precision": "bf16"}
    worker = _Worker(Contender("ours", spec), tmp_path, 0)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    worker._process = subprocess.Popen([sys.executable, "-c", "print('\"imported\"')"], **pipes)
    worker._log.touch()
    worker.wait_for_imports()
    worker._process.wait()
    worker.start()
    worker.round("round")
    worker.stop()
    assert worker.figures()["error"] == "it ended without a message"


def test_a_contender_that_fails_late_keeps_its_measured_rounds(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    from rounds import Contender, _Worker

    shape = {"sequence_length": 64, "blocks": 2, "steps": 10, "precision": "bf16"}
    spec = shape | {"architecture": str(ROOT / "configs/llama_ant10m.json")}
    worker = _Worker(Contender("ours", spec), tmp_path, 0)
    worker._error = "the profiler ended the process"
    assert worker.figures()["error"] == "the profiler ended the process"
    answer = {"kind": "round", "seconds": 2.0, "graphs": 3, "peak_bytes": {"process": 10**9}}
    worker._answers = [answer, answer]
    row = worker.figures()
    assert row["tokens_per_second"] == 640
    assert "error" not in row
    assert row["error_after_rounds"] == "the profiler ended the process"


def test_all_import_before_one_begins_and_figures_are_handed_on_after_each_round(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    import rounds

    imported = []

    class Counting:
        def __init__(self, contender, folder, index):
            self.contender, self.rounds = contender, None

        def launch(self):
            assert imported == []  # none is waited for before all are launched

        def wait_for_imports(self):
            imported.append(self.contender)

        def start(self):
            assert imported == ["ours", "bare"]
            self.rounds = 0

        def round(self, kind):
            self.rounds += kind == "round"

        def figures(self):
            return self.contender, self.rounds

        def stop(self):
            pass

    monkeypatch.setattr(rounds, "_Worker", Counting)
    seen = []
    assert rounds.take_turns(["ours", "bare"], 2, seen.append) == [("ours", 2), ("bare", 2)]
    assert seen[0] == [("ours", 1)]
    assert seen[1:] == [[("ours", 1), ("bare", 1)], [("ours", 2), ("bare", 1)], [("ours", 2), ("bare", 2)]]


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
