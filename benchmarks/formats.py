"""Size, loss, load time and tokens per second of every exported file, beside Transformers: docs/export.md.

    python benchmarks/formats.py runs/quickstart/final

The exports are made beside the model if they are not there. Each turn is a process of its own that loads one
file and continues a prompt of eight tokens greedily, once uncounted and once counted, in one thread: a page
has one too, unless its server isolates it. Ways take turns; figures are medians. Load: from the file, which
the system has read before, to a model that answers, without the start of the program. WASM is onnxruntime-web
in Node, which needs `make node`; it and llama.cpp are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ant_hf.card.markdown import table
from ant_hf.export.exporting import export
from ant_hf.export.llama_cpp import is_installed
from ant_hf.utils.console import progress_bar
from ant_hf.utils.hardware import cpu_name

ROOT = Path(__file__).parents[1]
PROMPT = [2 + 7 * place for place in range(8)]


def transformers_turn(folder: Path) -> tuple[float, Callable[[int], object]]:
    """Seconds to load, and what continues the prompt by so many tokens."""
    import torch

    from ant_hf.model.loading import load_any

    torch.set_num_threads(1)
    started = time.perf_counter()
    model: Any = load_any(folder)[0].eval()
    ids = torch.tensor([PROMPT])
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False}
    return time.perf_counter() - started, lambda count: model.generate(
        ids, min_new_tokens=count, max_new_tokens=count, **settings
    )


def onnxruntime_turn(file: Path) -> tuple[float, Callable[[int], object]]:
    """As `transformers_turn`."""
    from ant_hf.export.onnx import OnnxModel

    started = time.perf_counter()
    model = OnnxModel(file, 1)
    return time.perf_counter() - started, lambda count: model.greedy(PROMPT, count, [])


def llama_cpp_turn(file: Path) -> tuple[float, Callable[[int], object]]:
    """As `transformers_turn`."""
    from ant_hf.export.llama_cpp import Questions, _Server

    started = time.perf_counter()
    server = _Server(str(file), Questions(threads=1))
    server.tokenize("ready")
    settings = {"ignore_eos": True, "cache_prompt": False}
    return time.perf_counter() - started, lambda count: server.complete(PROMPT, n_predict=count, **settings)


TURNS = {"Transformers": transformers_turn, "ONNX Runtime": onnxruntime_turn, "llama.cpp": llama_cpp_turn}
WASM = "ONNX Runtime Web, WASM"


def take_turn(program: str, file: Path, new_tokens: int) -> None:
    """Load, continue twice, print the figures of the second time."""
    load, proceed = TURNS[program](file)
    proceed(new_tokens)
    started = time.perf_counter()
    proceed(new_tokens)
    speed = new_tokens / (time.perf_counter() - started)
    print("\n" + json.dumps({"load": load, "tokens_per_second": speed}))


@dataclass
class Way:
    """One row: a program with a file."""

    program: str
    file: Path
    bytes: int
    loss: float | None
    """Bits per byte of plain English beside the original."""

    def run(self, new_tokens: int) -> dict[str, float]:
        """A turn in a process of its own."""
        words = [sys.executable, __file__, "--turn", self.program, str(self.file), str(new_tokens)]
        if self.program == WASM:
            ids = json.dumps(PROMPT)
            words = ["node", str(ROOT / "tests/node/wasm.mjs"), str(self.file), ids, str(new_tokens)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
        figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return figures


def all_ways(model: Path) -> list[Way]:
    """Transformers with the model, and each exported file in each program that is here."""
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    ways = [Way("Transformers", model, weights, None)]
    programs = {"onnx": ["ONNX Runtime"], "gguf": ["llama.cpp"]}
    if shutil.which("node") and (ROOT / "tests/node/node_modules").is_dir():
        programs["onnx"].append(WASM)
    else:
        print("WASM is left out: make node")
    if not is_installed():
        print("llama.cpp is left out: pip install 'ant-hf[gguf]'")
        del programs["gguf"]
    for to, each in programs.items():
        folder, record = export(str(model), to)
        for name, values in record["files"].items():
            if "verified" in values:
                verified = values["verified"]
                figures = verified["onnxruntime" if to == "onnx" else "llama_cpp"]
                loss = figures["bits_per_byte_difference"]
                ways += [Way(program, folder / name, values["bytes"], loss) for program in each]
    return ways


def measure(ways: list[Way], rounds: int, new_tokens: int) -> list[dict[str, Any]]:
    """One row per way, with every turn's figures."""
    turns: list[list[dict[str, float]]] = [[] for _ in ways]
    with progress_bar("turns") as bar:
        for index in range(rounds * len(ways)):
            turns[index % len(ways)].append(ways[index % len(ways)].run(new_tokens))
            bar(1, rounds * len(ways))
    return [
        {"program": way.program, "file": way.file.name, "bytes": way.bytes, "loss": way.loss, "turns": found}
        for way, found in zip(ways, turns, strict=True)
    ]


def as_table(rows: list[dict[str, Any]]) -> str:
    """The table of docs/export.md."""
    lines = []
    for row in rows:
        load, speed = (
            [turn[key] for turn in row["turns"]] for key in ("load", "tokens_per_second")
        )  # fmt: skip
        lines.append([
            row["file"],
            row["program"],
            f"{row['bytes'] / 1e6:.1f}",
            "" if row["loss"] is None else f"{row['loss']:+.4f}",
            f"{statistics.median(load):.2f}",
            f"{statistics.median(speed):,.0f}",
            f"{min(speed):,.0f} to {max(speed):,.0f}",
        ])  # fmt: skip
    header = ["file", "program", "MB", "loss, bits per byte", "load, s", "tokens/s", "lowest and highest"]
    return str(table(header, lines, numbers_from=2))


def main() -> None:
    if sys.argv[1:2] == ["--turn"]:
        take_turn(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a model's folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    rows = measure(all_ways(arguments.model), arguments.rounds, arguments.new_tokens)
    conditions = {
        "processor": cpu_name(),
        "threads": 1,
        "rounds": arguments.rounds,
        "new_tokens": arguments.new_tokens,
        "prompt_tokens": len(PROMPT),
    }
    print(as_table(rows), json.dumps(conditions), sep="\n\n")
    if arguments.json:
        values = {"conditions": conditions, "rows": rows}
        arguments.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
