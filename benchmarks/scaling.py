"""How the cost of training and packing grows: sequence length, model size, corpus size; a plot each.

    python benchmarks/scaling.py --output docs/performance

Ours as in throughput.py, in this machine's best precision. Sequence lengths at equal tokens per step;
model sizes by Llama configs of the same proportions; packing by data_path.py. What takes turns in
one run is comparable. Processes are measured by scale_out.py, whose figures are drawn too if its JSON
lies in the same folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rounds import ROOT, Contender, packed_text, take_turns

from ant_hf.recipe import TrainingRecipe
from ant_hf.train.run_folder import environment
from ant_hf.train.setup import choose_execution
from ant_hf.utils.console import say
from ant_hf.utils.plots import STYLE

_LENGTHS = (256, 512, 1024, 2048, 4096)
_TOKENS_A_STEP = {"cpu": 4096, "cuda": 65536}
_ARCHITECTURE = ROOT / "configs/llama_ant10m.json"


def _llama(hidden_size: int, layers: int, heads: int, intermediate_size: int) -> dict[str, int]:
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": hidden_size // heads,
        "intermediate_size": intermediate_size,
    }


_SIZES: dict[str, dict[str, int]] = {
    "Ant-5M": {},  # from its own file
    "Ant-10M": _llama(256, 12, 4, 704),
    "30M": _llama(512, 10, 8, 1408),
    "100M": _llama(768, 14, 12, 2112),
}


def measure_lengths(base: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Ours and a plain Trainer at each sequence length, at equal tokens per step."""
    rows = []
    for length in _LENGTHS:
        shape = {"sequence_length": length, "blocks": max(1, base["tokens_a_step"] // length)}
        spec = base | shape | {"config": {"max_position_embeddings": max(_LENGTHS)}}
        contenders = [
            Contender("ours", spec | {"contender": "ours"}),
            Contender("Trainer, defaults", spec | {"contender": "trainer", "precision": "fp32"}),
        ]
        rows += take_turns(contenders, rounds)
    return rows


def measure_sizes(base: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Ours at each model size, 1,024 tokens per block."""
    spec = base | {"sequence_length": 1024, "blocks": base["tokens_a_step"] // 1024, "contender": "ours"}
    contenders = []
    for name, config in _SIZES.items():
        architecture = ROOT / "configs/llama_ant5m.json" if name == "Ant-5M" else _ARCHITECTURE
        contenders.append(Contender(name, spec | {"config": config, "architecture": str(architecture)}))
    return take_turns(contenders, rounds)


def measure_packing(megabytes: list[int]) -> list[dict[str, Any]]:
    """data_path.py at each corpus size."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in megabytes:
            say(f"packing {size:,} MB")
            target = Path(scratch) / f"{size}.json"
            command = [sys.executable, str(ROOT / "benchmarks/data_path.py"), "--megabytes", str(size)]
            subprocess.run([*command, "--json", str(target)], check=True, capture_output=True)
            rows.append(json.loads(target.read_text()))
    return rows


def plot(lines: dict[str, list[tuple[float, float]]], labels: tuple[str, str, str], path: Path) -> None:
    """One logarithmic x axis, y from 0, a value at each point."""
    import matplotlib.pyplot as plt

    title, xlabel, ylabel = labels
    with plt.rc_context(STYLE):
        figure: Figure
        figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
        for (label, points), offset in zip(lines.items(), (6, -15), strict=False):
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
            behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
            for x, y in points:
                shown = f"{y:,.0f}" if y >= 100 else f"{y:.1f}"
                axes.annotate(
                    shown, (x, y), textcoords="offset points", xytext=(0, offset), ha="center", bbox=behind
                )
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axes.set_title(title, fontsize="medium")
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log", xticks=ticks)
        axes.set_xticklabels([f"{tick:,.3g}" if tick < 1000 else f"{tick:,.0f}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.1)
        if len(lines) > 1:
            axes.legend()
        figure.savefig(path, dpi=110)
        plt.close(figure)


def plot_all(results: dict[str, Any], folder: Path) -> None:
    """The plots of docs/performance.md from `scaling.json`."""
    where = results["conditions"]["device_name"]
    speeds: dict[str, list[tuple[float, float]]] = {}
    for row in results["sequence_length"]:
        name = f"{row['contender']} ({row['precision']})"
        speeds.setdefault(name, []).append((row["sequence_length"], row["tokens_per_second"]))
    labels = f"Training speed by sequence length ({where})", "tokens per block", "tokens per second"
    plot(speeds, labels, folder / "sequence-length.png")
    sizes = [(row["parameters"] / 1e6, row["tokens_per_second"]) for row in results["model_size"]]
    labels = f"Training speed by model size ({where})", "parameters (millions)", "tokens per second"
    plot({"ours": sizes}, labels, folder / "model-size.png")
    packing = {
        name: [(row["text_megabytes"], row[key]) for row in results["packing"]]
        for name, key in [
            ("the tokenizer alone", "baseline_encode_batch_megabytes_per_second"),
            ("packing, from jsonl to shards", "pack_megabytes_per_second"),
        ]
    }
    labels = f"Packing speed by corpus size ({where})", "text (MB)", "MB per second"
    plot(packing, labels, folder / "corpus-size.png")
    if (scale_out := folder / "scale_out.json").is_file():
        speeds_by_count = json.loads(scale_out.read_text())["median_tokens_per_second"]
        counts: list[tuple[float, float]] = [(int(count), speed) for count, speed in speeds_by_count.items()]
        labels = f"Training speed by processes, same cores ({where})", "processes", "tokens per second"
        plot({"ours": counts}, labels, folder / "processes.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of scaling.json and the plots")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each (default 3)")
    parser.add_argument("--megabytes", default="10,100,1000", help="corpus sizes (default 10,100,1000)")
    parser.add_argument("--plots-only", action="store_true", help="draw again from scaling.json")
    options = parser.parse_args()
    file = options.output / "scaling.json"
    if options.plots_only:
        plot_all(json.loads(file.read_text()), options.output)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    execution = choose_execution(TrainingRecipe(sequences_per_step=1, max_steps=1, learning_rate=1e-3))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {"conditions": environment(execution, 1) | {"date": time.strftime("%Y-%m-%d")}}
    with packed_text() as tokens:
        base = {
            "tokens": str(tokens), "architecture": str(_ARCHITECTURE), "device": device,
            "precision": execution.precision, "steps": 2, "tokens_a_step": _TOKENS_A_STEP[device],
        }  # fmt: skip
        results["sequence_length"] = measure_lengths(base, options.rounds)
        results["model_size"] = measure_sizes(base, options.rounds)
    results["packing"] = measure_packing([int(size) for size in options.megabytes.split(",")])
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot_all(results, options.output)


if __name__ == "__main__":
    main()
