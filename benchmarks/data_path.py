"""Text to shards, against the tokenizer alone: how much the rest of the pipeline costs.

    python benchmarks/data_path.py --megabytes 1000

Repeats the embedded text with numbered headings, so that no document is a duplicate, trains the
4,096-entry tokenizer on it, and measures in one run on all cores:

- baseline: `tokenizers.encode_batch_fast` over the same documents already in memory;
- ours: jsonl on disk to hashed shards and manifest (reading, NFC, deduplication, split, encoding,
  writing), with the largest memory of this process and its workers together;
- a batch of 64 blocks of 1,024 tokens for a training: of fixed blocks, and of documents that are packed
  afresh each pass, with the first one, which shuffles them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil
from tokenizers import Tokenizer

from ant_hf.data.packing import make_tokens
from ant_hf.data.repacking import training_order
from ant_hf.data.sources import EmbeddedBible, LocalFiles
from ant_hf.data.tokenizer import make_tokenizer
from ant_hf.recipe import Recipe, load_recipe
from ant_hf.utils.hardware import available_cores

RECIPE = Path(__file__).parents[1] / "configs/recipes/quickstart.yaml"
BASELINE_BYTES = 40_000_000


class PeakMemory:
    """Samples the resident memory of this process and its children, 20 times per second."""

    def __enter__(self) -> PeakMemory:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.05):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it has just ended
                    continue
            self.peak_bytes = max(self.peak_bytes, total)


def write_corpus(path: Path, size: int) -> None:
    """Write at least `size` bytes of text as jsonl."""
    chapters = list(EmbeddedBible().documents())
    written = copy = 0
    with path.open("w", encoding="utf-8") as handle:
        while written < size:
            for number, chapter in enumerate(chapters):
                text = f"Copy {copy}, chapter {number}.\n{chapter}"
                handle.write(json.dumps({"text": text}) + "\n")
                written += len(text.encode())
                if written >= size:
                    break
            copy += 1


def measure_baseline(tokenizer_file: Path, source: LocalFiles) -> float:
    """MB/s of the tokenizers batch encoder on documents in memory, best of three."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    texts, size = [], 0
    for text in source.documents():
        texts.append(text)
        size += len(text.encode())
        if size >= BASELINE_BYTES:
            break
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for first in range(0, len(texts), 500):
            tokenizer.encode_batch_fast(texts[first : first + 500], add_special_tokens=False)
        seconds.append(time.perf_counter() - start)
    return size / 1e6 / min(seconds)


def measure_batches(recipe: Recipe) -> dict[str, float]:
    """Milliseconds of a batch, median of 100, and of the first one, without the hashes of the shards."""
    figures = {}
    for name in ("fixed", "repacked"):
        options = {"sequence_length": 1024, "sequences_per_step": 64, "max_steps": 100}
        options["repack_each_pass"] = name == "repacked"
        training = recipe.training.model_copy(update=options)
        times = [time.perf_counter()]
        order = training_order(recipe.model_copy(update={"training": training}), 0)
        for first in range(0, len(order), 64):
            order.__getitems__(range(first, first + 64))
            times.append(time.perf_counter())
        seconds = [after - before for before, after in itertools.pairwise(times)]
        figures[f"{name}_first_batch_milliseconds"] = round(1000 * seconds[0], 2)
        figures[f"{name}_batch_milliseconds"] = round(1000 * statistics.median(seconds[1:]), 2)
    return figures


def main() -> None:
    # Here and not above: packing's worker processes import this file and need no torch.
    from ant_hf.utils.hardware import cpu_name

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=200, help="size of the text (default 200)")
    parser.add_argument("--data", help="local text to use instead, in full: file, folder or glob")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if not options.data:
            write_corpus(folder / "corpus.jsonl", options.megabytes * 1_000_000)
        data = options.data or str(folder / "corpus.jsonl")
        changes = {
            "output_dir": scratch,
            "corpus.source": "files",
            "corpus.path": data,
            "corpus.validation_fraction": 0.001,
        }
        recipe = load_recipe(RECIPE, changes=changes)
        with PeakMemory() as training_memory:
            start = time.perf_counter()
            make_tokenizer(recipe, 1024)
            tokenizer_seconds = time.perf_counter() - start
        baseline = measure_baseline(recipe.tokenizer_dir / "tokenizer.json", LocalFiles.find(data))
        with PeakMemory() as memory:
            start = time.perf_counter()
            manifest = make_tokens(recipe)
            seconds = time.perf_counter() - start
        batches = measure_batches(recipe)
    tokens = sum(split["tokens"] for split in manifest["splits"].values())
    size = sum(split["bytes"] for split in manifest["splits"].values())
    figures = {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "text_megabytes": round(size / 1e6, 1),
        "tokens": tokens,
        "tokenizer_training_megabytes_per_second": round(size / 1e6 / tokenizer_seconds, 2),
        "tokenizer_training_peak_memory_gigabytes": round(training_memory.peak_bytes / 1e9, 2),
        "baseline_encode_batch_megabytes_per_second": round(baseline, 2),
        "pack_megabytes_per_second": round(size / 1e6 / seconds, 2),
        "pack_ratio_to_baseline": round(size / 1e6 / seconds / baseline, 3),
        "pack_peak_memory_gigabytes": round(memory.peak_bytes / 1e9, 2),
        **batches,
    }
    for name, value in figures.items():
        print(f"{name:<45} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main()
