"""Two processes against one on this machine's cores, at an equal global batch, in one run.

    python benchmarks/scale_out.py --json scale_out.json

Ant-10M through `pretrain.py`'s own Trainer, started by torchrun with gloo, as `accelerate launch` does on a
CPU. One process has all cores, two have half of them each; both train the same blocks of the embedded text.
The ways take turns; each repeat is a run of its own in a folder of its own, and its speed is the median of
the steps after the first ones. Efficiency is the speed of two processes over that of one: what the division
of the same cores and the exchange of gradients cost together.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ant_hf.utils.hardware import available_cores
from ant_hf.utils.metrics import read_metrics

ROOT = Path(__file__).parents[1]
WARMUP_STEPS = 2


def train(folder: Path, name: str, processes: int, options: argparse.Namespace) -> list[float]:
    """Tokens per second of each step of one run."""
    threads = max(1, available_cores() // processes)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), "pretrain.py", "--config", options.config]
    keys = {
        "data_dir": json.dumps(str(folder / "data")),
        "training.cpu_threads": threads,
        "training.sequences_per_step": options.sequences_per_step,
        "training.per_device_batch_size": options.sequences_per_step,
        "training.max_steps": options.steps,
        "training.warmup_steps": 1,
        "training.logging_steps": 1,
        "training.eval_steps": options.steps,
        "training.eval_max_tokens": 256,
        "training.save_steps": 10 * options.steps,
        "training.report_to": "[]",
    }
    for key, value in keys.items():
        command += ["--set", f"{key}={value}"]
    command += ["--output-dir", str(folder / name)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
    rows = read_metrics(folder / name / "metrics.jsonl")
    shutil.rmtree(folder / name)
    return [row["tokens_per_second"] for row in rows if "loss" in row and row["step"] > WARMUP_STEPS]


def main() -> None:
    # Here and not above: --help answers without torch.
    import torch

    from ant_hf.model.architecture import load_config, parameter_ledger
    from ant_hf.recipe import load_recipe
    from ant_hf.train.setup import choose_execution
    from ant_hf.utils.hardware import cpu_name

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/recipes/quickstart.yaml", help="recipe (the quickstart)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way (default 3)")
    parser.add_argument("--steps", type=int, default=10, help=f"a run, {WARMUP_STEPS} of them warm-up (10)")
    parser.add_argument("--sequences-per-step", type=int, default=8, help="global batch (default 8)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    recipe = load_recipe(ROOT / options.config)
    speeds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch:
        # Tokenizer and tokens are made once, by a run that is not counted.
        train(Path(scratch), "preparation", 1, argparse.Namespace(**vars(options) | {"steps": 3}))
        for repeat in range(options.repeats):
            for processes in (1, 2) if repeat % 2 == 0 else (2, 1):
                steps = train(Path(scratch), f"{repeat}-{processes}", processes, options)
                speeds[processes].append(statistics.median(steps))
                print(
                    f"repeat {repeat}  {processes} process(es)  {speeds[processes][-1]:,.0f} tokens/s",
                    flush=True,
                )
    medians = {processes: statistics.median(values) for processes, values in speeds.items()}
    gradient_bytes = 4 * parameter_ledger(load_config(ROOT / str(recipe.architecture))).total
    figures: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "precision": choose_execution(recipe.training).precision,
        "optimizer": recipe.training.optimizer,
        "tokens_per_step": options.sequences_per_step * recipe.training.sequence_length,
        "sequence_length": recipe.training.sequence_length,
        "gradient_megabytes": round(gradient_bytes / 1e6, 1),
        "threads_per_process": {str(n): max(1, available_cores() // n) for n in speeds},
        "tokens_per_second": {str(n): [round(value, 1) for value in values] for n, values in speeds.items()},
        "median_tokens_per_second": {str(n): round(value, 1) for n, value in medians.items()},
        "efficiency": round(medians[2] / medians[1], 3),
    }
    print(f"\n{'processes':>9} {'threads each':>13} {'tokens/s':>10} {'range':>15} {'of one':>7}")
    for n, values in speeds.items():
        low, high = min(values), max(values)
        print(
            f"{n:>9} {max(1, available_cores() // n):>13} {medians[n]:>10,.0f} "
            f"{f'{low:,.0f}-{high:,.0f}':>15} {medians[n] / medians[1]:>7.2f}"
        )
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
