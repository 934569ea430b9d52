"""The whole evaluation of one model: sets, perplexities, degeneration; results on disk at the end."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ant_hf.errors import AntError
from ant_hf.evaluation.benchmarks import Benchmark, choose_benchmarks, known_benchmarks
from ant_hf.evaluation.definitions import local_file, write_definitions
from ant_hf.evaluation.degeneration import Continuation, generate, prompts, summary
from ant_hf.evaluation.harness import harness_results, load_tasks, run_benchmark
from ant_hf.evaluation.language_model import BatchedLM
from ant_hf.evaluation.likelihoods import LikelihoodStore
from ant_hf.evaluation.records import Measurement, perplexity_record, record, sample_line
from ant_hf.evaluation.results import (
    SCHEMA,
    merge_harness_results,
    merge_samples,
    previous_results,
    write_results,
)
from ant_hf.model.loading import Subject, load_subject
from ant_hf.utils.console import progress_bar, say
from ant_hf.utils.files import file_sha256
from ant_hf.utils.hardware import cpu_name
from ant_hf.utils.names import RESULTS
from ant_hf.utils.provenance import now, package_versions
from ant_hf.utils.quiet import quiet_libraries

DEGENERATION = "degeneration"
_PARTIAL = ".evaluation.partial.jsonl"
_PACKAGES = ("ant-hf", "lm-eval", "transformers", "torch", "tokenizers", "datasets")
Outputs = dict[str, list[Continuation]]


@dataclass(frozen=True)
class Settings:
    """What the user chose."""

    model: str
    tasks: tuple[str, ...] = ()
    """Empty: everything in the public card's table, and degeneration."""
    limit: int | None = None
    batch_size: int | None = None
    """Full-length sequences a batch; shorter ones fill up to as many tokens."""
    data_dir: Path | None = None
    output_dir: Path | None = None
    dtype: str = "float32"
    device: str | None = None
    """Default: the GPU if there is one."""
    fresh: bool = False

    @property
    def torch_device(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def sequences(self) -> int:
        # Small batches stay in a CPU's cache; a GPU wants to be filled.
        return self.batch_size or (2 if self.torch_device == "cpu" else 64)


@dataclass(frozen=True)
class Work:
    """What is left to measure."""

    benchmarks: list[Benchmark]
    degeneration: bool


def evaluate(settings: Settings) -> tuple[dict[str, Any], Path]:
    """Measure a model and write results.json, lm-eval's own results and samples.jsonl.

    Returns:
        The results, and the path of results.json.

    Raises:
        AntError: unknown task, missing or damaged data, a model that does not load or gives no numbers,
            results of another model in the output folder.
    """
    _check(settings)
    table = known_benchmarks(settings.data_dir)
    chosen, absent = _choose(settings, table)
    subject = load_subject(settings.model, settings.dtype, settings.torch_device)
    folder = settings.output_dir or _default_output(settings.model, subject)
    conditions = _conditions(settings, subject)
    old = {} if settings.fresh else previous_results(folder, subject.identity, conditions)
    work = _remaining(settings, chosen, absent, old)
    started = time.perf_counter()
    if work.benchmarks or work.degeneration:
        store = _open_store(folder, subject, conditions, settings.fresh)
        with quiet_libraries():
            language_model = BatchedLM(subject.model, subject.tokenizer, store, settings.sequences)
        measured = _score(settings, work, language_model)
        outputs = _generate(subject, settings.limit) if work.degeneration else {}
        conditions["wall_time_seconds"] = round(time.perf_counter() - started, 1)
        # Scored before an interruption, and not in that time.
        conditions["resumed_requests"] = store.resumed
        values = _results(subject, conditions, old, measured, outputs, table)
        merge_samples(folder, _sample_lines(measured, outputs), keep=bool(old))
        if measured:
            config = {key: conditions[key] for key in ("dtype", "device", "limit", "batch_size")}
            own = harness_results(measured, language_model, subject.name, config)
            merge_harness_results(folder, own, keep=bool(old))
        write_results(folder, values)
        store.remove()
    else:
        values = old
    return values, folder / RESULTS


def _check(settings: Settings) -> None:
    if settings.data_dir is not None and not settings.data_dir.is_dir():
        raise AntError(f"data folder not found: {settings.data_dir}", hint="Pass a folder of JSONL files.")
    for name in ("limit", "batch_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise AntError(f"--{name.replace('_', '-')} is too small", seen=value, expected="1 or more")


def _choose(settings: Settings, table: dict[str, Benchmark]) -> tuple[list[Benchmark], list[str]]:
    names = [name for name in settings.tasks if name != DEGENERATION]
    if settings.tasks and not names:
        return [], []
    return choose_benchmarks(names, table, settings.data_dir)


def _default_output(model: str, subject: Subject) -> Path:
    if Path(model).is_dir():
        return subject.folder
    return Path("evaluations") / subject.name.replace("/", "--")


def _conditions(settings: Settings, subject: Subject) -> dict[str, Any]:
    device = torch.device(settings.torch_device)
    return {
        "dtype": settings.dtype,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "torch_threads": torch.get_num_threads(),
        "context_length": subject.context_length,
        "bos_policy": subject.bos_policy,
        "limit": settings.limit,
        "data": "local files" if settings.data_dir else "hub",
        "batch_size": settings.sequences,
        "versions": package_versions(_PACKAGES),
        "finished": now(),
    }


def _remaining(settings: Settings, chosen: list[Benchmark], absent: list[str], old: dict[str, Any]) -> Work:
    records = {**old.get("tasks", {}), **old.get("perplexity", {})}

    def measured(benchmark: Benchmark) -> bool:
        path = local_file(benchmark, settings.data_dir)
        return benchmark.name in records and (
            path is None or records[benchmark.name]["file_sha256"] == file_sha256(path)
        )

    pending = [benchmark for benchmark in chosen if not measured(benchmark)]
    if done := [benchmark.label for benchmark in chosen if benchmark not in pending]:
        say(f"already measured on these weights: {', '.join(done)} (--fresh measures again)")
    if absent:
        say(f"not measured, no file in {settings.data_dir}: {', '.join(absent)}")
    wanted = not settings.tasks or DEGENERATION in settings.tasks
    return Work(pending, wanted and DEGENERATION not in old)


def _open_store(folder: Path, subject: Subject, conditions: dict[str, Any], fresh: bool) -> LikelihoodStore:
    path = folder / _PARTIAL
    if fresh:
        path.unlink(missing_ok=True)
    fixed = {key: value for key, value in subject.identity.items() if key.endswith("_sha256")}
    store = LikelihoodStore(path, {**fixed, "dtype": conditions["dtype"], "device": conditions["device"]})
    if store.resumed:
        say(f"going on after an interruption: {store.resumed:,} requests are already scored")
    return store


def _score(settings: Settings, work: Work, language_model: BatchedLM) -> list[Measurement]:
    with tempfile.TemporaryDirectory() as definitions, quiet_libraries():
        write_definitions(work.benchmarks, Path(definitions), settings.data_dir)
        loaded = load_tasks(work.benchmarks, Path(definitions), settings.data_dir)
        measured = []
        for item in work.benchmarks:
            measured.append(
                run_benchmark(item, loaded[item.name], language_model, settings.limit, settings.data_dir)
            )
            say(f"{item.label}: {len(measured[-1].samples):,} documents, {measured[-1].seconds:.1f} s")
        return measured


def _generate(subject: Subject, limit: int | None) -> Outputs:
    texts = prompts()[:limit]
    outputs = {}
    for name, sample in (("greedy", False), ("sampled", True)):
        with progress_bar(f"generation, {name}") as advance, quiet_libraries():
            outputs[name] = generate(subject.model, subject.tokenizer, texts, sample, progress=advance)
    return outputs


def _results(
    subject: Subject,
    conditions: dict[str, Any],
    old: dict[str, Any],
    measured: list[Measurement],
    outputs: Outputs,
    table: dict[str, Benchmark],
) -> dict[str, Any]:
    """The content of results.json: what was there, with what was measured now in its place."""
    tasks, perplexity = dict(old.get("tasks", {})), dict(old.get("perplexity", {}))
    tokenizer = f"{len(subject.tokenizer):,} entries, sha256 {str(subject.identity['tokenizer_sha256'])[:12]}"
    for item in measured:
        if item.rolling:
            perplexity[item.benchmark.name] = perplexity_record(
                item, subject.tokenizer.encode, subject.identity["vocab_size"], tokenizer
            )
        else:
            tasks[item.benchmark.name] = record(item)
    order = {name: position for position, name in enumerate(table)}
    for key in ("wall_time_seconds", "resumed_requests"):
        conditions[key] += old.get("conditions", {}).get(key, 0)
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "model": subject.identity,
        "conditions": conditions,
        "tasks": dict(sorted(tasks.items(), key=lambda item: order.get(item[0], len(order)))),
        "perplexity": perplexity,
    }
    if outputs:
        values[DEGENERATION] = summary(outputs, subject.tokenizer.decode)
    elif DEGENERATION in old:
        values[DEGENERATION] = old[DEGENERATION]
    return values


def _sample_lines(measured: list[Measurement], outputs: Outputs) -> list[dict[str, Any]]:
    lines = [
        sample_line(name, sample)
        for item in measured
        for name in sorted(item.tasks)
        for sample in item.results["samples"][name]
    ]
    lines += [
        {"task": DEGENERATION, "generation": name, "prompt": output.prompt, "output": output.text}
        for name, continuations in outputs.items()
        for output in continuations
    ]
    return lines
