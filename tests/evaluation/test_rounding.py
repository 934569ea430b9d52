"""16 bits are used for a set where they are exact enough for it, and not where they are not."""

import pytest
import torch
from benchmark_data import piqa, write_jsonl

from ant_hf.evaluation import rounding
from ant_hf.evaluation.evaluate import evaluate
from ant_hf.evaluation.language_model import BatchedLM


@pytest.fixture
def measured(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rounding, "SAMPLE", 60)
    write_jsonl(tmp_path / "piqa.jsonl", [piqa(i) for i in range(70)])

    def measure(dtype="bfloat16"):
        results, _ = evaluate(
            tiny_run / "final",
            ["piqa"],
            data_dir=tmp_path,
            output_dir=tmp_path / dtype,
            dtype=dtype,
            device="cpu",
        )
        return results["tasks"]["piqa"], capsys.readouterr().out

    return measure


def test_the_check_is_said_and_recorded(measured):
    record, said = measured()
    assert "60 documents were scored in bfloat16 too" in said
    check = record["rounding"]
    assert check["documents"] == 60
    assert 0 <= check["changed"] <= 60
    # At least what one more changed answer in so small a sample would do.
    assert check["error"] > 0
    assert record["dtype"] == ("bfloat16" if check["error"] <= check["stderr"] / 3 else "float32")


def test_a_set_that_rounding_changes_is_scored_in_float32(measured, monkeypatch):
    exact, _ = measured("float32")
    score = BatchedLM.loglikelihood

    def rough(self, requests, **kwargs):
        found = score(self, requests, **kwargs)
        return found if self.model.dtype == torch.float32 else [(-nats, greedy) for nats, greedy in found]

    monkeypatch.setattr(BatchedLM, "loglikelihood", rough)
    record, said = measured()
    assert "too much, so the set is scored in float32" in said
    assert record["dtype"] == "float32"
    assert record["value"] == exact["value"]


def test_a_metric_that_is_no_share_is_scored_in_float32(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(rounding, "SAMPLE", 5)
    write_jsonl(tmp_path / "lambada_openai.jsonl", [{"text": f"The river {i} is long"} for i in range(6)])
    (tmp_path / "benchmarks.yaml").write_text(
        "lambada_openai: {definition: lambada/lambada_openai.yaml, metric: perplexity}"
    )
    results, _ = evaluate(
        tiny_run / "final",
        ["lambada_openai"],
        data_dir=tmp_path,
        output_dir=tmp_path / "results",
        dtype="bfloat16",
        device="cpu",
    )
    record = results["tasks"]["lambada_openai"]
    assert (record["metric"], record["dtype"]) == ("perplexity", "float32")


def test_a_small_set_is_scored_in_float32_at_once(measured, monkeypatch):
    monkeypatch.setattr(rounding, "SAMPLE", 70)
    record, said = measured()
    assert "rounding" not in record
    assert record["dtype"] == "float32"
    assert "bfloat16" not in said
