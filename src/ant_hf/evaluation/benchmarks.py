"""Which sets exist, what lm-eval calls them, how large each is, and where its documents are. No lm-eval here.

`benchmarks.yaml` beside this file is the table; a `benchmarks.yaml` in a data folder adds to it. A name that
is in neither may still be any task of lm-eval's.

Arithmark-2.0 has a seeded stand-in for machines without the Hub. Facts of the set, as its public card and
third-party scripts read it: 2,500 rows, of 1, 2 and 3 operators, `ctx` such as "59 + 45 =", four `endings`
that begin with a space, `label`, `metadata.operator_count`. The stand-in has the same shape and other
numbers, so its results carry another name.
"""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ant_hf.errors import AntError
from ant_hf.recipe import violations

ARITHMARK = "arithmark_2.0"
ARITHMARK_GENERATED = "arithmark_generated"
# Rows by number of operators.
ARITHMARK_SLICES = {1: 1250, 2: 750, 3: 500}
_FORMS = {
    1: ("{a} {x} {b}",),
    2: ("{a} {x} {b} {y} {c}",),
    3: ("({a} {x} {b}) {y} ({c} {z} {d})", "{a} {x} ({b} {y} {c}) {z} {d}"),
}
_WRONG_BY = (-20, -11, -10, -9, -5, -3, -2, -1, 1, 2, 3, 5, 9, 10, 11, 20)
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
    fields: list[str] = field(default_factory=list)
    answer: str | None = None
    """The field that holds the right answer; None: none does alone, or it is not known."""
    split_by: str | None = None
    extra: dict[str, str] = field(default_factory=dict)
    slice_by: str | None = None
    """The field of a document, or a.b inside one, by whose values the set is also scored in parts."""
    slice_title: str | None = None
    """What the parts differ in; default: the field."""
    slice_names: dict[Any, str] = field(default_factory=dict)
    """By value of that field, the name of its part; default: the value, with spaces for underscores."""
    default: bool = True
    source: Path | None = None
    """Its documents on this disk; None: the Hub's, or generated."""

    @property
    def remote(self) -> bool:
        """Whether its documents come from the Hub."""
        return self.source is None and self.name != ARITHMARK_GENERATED

    def slice_of(self, document: Any) -> str | None:
        """The part that a document belongs to; None where the set has none, or the document does not say."""
        if self.slice_by is None:
            return None
        for key in self.slice_by.split("."):
            document = document.get(key) if isinstance(document, Mapping) else None
        if document is None:
            return None
        name = str(document).replace("_", " ")
        return self.slice_names.get(document, name) if isinstance(document, Hashable) else name


_CHECKED = TypeAdapter(Benchmark)


def known_benchmarks(data_dir: Path | None = None) -> dict[str, Benchmark]:
    """The table, with the data folder's own additions.

    Raises:
        AntError: there is no such folder; an addition is not a mapping, has an unknown key or a value of
            another kind, or names no task file.
    """
    if data_dir is not None and not data_dir.is_dir():
        what = (
            f"--data-dir is a file: {data_dir}" if data_dir.exists() else f"data folder not found: {data_dir}"
        )
        raise AntError(what, hint="Pass a folder of JSONL files: --data-dir FOLDER")
    tables = [_TABLE]
    if data_dir is not None and (own := data_dir / _TABLE.name).is_file():
        tables.append(own)
    return {
        name: _benchmark(name, row, path) for path in tables for name, row in benchmark_table(path).items()
    }


def choose_benchmarks(
    names: Sequence[str], table: dict[str, Benchmark], data_dir: Path | None, must_have: bool = True
) -> tuple[list[Benchmark], list[str]]:
    """The sets to run, with their documents, and those whose local file is absent.

    Among the default ones, with a data folder but no `arithmark_2.0.jsonl`, the generated stand-in takes its
    place under its own name.

    Args:
        names: none: the default ones.
        must_have: an absent file of a named set is an error.

    Raises:
        AntError: a name is unknown (with the nearest ones), or its local file is missing.
    """
    wanted = [table.get(name) or _harness_benchmark(name, table) for name in dict.fromkeys(names)]
    chosen, absent = [], []
    for benchmark in wanted or [benchmark for benchmark in table.values() if benchmark.default]:
        found = _with_documents(benchmark, data_dir)
        if found is None and names and must_have:
            assert data_dir is not None
            kind = "is a folder" if (data_dir / benchmark.file).is_dir() else "is missing"
            raise AntError(
                f"{benchmark.name} has no documents: {data_dir / benchmark.file} {kind}",
                hint=f"Put a file {benchmark.file} (or .jsonl.gz) there, or leave --data-dir out to take the "
                "documents from the Hub.",
            )
        if found is None and benchmark.name == ARITHMARK and not names:
            found = _with_documents(table[ARITHMARK_GENERATED], data_dir)
        if found is None:
            absent.append(benchmark.name)
        else:
            chosen.append(found)
    return chosen, absent


def _with_documents(benchmark: Benchmark, data_dir: Path | None) -> Benchmark | None:
    """The set with its file in the data folder; None where the folder lacks it."""
    if data_dir is not None and (source := local_file(data_dir, benchmark.file)):
        return replace(benchmark, source=source)
    return benchmark if data_dir is None or benchmark.name == ARITHMARK_GENERATED else None


def local_file(folder: Path, name: str) -> Path | None:
    """A file of documents, as it is or packed by gzip."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def benchmark_table(path: Path = _TABLE) -> dict[str, dict[str, Any]]:
    """A table as it is written, by name of the set: `label`, `documents` (of the complete set) and more."""
    hint = f"See {_TABLE.name} of this package for the form."
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise AntError(f"{path} is not readable YAML: {error}", hint=hint) from None
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise AntError(f"{path} is not a mapping of sets", seen=type(rows).__name__, hint=hint)
    for name, row in rows.items():
        allowed = {item.name for item in fields(Benchmark)} - {"name", "source"}
        if unknown := sorted(set(row) - allowed):
            expected = ", ".join(sorted(allowed))
            raise AntError(f"{path}: {name} has unknown keys", seen=unknown, expected=expected)
        if "definition" not in row:
            raise AntError(f"{path}: {name} lacks the key definition", hint=hint)
    return {str(name): row for name, row in rows.items()}


def _benchmark(name: str, row: dict[str, Any], table: Path) -> Benchmark:
    # Looked up without importing it, which takes seconds.
    (package,) = find_spec("lm_eval").submodule_search_locations  # type: ignore[union-attr, misc]
    harness = Path(package, "tasks")
    places = [folder / str(row["definition"]) for folder in (table.parent, harness)]
    if not any(place.exists() for place in places):
        raise AntError(
            f"{table}: {name} names a task file that does not exist",
            seen=row["definition"],
            expected=f"a path inside {harness} or beside {table.name}",
        )
    # Resolved: it is included from another folder.
    own = {"definition": next(place for place in places if place.exists()).resolve()}
    defaults = {"label": name, "file": f"{name}.jsonl"}
    try:
        return _CHECKED.validate_python({"name": name, **defaults, **row, **own})
    except ValidationError as error:
        raise violations(error, f"{table}: {name}") from None


def _harness_benchmark(name: str, table: dict[str, Benchmark]) -> Benchmark:
    """Any single task of lm-eval's; reading its 14,000 definitions takes seconds, so only on demand."""
    from lm_eval.tasks import TaskManager

    index = TaskManager().task_index
    entry = index.get(name)
    if entry is None or entry.yaml_path is None or "task" not in (entry.cfg or {}):
        near = difflib.get_close_matches(name, {*table, *index}, n=4, cutoff=0.5)
        raise AntError(
            f"unknown task {name}",
            expected=f"one of {', '.join(table)}, or a task of lm-eval's",
            hint=f"Similar names: {', '.join(near)}."
            if near
            else "See all tasks of lm-eval: lm_eval ls tasks",
        )
    return Benchmark(name=name, definition=Path(entry.yaml_path), label=name, file=f"{name}.jsonl")


def check_schema(documents: Iterable[Any], where: str) -> None:
    """Refuse rows that are not Arithmark's.

    Raises:
        AntError: names the columns or the values seen.
    """
    wanted = "ctx, endings (4), label (0 to 3), metadata.operator_count (1 to 3)"
    for number, row in enumerate(documents, 1):
        if not {"ctx", "endings", "label", "metadata"} <= set(row):
            raise AntError(f"{where} lacks columns of Arithmark-2.0", seen=sorted(row), expected=wanted)
        metadata = row["metadata"]
        count = metadata.get("operator_count") if isinstance(metadata, Mapping) else None
        if len(row["endings"]) != 4 or str(row["label"]) not in set("0123") or count not in ARITHMARK_SLICES:
            seen = {"endings": len(row["endings"]), "label": row["label"], "operator_count": count}
            raise AntError(
                f"{where}, row {number}: the values are not those of Arithmark-2.0",
                seen=seen,
                expected=wanted,
            )


def generate_arithmark(path: Path, seed: int = 20) -> None:
    """Write the stand-in: the same slices, answers balanced over the four positions."""
    chance = random.Random(seed)
    lines = []
    for operators, rows in ARITHMARK_SLICES.items():
        positions = [index % 4 for index in range(rows)]
        chance.shuffle(positions)
        seen: set[str] = set()
        for label in positions:
            expression, answer = _expression(operators, chance)
            while expression in seen:
                expression, answer = _expression(operators, chance)
            seen.add(expression)
            # Near the right one: off by one, by a carry, or by a little.
            wrong = chance.sample([answer + step for step in _WRONG_BY], 3)
            endings = [f" {value}" for value in (*wrong[:label], answer, *wrong[label:])]
            row = {"ctx": f"{expression} =", "endings": endings, "label": label}
            lines.append(json.dumps({**row, "metadata": {"operator_count": operators}}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def _expression(operators: int, chance: random.Random) -> tuple[str, int]:
    """Operands of 1 to 99; products only of small ones, so that answers stay near the sums."""
    form = chance.choice(_FORMS[operators])
    signs = {name: chance.choice("+-*") for name in "xyz"}
    limit = 12 if "*" in [signs[name] for name in "xyz"[:operators]] else 99
    operands = {name: chance.randint(1, limit) for name in "abcd"}
    text = form.format(**operands, **signs)
    # Only digits, signs and parentheses made above can be in it.
    return text, int(eval(text, {"__builtins__": {}}))  # noqa: S307
