"""Packing a corpus of many files as datatrove tasks: on this machine's workers, on Slurm or on Ray.

Every task encodes whole files, independently of all others; one task at the end puts the parts in the
order of the files, takes out duplicates over all of them and writes the shards. The result is
the folder that packing in one process writes, to the byte. The price: text past max_tokens and duplicates
over files are encoded for nothing, and the last step is a copy by one process, with parts and shards on the
disk together.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ant_hf.artefacts import fingerprint
from ant_hf.corpus import Corpus
from ant_hf.decontamination import EvaluationSets
from ant_hf.encoding import Encoder
from ant_hf.errors import AntError
from ant_hf.locks import locked
from ant_hf.packing import RoomNeeded, packed_before, packing_inputs, write_tokens
from ant_hf.parts import PART_FORMAT, encode_file, is_encoded, merged
from ant_hf.recipe import Recipe
from ant_hf.report import say
from ant_hf.sources import LocalFiles

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
