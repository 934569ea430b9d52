"""Tokens per second of greedy generation by batch size: Transformers as it is, faster settings, llama.cpp.

    python benchmarks/generation.py runs/quickstart/final

Baseline: `generate` in fp32 with its default cache on all threads. On a CPU the others are bf16, a static
cache and one thread; on a GPU bf16, fp16 and a static cache (which `generate` compiles there). llama.cpp runs
the GGUF types in the wheel `xllamacpp`, on the CPU unless the wheel was built for the GPU. Ways take
turns, each repeat one turn; the figure is the median after one turn that is not counted. Time runs from
the prompts' ids to the last new token, so it holds the prompt of eight tokens too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ant_hf.export.gguf import TYPES, Origin, write_gguf
from ant_hf.export.llama_cpp import Questions, ask, is_installed
from ant_hf.export.vocabulary import read_vocabulary
from ant_hf.model.loading import DTYPES, load_any, locate
from ant_hf.utils.hardware import cpu_name

PLAIN = "generate, float32"
PROMPT_TOKENS = 8


def transformers_way(
    folder: Path, dtype: str, device: str, threads: int, new_tokens: int, **settings: Any
) -> Any:
    """A function of the batch size that generates once and returns tokens per second."""
    model, _ = load_any(folder, DTYPES[dtype])
    model.to(device).eval()  # type: ignore[arg-type]

    def turn(batch: int) -> float:
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(batch)
        ids = torch.randint(2, model.config.vocab_size, (batch, PROMPT_TOKENS), generator=generator).to(
            device
        )
        started = time.perf_counter()
        with torch.no_grad():
            model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                **settings,
            )
        if device == "cuda":
            torch.cuda.synchronize()
        return batch * new_tokens / (time.perf_counter() - started)

    return turn


def llama_cpp_way(file: Path, threads: int, new_tokens: int) -> Callable[[int], float]:
    """The same in llama.cpp; each turn loads the file in a fresh process, outside the time."""

    def turn(batch: int) -> float:
        questions = Questions(
            speed_batches=(batch,),
            new_tokens=new_tokens,
            context=PROMPT_TOKENS + new_tokens,
            threads=threads,
        )
        return ask(file, questions).tokens_per_second[str(batch)]

    return turn


def all_ways(folder: Path, device: str, threads: int, new_tokens: int, scratch: Path) -> dict[str, Any]:
    def way(dtype: str, count: int = threads, **settings: Any) -> Any:
        return transformers_way(folder, dtype, device, count, new_tokens, **settings)

    ways = {PLAIN: way("float32"), "generate, bfloat16": way("bfloat16")}
    if device == "cuda":
        ways["generate, float16"] = way("float16")
    ways["generate, float32, static cache"] = way("float32", cache_implementation="static")
    if device == "cuda":
        ways["generate, bfloat16, static cache"] = way("bfloat16", cache_implementation="static")
    elif threads > 1:
        ways["generate, float32, one thread"] = way("float32", 1)
    if is_installed():
        model, tokenizer = load_any(folder)
        vocabulary = read_vocabulary(model, tokenizer)
        for kind in TYPES:
            file = scratch / f"{kind}.gguf"
            write_gguf(file, model, vocabulary, kind, Origin("benchmark"))
            ways[f"llama.cpp, {kind.upper()}"] = llama_cpp_way(file, threads, new_tokens)
    else:
        print("llama.cpp is left out: pip install 'ant-hf[gguf]'")
    return ways


def measure(ways: dict[str, Any], batches: list[int], repeats: int) -> list[dict[str, Any]]:
    """One row per way and batch size, with every turn's figure."""
    rows = []
    for batch in batches:
        turns: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(1 + repeats):
            for name, turn in ways.items():
                turns[name].append(turn(batch))
        base = statistics.median(turns[PLAIN][1:])
        print(f"\nbatch {batch:<30} {'tokens/s':>10} {'ratio':>8} {'lowest':>10} {'highest':>10}")
        for name, figures in turns.items():
            counted = figures[1:]
            median = statistics.median(counted)
            rows.append({"batch": batch, "way": name, "tokens_per_second": median, "turns": counted})
            line = f"{median:>10,.0f} {median / base:>7.2f}x {min(counted):>10,.0f} {max(counted):>10,.0f}"
            print(f"{name:<36} {line}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--batches", default="1,64", help="batch sizes, separated by commas")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, folder = locate(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        ways = all_ways(folder, device, arguments.threads, arguments.new_tokens, Path(scratch))
        rows = measure(ways, [int(size) for size in arguments.batches.split(",")], arguments.repeats)
    conditions = {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "new_tokens": arguments.new_tokens,
        "prompt_tokens": PROMPT_TOKENS,
        "repeats": arguments.repeats,
    }
    print(json.dumps(conditions))
    if arguments.json:
        values = {"conditions": conditions, "rows": rows}
        arguments.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
