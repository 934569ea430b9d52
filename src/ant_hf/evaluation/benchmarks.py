"""Which sets exist, what lm-eval calls them, how large the complete set is.

`benchmarks.yaml` beside this file is the table; a `benchmarks.yaml` in a data folder adds to it. A
name that is in neither may still be any task of lm-eval's.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml

from ant_hf.errors import AntError

HARNESS_TASKS = Path(lm_eval.tasks.__file__).parent
ARITHMARK = "arithmark_2.0"
ARITHMARK_GENERATED = "arithmark_generated"
_TABLE = Path(__file__).with_name("benchmarks.yaml")


@dataclass(frozen=True)
class Benchmark:
    """One set: a task or a group of tasks of lm-eval's."""

    name: str
    definition: Path
    """Task file, or folder of task files for a group."""
    label: str
    metric: str | None = None
    """The number for the table; None: acc_norm, acc or the task's first, whichever it has."""
    documents: int | None = None
    """Size of the complete set."""
    file: str = ""
    fields: tuple[str, ...] = ()
    split_by: str | None = None
    extra: dict[str, str] = field(default_factory=dict)
    default: bool = True


def known_benchmarks(data_dir: Path | None = None) -> dict[str, Benchmark]:
    """The table, with the data folder's own additions.

    Raises:
        AntError: an addition is no mapping, has an unknown key or names no task file.
    """
    table = _read_table(_TABLE)
    if data_dir is not None and (own := data_dir / "benchmarks.yaml").is_file():
        table |= _read_table(own)
    return table


def choose_benchmarks(
    names: list[str] | None, table: dict[str, Benchmark], data_dir: Path | None
) -> tuple[list[Benchmark], list[str]]:
    """The sets to run and, of the default ones, those whose local file is absent.

    With a data folder but no `arithmark_2.0.jsonl`, the generated stand-in takes its place under
    its own name.

    Raises:
        AntError: a name is unknown (with the nearest ones), or its local file is missing.
    """
    if names:
        chosen = [table.get(name) or _harness_benchmark(name, table) for name in dict.fromkeys(names)]
        for benchmark in chosen:
            if not _available(benchmark, data_dir):
                raise AntError(
                    f"{benchmark.name}: no documents",
                    seen=f"{data_dir} without {benchmark.file}",
                    hint=f"Put {benchmark.file} there, or leave --data-dir out to take them from the Hub.",
                )
        return chosen, []
    chosen, absent = [], []
    for benchmark in table.values():
        if not benchmark.default:
            continue
        if _available(benchmark, data_dir):
            chosen.append(benchmark)
        elif benchmark.name == ARITHMARK:
            chosen.append(table[ARITHMARK_GENERATED])
        else:
            absent.append(benchmark.name)
    return chosen, absent


def _available(benchmark: Benchmark, data_dir: Path | None) -> bool:
    return data_dir is None or benchmark.name == ARITHMARK_GENERATED or (data_dir / benchmark.file).is_file()


def _read_table(path: Path) -> dict[str, Benchmark]:
    hint = f"See {_TABLE.name} of this package for the form."
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise AntError(f"{path} is not readable YAML: {error}", hint=hint) from None
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise AntError(f"{path}: expected one mapping a set", seen=type(rows).__name__, hint=hint)
    return {str(name): _benchmark(str(name), dict(row), path, hint) for name, row in rows.items()}


def _benchmark(name: str, row: dict[str, Any], path: Path, hint: str) -> Benchmark:
    allowed = {item.name for item in fields(Benchmark)} - {"name"}
    if unknown := sorted(set(row) - allowed):
        raise AntError(f"{path}: {name} has unknown keys", seen=unknown, expected=", ".join(sorted(allowed)))
    if "definition" not in row:
        raise AntError(f"{path}: {name} has no definition", hint=hint)
    definition = str(row.pop("definition"))
    found = [folder / definition for folder in (path.parent, HARNESS_TASKS) if (folder / definition).exists()]
    if not found:
        raise AntError(
            f"{path}: {name} names a task file that is not there",
            seen=definition,
            expected=f"a path inside {HARNESS_TASKS} or beside {path.name}",
        )
    row.setdefault("label", name)
    row.setdefault("file", f"{name}.jsonl")
    return Benchmark(name=name, definition=found[0], **{**row, "fields": tuple(row.get("fields", ()))})


def _harness_benchmark(name: str, table: dict[str, Benchmark]) -> Benchmark:
    """Any single task of lm-eval's; reading its 14,000 definitions takes seconds, so only on demand."""
    from lm_eval.tasks import TaskManager

    index = TaskManager().task_index
    entry = index.get(name)
    if entry is None or entry.yaml_path is None or "task" not in (entry.cfg or {}) or name not in index:
        near = difflib.get_close_matches(name, [*table, *index], n=4, cutoff=0.5)
        raise AntError(
            f"unknown task {name}",
            expected=f"one of {', '.join(table)}, or a task of lm-eval's",
            hint=f"Nearest: {', '.join(near)}." if near else "List lm-eval's: lm_eval ls tasks",
        )
    return Benchmark(name=name, definition=Path(entry.yaml_path), label=name, file=f"{name}.jsonl")
