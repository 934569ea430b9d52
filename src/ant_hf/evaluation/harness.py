"""lm-eval as a library: load its tasks from our definitions, run one set, keep its results file."""

from __future__ import annotations

import contextlib
import io
import json
import time
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import transformers
from lm_eval.loggers.utils import add_env_info, add_tokenizer_info
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, hash_string

from ant_hf.errors import AntError
from ant_hf.evaluation.arithmark import check_schema
from ant_hf.evaluation.benchmarks import Benchmark
from ant_hf.evaluation.definitions import local_file
from ant_hf.evaluation.language_model import BatchedLM
from ant_hf.evaluation.records import Measurement
from ant_hf.utils.console import progress_bar
from ant_hf.utils.files import file_sha256

# lm-eval resamples for the standard error of metrics without a formula (LAMBADA's perplexity).
_BOOTSTRAP = 1000


def load_tasks(
    benchmarks: list[Benchmark], definitions: Path, data_dir: Path | None
) -> dict[str, dict[str, Any]]:
    """lm-eval's tasks with their documents, all before the first is scored; zero-shot.

    Raises:
        AntError: documents cannot be had (names every set concerned), or a task needs generated text.
    """
    manager = TaskManager(include_path=definitions, include_defaults=False)
    loaded: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    with progress_bar("loading sets") as advance:
        for benchmark in benchmarks:
            try:
                loaded[benchmark.name] = dict(manager.load([benchmark.name]))
            except (OSError, ValueError) as error:
                if data_dir is not None:
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
    for benchmark in benchmarks:
        for task in loaded[benchmark.name]["tasks"].values():
            if task.OUTPUT_TYPE == "generate_until":
                raise AntError(
                    f"{benchmark.name} scores generated text", expected="a task of log-likelihoods"
                )
            if benchmark.definition.name == "arithmark.yaml":
                check_schema(task.eval_docs, benchmark.name)
            task.set_config(key="num_fewshot", value=0)
    return loaded


def run_benchmark(
    benchmark: Benchmark,
    loaded: dict[str, Any],
    language_model: BatchedLM,
    limit: int | None,
    data_dir: Path | None,
) -> Measurement:
    """Score one set; `limit` documents a task."""
    started = time.perf_counter()
    # lm-eval prints that it resamples.
    with progress_bar(benchmark.label) as advance, contextlib.redirect_stdout(io.StringIO()):
        language_model.progress = advance
        results: Any = lm_eval.evaluator.evaluate(
            language_model,
            loaded,
            limit=limit,
            bootstrap_iters=_BOOTSTRAP,
        )
    seconds = time.perf_counter() - started
    path = local_file(benchmark, data_dir)
    return Measurement(benchmark, loaded["tasks"], results, seconds, file_sha256(path) if path else None)


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
        _forget_paths(task_config)
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
    serialised: dict[str, Any] = json.loads(json.dumps(values, default=handle_non_serializable))
    return serialised


def _forget_paths(config: dict[str, Any]) -> None:
    kwargs = config.get("dataset_kwargs") or {}
    kwargs.pop("cache_dir", None)
    files = kwargs.get("data_files")
    if isinstance(files, dict):
        kwargs["data_files"] = {split: Path(str(path)).name for split, path in files.items()}
    if "config_source" in (metadata := config.get("metadata") or {}):
        metadata["config_source"] = Path(metadata["config_source"]).name
    if isinstance(config.get("fewshot_config"), dict):
        # It repeats the task's functions by their address in memory.
        config["fewshot_config"] = {"sampler": config["fewshot_config"].get("sampler")}
