"""lm-eval as a library: task files of our own, their documents, one set run, and its results file.

Each task file includes lm-eval's own definition and overrides where the documents come from, nothing else:
prompts, choices and scoring stay lm-eval's, and the folder serves the plain `lm_eval --include_path` as well.
A folder of our own also spares reading the thousands of definitions that lm-eval ships.
"""

from __future__ import annotations

import bisect
import contextlib
import copy
import functools
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.loggers.utils import add_env_info, add_tokenizer_info
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import env as jinja
from lm_eval.utils import handle_non_serializable, hash_string

from ant_hf.errors import AntError
from ant_hf.evaluation.benchmarks import Benchmark, check_schema, generate_arithmark, local_file
from ant_hf.evaluation.documents import check_rendered, checked_file, lm_eval_dataset, select, unreadable
from ant_hf.evaluation.language_model import BatchedLM
from ant_hf.evaluation.results import Measurement, headline_metric
from ant_hf.hub import hub_or_cache
from ant_hf.utils.console import progress_bar
from ant_hf.utils.provenance import without_paths

_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
# lm-eval resamples for the standard error of metrics without a formula (LAMBADA's perplexity).
_BOOTSTRAP = 1000
_LOADER = f"{lm_eval_dataset.__module__}.{lm_eval_dataset.__qualname__}"
# lm-eval compiles a template again for every document.
_compiled = functools.lru_cache(maxsize=256)(jinja.from_string)


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
    """Render prompts many times as fast; for short documents that is most of the time outside the model."""
    own, jinja.from_string = jinja.from_string, _compiled
    try:
        yield
    finally:
        jinja.from_string = own


def write_definitions(benchmarks: list[Benchmark], folder: Path) -> None:
    """Fill an empty folder with one definition a task, on the set's local documents if it has them.

    Raises:
        AntError: as `checked_file`, for every local file.
    """
    for benchmark in benchmarks:
        place = folder / benchmark.name
        place.mkdir(parents=True)
        if benchmark.source is None and not benchmark.remote:
            benchmark = replace(benchmark, source=place / benchmark.file)
            generate_arithmark(place / benchmark.file)
        if benchmark.definition.is_dir():
            _write_group(benchmark, place)
        else:
            files = _local_files(benchmark, benchmark.definition)
            _write_task(benchmark.definition, place, benchmark.name, files)


def _definition(path: Path) -> dict[str, Any]:
    """A task file of lm-eval's, or of a user's, with what it includes."""
    try:
        return dict(load_yaml(path, resolve_func=False))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise AntError(f"{path} is not a task file of lm-eval: {' '.join(str(error).split())}") from None


def _local_files(benchmark: Benchmark, definition: Path) -> dict[str, dict[str, Any]]:
    """By split, the scored one first, the arguments of `select`; empty without local documents."""
    if benchmark.source is None:
        return {}
    values = _definition(definition)
    paths = {str(values.get("test_split") or values.get("validation_split")): benchmark.source}
    for split, name in benchmark.extra.items():
        path = local_file(benchmark.source.parent, name)
        if path is None:
            raise AntError(
                f"{benchmark.name} also needs the file {name}", hint=f"Put it beside {benchmark.file}."
            )
        paths[split] = path
    return {split: checked_file(benchmark, path) for split, path in paths.items()}


def _write_task(definition: Path, place: Path, name: str, files: dict[str, dict[str, Any]]) -> None:
    """One definition that includes lm-eval's; `files` moves it onto local documents."""
    original = _definition(definition)
    values: dict[str, Any] = {"include": str(definition), "task": name}
    if tag := original.get("tag"):
        values["tag"] = tag
    if files:
        values |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"files": files}}
        values |= {key: None for key in _SPLITS if original.get(key) and original[key] not in files}
    _write_yaml(place / f"{name}.yaml", values, f"custom_dataset: !function {_LOADER}\n" if files else "")


def _write_yaml(path: Path, values: dict[str, Any], more: str = "") -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False) + more, encoding="utf-8")


def _write_group(benchmark: Benchmark, place: Path) -> None:
    """Every task of a group's folder, locally those that have documents, and the groups of these."""
    definitions = {path: _definition(path) for path in benchmark.definition.glob("*.yaml")}
    tasks = {path: values for path, values in sorted(definitions.items()) if "dataset_name" in values}
    if not tasks:
        raise AntError(f"{benchmark.definition} has no task files with a dataset_name")
    files = _local_files(benchmark, next(iter(tasks)))
    if files and benchmark.split_by is None:
        raise AntError(f"{benchmark.name} is a group of tasks", hint="Give it split_by in benchmarks.yaml.")
    members = _members(benchmark, files, {str(values["dataset_name"]) for values in tasks.values()})
    defined: set[str] = set()
    for path, values in tasks.items():
        member = str(values["dataset_name"])
        own = {
            split: {**source, "split_by": benchmark.split_by, "member": member}
            for split, source in files.items()
            if member in members[split]
        }
        # Of a member without documents to score, the extra ones are of no use.
        if not files or next(iter(files)) in own:
            _write_task(path, place, values["task"], own)
            tags = values.get("tag") or []
            defined |= {values["task"], *([tags] if isinstance(tags, str) else tags)}
    groups = {values["group"]: values for values in definitions.values() if "group" in values}
    while groups:
        # Innermost first, less the members that have no documents here.
        name = next(name for name, group in groups.items() if not groups.keys() & set(group["task"]))
        group = groups.pop(name)
        if members_here := [member for member in group["task"] if member in defined]:
            defined.add(name)
            _write_yaml(place / f"{name}.yaml", {**group, "task": members_here})


def _members(benchmark: Benchmark, files: dict[str, dict[str, Any]], known: set[str]) -> dict[str, set[str]]:
    """By split, the members of a group that have documents."""
    found: dict[str, set[str]] = {}
    for split, source in files.items():
        documents = select(**source)
        for row, where in zip(documents.rows, documents.places, strict=True):
            member = row.get(str(benchmark.split_by))
            if not isinstance(member, str) or member not in known:
                what = f"{where}: {benchmark.split_by} does not name a part of {benchmark.name}"
                raise AntError(what, seen=member)
            found.setdefault(split, set()).add(member)
    return found


def load_tasks(benchmarks: list[Benchmark], definitions: Path) -> dict[str, dict[str, Any]]:
    """lm-eval's tasks with their documents, all before the first is scored; zero-shot.

    Raises:
        AntError: documents cannot be had (names every set concerned), lm-eval cannot read one (names it), a
            task needs generated text, or does not have the metric of the table.
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
                    raise _first_refused(benchmark, definitions, error) from None
                missing.append(benchmark.name)
            # Functions and templates of task files raise anything.
            except Exception as error:
                raise _first_refused(benchmark, definitions, error) from None
            advance(1, len(benchmarks))
    if missing:
        raise AntError(
            "these sets are not in the local cache, and the Hub cannot be reached",
            seen=", ".join(missing),
            hint="Check the network; or pass --data-dir FOLDER with their documents as JSONL "
            "(docs/evaluation.md gives names and fields), or --tasks with the other sets.",
        )
    for item in benchmarks:
        for task in loaded[item.name]["tasks"].values():
            if task.OUTPUT_TYPE == "generate_until":
                raise AntError(
                    f"{item.name} scores generated text, which is not supported",
                    expected="a task that scores log-likelihoods",
                    hint="Leave it out: name the other sets with --tasks.",
                )
            if item.definition.name == "arithmark.yaml":
                check_schema(task.eval_docs, item.name)
            if item.metric is not None:
                headline_metric(item, task.aggregation())
            task.set_config(key="num_fewshot", value=0)
    return loaded


def _first_refused(benchmark: Benchmark, definitions: Path, error: Exception) -> AntError:
    """The error for a set that lm-eval cannot load; of local documents, the first that is to blame."""
    if isinstance(error, AntError):
        return error
    for path in sorted((definitions / benchmark.name).glob("*.yaml")):
        config = load_yaml(path, resolve_func=True)
        if (config.get("dataset_kwargs") or {}).get("files") and (found := _refused_document(config)):
            return found
    return AntError(f"lm-eval cannot load the set {benchmark.name}", seen=f"{type(error).__name__}: {error}")


def _refused_document(config: dict[str, Any]) -> AntError | None:
    documents = select(**next(iter(config["dataset_kwargs"]["files"].values())))
    counts = range(1, len(documents.rows) + 1)
    # A task loads with so many documents; the next one is the first that it does not load.
    index = bisect.bisect_left(counts, True, key=lambda count: _load_error(config, count) is not None)
    if index == len(counts) or (error := _load_error(config, counts[index])) is None:
        return None
    return unreadable(documents.places[index], documents.rows[index], error)


def _load_error(config: dict[str, Any], count: int) -> Exception | None:
    """What lm-eval makes of a task's first documents."""
    config = copy.deepcopy(config)
    next(iter(config["dataset_kwargs"]["files"].values()))["first"] = count
    try:
        ConfigurableTask(config=config)
    except Exception as error:
        return error
    return None


def check_documents(
    benchmarks: list[Benchmark],
    loaded: dict[str, dict[str, Any]],
    language_model: BatchedLM,
    limit: int | None,
) -> None:
    """Build every request of every set, and refuse those that cannot be scored, before the first is.

    The requests stay in the tasks: what was checked is what `run_benchmark` scores.

    Raises:
        AntError: as `check_rendered` and `BatchedLM.check`; names file and line, or set and document.
    """
    with progress_bar("checking documents") as advance, _compiled_once():
        for benchmark in benchmarks:
            for task in loaded[benchmark.name]["tasks"].values():
                places = _places(task)
                for index, document in enumerate(itertools.islice(task.task_docs, limit)):
                    check_rendered(task, document, places(index))
                task.build_all_requests(limit=limit)
                for request in task.instances:
                    language_model.check(request, places(request.doc_id))
                # lm-eval would build them again.
                task.build_all_requests = lambda **_: None
            advance(1, len(benchmarks))


def _places(task: Any) -> Callable[[int], str]:
    """By index of a document: file and line, or the set and the number where the task has other documents."""
    files = (task.config.dataset_kwargs or {}).get("files")
    places = select(**next(iter(files.values()))).places if files else []
    if len(places) != len(task.task_docs):
        # The task file leaves some out.
        places = []
    return lambda index: places[index] if places else f"{task.config.task}, document {index}"


def run_benchmark(
    benchmark: Benchmark, loaded: dict[str, Any], language_model: BatchedLM, limit: int | None
) -> Measurement:
    """Score one set; `limit` documents per task."""
    started = time.perf_counter()
    # lm-eval prints that it resamples.
    with (
        progress_bar(benchmark.label) as advance,
        contextlib.redirect_stdout(io.StringIO()),
        _compiled_once(),
    ):
        language_model.progress = advance
        try:
            results: Any = evaluate(language_model, loaded, limit=limit, bootstrap_iters=_BOOTSTRAP)
        except OverflowError:
            raise AntError(
                f"{benchmark.label}: the perplexity is too large for a number",
                expected="less than about 700 nats per word",
                hint="The weights are damaged or far too large. To leave this set out, name the others "
                "with --tasks.",
            ) from None
    seconds = time.perf_counter() - started
    files = next(iter(loaded["tasks"].values())).config.dataset_kwargs if benchmark.source else None
    sha256 = next(iter(files["files"].values()))["sha256"] if files else None
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
        # The source of a function of ours.
        task_config.pop("custom_dataset", None)
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
