"""lm-eval task files that change only where the documents come from.

Each file includes lm-eval's own definition and overrides the dataset, nothing else: prompts, choices
and scoring stay lm-eval's, and the folder serves the plain `lm_eval --include_path` as well. A folder
of our own also spares reading the thousands of definitions that lm-eval ships.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks._yaml_loader import load_yaml

from ant_hf.errors import AntError
from ant_hf.evaluation.arithmark import generate_arithmark
from ant_hf.evaluation.benchmarks import ARITHMARK_GENERATED, Benchmark

_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


def write_definitions(benchmarks: list[Benchmark], folder: Path, data_dir: Path | None) -> None:
    """Fill an empty folder with one definition a task; with a data folder, on its local files.

    Raises:
        AntError: a local file has a line that is no JSON object or lacks a documented field.
    """
    for benchmark in benchmarks:
        place = folder / benchmark.name
        place.mkdir(parents=True)
        source = local_file(benchmark, data_dir)
        if benchmark.name == ARITHMARK_GENERATED and source is None:
            source = place / benchmark.file
            generate_arithmark(source)
        if benchmark.definition.is_dir():
            _write_group(benchmark, place, source, data_dir)
        else:
            files = _local_splits(benchmark, source, data_dir) if source else None
            _write_task(benchmark.definition, place, benchmark.name, files)


def local_file(benchmark: Benchmark, data_dir: Path | None) -> Path | None:
    """The set's file in the data folder, if it is there."""
    return data_dir / benchmark.file if data_dir and (data_dir / benchmark.file).is_file() else None


def read_documents(path: Path, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, each with the fields it must have.

    Raises:
        AntError: names file, line and what is wrong with it.
    """
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                document = json.loads(line)
                if not isinstance(document, dict):
                    raise AntError(f"{path}, line {number}: expected a JSON object", seen=line[:40])
                if missing := [name for name in fields if name not in document]:
                    raise AntError(
                        f"{path}, line {number}: no field {', '.join(missing)}",
                        seen=sorted(document),
                        expected=", ".join(fields),
                    )
                yield document
    except (ValueError, OSError, RecursionError) as error:
        raise AntError(f"{path}, line {number or 1}: not readable as JSONL: {error}") from None
    if number == 0:
        raise AntError(f"{path} holds no documents")


def _local_splits(benchmark: Benchmark, source: Path, data_dir: Path | None) -> dict[str, str]:
    """Split name to file: the documents under the split lm-eval scores, and the extra ones."""
    for _ in read_documents(source, benchmark.fields):
        pass
    files = {_scored_split(benchmark.definition): str(source.resolve())}
    for split, name in benchmark.extra.items():
        path = _extra_file(benchmark, data_dir, name)
        files[split] = str(path.resolve())
    return files


def _extra_file(benchmark: Benchmark, data_dir: Path | None, name: str) -> Path:
    if data_dir is None or not (path := data_dir / name).is_file():
        raise AntError(f"{benchmark.name} also needs {name}", hint=f"Put it beside {benchmark.file}.")
    return path


def _scored_split(definition: Path) -> str:
    values = load_yaml(definition, resolve_func=False)
    return str(values.get("test_split") or values.get("validation_split"))


def _write_task(definition: Path, place: Path, name: str, files: dict[str, str] | None) -> None:
    """One definition that includes lm-eval's; `files` moves it onto local documents."""
    original = load_yaml(definition, resolve_func=False)
    values: dict[str, Any] = {"include": str(definition), "task": name}
    if tag := original.get("tag"):
        values["tag"] = tag
    if files is not None:
        values |= {
            "dataset_path": "json",
            "dataset_name": None,
            # The cache of `datasets` is keyed by path: inside the folder it goes when the folder goes.
            "dataset_kwargs": {"data_files": files, "cache_dir": str(place.resolve() / "cache")},
        }
        values |= {key: None for key in _SPLITS if original.get(key) and original[key] not in files}
    (place / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _write_group(benchmark: Benchmark, place: Path, source: Path | None, data_dir: Path | None) -> None:
    """Every task of a group's folder; locally, those that have documents."""
    definitions = {path: load_yaml(path, resolve_func=False) for path in benchmark.definition.glob("*.yaml")}
    tasks = {path: values for path, values in definitions.items() if "dataset_name" in values}
    parts: dict[str, dict[str, str]] | None = None
    if source is not None:
        parts = _split_documents(benchmark, source, place, data_dir, tasks)
    defined: set[str] = set()
    for path, values in sorted(tasks.items()):
        files = None if parts is None else parts.get(values["dataset_name"])
        if parts is None or files:
            _write_task(path, place, values["task"], files)
            tags = values.get("tag") or []
            defined |= {values["task"], *([tags] if isinstance(tags, str) else tags)}
    groups = [values for path, values in definitions.items() if "group" in values]
    _write_groups(groups, defined, place)


def _write_groups(groups: list[dict[str, Any]], defined: set[str], place: Path) -> None:
    """Group files as lm-eval has them, innermost first, less the members that have no documents here."""
    pending = list(groups)
    while pending:
        waiting = {group["group"] for group in pending}
        group = next(group for group in pending if not waiting & set(group["task"]))
        pending.remove(group)
        if members := [name for name in group["task"] if name in defined]:
            defined.add(group["group"])
            text = yaml.safe_dump({**group, "task": members}, sort_keys=False)
            (place / f"{group['group']}.yaml").write_text(text, encoding="utf-8")


def _split_documents(
    benchmark: Benchmark,
    source: Path,
    place: Path,
    data_dir: Path | None,
    tasks: dict[Path, dict[str, Any]],
) -> dict[str, dict[str, str]]:
    """The lines of one file by member of the group: member, then split, then file."""
    assert benchmark.split_by is not None
    scored = _scored_split(next(iter(tasks)))
    inputs = {scored: source}
    inputs |= {split: _extra_file(benchmark, data_dir, name) for split, name in benchmark.extra.items()}
    members = {str(values["dataset_name"]) for values in tasks.values()}
    parts: dict[str, dict[str, str]] = {}
    for split, path in inputs.items():
        grouped: dict[str, list[str]] = {}
        for document in read_documents(path, benchmark.fields):
            member = document[benchmark.split_by]
            if member not in members:
                raise AntError(f"{path}: {benchmark.split_by} names no part of {benchmark.name}", seen=member)
            grouped.setdefault(member, []).append(json.dumps(document, ensure_ascii=False))
        for member, lines in grouped.items():
            target = place / split / f"{member}.jsonl"
            target.parent.mkdir(exist_ok=True)
            target.write_text("\n".join(lines) + "\n", encoding="utf-8")
            parts.setdefault(member, {})[split] = str(target.resolve())
    return {member: files for member, files in parts.items() if scored in files}
