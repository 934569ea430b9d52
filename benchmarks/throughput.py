"""Training speed: this package against a plain `Trainer`, and against a bare PyTorch loop, in one run.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --candidates

Ant-10M on real text, every contender a process of its own, taking turns, medians of several rounds
after a warm-up:

- Trainer: transformers' Trainer with its defaults (fp32), the baseline of the ratios;
- Trainer, 16 bits: the same with bf16 or fp16 on;
- ours: a run as pretrain.py sets it up, with guards and records;
- bare loop: the same model, kernels and optimizer without Trainer, data on the device: what Trainer costs;
- GPT: a GPT-2-like model of the same width and depth in that loop.

`--candidates` measures one change at a time against ours instead. On a GPU fp16 and bf16 are both
measured. The machine's copy bandwidth and matrix rate are measured in the same run; `of matrix rate`
is the share of the latter that the model's own arithmetic reaches, `MFU` that of the data sheet.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ceilings import measure_ceilings
from rich.table import Table
from rounds import ROOT, Contender, packed_text, take_turns

from ant_hf.recipe import TrainingRecipe
from ant_hf.train.run_folder import environment
from ant_hf.train.setup import choose_execution
from ant_hf.utils.console import say, show

_SHAPES = {"cpu": "8x256,4x1024,2x2048", "cuda": "256x256,64x1024,16x4096"}
_CANDIDATES_SHAPE = {"cpu": "4x1024", "cuda": "64x1024"}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_GPU_COLUMNS = ("MFU", "GPU idle", "recompiled")
_TOKENS_A_ROUND = {"cpu": 8192, "cuda": 1_000_000}
# One change to ours at a time, by the keys of contenders.py.
_CPU_CANDIDATES: dict[str, dict[str, Any]] = {
    "attention sdpa": {"recipe": {"attn_implementation": "sdpa"}},
    "attention eager": {"recipe": {"attn_implementation": "eager"}},
    "not compiled": {"recipe": {"torch_compile": "off"}},
    "one thread": {"recipe": {"cpu_threads": 1}},
    "AdamW not fused": {"arguments": {"optim": "adamw_torch"}},
    "data loader worker": {"recipe": {"dataloader_num_workers": 1}},
    "Muon": {"optimizer": "muon"},
}
_GPU_CANDIDATES: dict[str, dict[str, Any]] = {
    "not compiled": {"recipe": {"torch_compile": "off"}},
    "attention as Transformers calls it": {"recipe": {"attn_implementation": "sdpa"}},
    "CUDA graphs": {"environment": {"TORCHINDUCTOR_CUDAGRAPHS": "1"}},
    "max-autotune": {"environment": {"TORCHINDUCTOR_MAX_AUTOTUNE": "1"}},
    "AdamW not fused": {"arguments": {"optim": "adamw_torch"}},
    "Liger kernels, not compiled": {
        "arguments": {"use_liger_kernel": True},
        "recipe": {"torch_compile": "off"},
    },
    "attention without flash": {"backends_off": ["flash"]},
    "attention without cuDNN": {"backends_off": ["cudnn"]},
    "attention memory-efficient": {"backends_off": ["flash", "cudnn"]},
    "data loader worker": {"recipe": {"dataloader_num_workers": 1}},
    "half the micro-batch": {"halved": True},
    "Muon": {"optimizer": "muon"},
}


def comparison(base: dict[str, Any], quick: bool) -> list[Contender]:
    """Who competes at one shape and precision; the first is the baseline."""
    precision = base["precision"]
    muon = {"optimizer": "muon"}
    rows = [Contender("Trainer", base | {"contender": "trainer", "precision": "fp32"})]
    if precision != "fp32":
        rows.append(Contender(f"Trainer, {precision}", base | {"contender": "trainer"}))
    rows += [
        Contender("ours", base | {"contender": "ours"}),
        Contender("bare loop", base | {"contender": "bare"}),
        Contender("ours, Muon", base | muon | {"contender": "ours"}),
    ]
    if quick:
        return rows
    return [
        *rows,
        Contender("bare loop, Muon", base | muon | {"contender": "bare"}),
        Contender("GPT, bare loop", base | {"contender": "nanogpt"}),
    ]


def candidates(base: dict[str, Any]) -> list[Contender]:
    """Ours, and ours with one change each."""
    changes = _GPU_CANDIDATES if base["device"] == "cuda" else _CPU_CANDIDATES
    rows = [Contender("ours", base | {"contender": "ours"})]
    for label, change in changes.items():
        spec = base | change | {"contender": "ours"}
        if spec.pop("halved", False):
            spec["recipe"] = {"per_device_batch_size": max(1, base["blocks"] // 2)}
        rows.append(Contender(label, spec))
    return rows


def compare(rows: list[dict[str, Any]], ceiling: float | None, peak: float | None) -> None:
    """Add to the rows of one shape their shares: of its first row, the matrix rate, and the data sheet's."""
    for row in rows:
        if "error" not in row:
            speed = row["tokens_per_second"]
            row["ratio_to_first"] = speed / rows[0].get("tokens_per_second", float("nan"))
            row["share_of_matrix_rate"] = speed * row["flops_per_token"] / ceiling if ceiling else None
            row["mfu"] = speed * row["flops_per_token"] / peak if peak else None


def table(rows: list[dict[str, Any]], title: str, peak: float | None) -> Table:
    """Figures of one shape."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("contender")
    for column in ("tokens/s", "ratio", "of matrix rate", "memory", *(_GPU_COLUMNS if peak else ())):
        shown.add_column(column, justify="right")
    for row in rows:
        if "error" in row:
            shown.add_row(row["contender"], f"failed: {row['error']}")
            continue
        gpt = "GPT" in row["contender"]  # whose FLOPs are others
        shown.add_row(
            row["contender"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['ratio_to_first']:.2f}",
            _percent(None if gpt else row["share_of_matrix_rate"]),
            f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
            *(
                [
                    _percent(None if gpt else row["mfu"]),
                    _percent(row.get("gpu_idle_share")),
                    str(row["recompilations"]),
                ]
                if peak
                else []
            ),
        )
    return shown


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def shapes(text: str) -> list[tuple[int, int]]:
    """`4x1024,8x256` as pairs of blocks and tokens per block."""
    try:
        return [
            (int(blocks), int(tokens)) for blocks, tokens in (part.split("x") for part in text.split(","))
        ]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must look like 8x256,4x1024") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--shapes", type=shapes, metavar="BLOCKSxTOKENS,...",
        help="blocks at once and tokens per block (default here: "
        f"{_SHAPES[device]}, and {_CANDIDATES_SHAPE[device]} for candidates)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, help="measured rounds of each (default 5, or 3 with --quick)")
    parser.add_argument(
        "--quick", action="store_true", help="one shape, without GPT and the second bare loop"
    )
    parser.add_argument("--precisions", help="bf16, fp16, fp32, separated by commas (default: what fits)")
    parser.add_argument("--candidates", action="store_true", help="ours with one change at a time")
    parser.add_argument("--architecture", type=Path, default=ROOT / "configs/llama_ant10m.json")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    one_shape = options.candidates or options.quick
    chosen = options.shapes or shapes((_CANDIDATES_SHAPE if one_shape else _SHAPES)[device])
    options.rounds = options.rounds or (3 if options.quick else 5)
    some_recipe = TrainingRecipe(sequences_per_step=1, max_steps=1, learning_rate=1e-3)
    execution = choose_execution(some_recipe)
    both = execution.precision == "bf16" and device == "cuda"
    precisions = (options.precisions or ("bf16,fp16" if both else execution.precision)).split(",")
    dtypes = tuple(_DTYPES[name] for name in dict.fromkeys(["fp32", *precisions]))
    ceilings = measure_ceilings(device, dtypes)
    conditions = environment(execution, 1) | {"date": time.strftime("%Y-%m-%d"), "rounds": options.rounds}
    del conditions["torch_compile"]  # which each row says of itself
    results: list[dict[str, Any]] = []

    def keep(ceiling: float | None, rows: list[dict[str, Any]]) -> None:
        compare(rows, ceiling, execution.peak_flops)
        if options.json:
            values = {"conditions": conditions, "ceilings": ceilings, "rows": results + rows}
            options.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    with packed_text() as tokens:
        for blocks, length in chosen:
            for precision in precisions:
                base = {
                    "tokens": str(tokens), "architecture": str(options.architecture), "device": device,
                    "precision": precision, "blocks": blocks, "sequence_length": length,
                    "steps": max(2, _TOKENS_A_ROUND[device] // (blocks * length)),
                    "config": {"max_position_embeddings": max(1024, length)},
                }  # fmt: skip
                contenders = candidates(base) if options.candidates else comparison(base, options.quick)
                dtype = str(_DTYPES[precision]).removeprefix("torch.")
                ceiling = ceilings.get(f"{dtype}_matrix_flops")
                # After each round, so that a time limit loses no round that is done.
                rows = take_turns(contenders, options.rounds, partial(keep, ceiling))
                keep(ceiling, rows)
                title = f"{blocks} x {length:,} tokens, {precision}, {execution.device_name}"
                show(table(rows, title, execution.peak_flops))
                results += rows
    report(ceilings)


def report(ceilings: dict[str, float]) -> None:
    """Print what the machine can do at most."""
    say(f"copy bandwidth {ceilings['copy_bytes_per_second'] / 1e9:,.0f} GB/s")
    for name, value in ceilings.items():
        if name.endswith("flops"):
            say(f"{name.split('_')[0]} matrix rate {value / 1e12:,.2f} TFLOP/s")


if __name__ == "__main__":
    main()
