"""Send SIGINT and SIGTERM to what is done with text and model, at random moments, and look at how it ends.

    python tests/faults/interrupts.py --times 20 --work runs/interrupts --tally interrupts.json

Real commands in processes of their own, on a tiny model and against a Hub on loopback. At last each command
is run once more without a signal, and has to come to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmark_data import write_benchmarks
from commands import ROOT, in_a_process, stop_command
from conftest import TINY_CONFIG, tiny_values
from hub.server import Hub, RunningHub
from records import write_results

REPO, TOKEN = "GODELEV/Ant-10M", "hf_" + "TokenOfTheInterrupts" + "0123456789abcd"


class Phase(NamedTuple):
    """Something to be interrupted."""

    name: str
    words: list
    at: Callable[[], bool] | str
    """The moment from which on a signal may come; see `stop_command`."""
    longest: float
    """Seconds after it."""
    line: str
    """Words of the line that says what is kept."""
    over: str
    """Words at the end of the output: a signal after them meets an interpreter that is leaving."""
    prepare: Callable[[], object] = lambda: None
    """Before each attempt."""
    ends: bool = True
    """Whether the command is run to its end afterwards."""


def has_torch() -> bool:
    """Whether the command has come to loading torch, after which it has not long to continue a tiny model."""
    for child in psutil.Process().children(recursive=True):
        try:
            if any("libtorch_cpu" in area.path for area in child.memory_maps()):
                return True
        except psutil.Error:
            continue
    return False


def has_gate() -> bool:
    """Whether the gate's own process runs."""
    for child in psutil.Process().children(recursive=True):
        try:
            if "ant_hf.release.gate" in child.cmdline():
                return True
        except psutil.Error:
            continue
    return False


def make_run(work: Path) -> Path:
    """A trained tiny run with results; its `final` folder."""
    from ant_hf.data.sources import EmbeddedBible
    from ant_hf.recipe import Recipe
    from ant_hf.train.pretrain import pretrain

    run = work / "run"
    if not (run / "final" / "results.json").is_file():
        work.mkdir(parents=True, exist_ok=True)
        rows = [json.dumps({"text": text}) + "\n" for text in list(EmbeddedBible().documents())[:60]]
        (work / "corpus.jsonl").write_text("".join(rows), encoding="utf-8")
        (work / "config.json").write_text(json.dumps(TINY_CONFIG))
        longer = {"max_steps": 60, "eval_steps": 20, "save_steps": 60, "learning_rate": 0.02}
        pretrain(Recipe.model_validate(tiny_values(work, run, **longer)))
        write_results(run / "final")
    return run / "final"


def preparation(work: Path) -> list[Phase]:
    """What is done with a text: 24 MB of it, in six files, and evaluation sets to compare it with."""
    from ant_hf.data.sources import EmbeddedBible

    corpus, folder = work / "text", work / "prepared"
    if not corpus.exists():
        corpus.mkdir(parents=True)
        chapters = list(EmbeddedBible().documents())
        for number in range(6):
            rows = (json.dumps({"text": f"{number} {text}"}) + "\n" for text in chapters)
            (corpus / f"{number}.jsonl").write_text("".join(rows), encoding="utf-8")
        (work / "sets").mkdir()
        shutil.copy(corpus / "0.jsonl", work / "sets" / "questions.jsonl")

    def begins() -> bool:
        return (folder / ".data.owner.json").exists()

    def command(name: str, *more: object) -> list:
        words = ["ant-hf", name, "--config", ROOT / "configs" / "recipes" / "quickstart.yaml"]
        return [*words, "--data", corpus, "--output-dir", folder, *more]

    def without(*names: str) -> Callable[[], None]:
        def prepare() -> None:
            if "tokenizer" not in names and not (folder / "tokenizer").exists():
                in_a_process(*command("tokenizer"), check=True)
            for name in names:
                shutil.rmtree(folder / name, ignore_errors=True)

        return prepare

    sets = ("--set", f"corpus.decontaminate={work / 'sets'}")
    parted = without("tokens", "packing")
    made, packed = "held-out text", "documents read"
    return [
        Phase(
            "tokenizer",
            command("tokenizer"),
            begins,
            12.0,
            "Nothing is written",
            made,
            without("tokenizer"),
        ),
        Phase(
            "packing",
            command("pack"),
            made,
            20.0,
            "The tokenizer in",
            packed,
            without("tokens"),
        ),
        Phase(
            "packing by files",
            command("pack", "--workers", 2),
            "packing     6 files",
            15.0,
            "files are encoded and kept",
            packed,
            parted,
        ),
        Phase(
            "decontamination",
            command("tokenizer", *sets),
            begins,
            12.0,
            "Run the same command again",
            made,
            without("tokenizer"),
        ),
    ]


def phases(work: Path, hub: Hub) -> list[Phase]:
    """Everything that is interrupted, made ready in a folder."""
    from kills import write_recipe

    final = make_run(work)
    run, partial = final.parent, work / "evaluation" / ".evaluation.partial.jsonl"
    data = write_benchmarks(work / "benchmarks", 60)
    long = work / "long"
    recipe = write_recipe(long, "training", max_steps=100_000, save_steps=20, eval_steps=50)
    metrics = long / "training" / "metrics.jsonl"

    def fresh(*folders: Path) -> Callable[[], None]:
        return lambda: [shutil.rmtree(folder, ignore_errors=True) for folder in folders]

    def slow_hub() -> None:
        hub.faults.clear()
        shutil.rmtree(hub.root, ignore_errors=True)
        for method, pattern in (
            ("PUT", "/lfs/"),
            ("POST", "/commit/"),
            ("GET", "/resolve/"),
            ("POST", "/tag/"),
        ):
            hub.faults.add(method, pattern, "slow", times=10_000, delay=1.5)

    return [
        Phase(
            "evaluate",
            [
                *("ant-hf", "evaluate", final, "--data-dir", data, "--output-dir", partial.parent),
                *("--tasks", "arc_easy,piqa,wikitext,degeneration"),
            ],
            partial.is_file,
            8.0,
            "What was scored is kept",
            "results     ",
            fresh(partial.parent),
        ),
        Phase(
            "export to GGUF",
            ["ant-hf", "export", final, "--to", "gguf", "--output", work / "gguf"],
            (work / ".gguf.partial").is_dir,
            2.0,
            "is as it was before",
            "export      ",
            fresh(work / "gguf"),
        ),
        Phase(
            "export to ONNX",
            ["ant-hf", "export", final, "--to", "onnx", "--output", work / "onnx"],
            (work / ".onnx.partial").is_dir,
            4.0,
            "is as it was before",
            "export      ",
            fresh(work / "onnx"),
        ),
        Phase("inspect", ["ant-hf", "inspect", final], has_torch, 4.0, "Run the same", "report      "),
        Phase(
            "card and gate",
            ["ant-hf", "card", final, "--repo", REPO],
            "gate        checking",
            5.0,
            "that was there before is kept",
            "next        ",
            fresh(run / "release"),
        ),
        Phase("verify", ["ant-hf", "verify", final], has_gate, 4.0, "Nothing was changed", "passed     "),
        Phase(
            "publish",
            ["ant-hf", "publish", final, "--repo", REPO, "--yes"],
            "commit      one",
            5.0,
            "Run the same command again; what has arrived is not sent twice",
            "published   ",
            slow_hub,
        ),
        Phase(
            "training",
            ["python", "pretrain.py", "--config", recipe],
            lambda: metrics.is_file() and metrics.stat().st_size > 0,
            3.0,
            "Run the same command again",
            "final       ",
            fresh(long / "training"),
            ends=False,
        ),
    ]


def interrupt(phase: Phase, times: int, environment: dict[str, str]) -> dict:
    """Counts, seconds and faults of `times` interruptions of one phase."""
    chance, seconds, faults = random.Random(phase.name), [], []
    for attempt in range(3 * times):
        if len(seconds) == times:
            break
        phase.prepare()
        by = (signal.SIGINT, signal.SIGTERM)[attempt % 2]
        stopped = stop_command(
            *phase.words, at=phase.at, after=chance.uniform(0, phase.longest), by=by, env=environment
        )
        if stopped is not None and phase.over not in stopped.output:
            seconds.append(round(stopped.seconds, 2))
            found = stopped.faults(phase.line)
            faults += [f"{by.name}: {found}\n{stopped.output[-1500:]}"] if found else []
    if len(seconds) < times:
        faults.append(f"the moment came only {len(seconds)} times")
    if phase.ends:
        ended = in_a_process(*phase.words, env=environment)
        faults += [f"afterwards: {ended.stderr[-500:]}"] if ended.returncode else []
    worst, median = max(seconds, default=0.0), statistics.median(seconds or [0.0])
    return {"times": len(seconds), "median_seconds": median, "worst_seconds": worst, "faults": faults}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="signals to each phase")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--tally", type=Path, required=True, help="JSON file of what happened")
    options = parser.parse_args()
    work = options.work.absolute()
    tally = json.loads(options.tally.read_text()) if options.tally.exists() else {}
    with RunningHub(Hub(work / "hub", {TOKEN: {"name": "GODELEV", "role": "write"}})) as hub:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment = kept | {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(work / "hf-home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_DATASETS_OFFLINE": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "COLUMNS": "200",
        }
        for phase in [*preparation(work), *phases(work, hub)]:
            if phase.name not in tally:
                tally[phase.name] = interrupt(phase, options.times, environment)
                options.tally.write_text(json.dumps(tally, indent=1))
                print(
                    phase.name, json.dumps(tally[phase.name] | {"faults": len(tally[phase.name]["faults"])})
                )
    sys.exit(any(row["faults"] for row in tally.values()))


if __name__ == "__main__":
    main()
