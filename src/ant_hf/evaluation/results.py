"""From lm-eval's results of one set to its record, and the three files of an evaluation. No torch here.

A record says how sure a score is: its standard error and interval, the floor that takes no model,
and for a text the identity that links its perplexities.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError
from ant_hf.evaluation.benchmarks import Benchmark
from ant_hf.utils.files import (
    check_file,
    file_sha256,
    read_json,
    read_sealed,
    write_json,
    write_sealed,
    write_text,
)
from ant_hf.utils.metrics import TextScore, exp
from ant_hf.utils.names import RESULTS

ABOVE, BELOW, UNCLEAR = "above", "below", "indistinguishable"
HARNESS_RESULTS = "lm_eval_results.json"
SAMPLES = "samples.jsonl"
# 2: floors are what a model that scores texts could reach, and parts have floors of their own.
SCHEMA = 2
# What must agree before new figures may stand beside old ones.
_FIXED = ("dtype", "device", "context_length", "bos_policy", "limit", "data", "versions")
PREFERRED = ("acc_norm", "acc")
# Of lm-eval's metrics, those that are a share of documents, so that more is better.
SHARES = (*PREFERRED, "acc_bytes", "acc_mutual_info", "exact_match")
DEGENERATION = "degeneration"


@dataclass(frozen=True)
class Measurement:
    """What lm-eval returned for one set, with the tasks it ran."""

    benchmark: Benchmark
    tasks: dict[str, Any]
    """lm-eval `Task` by name; several for a group."""
    results: dict[str, Any]
    seconds: float
    file_sha256: str | None
    """Of the local documents; None when they came from the Hub."""
    dtype: str = "float32"
    """That the model was in."""
    rounding: dict[str, Any] | None = None
    """What a check of 16 bits found; None: there was none."""

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Every scored document, of all tasks, in their order."""
        return [sample for _, sample in self.samples_by_task()]

    def samples_by_task(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The same, each with the name of its task."""
        for task in sorted(self.tasks):
            for sample in self.results["samples"][task]:
                yield task, sample

    @property
    def rolling(self) -> bool:
        return all(task.OUTPUT_TYPE == "loglikelihood_rolling" for task in self.tasks.values())


def accuracy_record(measurement: Measurement) -> dict[str, Any]:
    """The record of a set scored by choices or by exact continuation: metrics, floor, conditions."""
    benchmark, own = measurement.benchmark, measurement.results["results"][measurement.benchmark.name]
    metrics = _metrics(own)
    metric = headline_metric(benchmark, metrics)
    value, stderr = metrics[metric].values()
    n = len(measurement.samples)
    # Of other metrics nobody can say how they are spread.
    bounds = interval(value, stderr, n) if metric in PREFERRED else None
    choices = _choices(measurement) if metric in PREFERRED else None
    floor, kind = accuracy_floor(choices) if choices else (None, None)
    values = _conditions(measurement) | {
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "interval": bounds,
        "floor": floor,
        "floor_kind": kind,
        "verdict": against_floor(bounds, floor),
        "metrics": metrics,
    }
    if slices := _slices(measurement, metric, choices) if metric in PREFERRED else {}:
        values |= {"slice_title": benchmark.slice_title or benchmark.slice_by, "slices": slices}
    return values


def headline_metric(benchmark: Benchmark, metrics: Collection[str]) -> str:
    """The metric of the table, of those that a set has.

    Raises:
        AntError: the set's own is not among them.
    """
    metric = benchmark.metric or next((name for name in (*PREFERRED, *metrics) if name in metrics), "")
    if metric not in metrics:
        raise AntError(
            f"{benchmark.name} does not have the metric {metric} that benchmarks.yaml names",
            expected=f"one of {', '.join(metrics)}",
        )
    return metric


def perplexity_record(
    measurement: Measurement, encode: Callable[[str], list[int]], vocab_size: int, tokenizer: str
) -> dict[str, Any]:
    """The record of a text scored by rolling windows: every perplexity, from the one pass.

    Args:
        encode: text to the token ids that were scored.
        tokenizer: what the token perplexity belongs to.

    Raises:
        AntError: the perplexities do not describe the same nats.
    """
    samples, name = measurement.samples, measurement.benchmark.name
    texts = [sample["arguments"][0][0] for sample in samples]
    # lm-eval pairs each log-likelihood with what its metric divides by.
    scores = [
        TextScore(-sample["filtered_resps"][0], len(encode(text)), sample["byte_perplexity"][1], vocab_size)
        for sample, text in zip(samples, texts, strict=True)
    ]
    figures = perplexities(scores, [sample["word_perplexity"][1] for sample in samples])
    # Not those of the documents: lm-eval's `wikitext` undoes its tokenisation before it scores.
    figures["scored_bytes"] = sum(len(text.encode("utf-8")) for text in texts)
    own = measurement.results["results"][name]
    harness = {key: own[f"{key},none"] for key in ("word_perplexity", "byte_perplexity", "bits_per_byte")}
    identity = check_identity(figures, harness, name)
    return _conditions(measurement) | figures | {"tokenizer": tokenizer, "identity": identity}


def _conditions(measurement: Measurement) -> dict[str, Any]:
    benchmark, results = measurement.benchmark, measurement.results
    n = len(measurement.samples)
    digest = hashlib.sha256("".join(sample["doc_hash"] for sample in measurement.samples).encode())
    return {
        "label": benchmark.label,
        "version": results["versions"].get(benchmark.name),
        "num_fewshot": 0,
        "n": n,
        "expected_n": benchmark.documents,
        "complete": None if benchmark.documents is None else n == benchmark.documents,
        "data_sha256": digest.hexdigest(),
        "file_sha256": measurement.file_sha256,
        "wall_time_seconds": round(measurement.seconds, 2),
        "dtype": measurement.dtype,
        **({"rounding": measurement.rounding} if measurement.rounding else {}),
    }


def _metrics(own: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """lm-eval's `acc,none` and `acc_stderr,none` as {acc: {value, stderr}}."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in own.items():
        name, _, filter_name = key.partition(",")
        if filter_name == "none" and not name.endswith("_stderr") and not isinstance(value, (str, dict)):
            stderr = own.get(f"{name}_stderr,none")
            error = None if stderr is None or isinstance(stderr, str) else float(stderr)
            found[name] = {"value": float(value), "stderr": error}
    return found


def _choices(measurement: Measurement) -> list[Choices] | None:
    """What a model is asked to choose from in every document; None where a task asks something else."""
    choices = []
    for name, sample in measurement.samples_by_task():
        task = measurement.tasks[name]
        if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_target:
            return None
        # WinoGrande-like tasks vary the context: there the "target" is the text behind it.
        place = 0 if task.multiple_input else 1
        # lm-eval asks more for some metrics, after these.
        asked = sample["arguments"][: len(sample["filtered_resps"])]
        answer = None if task.multiple_input else sample["target"]
        choices.append(Choices(tuple(arguments[place] for arguments in asked), answer))
    return choices


def _slices(
    measurement: Measurement, metric: str, choices: list[Choices] | None
) -> dict[str, dict[str, Any]]:
    """The accuracy of each part of a set, in the order of their names; empty for a set without parts."""
    parts: dict[str, list[int]] = {}
    samples = measurement.samples
    for index, sample in enumerate(samples):
        if (name := measurement.benchmark.slice_of(sample["doc"])) is None:
            return {}
        parts.setdefault(name, []).append(index)
    return {
        name: _part([samples[i][metric] for i in parts[name]], choices and [choices[i] for i in parts[name]])
        for name in sorted(parts)
    }


def _part(correct: list[float], choices: list[Choices] | None) -> dict[str, Any]:
    n = len(correct)
    value = sum(correct) / n
    # lm-eval's own: the sample standard deviation over the root of n.
    stderr = math.sqrt(value * (1 - value) / (n - 1)) if n > 1 else None
    bounds, floor = interval(value, stderr, n), accuracy_floor(choices)[0] if choices else None
    return {
        "value": value,
        "stderr": stderr,
        "interval": bounds,
        "n": n,
        "floor": floor,
        "verdict": against_floor(bounds, floor),
    }


def sample_lines(measurement: Measurement) -> Iterator[dict[str, Any]]:
    """Documents for samples.jsonl: set, task, prompt, choices, log-likelihoods, outcome."""
    for task, sample in measurement.samples_by_task():
        line = {
            "set": measurement.benchmark.name,
            "task": task,
            "doc_id": sample["doc_id"],
            "doc_hash": sample["doc_hash"],
            "target": None,
            "log_likelihoods": [
                response[0] if isinstance(response, (tuple, list)) else response
                for response in sample["filtered_resps"]
            ],
            **{name: sample[name] for name in sample["metrics"]},
        }
        arguments = sample["arguments"]
        if len(arguments[0]) > 1:
            contexts, choices = zip(*arguments, strict=True)
            prompt = contexts[0] if len(set(contexts)) == 1 else contexts
            line |= {"target": sample["target"], "prompt": prompt, "choices": choices}
        yield line


@dataclass(frozen=True)
class Choices:
    """What one document lets a model choose from."""

    texts: tuple[str, ...]
    """As the model reads them."""
    answer: int | str | None
    """Index of the right one, or the text itself; None where it is not known."""


def accuracy_floor(documents: Sequence[Choices]) -> tuple[float, str]:
    """The accuracy that takes no knowledge, and how: a uniform guess, or always the most frequent answer.

    A model that scores texts can only prefer a text. So the second counts where all documents have the same
    choices (yes and no, or the letters A to D) and the position of the right one means the same everywhere;
    elsewhere the position is invisible to it.
    """
    uniform = sum(1 / len(document.texts) for document in documents) / len(documents)
    counts = Counter(document.answer for document in documents)
    # Where all have one answer nobody can tell that there are others.
    if len({document.texts for document in documents}) == 1 and len(counts) > 1:
        majority = max(counts.values()) / len(documents)
        if majority > uniform:
            return majority, "majority class"
    return uniform, "uniform guess"


def interval(value: float, stderr: float | None, n: int) -> list[float] | None:
    """Where a share of `n` documents lies with 95 % confidence; None: its standard error is not known.

    Two standard errors to both sides. Where none or all are right the standard error is 0, which says nothing
    about other documents: there the exact interval of Clopper and Pearson (1934), which needs no more than a
    root, and never covers less than it says, from a single document on.
    """
    if value in (0.0, 1.0):
        reach = 1 - 0.025 ** (1 / n)
        return [0.0, reach] if value == 0.0 else [1 - reach, 1.0]
    return None if stderr is None else [max(0.0, value - 2 * stderr), min(1.0, value + 2 * stderr)]


def against_floor(bounds: Sequence[float] | None, floor: float | None) -> str | None:
    """Above or below the floor only when the whole interval is; None where one of them is not known."""
    if bounds is None or floor is None:
        return None
    if bounds[0] > floor:
        return ABOVE
    return BELOW if bounds[1] < floor else UNCLEAR


def perplexities(documents: Sequence[TextScore], words: Sequence[int]) -> dict[str, Any]:
    """All perplexities of one pass over a text, with standard errors and the level of a uniform guess.

    They are one quantity in several units:
    nats = tokens * ln(token_perplexity) = bytes * ln(byte_perplexity)
         = bytes * ln(2) * bits_per_byte = words * ln(word_perplexity).

    Args:
        documents: the score of each. Its bytes are those of the original document, as lm-eval counts them.
        words: of each original document.
    """
    nats, tokens, size = ([getattr(one, unit) for one in documents] for unit in ("nats", "tokens", "bytes"))
    whole = TextScore(sum(nats), sum(tokens), sum(size), documents[0].vocab_size)
    word_perplexity, byte_error = exp(whole.nats / sum(words)), _ratio_error(nats, size)
    return {
        "nats": whole.nats,
        "tokens": whole.tokens,
        "bytes": whole.bytes,
        "words": sum(words),
        "nats_per_token": whole.loss,
        "nats_per_token_stderr": _ratio_error(nats, tokens),
        "token_perplexity": whole.perplexity,
        "bits_per_byte": whole.bits_per_byte,
        "bits_per_byte_stderr": byte_error / math.log(2),
        "byte_perplexity": whole.byte_perplexity,
        "byte_perplexity_stderr": whole.byte_perplexity * byte_error,
        "word_perplexity": word_perplexity,
        "word_perplexity_stderr": word_perplexity * _ratio_error(nats, words),
        "bytes_per_token": whole.bytes / whole.tokens,
        "uniform_guess_byte_perplexity": whole.uniform_byte_perplexity,
        "broken": whole.nats >= whole.tokens * math.log(whole.vocab_size),
    }


def _ratio_error(nats: Sequence[float], counts: Sequence[int]) -> float:
    """Standard error of sum(nats) / sum(counts) over documents (the ratio estimator's, Cochran 1977)."""
    n = len(counts)
    if n < 2:
        return 0.0
    ratio = sum(nats) / sum(counts)
    squares = sum((x - ratio * y) ** 2 for x, y in zip(nats, counts, strict=True))
    return math.sqrt(squares * n / (n - 1)) / sum(counts)


def check_identity(figures: dict[str, Any], harness: dict[str, float], where: str) -> str:
    """The identity that links the perplexities, in figures; refuses when a reported one breaks it.

    Args:
        harness: lm-eval's own word_perplexity, byte_perplexity and bits_per_byte of the same pass.

    Raises:
        AntError: two of them do not describe the same nats.
    """
    nats = {
        "tokens * nats_per_token": figures["tokens"] * figures["nats_per_token"],
        "tokens * ln(token_perplexity)": figures["tokens"] * math.log(figures["token_perplexity"]),
        "bytes * ln(byte_perplexity)": figures["bytes"] * math.log(harness["byte_perplexity"]),
        "bytes * ln(2) * bits_per_byte": figures["bytes"] * math.log(2) * harness["bits_per_byte"],
        "words * ln(word_perplexity)": figures["words"] * math.log(harness["word_perplexity"]),
    }
    for name, value in nats.items():
        # A perplexity too large for a float says nothing about the nats.
        if math.isfinite(value) and not math.isclose(value, figures["nats"], rel_tol=1e-6):
            raise AntError(
                f"{where}: the perplexities disagree",
                seen=f"{name} = {value:,.3f} nats",
                expected=f"{figures['nats']:,.3f}",
            )
    return f"{' = '.join(nats)} = {figures['nats']:.6g} nats"


def previous_results(folder: Path, identity: dict[str, Any], conditions: dict[str, Any]) -> dict[str, Any]:
    """The results already in the folder; empty when there are none.

    Raises:
        AntError: they belong to another model or to other conditions; names what differs.
    """
    path = folder / RESULTS
    if not path.exists():
        return {}
    hint = "Pass --fresh to measure again, or --output-dir to keep both."
    values = read_sealed(path, "evaluation results", hint, unsealed_format=None)
    try:
        if values["schema"] != SCHEMA:
            raise AntError(
                f"{path} is from another version (key schema)",
                seen=values["schema"],
                expected=str(SCHEMA),
                hint=hint,
            )
        old = {**values["model"], **values["conditions"]}
        new = {**identity, **conditions}
        for key in ("weights_sha256", "tokenizer_sha256", "config_sha256", *_FIXED):
            if old[key] != new[key]:
                raise AntError(
                    f"{path} was measured with another {key.replace('_', ' ')}",
                    seen="none" if old[key] is None else old[key],
                    expected="none" if new[key] is None else str(new[key]),
                    hint=hint,
                )
    except (KeyError, TypeError):
        raise AntError(f"{path} is damaged", hint=hint) from None
    for name, sha256 in values["files"].items():
        own = folder / name
        if own.exists():
            hint = f"Remove {own} to continue without its results of earlier sets."
            check_file(own, sha256, "was changed after it was written", hint)
    return values


def write_results(
    folder: Path, values: dict[str, Any], samples: list[dict[str, Any]], harness: dict[str, Any], keep: bool
) -> None:
    """Write samples.jsonl, lm-eval's own file, and results.json with the hashes of the two.

    Args:
        harness: lm-eval's results; empty when none of its sets was run.
        keep: leave what an earlier command measured beside them, and its samples of other tasks.
    """
    lines_file, own_file = folder / SAMPLES, folder / HARNESS_RESULTS
    kept = []
    if keep and lines_file.is_file():
        # Lines of earlier versions name no set. A set's tasks may be fewer than before.
        replaced = {line[key] for line in samples for key in ("set", "task")}
        with lines_file.open(encoding="utf-8") as old:
            kept = [
                line
                for line, values in ((line, json.loads(line)) for line in old)
                if replaced.isdisjoint((values.get("set"), values["task"]))
            ]
    new = [json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in samples]
    write_text(lines_file, "".join(kept + new))
    if harness:
        before = {}
        if keep and own_file.is_file():
            before = read_json(own_file, "lm-eval results", "Pass --fresh to measure again.")
        for key, value in harness.items():
            if isinstance(value, dict) and isinstance(before.get(key), dict):
                harness[key] = {**before[key], **value}
        write_json(own_file, harness)
    values["files"] = {path.name: file_sha256(path) for path in (own_file, lines_file) if path.is_file()}
    write_sealed(folder / RESULTS, values)
