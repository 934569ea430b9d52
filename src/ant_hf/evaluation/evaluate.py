"""The whole evaluation of one model: sets, perplexities, degeneration; results on disk at the end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ant_hf.errors import AntError
from ant_hf.evaluation.benchmarks import Benchmark, choose_benchmarks, known_benchmarks
from ant_hf.evaluation.boards import load_board
from ant_hf.evaluation.degeneration import Continuation, generate, loop_lines, no_room, prompts, summary
from ant_hf.evaluation.language_model import BatchedLM, LikelihoodStore
from ant_hf.evaluation.results import (
    DEGENERATION,
    SCHEMA,
    Measurement,
    accuracy_record,
    perplexity_record,
    previous_results,
    sample_lines,
    write_results,
)
from ant_hf.evaluation.rounding import check_rounding
from ant_hf.evaluation.tasks import (
    check_documents,
    harness_results,
    load_tasks,
    run_benchmark,
    write_definitions,
)
from ant_hf.model.causality import check_causal
from ant_hf.model.encoding import context_length
from ant_hf.model.loading import Subject, is_checkpoint, load_subject
from ant_hf.utils.console import progress_bar, quiet_libraries, say
from ant_hf.utils.files import file_sha256
from ant_hf.utils.hardware import cpu_name
from ant_hf.utils.names import RESULTS, expand_home
from ant_hf.utils.provenance import now, package_versions
from ant_hf.utils.stopping import phase

_PARTIAL = ".evaluation.partial.jsonl"
_PACKAGES = ("ant-hf", "lm-eval", "transformers", "torch", "tokenizers", "datasets")


@phase("measuring the model", "What was scored is kept. Run the same command again to continue.")
def evaluate(
    model: str | Path,
    tasks: Sequence[str] = (),
    *,
    board: str | None = None,
    data_dir: str | Path | None = None,
    output_dir: str | Path | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    dtype: str = "float32",
    device: str | None = None,
    fresh: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Measure a model and write results.json, lm-eval's own results and samples.jsonl.

    Args:
        model: a model folder, or a Hub id.
        tasks: names of sets; none: everything in the public card's table, and degeneration.
        board: in place of tasks, the name of a public board: its sets, as far as there are files of them.
        data_dir: folder of the documents as JSONL; default: the Hub.
        output_dir: default: the model's folder, or evaluations/NAME for a Hub id or a checkpoint.
        limit: only the first so many documents per task.
        batch_size: full-length sequences a batch; shorter ones fill up to as many tokens.
        dtype: float32, bfloat16 or float16. In 16 bits, sets for which that is not exact enough are scored in
            float32 all the same, and small ones (see `rounding.py`).
        device: default: the GPU if there is one.
        fresh: measure the sets again; others that were measured on the same weights under the same conditions
            stay, and all else goes.

    Returns:
        The results, and the path of results.json.

    Raises:
        AntError: unknown task, missing or damaged data, a model that does not load or gives no numbers,
            results of another model in the output folder. A document that cannot be scored, by file and line,
            before any is.
    """
    for option, value in (("--limit", limit), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise AntError(f"{option} is too small", seen=value, expected="1 or more")
    data_dir = None if data_dir is None else Path(expand_home(data_dir))
    table = known_benchmarks(data_dir)
    if board and tasks:
        raise AntError(
            "--board and --tasks were both given", hint="Leave one out: a board decides which sets are run."
        )
    tasks = load_board(board).tasks if board else tasks
    names = [name for name in tasks if name != DEGENERATION]
    chosen, absent = (
        choose_benchmarks(names, table, data_dir, must_have=not board) if names or not tasks else ([], [])
    )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # Small batches stay in a CPU's cache; a GPU wants to be filled.
    batch_size = batch_size or (2 if device == "cpu" else 64)
    loaded = load_subject(str(model), dtype, device)
    folder = _own_folder(model, loaded) if output_dir is None else Path(expand_home(output_dir))
    check_causal(loaded.model)
    context = context_length(loaded.model, loaded.tokenizer)
    conditions = {
        "dtype": dtype,
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else cpu_name(),
        "torch_threads": torch.get_num_threads(),
        "context_length": context,
        "bos_policy": loaded.bos_policy,
        "limit": limit,
        "data": "hub" if data_dir is None else "local files",
        "batch_size": batch_size,
        "versions": package_versions(_PACKAGES),
    }
    wants_loops = not tasks or DEGENERATION in tasks
    again = {*(item.name for item in chosen), *[DEGENERATION] * wants_loops} if fresh else None
    old = _previous(folder, loaded, conditions, again)
    pending = _pending(chosen, old)
    if absent:
        say("left out", f"{', '.join(absent)}: {data_dir} has no file for them")
    loops = wants_loops and DEGENERATION not in old
    if loops and (line := no_room(loaded.tokenizer, prompts()[:limit], context)):
        if DEGENERATION in tasks:
            raise AntError(
                f"cannot measure {line}", hint="Leave degeneration out: name the other sets with --tasks."
            )
        say("left out", line)
        loops = False
    if not pending and not loops:
        if not old:
            raise AntError(
                f"there is nothing to measure: {data_dir} has no file for these sets",
                seen=", ".join(absent),
                hint="Put their files there (docs/evaluation.md lists the names), or leave --data-dir out to "
                "take the documents from the Hub.",
            )
        return old, folder / RESULTS
    started = time.perf_counter()
    store = _open_store(folder, loaded, conditions, fresh)
    with quiet_libraries():
        language_model = BatchedLM(loaded.model, loaded.tokenizer, store, batch_size)
        exact = language_model
        if pending and dtype != "float32":
            exact = BatchedLM(
                load_subject(str(model), "float32", device).model, loaded.tokenizer, store, batch_size
            )
        measured = _measure(pending, exact, language_model, limit)
        outputs = _continuations(loaded, limit) if loops else {}
    conditions["finished"] = now()
    # What was scored before an interruption is not in that time.
    conditions["wall_time_seconds"] = round(time.perf_counter() - started, 1)
    conditions["resumed_requests"] = store.resumed
    lines = [*(line for item in measured for line in sample_lines(item)), *loop_lines(outputs)]
    harness = {}
    if measured:
        config = {key: conditions[key] for key in ("dtype", "device", "limit", "batch_size")}
        harness = harness_results(measured, language_model, loaded.name, config)
    # Another command may have measured other sets meanwhile.
    old = _previous(folder, loaded, conditions, again)
    results = _results(loaded, conditions, old, measured, list(table), language_model.text_ids)
    if outputs:
        results[DEGENERATION] = summary(outputs, loaded.tokenizer.decode)
    write_results(folder, results, lines, harness, keep=bool(old))
    store.remove()
    return results, folder / RESULTS


def _own_folder(model: str | Path, loaded: Subject) -> Path:
    """Where the results go if nothing else is said."""
    # A training continues from a checkpoint only if nobody put files there.
    if Path(expand_home(model)).is_dir() and not is_checkpoint(loaded.folder):
        return loaded.folder
    return Path("evaluations", loaded.name.replace("/", "--"))


def _previous(
    folder: Path, loaded: Subject, conditions: dict[str, Any], again: set[str] | None
) -> dict[str, Any]:
    """The results that are in the folder and stay there.

    Args:
        again: what is measured again, whatever it was; then results of other models are not kept. None:
            nothing is.

    Raises:
        AntError: as `previous_results`, unless something is measured again.
    """
    try:
        old = previous_results(folder, loaded.identity, conditions)
    except AntError:
        if again is None:
            raise
        return {}
    if not (old and again):
        return old
    for key in ("tasks", "perplexity"):
        old[key] = {name: record for name, record in old[key].items() if name not in again}
    if DEGENERATION in again:
        old.pop(DEGENERATION, None)
    return old if old["tasks"] or old["perplexity"] or DEGENERATION in old else {}


def _pending(chosen: list[Benchmark], old: dict[str, Any]) -> list[Benchmark]:
    """The sets that are not measured yet, or were on other documents."""
    records = {**old.get("tasks", {}), **old.get("perplexity", {})}

    def is_measured(item: Benchmark) -> bool:
        if item.name not in records or item.source is None:
            return item.name in records
        return bool(records[item.name]["file_sha256"] == file_sha256(item.source))

    pending = [item for item in chosen if not is_measured(item)]
    if done := [item.label for item in chosen if item not in pending]:
        say("kept", f"{', '.join(done)}: measured before on these weights (--fresh measures them again)")
    return pending


def _open_store(folder: Path, loaded: Subject, conditions: dict[str, Any], fresh: bool) -> LikelihoodStore:
    path = folder / _PARTIAL
    if fresh:
        path.unlink(missing_ok=True)
    fixed = {key: value for key, value in loaded.identity.items() if key.endswith("_sha256")}
    store = LikelihoodStore(path, {**fixed, "dtype": conditions["dtype"], "device": conditions["device"]})
    if store.resumed:
        say("continuing", f"an interrupted evaluation: {store.resumed:,} requests are scored already")
    return store


def _measure(
    benchmarks: list[Benchmark], exact: BatchedLM, asked: BatchedLM, limit: int | None
) -> list[Measurement]:
    """Score every set, in the dtype that was asked for if that is exact enough for it."""
    with tempfile.TemporaryDirectory() as folder:
        write_definitions(benchmarks, Path(folder))
        loaded = load_tasks(benchmarks, Path(folder))
        check_documents(benchmarks, loaded, exact, limit)
        measured = []
        for item in benchmarks:
            rounding = (
                None if asked is exact else check_rounding(item, loaded[item.name]["tasks"], exact, asked)
            )
            if rounding:
                say(rounding.line(item.label))
            scorer = asked if rounding and rounding.is_exact_enough else exact
            found = run_benchmark(item, loaded[item.name], scorer, limit)
            dtype = str(scorer.model.dtype).removeprefix("torch.")
            measured.append(replace(found, dtype=dtype, rounding=asdict(rounding) if rounding else None))
            n = len(measured[-1].samples)
            say(f"{item.label}: {n:,} document{'s' if n > 1 else ''}, {measured[-1].seconds:.1f} s")
        return measured


def _continuations(loaded: Subject, limit: int | None) -> dict[str, list[Continuation]]:
    outputs, texts = {}, prompts()[:limit]
    for name, sample in (("greedy", False), ("sampled", True)):
        with progress_bar(f"generation, {name}") as advance:
            outputs[name] = generate(loaded.model, loaded.tokenizer, texts, sample, progress=advance)
    return outputs


def _results(
    loaded: Subject,
    conditions: dict[str, Any],
    old: dict[str, Any],
    new: list[Measurement],
    order: list[str],
    encode: Callable[[str], list[int]],
) -> dict[str, Any]:
    """The content of results.json: what was there, with what was measured now in its place."""
    tasks, perplexity = dict(old.get("tasks", {})), dict(old.get("perplexity", {}))
    tokenizer = f"{len(loaded.tokenizer):,} entries, sha256 {str(loaded.identity['tokenizer_sha256'])[:12]}"
    for item in new:
        if item.rolling:
            perplexity[item.benchmark.name] = perplexity_record(
                item, encode, loaded.identity["vocab_size"], tokenizer
            )
        else:
            tasks[item.benchmark.name] = accuracy_record(item)
    for key in ("wall_time_seconds", "resumed_requests"):
        conditions[key] += old.get("conditions", {}).get(key, 0)
    # Sets of lm-eval's own that the table does not name stand last.
    names = sorted(tasks, key=lambda name: order.index(name) if name in order else len(order))
    return {
        "schema": SCHEMA,
        "model": loaded.identity,
        "conditions": conditions,
        "tasks": {name: tasks[name] for name in names},
        "perplexity": perplexity,
        **({DEGENERATION: old[DEGENERATION]} if DEGENERATION in old else {}),
    }
