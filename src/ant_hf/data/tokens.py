"""Reading packed tokens: the manifest, its checks, and one memory-mapped sequence a split."""

from __future__ import annotations

import bisect
import itertools
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from ant_hf.errors import AntError, missing_file
from ant_hf.utils.files import check_file, check_made_of, read_sealed
from ant_hf.utils.names import MANIFEST

FORMAT_VERSION = 2
TRAIN, VALIDATION = "train", "validation"
# Format 1 differs by having no seal.
_READABLE = (1, FORMAT_VERSION)


class _Shard(BaseModel):
    # A manifest names files beside it and nothing else on the machine.
    file: Annotated[str, Field(pattern=rf"^({TRAIN}|{VALIDATION})-[0-9]{{5,}}\.bin$")]
    tokens: NonNegativeInt
    sha256: str
    part: str | None = None
    """Of the mix, whose parts follow one another in a split."""


class _Split(BaseModel):
    documents: NonNegativeInt
    tokens: NonNegativeInt
    bytes: NonNegativeInt
    shards: list[_Shard]


class _Splits(BaseModel):
    train: _Split
    validation: _Split


class _Documents(BaseModel):
    read: NonNegativeInt
    empty: NonNegativeInt
    duplicate: NonNegativeInt
    past_limit: NonNegativeInt


class _Inputs(BaseModel):
    tokenizer_sha256: str


class _Manifest(BaseModel):
    """What every reader of a manifest relies on."""

    inputs_sha256: str
    inputs: _Inputs
    documents: _Documents
    splits: _Splits


def packed_before(folder: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a folder that holds these tokens already; None where there is none.

    Raises:
        AntError: the folder holds tokens made of something else.
    """
    return read_manifest(folder, inputs) if (folder / MANIFEST).exists() else None


def read_manifest(folder: Path, inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    """The manifest of a tokens folder, checked for shape and for shards of the stated size.

    Args:
        inputs: what the tokens must have been made of, where that is known.

    Raises:
        AntError: it is missing, of another format, or a shard is missing or cut short; or the tokens were
            made of something else.
    """
    hint = f"Remove {folder} to pack it again."
    path = folder / MANIFEST
    if not path.exists():
        raise missing_file(path, "token manifest", "Pack first: ant-hf pack --config RECIPE")
    manifest = read_sealed(path, "token manifest", hint)
    if inputs is not None:
        check_made_of(folder, "tokens", manifest, inputs)
    if manifest.get("format_version") not in _READABLE:
        raise AntError(
            f"{folder / MANIFEST} has the format of another version",
            seen=manifest.get("format_version"),
            expected=str(FORMAT_VERSION),
            hint=hint,
        )
    try:
        splits = _Manifest.model_validate(manifest, strict=True).splits
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise AntError(f"{path} is damaged: {place}: {error.errors()[0]['msg']}", hint=hint) from None
    for shard in [*splits.train.shards, *splits.validation.shards]:
        file, size = folder / shard.file, 2 * shard.tokens
        seen = f"{file.stat().st_size} bytes" if file.is_file() else "no file"
        if seen != f"{size} bytes":
            raise AntError(f"{file} is damaged", seen=seen, expected=f"{size} bytes", hint=hint)
    return manifest


def verify_shards(folder: Path, splits: tuple[str, ...] = (TRAIN, VALIDATION)) -> None:
    """Compare the sha256 of every shard of some splits with the manifest's.

    Raises:
        AntError: a shard differs; names it and both hashes.
    """
    manifest = read_manifest(folder)
    for split in splits:
        for shard in manifest["splits"][split]["shards"]:
            hint = f"Remove {folder} to pack it again."
            check_file(folder / shard["file"], shard["sha256"], "is damaged", hint)


class PackedTokens:
    """The tokens of one split as one sequence, memory-mapped from its shards.

    Args:
        part: the name of a part of the mix, to have its tokens alone.
        limit: only so many of them, from the first on.
    """

    def __init__(
        self, folder: Path, split: str, *, part: str | None = None, limit: int | None = None
    ) -> None:
        manifest = read_manifest(folder)
        values, shards = manifest["splits"][split], manifest["splits"][split]["shards"]
        if part is not None:
            values = manifest["parts"][part][split]
            shards = [shard for shard in shards if shard["part"] == part]
        self.split = split
        self.documents: int = values["documents"]
        self.bytes: int = values["bytes"]
        self._files = [folder.absolute() / shard["file"] for shard in shards]
        self._starts = list(itertools.accumulate(map(len, self._shards), initial=0))
        self._length = self._starts[-1] if limit is None else min(limit, self._starts[-1])

    @cached_property
    def _shards(self) -> list[np.memmap[Any, np.dtype[np.uint16]]]:
        return [np.memmap(file, dtype="<u2", mode="r") for file in self._files]

    @property
    def end_of_text(self) -> int:
        """The token after every document."""
        return int(self._shards[-1][-1])

    @cached_property
    def document_ends(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Where each document ends, its end-of-text token included: ascending, shape (documents,).

        Read from the tokens: every document ends with that token, and no text has it inside (`Encoder`). A
        look at 100M tokens takes about 0.1 s.
        """
        found = [
            start + 1 + np.flatnonzero(shard == self.end_of_text)
            for start, shard in zip(self._starts, self._shards, strict=False)
        ]
        ends = np.concatenate(found, dtype=np.int64)
        # Some tokenizers put the same token before every text.
        each = len(ends) // self.documents
        return ends[each - 1 :: each]

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps, whose pickle is all their bytes: a data worker that is spawned opens its own."""
        return {name: value for name, value in vars(self).items() if name not in ("_shards", "document_ends")}

    def __len__(self) -> int:
        return self._length

    def slice(self, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
        """Tokens [start, stop) as a copy, shape (stop - start,); shorter at the end of the split."""
        tokens = np.empty(max(0, min(stop, len(self)) - start), dtype=np.uint16)
        self.read_into(tokens, start)
        return tokens

    def read_into(self, row: np.ndarray[Any, Any], start: int) -> int:
        """Write the tokens from `start` on into `row`, shape (n,), and return how many there were."""
        wanted = min(len(row), len(self) - start)
        shard = bisect.bisect_right(self._starts, start) - 1
        done = 0
        while done < wanted:
            first = start + done - self._starts[shard]
            piece = self._shards[shard][first : first + wanted - done]
            row[done : done + len(piece)] = piece
            done, shard = done + len(piece), shard + 1
        return done


class TokensInMemory(PackedTokens):
    """Token ids in memory, to be scored like a split."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = np.asarray(ids, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def slice(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        return self._ids[start:stop]
