"""Files of a corpus encoded one by one, and put together as if they had been read in one go.

A part keeps what one process would have known of each document (hash, tokens, bytes, characters), so that
duplicates over all files, the split and the limit are decided when the parts are put together.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ant_hf.data.corpus import (
    DIGEST_BYTES,
    Corpus,
    CorpusCounts,
    Document,
    SeenDigests,
    in_validation_split,
    normalised,
)
from ant_hf.data.decontamination import EvaluationSets, named
from ant_hf.data.packing import (
    CHUNK_CHARACTERS,
    EncodedChunk,
    Encoder,
    RoomNeeded,
    chunks,
    packed_before,
    packing_inputs,
    write_tokens,
)
from ant_hf.data.sources import LocalFiles, Source
from ant_hf.errors import AntError
from ant_hf.recipe import Recipe
from ant_hf.utils.console import say
from ant_hf.utils.disk import writing
from ant_hf.utils.files import check_file, file_sha256, fingerprint, read_sealed, whole_folder, write_sealed
from ant_hf.utils.locks import locked

# Parts of another format lie under other names.
PART_FORMAT = 2
_IDS, _ROWS, _PART = "ids.bin", "documents.bin", "part.json"
# One row a document read. No ids: white space only (all zero), a duplicate within its file, or
# contaminated (with the evaluation sets that share text with it, one bit each).
_ROW = np.dtype([
    ("digest", f"V{DIGEST_BYTES}"), ("tokens", "<u4"), ("bytes", "<u4"), ("characters", "<u4"),
    ("sets", "<u8"),
])  # fmt: skip


def is_encoded(part: Path) -> bool:
    """Whether a part is there, which it is as a whole or not at all."""
    return (part / _PART).is_file()


def encode_file(
    source: Source, part: Path, encoder: Encoder, sets: EvaluationSets | None = None
) -> tuple[int, int]:
    """Write the part of one file; documents that share text with evaluation sets are not encoded.

    Returns:
        Documents read, and tokens.
    """
    rows: list[tuple[bytes, int, int, int, int]] = []
    tokens = 0
    with writing("encoded files", part.parent, lambda: 2 * tokens), whole_folder(part) as partial:
        with (partial / _IDS).open("wb") as ids, (partial / _ROWS).open("wb") as handle:
            for documents in chunks(_documents(source, sets, rows)):
                chunk = encoder.encode(documents, {})
                ids.write(chunk.ids.astype("<u2", copy=False).tobytes())
                tokens += len(chunk.ids)
                lengths = iter(chunk.lengths)
                table = np.array(rows, dtype=_ROW)
                table["tokens"] = [next(lengths) if row[2] else 0 for row in rows]
                handle.write(table.tobytes())
                rows.clear()
        read = (partial / _ROWS).stat().st_size // _ROW.itemsize
        hashes = {name: file_sha256(partial / name) for name in (_IDS, _ROWS)}
        write_sealed(partial / _PART, {"documents": read, "tokens": tokens, "sha256": hashes})
    return read, tokens


def _documents(
    source: Source, sets: EvaluationSets | None, rows: list[tuple[bytes, int, int, int, int]]
) -> Iterator[Document]:
    """The documents of a file to encode; leaves a row for each read, also for those that are none."""
    seen = SeenDigests()
    for text in source.documents():
        data = normalised(text)
        digest = hashlib.sha256(data).digest()[:DIGEST_BYTES]
        if not data or not seen.add(digest):
            rows.append((digest if data else bytes(DIGEST_BYTES), 0, 0, 0, 0))
            continue
        document = Document(data.decode("utf-8"), False)
        if sets and (shared := sets.sharing(document.text)):
            rows.append((digest, 0, 0, 0, shared))
            continue
        rows.append((digest, 0, len(data), len(document.text), 0))
        yield document


def merged(
    parts: Iterable[Path], validation_fraction: float, evaluation_sets: Sequence[str] = ()
) -> Iterator[EncodedChunk]:
    """The chunks that encoding the corpus in one process gives: cut by the same count of characters.

    Args:
        parts: in the order of their files.
        evaluation_sets: names of those the parts were compared with.

    Raises:
        AntError: a part is damaged; names the file.
    """
    counts, seen = CorpusCounts.beginning(evaluation_sets), SeenDigests()
    ids: list[np.ndarray[Any, np.dtype[np.uint16]]] = []
    sizes: list[int] = []
    validation: list[bool] = []
    characters = 0

    def chunk() -> EncodedChunk:
        lengths = [len(piece) for piece in ids]
        joined = np.concatenate([np.empty(0, dtype=np.uint16), *ids])
        return EncodedChunk(counts.as_dict(), joined, lengths, sizes, validation)

    for part in parts:
        for digest, piece, size, length, shared in _rows(part):
            counts.read += 1
            if digest == bytes(DIGEST_BYTES):
                counts.empty += 1
                continue
            if not (len(piece) or shared) or not seen.add(digest):
                counts.duplicate += 1
                continue
            if shared:
                counts.add_contaminated(named(shared, evaluation_sets))
                continue
            held_out = in_validation_split(digest, validation_fraction)
            counts.validation += held_out
            counts.train += not held_out
            ids.append(piece)
            sizes.append(size)
            validation.append(held_out)
            characters += length
            if characters >= CHUNK_CHARACTERS:
                yield chunk()
                ids, sizes, validation, characters = [], [], [], 0
    yield chunk()


def _rows(part: Path) -> Iterator[tuple[bytes, np.ndarray[Any, np.dtype[np.uint16]], int, int, int]]:
    """Digest, ids, bytes, characters and sharing sets of each document of a part, checked first."""
    hint = f"Remove {part} and run the same command again."
    values = read_sealed(part / _PART, "encoded file", hint, unsealed_format=None)
    for name, expected in values["sha256"].items():
        check_file(part / name, expected, "is damaged", hint)
    ids = (
        np.fromfile(part / _IDS, dtype="<u2") if not values["tokens"] else np.memmap(part / _IDS, "<u2", "r")
    )
    start = 0
    with (part / _ROWS).open("rb") as handle:
        # A few thousand at a time: a large file has millions.
        while piece := handle.read(4096 * _ROW.itemsize):
            for row in np.frombuffer(piece, dtype=_ROW).tolist():
                digest, tokens, size, characters, shared = row
                yield digest, ids[start : start + tokens], size, characters, shared
                start += tokens


try:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from datatrove.utils.logging import logger
    from datatrove.utils.stats import PipelineStats
except ImportError:
    raise AntError("packing by tasks needs datatrove", hint="pip install 'ant-hf[cluster]'") from None


@dataclass(frozen=True)
class Packing:
    """A corpus and where its tokens go: the steps to hand to an executor of datatrove."""

    files: tuple[Path, ...]
    text_column: str
    tokenizer_file: Path
    tokens_dir: Path
    inputs: dict[str, Any]
    """What decides every token; stored in the manifest."""
    decontaminate: str | None = None
    """Folder of evaluation sets, which every task reads for itself."""

    @property
    def folder(self) -> Path:
        """Parts and logs; can be removed once the tokens are there."""
        return self.tokens_dir.with_name("packing")

    @property
    def logs(self) -> Path:
        """For datatrove's logs and marks of completion, which another corpus must not find."""
        return self.folder / f"logs-{fingerprint(self.inputs)[:12]}"

    @property
    def tasks(self) -> int:
        """The most tasks that have something to do: one a file."""
        return len(self.files)

    def part(self, index: int) -> Path:
        """Folder of the encoded file `index`; a file that was mended, or a new tokenizer, has another."""
        file = self.inputs["corpus"]["files"][index]["sha256"]
        tokenizer = self.inputs["tokenizer_sha256"]
        made_of = fingerprint([PART_FORMAT, file, self.text_column, tokenizer, *self._compared])
        return self.folder / "parts" / f"{index:05d}-{made_of[:12]}"

    @property
    def _compared(self) -> list[Any]:
        compared = self.inputs["corpus"].get("decontaminate")
        return [compared] if compared else []

    @property
    def evaluation_sets(self) -> tuple[str, ...]:
        """Names of the sets whose text is kept out."""
        return tuple(name for compared in self._compared for name in compared["sets"])

    @property
    def encode(self) -> EncodeFiles:
        """The step of all tasks."""
        return EncodeFiles(self)

    @property
    def merge(self) -> MergeParts:
        """The step of one task, after all others."""
        return MergeParts(self)


def plan_packing(recipe: Recipe) -> Packing:
    """What there is to do for a recipe, whose tokenizer must be there.

    Reads the corpus once, for the hashes in the manifest.

    Raises:
        AntError: the corpus is not local files, or the tokenizer is missing.
    """
    corpus = Corpus.from_recipe(recipe.corpus)
    if not isinstance(corpus.source, LocalFiles):
        raise AntError(
            "packing by tasks hands out files",
            seen=f"corpus.source {recipe.corpus.source}",
            hint="Download them: hf download --repo-type dataset NAME --local-dir DIR, then pass --data DIR",
        )
    inputs = packing_inputs(corpus, recipe.tokenizer_dir, recipe.corpus.max_tokens)
    source = corpus.source
    file = recipe.tokenizer_dir / "tokenizer.json"
    compared = recipe.corpus.decontaminate
    return Packing(source.files, source.text_column, file, recipe.tokens_dir, inputs, compared)


class EncodeFiles(PipelineStep):
    """Encode the files `rank::world_size`, each into a part of its own; parts that are there are kept."""

    type = "TOKENS"
    name = "encode files"

    def __init__(self, packing: Packing) -> None:
        super().__init__()
        self.packing = packing

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        yield from data or ()
        mine = range(rank, len(self.packing.files), world_size)
        missing = [index for index in mine if not is_encoded(self.packing.part(index))]
        if not missing:
            return
        encoder = Encoder(self.packing.tokenizer_file)
        folder = self.packing.decontaminate
        sets = EvaluationSets.find(folder) if folder else None
        for index in missing:
            file = LocalFiles((self.packing.files[index],), self.packing.text_column)
            documents, tokens = encode_file(file, self.packing.part(index), encoder, sets)
            self.stat_update("documents", value=documents, unit="file")
            self.stat_update("tokens", value=tokens, unit="file")


class MergeParts(PipelineStep):
    """Write shards and manifest from all parts; needs them all, and one task."""

    type = "TOKENS"
    name = "merge parts"

    def __init__(self, packing: Packing) -> None:
        super().__init__()
        self.packing = packing

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        yield from data or ()
        if rank == 0:
            with locked(self.packing.tokens_dir.parent, "data", wait=True):
                manifest = merge(self.packing, show_progress=False)
            self.stat_update("tokens", value=sum(split["tokens"] for split in manifest["splits"].values()))


def merge(packing: Packing, show_progress: bool = True) -> dict[str, Any]:
    """Write the tokens of all parts as `pack` would have, or reuse those that are there.

    Raises:
        AntError: a part is missing or damaged (names its file), or the folder holds other tokens.
    """
    if manifest := packed_before(packing.tokens_dir, packing.inputs):
        return manifest
    parts = [packing.part(index) for index in range(packing.tasks)]
    missing = [file for file, part in zip(packing.files, parts, strict=True) if not is_encoded(part)]
    if missing:
        raise AntError(
            f"{len(missing)} of {len(packing.files)} files are not encoded yet",
            seen=", ".join(str(file) for file in missing[:3]),
            hint="Run the same command again: what is done stays done.",
        )
    room = RoomNeeded(None, packing.inputs["max_tokens"])
    fraction = packing.inputs["corpus"]["validation_fraction"]
    stream = merged(parts, fraction, packing.evaluation_sets)
    return write_tokens(stream, packing.tokens_dir, packing.inputs, room, show_progress=show_progress)


class _QuietExecutor(LocalPipelineExecutor):
    """datatrove's local executor without its log; a file that cannot be read stops no other."""

    def run(self) -> Any:
        logger.disable("datatrove")
        try:
            return super().run()
        finally:
            logger.enable("datatrove")

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        # Once more: this may be another process.
        logger.disable("datatrove")
        problem = self.pipeline[0].packing.logs / "problems" / f"{rank:05d}"
        problem.unlink(missing_ok=True)
        try:
            return super()._run_for_rank(rank, local_rank, node_rank)
        except AntError as error:
            problem.parent.mkdir(parents=True, exist_ok=True)
            problem.write_text(str(error), encoding="utf-8")
            return PipelineStats()


@contextlib.contextmanager
def _progress(packing: Packing) -> Iterator[None]:
    """A bar that counts the parts on the disk, which other processes write."""
    done = threading.Event()

    def watch(bar: tqdm[Any]) -> None:
        while not done.wait(0.5):
            bar.n = sum(is_encoded(packing.part(index)) for index in range(packing.tasks))
            bar.refresh()

    with tqdm(total=packing.tasks, desc="encoding", unit="file", leave=False) as bar:
        watcher = threading.Thread(target=watch, args=(bar,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def pack_with_workers(recipe: Recipe, workers: int) -> dict[str, Any]:
    """Pack a recipe's files by tasks of this machine, or go on where an earlier attempt ended.

    Raises:
        AntError: files that cannot be read, after all others were encoded; or see `plan_packing`.
    """
    packing = plan_packing(recipe)
    with locked(packing.tokens_dir.parent, "data", wait=True):
        if manifest := packed_before(packing.tokens_dir, packing.inputs):
            return manifest
        say(f"packing     {packing.tasks} files by {workers} workers, parts in {packing.folder}")
        # Not by datatrove's marks: a damaged part, once removed, has its mark still.
        executor = _QuietExecutor(
            [packing.encode],
            packing.tasks,
            workers,
            str(packing.logs / "encode"),
            skip_completed=False,
            start_method="spawn",
        )
        with _progress(packing):
            executor.run()
        problems = [path.read_text(encoding="utf-8") for path in sorted(packing.logs.glob("problems/*"))]
        if problems:
            listing = "".join(f"\n  - {text}" for text in problems)
            raise AntError(
                f"{len(problems)} of {packing.tasks} tasks failed:{listing}\n"
                "The others are done and stay done: run the same command again."
            )
        manifest = merge(packing)
        shutil.rmtree(packing.folder)
    return manifest
