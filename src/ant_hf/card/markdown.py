"""Values on their way into Markdown, escaped unless they were made here; and tables on their way back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$!])")
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")

# What makes a heading, a rule or a list of a line that begins with it.
_MARKER = re.compile(r"^(\s*\d*)([-+=.)])")


class Safe(str):
    """Markdown of our own making, placed as it is."""

    __slots__ = ()


def plain(value: Any) -> str:
    """A value on one line, without characters that hide or turn what stands beside them."""
    return _INVISIBLE.sub(" ", str(value))


def escape(value: Any) -> str:
    """A value as it reads, on one line, whatever Markdown or HTML it holds; `Safe` stays as it is."""
    if isinstance(value, Safe):
        return value
    text = plain(value)
    # A backslash before < or & is Markdown; an entity holds in every renderer, also where HTML is allowed.
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)


def code(value: Any) -> Safe:
    """A code span; backticks and the table's bar inside it are handled."""
    text = plain(value).replace("|", r"\|")
    fence, space = _fence(text, 1), " " if "`" in text or not text.strip() else ""
    return Safe(f"{fence}{space}{text}{space}{fence}")


def fenced(text: str, language: str) -> Safe:
    """A code block whose fence no line of the text can close."""
    lines = "\n".join(plain(line) for line in text.rstrip().split("\n"))
    return Safe(f"{_fence(text, 3)}{language}\n{lines}\n{_fence(text, 3)}")


def _fence(text: str, least: int) -> str:
    """More backticks than stand together anywhere in the text."""
    return "`" * max([least, *(len(run) + 1 for run in re.findall(r"`+", text))])


def quote(value: Any) -> Safe:
    """Several lines as a block quote, each escaped, also against becoming a list or an underline."""
    lines = [_MARKER.sub(r"\1\\\2", escape(line)) for line in str(value).splitlines() or [""]]
    return Safe("\n".join(f"> {line}  " for line in lines))


def table(header: Sequence[Any], rows: Sequence[Sequence[Any]], numbers_from: int = 1) -> Safe:
    """A table whose columns from `numbers_from` on are aligned to the right."""
    rule = ["---" if i < numbers_from else "---:" for i in range(len(header))]
    lines = [header, rule, *rows]
    return Safe("\n".join("| " + " | ".join(escape(c) or " " for c in line) + " |" for line in lines))


def read_tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text: rows of cells, the header first, escapes undone."""
    tables: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [_unescape(cell) for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            if not inside:
                tables.append([])
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                tables[-1].append(cells)
        inside = line.startswith("|")
    return tables


def _unescape(cell: str) -> str:
    text = re.sub(r"\\(.)", r"\1", cell.strip()).strip("`*")
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
