"""Contenders that take turns: a round each until all rounds are done, and each starts before its first."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contenders import flops_per_token

from ant_hf.data.packing import make_data
from ant_hf.recipe import load_recipe
from ant_hf.utils.console import progress_bar, say

ROOT = Path(__file__).parents[1]


@dataclass
class Contender:
    """One row: its label, and what contenders.py is told."""

    label: str
    spec: dict[str, Any]


@contextlib.contextmanager
def packed_text() -> Iterator[Path]:
    """The embedded English text, packed with a tokenizer of 4,096 entries."""
    with tempfile.TemporaryDirectory() as scratch:
        recipe = load_recipe(ROOT / "configs/recipes/quickstart.yaml", changes={"output_dir": scratch})
        make_data(recipe, 1024)
        yield recipe.tokens_dir


def take_turns(
    contenders: list[Contender],
    rounds: int,
    after_each: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Run all contenders and return a row of figures each, in their order.

    A contender that fails gets a row with `error`, and the others continue.

    Args:
        after_each: is given the rows so far after each round, in case that time runs out.
    """
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        workers = [_Worker(contender, Path(scratch), index) for index, contender in enumerate(contenders)]
        for worker in workers:
            stack.callback(worker.stop)
            worker.launch()
        # Imports take seconds, and all do them at once, before anything is measured.
        for worker in workers:
            worker.wait_for_imports()
        bar = stack.enter_context(progress_bar("rounds"))
        total = rounds * len(workers)
        for index in range(total):
            worker = workers[index % len(workers)]
            # One at a time, while the others wait: compiling beside another's round would slow both.
            if index < len(workers):
                worker.start()
            worker.round("round")
            bar(1, total)
            after_each([started.figures() for started in workers[: index + 1]])
        if torch.cuda.is_available():
            for worker in workers:
                worker.round("profile")
        return [worker.figures() for worker in workers]


class _Worker:
    def __init__(self, contender: Contender, folder: Path, index: int) -> None:
        self.contender = contender
        self._spec_file = folder / f"{index}.json"
        self._spec_file.write_text(json.dumps(contender.spec))
        self._log = folder / f"{index}.log"
        self._process: subprocess.Popen[str] | None = None
        self._answers: list[dict[str, Any]] = []
        self._error: str | None = None

    def launch(self) -> None:
        command = [sys.executable, str(ROOT / "benchmarks/contenders.py"), str(self._spec_file)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def wait_for_imports(self) -> None:
        self._answer()

    def start(self) -> None:
        self._tell("start")

    def round(self, kind: str) -> None:
        if answer := self._tell(kind):
            self._answers.append(answer | {"kind": kind})

    def _tell(self, line: str) -> Any:
        if self._error is not None:
            return None
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was ended while it waited, and has no answer
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        lines = self._log.read_text().strip().splitlines() or ["it ended without a message"]
        # torch puts advice below the line that names the error.
        errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit|error): ", line)]
        self._error = (errors or lines)[-1]
        say(f"warning     {self.contender.label}: {self._error}")
        return None

    def figures(self) -> dict[str, Any]:
        spec = self.contender.spec
        row: dict[str, Any] = {
            "contender": self.contender.label,
            **{key: spec[key] for key in ("sequence_length", "blocks", "precision")},
        }
        measured = [answer for answer in self._answers if answer["kind"] == "round"]
        if not measured:
            return row | {"error": self._error}
        tokens = spec["steps"] * spec["blocks"] * spec["sequence_length"]
        rates = [tokens / answer["seconds"] for answer in measured]
        parameters, flops = flops_per_token(spec)
        last = measured[-1]
        row |= {
            "parameters": parameters,
            "tokens_per_second": statistics.median(rates),
            "slowest_round": min(rates),
            "fastest_round": max(rates),
            "flops_per_token": flops,
            "peak_memory_bytes": last["peak_bytes"].get("cuda", last["peak_bytes"]["process"]),
            "compiled": last["graphs"] > 0,
            # A graph compiled after the warm-up is a recompilation.
            "recompilations": last["graphs"] - measured[0]["graphs"],
        }
        for answer in self._answers:
            row |= {
                key: answer[key] for key in ("gpu_idle_share", "kernels", "profiler_error") if key in answer
            }
        # One that failed later keeps the rounds that it was measured in.
        return row | ({"error_after_rounds": self._error} if self._error else {})

    def stop(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.stdout.close()
