"""Our evaluation against plain lm-eval, on the same documents of every set, in one run.

    python benchmarks/evaluation.py runs/quickstart/final --data-dir DIR --fraction 0.05

Baseline: lm-eval's own `hf` model in fp32 with its default batch size of 1, as `lm_eval run --model hf`
scores. Ours: `ant-hf evaluate` in fp32 (its default) and in the dtypes given. Sets are loaded beforehand;
for each set the ways take turns, and the time is that of lm-eval's `evaluate` from requests to metrics, the
median of the rounds.
Every set gives the same share of its documents, so that the total weighs them as the whole table does.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lm_eval.evaluator
import torch
from lm_eval.models.huggingface import HFLM

from ant_hf.evaluation.benchmarks import Benchmark, choose_benchmarks, known_benchmarks
from ant_hf.evaluation.language_model import BatchedLM, LikelihoodStore
from ant_hf.evaluation.tasks import load_tasks, write_definitions
from ant_hf.model.loading import DTYPES, load_any
from ant_hf.utils.console import quiet_libraries
from ant_hf.utils.hardware import cpu_name

PLAIN = "lm-eval, float32, batch 1"


def measure(
    language_model: HFLM, loaded: dict[str, Any], benchmark: Benchmark, fraction: float
) -> tuple[float, float]:
    """Seconds, and the set's metric."""
    started = time.perf_counter()
    results: Any = lm_eval.evaluator.evaluate(language_model, loaded, limit=fraction, bootstrap_iters=0)
    seconds = time.perf_counter() - started
    return seconds, results["results"][benchmark.name][f"{benchmark.metric},none"]


def ours(model: str, dtype: str, device: str, scratch: Path, batch_size: int) -> BatchedLM:
    """A scorer with an empty store: nothing is taken over from an earlier set."""
    loaded, tokenizer = load_any(model, DTYPES[dtype])
    loaded.to(device)  # type: ignore[arg-type]
    return BatchedLM(loaded, tokenizer, LikelihoodStore(scratch / f"{dtype}.jsonl", {}), batch_size)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tasks", default="", help="sets, separated by commas (default: the card's table)")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each way on each set (default: 1)")
    parser.add_argument("--fraction", type=float, default=0.05, help="share of each set (default: 0.05)")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="ours, separated by commas")
    parser.add_argument("--batch-size", type=int, help="default: 2 on a CPU, 64 on a GPU")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch_size = arguments.batch_size or (2 if device == "cpu" else 64)
    names = [name for name in arguments.tasks.split(",") if name]
    chosen, _ = choose_benchmarks(names, known_benchmarks(arguments.data_dir), arguments.data_dir)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        logging.getLogger().setLevel(logging.ERROR)
        scratch = Path(folder)
        write_definitions(chosen, scratch / "definitions")
        ways: dict[str, HFLM] = {
            PLAIN: HFLM(pretrained=arguments.model, dtype="float32", device=device, batch_size=1)
        }
        for dtype in arguments.dtypes.split(","):
            ways[f"ours, {dtype}"] = ours(arguments.model, dtype, device, scratch, batch_size)
        for benchmark in chosen:
            taken: dict[str, list[float]] = {way: [] for way in ways}
            values = {}
            for _ in range(arguments.rounds):
                for way, language_model in ways.items():
                    if isinstance(language_model, BatchedLM):
                        # What was scored in the round before is not to be found again.
                        language_model.store.remove()
                        language_model.store = LikelihoodStore(language_model.store.path, {})
                    # lm-eval keeps requests in the task: each way gets its own.
                    loaded = load_tasks([benchmark], scratch / "definitions")[benchmark.name]
                    seconds, values[way] = measure(language_model, loaded, benchmark, arguments.fraction)
                    taken[way].append(seconds)
            rows += [
                {"set": benchmark.name, "way": way, "seconds": statistics.median(taken[way]), "value": value}
                for way, value in values.items()
            ]
            print_rows(rows[-len(ways) :])
    report(rows, list(ways), device, batch_size, arguments)


def print_rows(rows: list[dict[str, Any]]) -> None:
    base = rows[0]["seconds"]
    for row in rows:
        print(
            f"{row['set']:<20} {row['way']:<26} {row['seconds']:8.2f} s  {base / row['seconds']:5.2f}x  "
            f"{row['value']:.4f}",
            flush=True,
        )


def report(
    rows: list[dict[str, Any]], ways: list[str], device: str, batch_size: int, arguments: argparse.Namespace
) -> None:
    totals = {way: sum(row["seconds"] for row in rows if row["way"] == way) for way in ways}
    for way, seconds in totals.items():
        print(f"{'all sets':<20} {way:<26} {seconds:8.2f} s  {totals[PLAIN] / seconds:5.2f}x")
    conditions = {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "fraction": arguments.fraction,
        "batch_size": batch_size,
    }
    print(json.dumps(conditions))
    if arguments.json:
        values = {"conditions": conditions, "totals": totals, "rows": rows}
        arguments.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
