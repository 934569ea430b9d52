"""Files of a corpus encoded one by one, and put together as if they had been read in one go.

A part keeps what one process would have known of each document (hash, tokens, bytes, characters), so that
duplicates over all files, the split and the limit are decided when the parts are put together.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ant_hf.data.corpus import DIGEST_BYTES, Corpus, Document, Intake, identified
from ant_hf.data.decontamination import EvaluationSets
from ant_hf.data.packing import (
    EncodedChunk,
    EncodedDocument,
    Encoder,
    chunks,
    make_tokens,
    packing_inputs,
    write_tokens,
)
from ant_hf.data.sources import LocalFiles
from ant_hf.data.tokens import TRAIN, packed_before
from ant_hf.errors import AntError
from ant_hf.recipe import Recipe
from ant_hf.utils.console import progress_bar, say
from ant_hf.utils.files import (
    check_file,
    file_sha256,
    fingerprint,
    read_sealed,
    whole_folder,
    write_sealed,
    writing,
)
from ant_hf.utils.locks import locked
from ant_hf.utils.names import TOKENIZER
from ant_hf.utils.stopping import phase
from ant_hf.utils.workers import SPAWN, worker_processes

# Parts of another format lie under other names.
PART_FORMAT = 3
_IDS, _DOCUMENTS, _RECORD = "ids.bin", "documents.bin", "part.json"
# One row per document read. No ids: white space only (all zero), a duplicate within its file, or
# contaminated (with the evaluation sets that share text with it, one bit each).
_ROW = np.dtype([
    ("digest", f"V{DIGEST_BYTES}"), ("tokens", "<u4"), ("bytes", "<u4"), ("characters", "<u4"),
    ("sets", "<u8"),
])  # fmt: skip


@dataclass(frozen=True)
class Packing:
    """A recipe's files, what is to be done with them, and where their tokens go."""

    recipe: Recipe
    files: tuple[Path, ...]
    inputs: dict[str, Any]
    """What decides every token; stored in the manifest."""

    @property
    def folder(self) -> Path:
        """Of the parts; can be removed once the tokens are there."""
        return self.recipe.tokens_dir.with_name("packing")

    @property
    def logs(self) -> Path:
        """For the logs and marks of completion of an executor, which another corpus must not find."""
        return self.folder / f"logs-{fingerprint(self.inputs)[:12]}"

    @property
    def tasks(self) -> int:
        """The most tasks that have something to do: one per file."""
        return len(self.files)

    def part(self, index: int) -> Path:
        """Folder of the encoded file `index`; a file that was repaired, or a new tokenizer, has another."""
        corpus = self.inputs["corpus"]
        made_of = [PART_FORMAT, corpus["files"][index]["sha256"], corpus["text_column"]]
        made_of.append(self.inputs["tokenizer_sha256"])
        made_of += [corpus["encoding"]] if "encoding" in corpus else []
        if "decontaminate" in corpus:
            made_of.append(corpus["decontaminate"])
        return self.folder / "parts" / f"{index:05d}-{fingerprint(made_of)[:12]}"

    @property
    def is_cut(self) -> bool:
        """Whether the documents are so few that they are cut, which tasks cannot do each for itself."""
        return "cut" in self.inputs["corpus"]

    def kept(self) -> str:
        """What an interruption leaves, and how to continue."""
        done = sum(map(self.is_encoded, range(self.tasks)))
        return f"{done} of {self.tasks} files are encoded and kept. Run the same command again to continue."

    def is_encoded(self, index: int) -> bool:
        """Whether a part is there, which it is as a whole or not at all."""
        return (self.part(index) / _RECORD).is_file()

    def encode(self, rank: int = 0, world_size: int = 1) -> None:
        """Encode the files `rank::world_size`, each into a part of its own; parts that are there are kept."""
        missing = [index for index in range(rank, self.tasks, world_size) if not self.is_encoded(index)]
        if not missing:
            return
        # The tasks are the parallelism; threads inside each would only compete.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        encoder = Encoder(self.recipe.tokenizer_dir / TOKENIZER)
        sets = EvaluationSets.find(self.recipe.corpus.decontaminate)
        for index in missing:
            self._encode(index, encoder, sets)

    def _encode(self, index: int, encoder: Encoder, sets: EvaluationSets) -> None:
        """Write the part of one file; documents that share text with evaluation sets are not encoded."""
        form = self.recipe.corpus
        source = LocalFiles((self.files[index],), form.text_column, encoding=form.encoding)
        part, intake, tokens = self.part(index), Intake(0.0), 0
        rows: list[tuple[bytes, int, int, int, int]] = []

        def worth_encoding() -> Iterator[Document]:
            """Leaves a row for each document read, also for those that are left out."""
            for raw in source.documents():
                digest, text = identified(raw)
                is_new = intake.is_new(digest)
                shared = sets.sharing(text) if is_new else 0
                is_kept = is_new and not shared
                rows.append((digest, 0, 0, len(text) if is_kept else 0, shared))
                if is_kept:
                    # Its split is decided when the parts are put together.
                    yield Document(text, TRAIN)

        with writing("encoded files", part.parent, lambda: 2 * tokens), whole_folder(part) as partial:
            with (partial / _IDS).open("wb") as ids, (partial / _DOCUMENTS).open("wb") as handle:
                for documents in chunks(worth_encoding()):
                    encoded = encoder.encode(documents)
                    intake.counts.spelled.update(encoder.spelled_out(documents))
                    if _bytes_done is not None:
                        _bytes_done[index] += sum(document.size for document in encoded)
                    ids.writelines(document.ids for document in encoded)
                    table = np.array(rows, dtype=_ROW)
                    is_kept = table["characters"] > 0
                    table["tokens"][is_kept] = [len(document.ids) // 2 for document in encoded]
                    table["bytes"][is_kept] = [document.size for document in encoded]
                    handle.write(table.tobytes())
                    tokens += int(table["tokens"].sum())
                    rows.clear()
            record = {
                "documents": intake.counts.read,
                "tokens": tokens,
                "spelled": dict(intake.counts.spelled),
                "sha256": {name: file_sha256(partial / name) for name in (_IDS, _DOCUMENTS)},
            }
            write_sealed(partial / _RECORD, record)


def plan_packing(recipe: Recipe) -> Packing:
    """What there is to do for a recipe, whose tokenizer must be there.

    Reads the corpus once, for the hashes in the manifest.

    Raises:
        AntError: the corpus is a mix or not local files, or the tokenizer is missing.
    """
    if recipe.corpus.parts:
        raise AntError(
            "only the files of a single text can be packed by several workers",
            seen=f"the parts {', '.join(recipe.corpus.parts)}",
            hint="Pack a mix in one process: ant-hf pack --config RECIPE",
        )
    corpus = Corpus.from_recipe(recipe.corpus)
    if not isinstance(corpus.source, LocalFiles):
        raise AntError(
            "only local files can be packed by several workers",
            seen=f"corpus.source {recipe.corpus.source}",
            hint="Download them: hf download --repo-type dataset NAME --local-dir DIR, then pass --data DIR",
        )
    return Packing(recipe, corpus.source.files, packing_inputs(recipe, corpus))


def merge(packing: Packing) -> dict[str, Any]:
    """Write the tokens of all parts as `pack` would have, or reuse those that are there.

    Raises:
        AntError: a part is missing or damaged (names its file), or the folder holds other tokens.
    """
    if manifest := packed_before(packing.recipe.tokens_dir, packing.inputs):
        return manifest
    if packing.is_cut:
        raise AntError(
            "the corpus has too few documents for several workers: one process must cut them together",
            hint="Pack it in one process: ant-hf pack --config RECIPE",
        )
    missing = [file for index, file in enumerate(packing.files) if not packing.is_encoded(index)]
    if missing:
        raise AntError(
            f"{len(missing)} of {packing.tasks} files are not encoded yet",
            seen=", ".join(str(file) for file in missing[:3]),
            hint="Run the same command again: finished files are kept.",
        )
    return write_tokens(packing.recipe, packing.inputs, put_together(packing))


def put_together(packing: Packing) -> Iterator[EncodedChunk]:
    """The chunks that encoding the corpus in one process gives: cut by the same count of characters.

    Raises:
        AntError: a part is damaged; names the file.
    """
    corpus = packing.inputs["corpus"]
    intake = Intake(corpus["validation_fraction"], corpus.get("decontaminate", {}).get("sets", ()))

    def documents() -> Iterator[EncodedDocument]:
        for part in map(packing.part, range(packing.tasks)):
            hint = f"Remove {part} and run the same command again."
            record = read_sealed(part / _RECORD, "encoded file", hint, unsealed_format=None)
            for name, expected in record["sha256"].items():
                check_file(part / name, expected, "is damaged", hint)
            intake.counts.spelled.update(record["spelled"])
            with (part / _IDS).open("rb") as ids, (part / _DOCUMENTS).open("rb") as handle:
                # A few thousand at a time: a large file has millions.
                while rows := handle.read(4096 * _ROW.itemsize):
                    for digest, tokens, size, characters, shared in np.frombuffer(rows, _ROW).tolist():
                        own_ids = ids.read(2 * tokens)
                        if intake.is_new(digest) and (split := intake.split_of(digest, shared)):
                            yield EncodedDocument(own_ids, characters, size, split)

    for chunk in chunks(documents()):
        yield EncodedChunk(chunk, copy.deepcopy(intake.counts))


# Bytes of text encoded of each file, for the bar of the process that started this one; none elsewhere.
_bytes_done: Any = None


def _start_worker(bytes_done: Any) -> None:
    global _bytes_done
    _bytes_done = bytes_done


def pack_with_workers(recipe: Recipe, workers: int) -> dict[str, Any]:
    """Pack a recipe's files by tasks of this machine, or continue where an earlier attempt ended.

    A mix, or a corpus of too few documents, is packed by this process alone.

    Raises:
        AntError: files that cannot be read, after all others were encoded; or as `make_tokens`.
    """
    if recipe.corpus.parts:
        say("packing", "in one process, which takes the documents of a mix from its parts in turn")
        return make_tokens(recipe)
    packing = plan_packing(recipe)
    if packing.is_cut:
        say("packing", "in one process: there are so few documents that they are cut together")
        return make_tokens(recipe)
    with locked(recipe.tokens_dir.parent, "data", wait=True):
        if not packed_before(recipe.tokens_dir, packing.inputs):
            say("packing", f"{packing.tasks} files with {workers} workers; the parts are in {packing.folder}")
            with phase("packing", packing.kept):
                _encode_all(packing, workers)
                merge(packing)
        # Also those of an attempt that was killed here.
        shutil.rmtree(packing.folder, ignore_errors=True)
    return make_tokens(recipe)


def _encode_all(packing: Packing, workers: int) -> None:
    missing = [file for index, file in enumerate(packing.files) if not packing.is_encoded(index)]
    text_bytes = LocalFiles(tuple(missing), packing.recipe.corpus.text_column).text_bytes()
    bytes_done, seen = SPAWN.RawArray("q", packing.tasks), 0
    with (
        worker_processes(workers, _start_worker, bytes_done) as pool,
        progress_bar("encoding", "B") as advance,
    ):
        tasks = [pool.submit(packing.encode, rank, packing.tasks) for rank in range(packing.tasks)]
        running = set(tasks)
        while running:
            _, running = wait(running, timeout=1.0)
            advance(sum(bytes_done) - seen, text_bytes)
            seen = sum(bytes_done)
    errors = [error for task in tasks if (error := task.exception())]
    if unknown := next((error for error in errors if not isinstance(error, AntError)), None):
        raise unknown
    if errors:
        listing = "".join(sorted(f"\n  - {error}" for error in errors))
        raise AntError(
            f"{len(errors)} of {packing.tasks} tasks failed:{listing}\n"
            "The others are finished and kept. Run the same command again."
        )
