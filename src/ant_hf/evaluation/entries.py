"""The figures of one model's results, each with the documents it was computed from. Imports no torch.

In: a folder with results.json and, for figures that can be paired, samples.jsonl.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError
from ant_hf.evaluation.results import ABOVE, DEGENERATION, SAMPLES, SHARES, interval
from ant_hf.utils.files import check_file, file_sha256, read_json_rows, read_sealed
from ant_hf.utils.names import RESULTS

_WAYS = {"greedy": "Loops, greedy", "sampled": "Loops, sampled"}


@dataclass(frozen=True)
class Document:
    """What one model scored in one document, or whether its output for one prompt loops."""

    group: str
    """lm-eval's task: a subject of MMLU, a paradigm of BLiMP."""
    asked: int
    """Hash of prompt and choices."""
    amount: float
    size: float
    """A figure is the sum of the amounts over that of the sizes."""


@dataclass(frozen=True)
class Source:
    """A results.json, and what it was measured under."""

    file: Path
    sha256: str
    model: dict[str, Any]
    conditions: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One figure of results.json: the score of a set, or a loop rate."""

    task: str
    """What `ant-hf evaluate --tasks` calls it."""
    label: str
    metric: str
    value: float
    interval: Sequence[float] | None
    """Of 95 %; None: not known."""
    n: int
    unit: str
    higher_is_better: bool
    asked: dict[str, Any]
    """What must be the same in two models: version of the task, rules of the loops."""
    data: str
    """Identity of the documents."""
    source: Source
    complete_n: int | None = None
    """Documents of the complete set where these are not all of it."""
    beats_guessing: bool | None = None
    """None where nothing is known of guessing."""
    seconds: float | None = None
    documents: dict[Hashable, Document] | None = None
    """By task, hash and place among equal ones; None without samples, or if the figure is not a mean."""


def read_entries(folder: Path) -> dict[str, Entry]:
    """The figures of a folder's results.json by name, with their documents as far as samples.jsonl has them.

    Raises:
        AntError: results.json is missing or damaged, or one of the two files was changed.
    """
    path = folder / RESULTS
    hint = "Measure the model: ant-hf evaluate MODEL --fresh"
    values = read_sealed(path, "evaluation results", hint, unsealed_format=None)
    samples = folder / SAMPLES
    if samples.is_file():
        check_file(samples, values.get("files", {}).get(SAMPLES), f"does not belong to {path}", hint)
    try:
        documents = _read_documents(samples, values) if samples.is_file() else {}
        source = Source(path, file_sha256(path), values["model"], values["conditions"])
        return dict(_entries(values, source, documents))
    except (KeyError, TypeError) as error:
        raise AntError(f"{path} is damaged or from another version: {error} is missing", hint=hint) from None


def _entries(
    values: dict[str, Any], source: Source, documents: dict[str, dict[Hashable, Document]]
) -> Iterator[tuple[str, Entry]]:
    for name, record in (*values["tasks"].items(), *values["perplexity"].items()):
        is_text = name in values["perplexity"]
        metric = "bits_per_byte" if is_text else record["metric"]
        stderr = record["bits_per_byte_stderr"] if is_text else record["stderr"]
        value = record[metric if is_text else "value"]
        around, own = None, documents.get(name)
        if is_text:
            around = [value - 2 * stderr, value + 2 * stderr] if stderr else None
        elif metric in SHARES:
            around = interval(value, stderr, record["n"])
        else:
            own = None
        above = not record["broken"] if is_text else record["verdict"] == ABOVE
        yield (
            name,
            Entry(
                task=name,
                label=record["label"],
                metric=metric,
                value=value,
                interval=around,
                n=record["n"],
                unit="documents",
                higher_is_better=not is_text,
                asked={"metric": metric, "version of the task": record["version"]},
                data=record["data_sha256"],
                complete_n=record["expected_n"] if record["complete"] is False else None,
                beats_guessing=None if not is_text and record["verdict"] is None else above,
                seconds=record["wall_time_seconds"],
                source=source,
                documents=_means(own, value),
            ),
        )
    loops = values.get(DEGENERATION, {})
    for way, label in _WAYS.items() if loops else ():
        record = loops[way]
        yield (
            f"loops_{way}",
            Entry(
                task=DEGENERATION,
                label=label,
                metric="loop_rate",
                value=record["loop_rate"],
                interval=interval(record["loop_rate"], record["stderr"], record["outputs"]),
                n=record["outputs"],
                unit="prompts",
                higher_is_better=False,
                asked={
                    "rule of a loop": loops["loop"],
                    "new tokens": loops["max_new_tokens"],
                    "sampling": record.get("settings"),
                },
                data=f"{record['outputs']} prompts",
                source=source,
                documents=_means(documents.get(f"loops_{way}"), record["loop_rate"]),
            ),
        )


def _means(documents: dict[Hashable, Document] | None, value: float) -> dict[Hashable, Document] | None:
    """The documents, if they give the figure: what is not a mean over documents has no difference in each."""
    if not documents:
        return None
    size = sum(document.size for document in documents.values())
    mean = sum(document.amount for document in documents.values()) / size if size else math.nan
    return documents if math.isclose(mean, value, rel_tol=1e-6, abs_tol=1e-9) else None


def _read_documents(path: Path, values: dict[str, Any]) -> dict[str, dict[Hashable, Document]]:
    """The documents of every figure."""
    found: dict[str, dict[Hashable, Document]] = {}
    seen: Counter[Hashable] = Counter()
    for _, line in read_json_rows(path):
        # Lines of earlier versions name no set: those of a set with one task are still found.
        name, task = line.get("set", line["task"]), line["task"]
        if name == DEGENERATION:
            if "loops" in line:
                key: Hashable = line["prompt"]
                size, amount = 1.0, float(line["loops"])
                found.setdefault(f"loops_{line['generation']}", {})[key] = Document(task, 0, amount, size)
            continue
        scored = (task, line["doc_hash"])
        key = (*scored, seen[scored])
        seen[scored] += 1
        asked = hash(json.dumps([line.get("prompt"), line.get("choices"), line["target"]]))
        if name in values["perplexity"]:
            log_likelihood, count = line["byte_perplexity"]
            amount, size = -log_likelihood, count * math.log(2)
        elif name in values["tasks"] and isinstance(line.get(values["tasks"][name]["metric"]), (int, float)):
            amount, size = float(line[values["tasks"][name]["metric"]]), 1.0
        else:
            continue
        found.setdefault(name, {})[key] = Document(task, asked, amount, size)
    return found
