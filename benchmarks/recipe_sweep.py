"""The sweep of docs/recipe.md: one change at a time, equal tokens, bits per byte of held-out documents.

    python benchmarks/recipe_sweep.py --data TEXT --output docs/recipe

Every row is a run of pretrain.py of its own (four minutes on two cores); those that are finished are
not run again, and an interrupted one goes on. The base with another seed shows how far two equal
recipes part by chance.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rounds import ROOT
from safetensors.torch import load_file

from ant_hf.architecture import build_model, load_config
from ant_hf.checkpoints import load_final
from ant_hf.corpus import Corpus
from ant_hf.evaluation.perplexity import score_tokens
from ant_hf.metrics import read_metrics
from ant_hf.plots import STYLE
from ant_hf.report import say
from ant_hf.resume import checkpoints
from ant_hf.sources import LocalFiles
from ant_hf.tokenizer import load_tokenizer, token_byte_lengths
from ant_hf.tokens import VALIDATION, PackedTokens, TokensInMemory

_CONFIG = ROOT / "configs/recipes/ant10m-sweep.yaml"
_SCORED_TOKENS, _CONTEXT = 65_536, 1024
_ADAMW = ("training.optimizer=adamw", "training.muon_learning_rate=null")
# {data}: the text; {runs}: the folder of the runs; {part}: a small part of the text.
ROWS: dict[str, tuple[str, ...]] = {
    "base": (),
    "base, another seed": ("training.seed=43",),
    "Muon learning rate 0.005": ("training.muon_learning_rate=0.005",),
    "Muon learning rate 0.01": ("training.muon_learning_rate=0.01",),
    "Muon learning rate 0.04": ("training.muon_learning_rate=0.04",),
    "AdamW learning rate 0.003 beside Muon": ("training.learning_rate=0.003",),
    "AdamW alone, 0.003": (*_ADAMW, "training.learning_rate=0.003"),
    "AdamW alone, 0.006": (*_ADAMW, "training.learning_rate=0.006"),
    "2 blocks a step": (
        "training.sequences_per_step=2",
        "training.max_steps=244",
        "training.warmup_steps=20",
    ),
    "8 blocks a step": ("training.sequences_per_step=8", "training.max_steps=61", "training.warmup_steps=5"),
    "cosine to zero": ("training.lr_scheduler_type=cosine_with_min_lr", "training.stable_fraction=0.0"),
    "constant, no decay": (
        "training.min_lr_rate=1.0",
        "training.save_steps=8",
        "training.save_total_limit=8",
    ),
    "z-loss 1e-4": ("training.z_loss=1e-4",),
    "digits not split": ("tokenizer.split_digits=false", "data_dir={runs}/data/digits-together"),
    "without the novels": ("corpus.path={data}/[!g]*.jsonl.gz", "data_dir={runs}/data/without-novels"),
    "part of the text, once": (
        "corpus.path={part}",
        "data_dir={runs}/data/part",
        "corpus.validation_fraction=0.1",
    ),
    "a quarter of that part, four times": (
        "corpus.path={part}",
        "data_dir={runs}/data/part-4",
        "corpus.validation_fraction=0.1",
        "corpus.max_tokens=125000",
    ),
}
# Held out from other documents than the rest: compared by source only, or with each other.
_OWN_TEXT = ("without the novels", "part of the text, once", "a quarter of that part, four times")
_BY_SOURCE = ("base", "without the novels")
_TOKENS_BY_SOURCE = 16_384
_AVERAGED = "constant, no decay"
_AVERAGED_CHECKPOINTS = (2, 4, 8)


def write_part(data: str, target: Path) -> None:
    """About 0.5M tokens chosen and ordered by content hash, so that its first quarter is like the rest."""
    texts = {hashlib.sha256(text.encode()).digest(): text for text in LocalFiles.find(data).documents()}
    chosen = sorted(digest for digest in texts if int.from_bytes(digest[8:16], "big") < 2**64 / 180)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(json.dumps({"text": texts[digest]}) + "\n" for digest in chosen))


def run(name: str, overrides: tuple[str, ...], data: str, runs: Path) -> Path:
    """Train a row, unless it is finished; its output folder."""
    folder, part = runs / "".join(c if c.isalnum() else "-" for c in name), runs / "part.jsonl"
    values = [value.format(data=data, runs=runs, part=part) for value in overrides]
    if any("{part}" in value for value in overrides) and not part.exists():
        write_part(data, part)
    keys = {value.partition("=")[0] for value in values}
    if "corpus.path" not in keys:
        values.append(f"corpus.path={data}")
    if "data_dir" not in keys:
        values.append(f"data_dir={runs / 'data' / 'base'}")
    command = [sys.executable, str(ROOT / "pretrain.py"), "--config", str(_CONFIG)]
    command += ["--output-dir", str(folder), *(item for value in values for item in ("--set", value))]
    say(f"\n{name}")
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


def row(name: str, overrides: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """What a finished run says of itself."""
    metrics = read_metrics(folder / "metrics.jsonl")
    last = [values for values in metrics if "eval_loss" in values][-1]
    speeds = [values["tokens_per_second"] for values in metrics if "tokens_per_second" in values]
    return {
        "name": name,
        "overrides": list(overrides),
        "steps": last["step"],
        "tokens_seen": last["tokens_seen"],
        "bits_per_byte": last["eval_bits_per_byte"],
        "median_tokens_per_second": statistics.median(speeds),
    }


def averaged_rows(folder: Path, tokens_dir: Path) -> list[dict[str, Any]]:
    """The run without a decay, with the mean of its last checkpoints' weights."""
    tokenizer = load_tokenizer(tokens_dir.parent / "tokenizer")
    validation = PackedTokens(tokens_dir, VALIDATION)
    model = build_model(load_config(ROOT / "configs/llama_ant10m.json"), 0, "sdpa")
    rows = []
    for count in _AVERAGED_CHECKPOINTS:
        weights = [load_file(path / "model.safetensors") for path in checkpoints(folder)[-count:]]
        mean = {key: torch.stack([w[key] for w in weights]).mean(0) for key in weights[0]}
        model.load_state_dict(mean, strict=False)
        scores = score_tokens(
            model, validation, token_byte_lengths(tokenizer), _CONTEXT, 4, _SCORED_TOKENS, torch.bfloat16
        )
        name = f"{_AVERAGED}, mean of the last {count} checkpoints"
        rows.append({"name": name, "bits_per_byte": scores.bits_per_byte, "checkpoints": count})
    return rows


def by_source(folder: Path, data: str, fraction: float) -> dict[str, float]:
    """Bits per byte of a row's final model on held-out documents of each source (file names up to the dash).

    Held out by content hash, so that they are held out from every row whose fraction is as large.
    """
    model, tokenizer = load_final(folder / "final")
    lengths = token_byte_lengths(tokenizer.backend_tokenizer)
    ids: dict[str, list[int]] = {}
    for file in LocalFiles.find(data).files:
        own = ids.setdefault(file.name.partition("-")[0], [])
        for document in Corpus(LocalFiles((file,)), fraction):
            if len(own) > _TOKENS_BY_SOURCE:
                break
            if document.is_validation:
                own += [*tokenizer.encode(document.text, add_special_tokens=False, verbose=False), 0]
    return {
        source: score_tokens(
            model, TokensInMemory(own[:_TOKENS_BY_SOURCE]), lengths, _CONTEXT, 4, None, torch.bfloat16
        ).bits_per_byte
        for source, own in ids.items()
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bits per byte of every row as a distance from the base, with the seed's distance as a band."""
    import matplotlib.pyplot as plt

    base = {r["name"]: r["bits_per_byte"] for r in rows}["base"]
    by_chance = abs({r["name"]: r["bits_per_byte"] for r in rows}.get("base, another seed", base) - base)
    shown = [r for r in rows if r["name"] not in ("base", *_OWN_TEXT)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 0.32 * len(shown) + 1.2), layout="constrained")
        axes.axvspan(-by_chance, by_chance, alpha=0.2, label="distance of another seed")
        axes.axvline(0, linewidth=1)
        for place, values in enumerate(reversed(shown)):
            axes.plot(values["bits_per_byte"] - base, place, "o", color="C0")
        axes.set_yticks(range(len(shown)), [values["name"] for values in reversed(shown)])
        axes.set(
            title="One change at a time from the base, 0.5M tokens",
            xlabel=f"bits per byte on held-out documents, less the base's {base:.3f} (left is better)",
        )
        axes.legend(loc="lower right")
        figure.savefig(path, dpi=110)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="text: a file, a folder or a quoted glob")
    parser.add_argument("--output", type=Path, required=True, help="folder of sweep.json and sweep.png")
    parser.add_argument("--runs", type=Path, default=Path("runs/ant10m-sweep"), help="folder of the runs")
    parser.add_argument("--only", nargs="*", choices=list(ROWS), help="these rows (default: all)")
    options = parser.parse_args()
    data, runs = str(Path(options.data).resolve()), options.runs.resolve()
    rows = []
    for name in options.only or ROWS:
        folder = run(name, ROWS[name], data, runs)
        rows.append(row(name, ROWS[name], folder))
        if name in _BY_SOURCE:
            rows[-1]["bits_per_byte_by_source"] = by_source(folder, data, 0.005)
        if name == _AVERAGED:
            rows += averaged_rows(folder, runs / "data" / "base" / "tokens")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "sweep.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    plot(rows, options.output / "sweep.png")
    for values in sorted(rows, key=lambda values: float(values["bits_per_byte"])):
        say(f"{values['bits_per_byte']:.4f}  {values['name']}")


if __name__ == "__main__":
    main()
