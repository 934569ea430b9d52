"""The documents of a set on this disk, and what is refused in them before anything is scored.

They are read once, by the reader of training texts, and reach lm-eval as they stand in the file: a path is
never a pattern, a date stays a text, and what is hashed is what is scored.

lm-eval takes a document without an answer, or with one of another kind, for a wrong answer of the model's,
and stops in the middle of its work at an empty choice.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ant_hf.errors import AntError
from ant_hf.utils.files import check_file, file_sha256, read_json_rows

if TYPE_CHECKING:
    import datasets

    from ant_hf.evaluation.benchmarks import Benchmark

# Where sets have their answers, if nobody says which field it is.
_USUAL_NAMES = ("label", "answer", "answerKey", "answer_idx", "gold", "target")
# What stands in place of an answer that is kept secret.
_HIDDEN = ("", "-1")
_UNLABELLED = (
    "It may be a test split without labels. Take the split that has answers, most often the validation split."
)


@dataclass(frozen=True)
class Documents:
    """The documents of a set, or of one member of a group, in the order of their file."""

    rows: list[dict[str, Any]]
    places: list[str]
    """Of each row: file and line, for messages."""


@functools.lru_cache(maxsize=2)
def _read(path: str, sha256: str) -> Documents:
    found = [(row, where) for where, row in read_json_rows(Path(path), unique_keys=True)]
    check_file(Path(path), sha256, "was changed while it was read", "Run the command again.")
    return Documents([row for row, _ in found], [where for _, where in found])


def select(
    path: str, sha256: str, split_by: str | None = None, member: str | None = None, first: int | None = None
) -> Documents:
    """The documents of a file.

    Args:
        sha256: of the file, as it was when its documents were checked.
        split_by: the field that tells the member of a group; then only those of `member`.
        first: only so many.

    Raises:
        AntError: as `read_json_rows`, or the file is another one by now.
    """
    found = _read(path, sha256)
    pairs = zip(found.rows, found.places, strict=True)
    kept = [pair for pair in pairs if split_by is None or pair[0][split_by] == member][:first]
    return Documents([row for row, _ in kept], [where for _, where in kept])


def lm_eval_dataset(files: dict[str, dict[str, Any]], **_: Any) -> datasets.DatasetDict:
    """What lm-eval calls in place of `datasets.load_dataset`.

    Args:
        files: by split, the arguments of `select`.
    """
    from datasets import Dataset, DatasetDict

    tables = {}
    for split, source in files.items():
        rows = select(**source).rows
        names = dict.fromkeys(name for row in rows for name in row)
        tables[split] = Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    return DatasetDict(tables)


def checked_file(benchmark: Benchmark, path: Path) -> dict[str, str]:
    """Path and sha256 of a set's file, for `select`, once every line of it is one that can be scored.

    Raises:
        AntError: as `read_json_rows`; or, with file and line, a field is missing, null or of another kind
            than in the lines above it, or holds no answer.
    """
    source = {"path": str(path.resolve()), "sha256": file_sha256(path)}
    documents = _read(**source)
    if not documents.rows:
        raise AntError(f"{path} does not contain any documents", hint="Write one JSON object per line.")
    for name in _USUAL_NAMES if benchmark.answer is None else ():
        if all(name in row and is_hidden(row[name]) for row in documents.rows):
            what = f"{documents.places[0]}: {name} does not give an answer, here and in every other line"
            raise AntError(what, seen=documents.rows[0][name], hint=_UNLABELLED)
    kinds: dict[str, tuple[str, str]] = {}
    for row, where in zip(documents.rows, documents.places, strict=True):
        if missing := [name for name in benchmark.fields if name not in row]:
            hint = _UNLABELLED if benchmark.answer in missing else None
            raise AntError(
                f"{where}: the field {', '.join(missing)} is missing",
                seen=sorted(row),
                expected=", ".join(benchmark.fields),
                hint=hint,
            )
        if benchmark.answer is not None and is_hidden(answer := row.get(benchmark.answer)):
            raise AntError(
                f"{where}: {benchmark.answer} does not give an answer", seen=answer, hint=_UNLABELLED
            )
        if benchmark.answer is not None and isinstance(row.get(benchmark.answer), float):
            raise AntError(
                f"{where}: {benchmark.answer} is a fraction",
                seen=row[benchmark.answer],
                expected="the number of the right choice, without a point, or its name",
            )
        for name in benchmark.fields:
            if row[name] is None or (isinstance(row[name], list) and None in row[name]):
                raise AntError(
                    f"{where}: {name} is or contains null", seen=row[name], expected="a value in every line"
                )
        for name, kind, value in _leaves(row):
            known, place = kinds.setdefault(name, (kind, where))
            if kind != known:
                raise AntError(f"{where}: {name} is {kind}", seen=value, expected=f"{known}, as in {place}")
    return source


def is_hidden(answer: Any) -> bool:
    """Whether a value stands for an answer that is not told, as in the test splits of many sets."""
    return answer in (None, -1, []) or (isinstance(answer, str) and answer.strip() in _HIDDEN)


_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text"}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str, Any]]:
    """Name, kind and value of everything in a row; null and what is in no list have no kind."""
    if isinstance(value, dict):
        yield name, "an object", value
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        yield name, "a list", value
        for inner in value:
            yield from _leaves(inner, f"{name}[]")
    elif value is not None:
        yield name, _KINDS[type(value)], value


def check_rendered(task: Any, document: dict[str, Any], where: str) -> None:
    """Refuse a document whose prompt, choices or answer lm-eval cannot score, or would score as wrong.

    Args:
        task: lm-eval's.

    Raises:
        AntError: names the document by `where`, and the value.
    """
    try:
        text, target = task.doc_to_text(document), task.doc_to_target(document)
        choices = task.doc_to_choice(document) if task.OUTPUT_TYPE == "multiple_choice" else None
    # Templates and functions of task files raise anything.
    except Exception as error:
        raise unreadable(where, document, error) from None
    answer, scored = (text, target) if task.multiple_input else (target, text)
    if not isinstance(scored, str):
        raise AntError(f"{where}: the prompt is not text", seen=scored)
    if choices is None:
        # Of a page every blank is scored, of an answer none alone.
        if not isinstance(target, str) or not (
            target if task.OUTPUT_TYPE == "loglikelihood_rolling" else target.strip()
        ):
            raise AntError(
                f"{where}: there is nothing to score", seen=target, expected="a text that is not empty"
            )
        return
    if not isinstance(choices, list) or len(choices) < 2:
        raise AntError(f"{where}: there are too few choices", seen=choices, expected="a list of two or more")
    if empty := [choice for choice in choices if not isinstance(choice, str) or not choice.strip()]:
        raise AntError(f"{where}: a choice is empty or not text", seen=empty[0], expected="a text")
    if task.multiple_input and not target.strip():
        raise AntError(
            f"{where}: there is nothing to score", seen=target, expected="a text after the choices"
        )
    several = isinstance(answer, list)
    if several != bool(task.multiple_target):
        raise AntError(
            f"{where}: the answer is {'a list' if several else 'a single one'}, unlike the first document's",
            seen=answer,
        )
    for one in answer if several else [answer]:
        is_index = isinstance(one, int) and 0 <= one < len(choices)
        if not is_index and not (isinstance(one, str) and one in choices):
            raise AntError(
                f"{where}: the answer does not name a choice",
                seen=one,
                expected=f"0 to {len(choices) - 1}, or one of the choices",
                hint=_UNLABELLED if is_hidden(one) else None,
            )


def unreadable(where: str, document: dict[str, Any], error: Exception) -> AntError:
    """The error for a document that lm-eval's task file cannot read."""
    return AntError(
        f"{where}: lm-eval's task file cannot read this document "
        f"({type(error).__name__}: {' '.join(str(error).split())[:200]})",
        seen=str(document)[:300],
        hint="Compare it with a line that can be read, and with the fields in docs/evaluation.md.",
    )
