"""lm-eval as a library: task files of our own, their documents, one set run, and its results file.

Each task file includes lm-eval's own definition and overrides where the documents come from, nothing else:
prompts, choices and scoring stay lm-eval's, and the folder serves the plain `lm_eval --include_path` as well.
A folder of our own also spares reading the thousands of definitions that lm-eval ships.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers
import yaml
from lm_eval.evaluator import evaluate
from lm_eval.loggers.utils import add_env_info, add_tokenizer_info
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import handle_non_serializable, hash_string

from ant_hf.errors import AntError
from ant_hf.evaluation.benchmarks import Benchmark, check_schema, generate_arithmark
from ant_hf.evaluation.language_model import BatchedLM
from ant_hf.evaluation.results import Measurement
from ant_hf.hub import hub_or_cache
from ant_hf.utils.console import progress_bar
from ant_hf.utils.files import file_sha256, read_json_rows
from ant_hf.utils.provenance import without_paths

_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
# lm-eval resamples for the standard error of metrics without a formula (LAMBADA's perplexity).
_BOOTSTRAP = 1000


def write_definitions(benchmarks: list[Benchmark], folder: Path) -> None:
    """Fill an empty folder with one definition a task, on the set's local documents if it has them.

    Raises:
        AntError: a local file has a line that is no JSON object or lacks a documented field.
    """
    for benchmark in benchmarks:
        place = folder / benchmark.name
        place.mkdir(parents=True)
        if benchmark.source is None and not benchmark.remote:
            benchmark = replace(benchmark, source=place / benchmark.file)
            generate_arithmark(place / benchmark.file)
        if benchmark.definition.is_dir():
            _write_group(benchmark, place)
            continue
        for _ in _documents(benchmark, benchmark.source) if benchmark.source else ():
            pass
        files = _local_files(benchmark, benchmark.definition)
        _write_task(benchmark.definition, place, benchmark.name, files)


def _documents(benchmark: Benchmark, path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, each with the fields that the set's must have."""
    document = None
    for where, document in read_json_rows(path):
        if missing := [name for name in benchmark.fields if name not in document]:
            raise AntError(
                f"{where}: no field {', '.join(missing)}",
                seen=sorted(document),
                expected=", ".join(benchmark.fields),
            )
        yield document
    if document is None:
        raise AntError(f"{path} holds no documents")


def _local_files(benchmark: Benchmark, definition: Path) -> dict[str, Path]:
    """Split name to file, if there are any: the documents, under the split that lm-eval scores, first."""
    if benchmark.source is None:
        return {}
    values = load_yaml(definition, resolve_func=False)
    files = {str(values.get("test_split") or values.get("validation_split")): benchmark.source}
    for split, name in benchmark.extra.items():
        files[split] = benchmark.source.with_name(name)
        if not files[split].is_file():
            raise AntError(f"{benchmark.name} also needs {name}", hint=f"Put it beside {benchmark.file}.")
    return files


def _write_task(definition: Path, place: Path, name: str, files: dict[str, Path]) -> None:
    """One definition that includes lm-eval's; `files` moves it onto local documents."""
    original = load_yaml(definition, resolve_func=False)
    values: dict[str, Any] = {"include": str(definition), "task": name}
    if tag := original.get("tag"):
        values["tag"] = tag
    if files:
        data_files = {split: str(path.resolve()) for split, path in files.items()}
        values |= {
            "dataset_path": "json",
            "dataset_name": None,
            # The cache of `datasets` is keyed by path: inside the folder it goes when the folder goes.
            "dataset_kwargs": {"data_files": data_files, "cache_dir": str(place.resolve() / "cache")},
        }
        values |= {key: None for key in _SPLITS if original.get(key) and original[key] not in files}
    _write_yaml(place / f"{name}.yaml", values)


def _write_yaml(path: Path, values: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _write_group(benchmark: Benchmark, place: Path) -> None:
    """Every task of a group's folder, locally those that have documents, and the groups of these."""
    definitions = {path: load_yaml(path, resolve_func=False) for path in benchmark.definition.glob("*.yaml")}
    tasks = {path: values for path, values in sorted(definitions.items()) if "dataset_name" in values}
    parts = _split_documents(benchmark, place, tasks)
    defined: set[str] = set()
    for path, values in tasks.items():
        files = parts.get(values["dataset_name"], {})
        if files or benchmark.source is None:
            _write_task(path, place, values["task"], files)
            tags = values.get("tag") or []
            defined |= {values["task"], *([tags] if isinstance(tags, str) else tags)}
    groups = {values["group"]: values for values in definitions.values() if "group" in values}
    while groups:
        # Innermost first, less the members that have no documents here.
        name = next(name for name, group in groups.items() if not groups.keys() & set(group["task"]))
        group = groups.pop(name)
        if members := [member for member in group["task"] if member in defined]:
            defined.add(name)
            _write_yaml(place / f"{name}.yaml", {**group, "task": members})


def _split_documents(
    benchmark: Benchmark, place: Path, tasks: dict[Path, dict[str, Any]]
) -> dict[str, dict[str, Path]]:
    """The lines of one file by member of the group: member, then split, then file."""
    members = {str(values["dataset_name"]) for values in tasks.values()}
    parts: dict[str, dict[str, Path]] = {}
    files = _local_files(benchmark, next(iter(tasks)))
    for split, path in files.items():
        grouped: dict[str, list[str]] = {}
        for document in _documents(benchmark, path):
            member = document[str(benchmark.split_by)]
            if member not in members:
                raise AntError(f"{path}: {benchmark.split_by} names no part of {benchmark.name}", seen=member)
            grouped.setdefault(member, []).append(json.dumps(document, ensure_ascii=False))
        for member, lines in grouped.items():
            target = place / split / f"{member}.jsonl"
            target.parent.mkdir(exist_ok=True)
            target.write_text("\n".join(lines) + "\n", encoding="utf-8")
            parts.setdefault(member, {})[split] = target
    # Of a member without documents to score, the extra ones are no use.
    scored = next(iter(files), None)
    return {member: own for member, own in parts.items() if scored in own}


def load_tasks(benchmarks: list[Benchmark], definitions: Path) -> dict[str, dict[str, Any]]:
    """lm-eval's tasks with their documents, all before the first is scored; zero-shot.

    Raises:
        AntError: documents cannot be had (names every set concerned), or a task needs generated text.
    """
    manager = TaskManager(include_path=definitions, include_defaults=False)
    loaded: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    remote = any(benchmark.remote for benchmark in benchmarks)
    with progress_bar("loading sets") as advance, hub_or_cache() if remote else contextlib.nullcontext():
        for benchmark in benchmarks:
            try:
                loaded[benchmark.name] = dict(manager.load([benchmark.name]))
            except (OSError, ValueError) as error:
                if not benchmark.remote:
                    raise AntError(f"{benchmark.name}: {' '.join(str(error).split())}") from None
                missing.append(benchmark.name)
            advance(1, len(benchmarks))
    if missing:
        raise AntError(
            "sets that are neither in the local cache nor to be had from the Hub",
            seen=", ".join(missing),
            hint="Pass --data-dir DIR with their documents as JSONL (docs/evaluation.md gives names and "
            "fields), or --tasks with the others.",
        )
    for item in benchmarks:
        for task in loaded[item.name]["tasks"].values():
            if task.OUTPUT_TYPE == "generate_until":
                raise AntError(f"{item.name} scores generated text", expected="a task of log-likelihoods")
            if item.definition.name == "arithmark.yaml":
                check_schema(task.eval_docs, item.name)
            task.set_config(key="num_fewshot", value=0)
    return loaded


def run_benchmark(
    benchmark: Benchmark, loaded: dict[str, Any], language_model: BatchedLM, limit: int | None
) -> Measurement:
    """Score one set; `limit` documents a task."""
    started = time.perf_counter()
    # lm-eval prints that it resamples.
    with progress_bar(benchmark.label) as advance, contextlib.redirect_stdout(io.StringIO()):
        language_model.progress = advance
        results: Any = evaluate(language_model, loaded, limit=limit, bootstrap_iters=_BOOTSTRAP)
    seconds = time.perf_counter() - started
    sha256 = file_sha256(benchmark.source) if benchmark.source else None
    return Measurement(benchmark, loaded["tasks"], results, seconds, sha256)


def harness_results(
    measured: list[Measurement], language_model: BatchedLM, model_name: str, config: dict[str, Any]
) -> dict[str, Any]:
    """lm-eval's own results file, as its command line writes it, without paths of this machine."""
    values: dict[str, Any] = {}
    hashes = {}
    for item in measured:
        for key, value in item.results.items():
            if key != "samples":
                values.setdefault(key, {}).update(value)
        for task, samples in item.results["samples"].items():
            parts = [s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples]
            hashes[task] = hash_string("".join(parts))
    for task_config in values["configs"].values():
        (task_config.get("dataset_kwargs") or {}).pop("cache_dir", None)
        if isinstance(fewshot := task_config.get("fewshot_config"), dict):
            # It repeats the task's functions by their address in memory.
            task_config["fewshot_config"] = {"sampler": fewshot.get("sampler")}
    values |= {
        "config": {"model": "hf", "model_args": {"pretrained": model_name}, **config},
        "model_name": model_name,
        "model_source": "hf",
        "task_hashes": hashes,
        "date": time.time(),
    }
    add_env_info(values)
    add_tokenizer_info(values, language_model)
    values["transformers_version"] = transformers.__version__
    return without_paths(json.loads(json.dumps(values, default=handle_non_serializable)))
