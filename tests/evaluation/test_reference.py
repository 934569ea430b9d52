"""Our numbers equal those of the plain `lm_eval` command line on the same documents.

On a few documents of every set, written here. To repeat it on real ones, as docs/evaluation.md reports:
ANT_HF_EVAL_MODEL=runs/quickstart/final ANT_HF_EVAL_DATA=DIR pytest -m slow tests/evaluation/test_reference.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_data import write_benchmarks

from ant_hf.evaluation.benchmarks import choose_benchmarks, known_benchmarks
from ant_hf.evaluation.evaluate import evaluate
from ant_hf.evaluation.tasks import write_definitions

LIMIT = 20


def plain(model, names, definitions, folder):
    """lm-eval as anyone runs it: fp32, its default batch size of 1."""
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "1",
        "--model_args", f"pretrained={model},dtype=float32", "--include_path", str(definitions),
        "--tasks", ",".join(names), "--limit", str(LIMIT), "--output_path", str(folder), "--log_samples",
    ]  # fmt: skip
    environment = os.environ | {"TQDM_DISABLE": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    (path,) = folder.rglob("results_*.json")
    return json.loads(path.read_text())["results"]


def logged(folder, name):
    """Log-likelihoods by document, as the command line logged them; groups log by member."""
    for file in folder.rglob(f"samples_{name}_2*.jsonl"):
        for line in file.read_text().splitlines():
            sample = json.loads(line)
            yield sample["doc_id"], [float(response[0]) for (response,) in sample["resps"]]


@pytest.mark.slow
def test_equal_to_plain_lm_eval(tiny_run, tmp_path):
    model = os.environ.get("ANT_HF_EVAL_MODEL", str(tiny_run / "final"))
    real = os.environ.get("ANT_HF_EVAL_DATA")
    data_dir = Path(real) if real else write_benchmarks(tmp_path / "data")
    chosen, _ = choose_benchmarks([], known_benchmarks(), data_dir)
    names = [benchmark.name for benchmark in chosen]
    assert {"arc_easy", "arc_challenge", "piqa", "sciq", "hellaswag", "winogrande", "mmlu", "boolq"} < set(
        names
    )
    write_definitions(chosen, tmp_path / "definitions")
    reference = plain(model, names, tmp_path / "definitions", tmp_path / "plain")
    ours, _ = evaluate(
        model, names, limit=LIMIT, data_dir=data_dir, output_dir=tmp_path / "ours", device="cpu"
    )
    for name in names:
        if name == "wikitext":
            for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
                found = ours["perplexity"][name][metric]
                assert found == pytest.approx(reference[name][f"{metric},none"], rel=1e-5)
            continue
        for metric, values in ours["tasks"][name]["metrics"].items():
            expected = reference[name][f"{metric},none"]
            # LAMBADA's perplexity is a number of nats; accuracies are counts and must be the same.
            assert values["value"] == pytest.approx(expected, rel=1e-5 if metric == "perplexity" else 1e-12)
    lines = [json.loads(line) for line in (tmp_path / "ours" / "samples.jsonl").read_text().splitlines()]
    largest = 0.0
    for name in set(names) - {"wikitext", "mmlu", "blimp"}:
        mine = {line["doc_id"]: line["log_likelihoods"] for line in lines if line["task"] == name}
        theirs = dict(logged(tmp_path / "plain", name))
        assert mine.keys() == theirs.keys()
        for document, expected in theirs.items():
            assert mine[document] == pytest.approx(expected, abs=1e-3)
            largest = max([largest, *(abs(a - b) for a, b in zip(mine[document], expected, strict=True))])
    print(f"{len(names)} sets equal; largest difference of a log-likelihood {largest:.1e} nats")
