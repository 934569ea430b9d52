"""The sweep of docs/recipe.md: one change at a time, equal tokens, bits per byte of held-out documents.

    python benchmarks/recipe_sweep.py --data TEXT --output docs/recipe

Every row is a run of pretrain.py of its own (four minutes on two cores); those that are finished are
not run again, and an interrupted one continues. Another base: --config RECIPE, with a schedule that warms up,
stays and decays. The base with another seed shows how far two equal
recipes part by chance.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
from rounds import ROOT
from safetensors.torch import load_file

from ant_hf.data.corpus import Corpus, normalised
from ant_hf.data.sources import LocalFiles
from ant_hf.data.tokenizer import load_tokenizer, token_byte_lengths
from ant_hf.data.tokens import VALIDATION, PackedTokens, TokensInMemory
from ant_hf.model.architecture import build_model, load_config
from ant_hf.model.loading import load_final
from ant_hf.model.scoring import score_tokens
from ant_hf.recipe import Recipe, load_recipe
from ant_hf.train.checkpoints import checkpoints
from ant_hf.utils.console import say
from ant_hf.utils.files import write_text
from ant_hf.utils.metrics import read_metrics
from ant_hf.utils.plots import STYLE

_CONFIG = ROOT / "configs/recipes/ant10m-sweep.yaml"
_ADAMW = ("training.optimizer=adamw", "training.muon_learning_rate=null")
_PART = ("corpus.path={part}", "corpus.validation_fraction=0.1")
# In braces: the text, the folder of the runs, a part of the text, and figures of the base (`figures`).
ROWS: dict[str, tuple[str, ...]] = {
    "base": (),
    "base, another seed": ("training.seed=43",),
    "Muon learning rate 0.005": ("training.muon_learning_rate=0.005",),
    "Muon learning rate 0.01": ("training.muon_learning_rate=0.01",),
    "Muon learning rate 0.04": ("training.muon_learning_rate=0.04",),
    "AdamW learning rate 0.003 beside Muon": ("training.learning_rate=0.003",),
    "AdamW alone, 0.003": (*_ADAMW, "training.learning_rate=0.003"),
    "AdamW alone, 0.006": (*_ADAMW, "training.learning_rate=0.006"),
    "half the batch": (
        "training.sequences_per_step={half_batch}",
        "training.max_steps={twice_steps}",
        "training.warmup_steps={twice_warmup}",
    ),
    "twice the batch": (
        "training.sequences_per_step={twice_batch}",
        "training.max_steps={half_steps}",
        "training.warmup_steps={half_warmup}",
    ),
    "cosine to zero": ("training.lr_scheduler_type=cosine_with_min_lr", "training.stable_fraction=0.0"),
    "constant, no decay": (
        "training.min_lr_rate=1.0",
        "training.save_steps={few_steps}",
        "training.save_total_limit=8",
    ),
    "z-loss 1e-4": ("training.z_loss=1e-4",),
    "digits not split": ("tokenizer.split_digits=false", "data_dir={runs}/data/digits-together"),
    "without the novels": ("corpus.path={data}/[!g]*.jsonl.gz", "data_dir={runs}/data/without-novels"),
    "part of the text, once": (*_PART, "data_dir={runs}/data/part"),
    "a quarter of that part, four times": (
        *_PART,
        "data_dir={runs}/data/part-4",
        "corpus.max_tokens={quarter_tokens}",
    ),
}
# Held out from other documents than the rest: compared by source only, or with each other.
_OWN_TEXT = ("without the novels", "part of the text, once", "a quarter of that part, four times")
_BY_SOURCE = ("base", "without the novels")
# Equal windows of tokens are other text for another vocabulary: these are compared on all of it.
_WHOLE_TEXT = ("base", "digits not split")
_TOKENS_BY_SOURCE = 16_384
_AVERAGED = "constant, no decay"
_AVERAGED_CHECKPOINTS = (2, 4, 8)


def figures(base: Recipe) -> dict[str, int]:
    """What rows of the same tokens need of the base."""
    training = base.training
    steps, batch = training.max_steps, training.sequences_per_step
    return {
        "half_batch": batch // 2,
        "twice_batch": batch * 2,
        "half_steps": steps // 2,
        "twice_steps": steps * 2,
        "half_warmup": training.warmup_steps // 2,
        "twice_warmup": training.warmup_steps * 2,
        "few_steps": max(1, steps // 15),
        "quarter_tokens": steps * batch * training.sequence_length // 4,
    }


def write_part(data: str, target: Path, tokens: int) -> None:
    """Text for a run's tokens, chosen and ordered by a hash: its first quarter is like the rest.

    Salted, because the lowest hashes of the texts themselves are the held-out ones.
    """
    texts = {
        hashlib.sha256(f"part {text}".encode()).digest(): text for text in LocalFiles.find(data).documents()
    }
    # 10 % are held out; a token is 4 bytes or less.
    wanted = tokens * 4 / 0.9
    lines = []
    for digest in sorted(texts):
        if wanted <= 0:
            break
        wanted -= len(normalised(texts[digest]))
        lines.append(json.dumps({"text": texts[digest]}) + "\n")
    # Whole or absent: a part that is there is not written again.
    write_text(target, "".join(lines))


def run(name: str, base: Recipe, of_base: list[str], data: str, runs: Path) -> Path:
    """Train a row, unless it is finished; its output folder.

    Args:
        of_base: arguments of pretrain.py that make the base; those of the row come after them.
    """
    folder, part = runs / "".join(c if c.isalnum() else "-" for c in name), runs / "part.jsonl"
    known = figures(base)
    values = [value.format(data=data, runs=runs, part=part, **known) for value in ROWS[name]]
    if "{part}" in "".join(ROWS[name]) and not part.exists():
        write_part(data, part, 4 * known["quarter_tokens"])
    keys = {value.partition("=")[0] for value in values}
    if "corpus.path" not in keys:
        values.append(f"corpus.path={data}")
    if "data_dir" not in keys:
        values.append(f"data_dir={runs / 'data' / 'base'}")
    command = [sys.executable, str(ROOT / "pretrain.py"), *of_base]
    command += ["--output-dir", str(folder), *(item for value in values for item in ("--set", value))]
    say(f"\n{name}")
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


def row(name: str, folder: Path) -> dict[str, Any]:
    """What a finished run says of itself."""
    metrics = read_metrics(folder / "metrics.jsonl")
    last = [values for values in metrics if "eval_loss" in values][-1]
    speeds = [values["tokens_per_second"] for values in metrics if "tokens_per_second" in values]
    return {
        "name": name,
        "overrides": list(ROWS[name]),
        "steps": last["step"],
        "tokens_seen": last["tokens_seen"],
        "bits_per_byte": last["eval_bits_per_byte"],
        "median_tokens_per_second": statistics.median(speeds),
    }


def averaged_rows(folder: Path, base: Recipe, tokens_dir: Path) -> list[dict[str, Any]]:
    """The run without a decay, with the mean of its last checkpoints' weights."""
    tokenizer = load_tokenizer(tokens_dir.parent / "tokenizer")
    validation = PackedTokens(tokens_dir, VALIDATION)
    # As the runs read it, wherever this was started.
    model = build_model(load_config(ROOT / str(base.architecture)), 0, "sdpa")
    scored = base.training.eval_max_tokens
    rows = []
    for count in _AVERAGED_CHECKPOINTS:
        weights = [load_file(path / "model.safetensors") for path in checkpoints(folder)[-count:]]
        mean = {key: torch.stack([w[key] for w in weights]).mean(0) for key in weights[0]}
        model.load_state_dict(mean, strict=False)
        scores = score_tokens(
            model, validation, token_byte_lengths(tokenizer), max_tokens=scored, **_scored_as(base)
        )
        name = f"{_AVERAGED}, mean of the last {count} checkpoints"
        rows.append({"name": name, "bits_per_byte": scores.bits_per_byte, "checkpoints": count})
    return rows


def _scored_as(base: Recipe) -> dict[str, Any]:
    """How every row's model is scored."""
    return {"context": base.training.sequence_length, "batch_size": 4, "autocast_dtype": torch.bfloat16}


def of_whole_text(folder: Path, base: Recipe) -> float:
    """Bits per byte of a row's final model on everything that its own run held out."""
    model, tokenizer = load_final(folder / "final")
    data = json.loads((folder / "run.json").read_text(encoding="utf-8"))["recipe"]["data_dir"]
    validation = PackedTokens(Path(data) / "tokens", VALIDATION)
    lengths = token_byte_lengths(tokenizer.backend_tokenizer)
    return score_tokens(model, validation, lengths, **_scored_as(base)).bits_per_byte


def by_source(folder: Path, base: Recipe, data: str) -> dict[str, float]:
    """Bits per byte of a row's final model on held-out documents of each source (file names up to the dash).

    Held out by content hash, so that they are held out from every row of the base's fraction.
    """
    model, tokenizer = load_final(folder / "final")
    lengths = token_byte_lengths(tokenizer.backend_tokenizer)
    ids: dict[str, list[int]] = {}
    for file in LocalFiles.find(data).files:
        own = ids.setdefault(file.name.partition("-")[0], [])
        for document in Corpus(LocalFiles((file,)), base.corpus.validation_fraction):
            if len(own) > _TOKENS_BY_SOURCE:
                break
            if document.is_validation:
                own += [*tokenizer.encode(document.text, add_special_tokens=False, verbose=False), 0]
    return {
        source: score_tokens(
            model,
            TokensInMemory(own[:_TOKENS_BY_SOURCE]),
            lengths,
            **_scored_as(base),
        ).bits_per_byte
        for source, own in ids.items()
    }


def _distance(values: dict[str, Any], base: dict[str, Any]) -> float:
    key = "bits_per_byte_of_whole_text" if "bits_per_byte_of_whole_text" in values else "bits_per_byte"
    return float(values[key] - base[key])


def _label(values: dict[str, Any]) -> str:
    whole = "bits_per_byte_of_whole_text" in values
    return textwrap.fill(f"{values['name']}{' (on all of the held-out text)' if whole else ''}", 30)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bits per byte of every row as a distance from the base, with the seed's distance as a band."""
    import matplotlib.pyplot as plt

    base = rows[0]
    by_chance = max(abs(_distance(r, base)) for r in rows if r["name"] in ("base", "base, another seed"))
    shown = [r for r in rows if r["name"] not in ("base", *_OWN_TEXT)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.5, 0.42 * len(shown) + 1.4), layout="constrained")
        figure.suptitle(f"One change at a time from the base, {base['tokens_seen'] / 1e6:.1f}M tokens")
        axes.axvspan(-by_chance, by_chance, alpha=0.2, label="distance of the one other seed, both ways")
        axes.axvline(0, linewidth=1)
        for place, values in enumerate(reversed(shown)):
            axes.plot(_distance(values, base), place, "o", color="C0")
        axes.set_yticks(range(len(shown)), [_label(values) for values in reversed(shown)])
        axes.set_xlabel(
            f"held-out bits per byte, less the base's {base['bits_per_byte']:.3f}\n(left is better)"
        )
        figure.legend(loc="outside lower right", frameon=False)
        figure.savefig(path)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, default=_CONFIG, help="recipe of the base (default: %(default)s)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change the base, for example training.max_steps=488; may be repeated",
    )
    parser.add_argument("--data", required=True, help="text: a file, a folder or a quoted glob")
    parser.add_argument("--output", type=Path, required=True, help="folder of sweep.json and sweep.png")
    parser.add_argument("--runs", type=Path, default=Path("runs/ant10m-sweep"), help="folder of the runs")
    parser.add_argument(
        "--only", nargs="*", choices=list(ROWS), help="the base and these rows (default: all)"
    )
    options = parser.parse_args()
    data, runs = str(Path(options.data).resolve()), options.runs.resolve()
    base = load_recipe(options.config, options.overrides)
    of_base = ["--config", str(options.config.resolve())]
    of_base += [item for value in options.overrides for item in ("--set", value)]
    rows = []
    for name in ROWS:
        if options.only and name not in ("base", *options.only):
            continue
        folder = run(name, base, of_base, data, runs)
        rows.append(row(name, folder))
        if name in _WHOLE_TEXT:
            rows[-1]["bits_per_byte_of_whole_text"] = of_whole_text(folder, base)
        if name in _BY_SOURCE:
            rows[-1]["bits_per_byte_by_source"] = by_source(folder, base, data)
        if name == _AVERAGED:
            rows += averaged_rows(folder, base, runs / "data" / "base" / "tokens")
    rows[0]["overrides"] = options.overrides
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "sweep.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    plot(rows, options.output / "sweep.png")
    for values in sorted(rows, key=lambda values: float(values["bits_per_byte"])):
        say(f"{values['bits_per_byte']:.4f}  {values['name']}")


if __name__ == "__main__":
    main()
