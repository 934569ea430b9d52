"""From lm-eval's results of one set to its record in results.json."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ant_hf.errors import AntError
from ant_hf.evaluation.arithmark import SLICES
from ant_hf.evaluation.benchmarks import ARITHMARK, ARITHMARK_GENERATED, Benchmark
from ant_hf.evaluation.statistics import TextScores, accuracy_floor, check_identity, verdict

_PREFERRED = ("acc_norm", "acc")


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

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Every scored document, of all tasks, in their order."""
        return [sample for task in sorted(self.tasks) for sample in self.results["samples"][task]]

    @property
    def rolling(self) -> bool:
        return all(task.OUTPUT_TYPE == "loglikelihood_rolling" for task in self.tasks.values())


def record(measurement: Measurement) -> dict[str, Any]:
    """The record of a set scored by choices or by exact continuation: metrics, floor, conditions."""
    benchmark, own = measurement.benchmark, measurement.results["results"][measurement.benchmark.name]
    metrics = _metrics(own)
    metric = benchmark.metric or next((name for name in _PREFERRED if name in metrics), next(iter(metrics)))
    if metric not in metrics:
        raise AntError(f"{benchmark.name} has no metric {metric}", expected=", ".join(metrics))
    value, stderr = metrics[metric]["value"], metrics[metric]["stderr"]
    values = _conditions(measurement) | {
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "floor": None,
        "floor_kind": None,
        "verdict": None,
        "metrics": metrics,
    }
    choices, answers = _choices_and_answers(measurement)
    if choices and metric in _PREFERRED:
        floor = accuracy_floor(choices, answers)
        values |= {
            "floor": floor.value,
            "floor_kind": floor.kind,
            "verdict": verdict(value, stderr or 0.0, floor.value),
        }
    if benchmark.name in (ARITHMARK, ARITHMARK_GENERATED):
        values["slices"] = _arithmark_slices(measurement.samples)
    return values


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
    scores = TextScores(
        nats=tuple(-sample["filtered_resps"][0] for sample in samples),
        tokens=tuple(len(encode(text)) for text in texts),
        # lm-eval pairs each log-likelihood with what its metric divides by.
        bytes=tuple(sample["byte_perplexity"][1] for sample in samples),
        words=tuple(sample["word_perplexity"][1] for sample in samples),
        scored_bytes=tuple(len(text.encode("utf-8")) for text in texts),
    )
    figures = scores.figures(vocab_size)
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
    }


def _metrics(own: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """lm-eval's `acc,none` and `acc_stderr,none` as {acc: {value, stderr}}."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in own.items():
        name, _, filter_name = key.partition(",")
        if filter_name != "none" or name.endswith("_stderr") or isinstance(value, (str, dict)):
            continue
        stderr = own.get(f"{name}_stderr,none")
        found[name] = {
            "value": float(value),
            "stderr": None if stderr is None or isinstance(stderr, str) else float(stderr),
        }
    return found


def _choices_and_answers(measurement: Measurement) -> tuple[list[int], list[int]]:
    """Number of choices and index of the right one, for every multiple-choice document."""
    choices, answers = [], []
    for name, task in measurement.tasks.items():
        if task.OUTPUT_TYPE != "multiple_choice":
            return [], []
        for sample in measurement.results["samples"][name]:
            # WinoGrande-like tasks vary the context: there lm-eval gives the answer as the "text".
            answer = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
            if isinstance(answer, str):
                answer = task.doc_to_choice(sample["doc"]).index(answer)
            if not isinstance(answer, int):
                return [], []
            choices.append(len(sample["filtered_resps"]))
            answers.append(answer)
    return choices, answers


def _arithmark_slices(samples: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    slices = {}
    for operators in SLICES:
        correct = [s["acc"] for s in samples if s["doc"]["metadata"]["operator_count"] == operators]
        if n := len(correct):
            value = sum(correct) / n
            # lm-eval's own: the sample standard deviation over the root of n.
            stderr = math.sqrt(value * (1 - value) / (n - 1)) if n > 1 else 0.0
            slices[str(operators)] = {"value": value, "stderr": stderr, "n": n}
    return slices


def sample_line(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    """One document for samples.jsonl: prompt, choices, log-likelihoods, outcome."""
    arguments = sample["arguments"]
    line = {
        "task": task,
        "doc_id": sample["doc_id"],
        "doc_hash": sample["doc_hash"],
        "target": sample["target"] if len(arguments[0]) > 1 else None,
        "log_likelihoods": [
            response[0] if isinstance(response, (tuple, list)) else response
            for response in sample["filtered_resps"]
        ],
        **{name: sample[name] for name in sample["metrics"]},
    }
    if len(arguments[0]) > 1:
        contexts = [context for context, _ in arguments]
        line["prompt"] = contexts[0] if len(set(contexts)) == 1 else contexts
        line["choices"] = [continuation for _, continuation in arguments]
    return line
