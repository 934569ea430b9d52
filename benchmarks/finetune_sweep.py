"""The sweep of docs/finetune.md: rates at three sizes of text, beside the base and a training from nothing.

    python benchmarks/finetune_sweep.py --data TEXT --output docs/finetune

Every row is a run of pretrain.py with the recipe finetune; those that are finished are not run again, and
an interrupted one continues. TEXT should differ in kind from what the base was trained on. From nothing: the
base's architecture, a vocabulary of the text's own and the quickstart's rates, for as many passes.
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

from rounds import ROOT

from ant_hf.data.sources import LocalFiles
from ant_hf.train.run_folder import RunRecord
from ant_hf.utils.console import say
from ant_hf.utils.files import write_text

_NOTHING = "from nothing"
# So much is held out that it measures, and most is left to learn from.
_HELD_OUT_BYTES, _HELD_OUT_SHARES = 100_000, (0.02, 0.2)


def write_part(data: str, target: Path, size: int) -> None:
    """Documents for so many bytes, chosen and ordered by a hash, so that each size is like the others."""
    texts = {
        hashlib.sha256(f"part {text}".encode()).digest(): text for text in LocalFiles.find(data).documents()
    }
    lines, written = [], 0
    for digest in sorted(texts):
        if written >= size:
            break
        # The last document may be longer than what is missing.
        text = texts[digest].encode()[: size - written].decode(errors="ignore")
        written += len(text.encode())
        lines.append(json.dumps({"text": text}) + "\n")
    if written < 0.99 * size:
        raise SystemExit(f"{data} has {written:,} bytes of text, and {size:,} are asked for")
    write_text(target, "".join(lines))


def run(options: argparse.Namespace, size: int, rate: str, seed: int) -> dict[str, Any]:
    """Train one row, unless it is finished; what it says of itself."""
    part = options.runs / f"{size}.jsonl"
    if not part.exists():
        write_part(options.data, part, size)
    folder = options.runs / f"{size}-{rate.replace(' ', '-')}-{seed}"
    least, most = _HELD_OUT_SHARES
    share = min(most, max(least, _HELD_OUT_BYTES / size))
    sets = [f"training.seed={seed}", f"corpus.validation_fraction={share:g}", "training.report_to=[]"]
    base = str(Path(options.base).resolve())
    if rate == _NOTHING:
        sets += ["training.init_from=null", f"architecture={base}", "tokenizer={}"]
        sets += ["training.muon_learning_rate=0.03", "training.learning_rate=0.02"]
    else:
        sets += [f"training.init_from={base}", f"training.muon_learning_rate={rate}"]
        sets += [f"training.learning_rate={rate}"]
    sets += options.overrides
    command = [
        sys.executable,
        str(ROOT / "pretrain.py"),
        "--config",
        str(options.config),
        "--data",
        str(part),
    ]
    command += ["--output-dir", str(folder), *(word for each in sets for word in ("--set", each))]
    say(f"\n{size:,} bytes, {rate}, seed {seed}")
    subprocess.run(command, check=True)
    record = RunRecord.read(folder)
    assert record.final, "it has run to its end"
    before, best = record.before or {}, record.best or {}
    return {
        "bytes": size,
        "rate": rate,
        "seed": seed,
        "bits_per_byte": record.final["bits_per_byte"],
        "bits_per_byte_of_base": before["final"]["bits_per_byte"] if before else None,
        "general_bits_per_byte": record.general and record.general["bits_per_byte"],
        "general_bits_per_byte_of_base": before["general"] and before["general"]["bits_per_byte"]
        if before
        else None,
        "best_step": best.get("step"),
        "last_step": best.get("last_step"),
        "steps_planned": record.recipe["training"]["max_steps"],
        "passes": record.recipe["training"]["num_train_epochs"],
        "training_seconds": record.training_seconds,
        "seconds": record.train_and_finish_seconds,
        "environment": record.environment,
    }


def table_of(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, by size and rate, in Markdown."""
    lines = [
        "| bytes of text | rate | seeds | held-out: base | then | general: base | then | best step |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for size, rate in dict.fromkeys((row["bytes"], row["rate"]) for row in rows):
        group = [row for row in rows if (row["bytes"], row["rate"]) == (size, rate)]

        def shown(key: str, form: str = ".3f", group: list[dict[str, Any]] = group) -> str:
            values = [row[key] for row in group if row[key] is not None]
            if not values:
                return ""
            spread = statistics.stdev(values) if len(values) > 1 else 0
            return f"{statistics.mean(values):{form}}" + (f" ± {spread:{form}}" if spread else "")

        steps = f"{shown('best_step', '.0f')} of {shown('last_step', '.0f')}"
        figures = ["bits_per_byte_of_base", "bits_per_byte", "general_bits_per_byte_of_base"]
        figures.append("general_bits_per_byte")
        cells = [f"{size:,}", rate, str(len(group)), *map(shown, figures), steps]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="text: a file, a folder or a quoted glob")
    parser.add_argument("--base", default=str(ROOT / "release/Ant-10M"), help="folder of the model")
    parser.add_argument("--config", default=ROOT / "configs/recipes/finetune.yaml", help="recipe")
    parser.add_argument("--output", type=Path, required=True, help="folder of finetune.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/finetune-sweep"), help="folder of the runs")
    parser.add_argument("--sizes", nargs="*", type=int, default=[50_000, 1_000_000, 20_000_000], help="bytes")
    parser.add_argument("--rates", nargs="*", default=["0.002", "0.005", "0.01"], help="of Muon and of AdamW")
    parser.add_argument("--seeds", nargs="*", type=int, default=[42, 43, 44])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    options = parser.parse_args()
    options.runs = options.runs.resolve()
    rows = []
    for size in options.sizes:
        for rate in [*options.rates, _NOTHING]:
            for seed in options.seeds:
                rows.append(run(options, size, rate, seed))
                # After each, for the whole takes hours.
                write_text(options.output / "finetune.json", json.dumps(rows, indent=1) + "\n")
    say(table_of(rows))


if __name__ == "__main__":
    main()
