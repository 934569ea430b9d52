"""The tokens of a recipe: documents become ids, a chunk at a time, and shards, here or in workers ahead."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
import shutil
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from tokenizers import Tokenizer

from ant_hf.data.corpus import Corpus, CorpusCounts, Document
from ant_hf.data.tokenizer import END_OF_TEXT, cut_long_runs, end_of_text, larger_share, make_tokenizer
from ant_hf.data.tokens import FORMAT_VERSION, TRAIN, VALIDATION, packed_before, read_manifest, verify_shards
from ant_hf.errors import AntError
from ant_hf.recipe import OWN_TEXT, Recipe
from ant_hf.utils.console import progress_bar, say
from ant_hf.utils.files import file_sha256, fingerprint, whole_folder, write_sealed, writing
from ant_hf.utils.hardware import available_cores
from ant_hf.utils.locks import locked
from ant_hf.utils.names import MANIFEST, TOKENIZER
from ant_hf.utils.stopping import phase
from ant_hf.utils.workers import worker_processes

# Text a worker gets at once: large enough to hide the transfer, small enough to stay in cache.
CHUNK_CHARACTERS = 1 << 19
# 8 MB of text, which this process has encoded before workers would have started.
CHUNKS_WITHOUT_WORKERS = 16
_CHUNKS_AHEAD = 3
SHARD_TOKENS = 1 << 26


class EncodedDocument(NamedTuple):
    """One document as token ids."""

    ids: bytes
    """As little-endian uint16, the end-of-text token included."""
    characters: int
    size: int
    """Bytes of its text."""
    split: str
    part: int = 0
    """Number of the part of a mix that it is from."""


class EncodedChunk(NamedTuple):
    """Documents in the order of the corpus.

    The last of a corpus may hold none: it carries the counts of what was read after the one before.
    """

    documents: list[EncodedDocument]
    counts: CorpusCounts
    """When the last of these documents had been read; at the end, of all of the corpus."""


# Characters that no text has on purpose, and what they come from.
_TRACES = {
    "\0": "the character NUL, which means nothing in a text. Remove it: tr -d '\\000' < OLD > NEW",
    "\ufffd": "the character U+FFFD, which is left where text was once read in a wrong encoding",
}


class Encoder:
    """A tokenizer that puts an end-of-text token after each document, and what its own rule says before it.

    Args:
        tokenizer_file: a `tokenizer.json` that `load_tokenizer` accepts.
    """

    def __init__(self, tokenizer_file: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        # A document that spells out a special token is text and not a command.
        self._tokenizer.encode_special_tokens = True
        self._end_of_text = self._tokenizer.token_to_id(end_of_text(tokenizer_file.parent))
        plain, whole = (self._tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
        # Gemma's `<bos>`, Llama 2's `<s>`; often nothing.
        self._before = whole[: whole.index(plain[0])]
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._hardly_meant = [*(token.content for token in added if token.special), *_TRACES]

    def spelled_out(self, documents: Iterable[Document]) -> Counter[str]:
        """How often documents spell out a special token, or have a character that comes from a fault."""
        counts = Counter(dict.fromkeys(self._hardly_meant, 0))
        for document in documents:
            counts.update({name: document.text.count(name) for name in counts})
        return +counts

    def encode(self, documents: list[Document]) -> list[EncodedDocument]:
        """Encode any number of documents, also none."""
        pieces = [cut_long_runs(document.text) for document in documents]
        texts = [piece for of_document in pieces for piece in of_document]
        encodings = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        encoded = []
        for document, of_document in zip(documents, pieces, strict=True):
            ids = next(encodings).ids
            for _ in of_document[1:]:
                ids += next(encodings).ids
            tokens = np.array([*self._before, *ids, self._end_of_text], dtype="<u2").tobytes()
            size = len(document.text.encode())
            encoded.append(EncodedDocument(tokens, document.characters, size, document.split, document.part))
        return encoded


_worker_encoder: Encoder


def _start_worker(tokenizer_file: Path) -> None:
    global _worker_encoder
    # The processes are the parallelism; threads inside each would only compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_encoder = Encoder(tokenizer_file)


def _encode(documents: list[Document]) -> list[EncodedDocument]:
    return _worker_encoder.encode(documents)


def encoded(corpus: Corpus, tokenizer_file: Path) -> Generator[EncodedChunk]:
    """Encoded chunks in the order of the corpus, at most a few ahead of the consumer.

    This process encodes the first ones, on all its threads. A large corpus gets a worker a core for the rest.
    """
    encoder = Encoder(tokenizer_file)

    def counted() -> Iterator[tuple[list[Document], CorpusCounts]]:
        for documents in chunks(corpus):
            corpus.counts.spelled.update(encoder.spelled_out(documents))
            yield documents, copy.deepcopy(corpus.counts)

    waiting = counted()
    for documents, counts in itertools.islice(waiting, CHUNKS_WITHOUT_WORKERS):
        yield EncodedChunk(encoder.encode(documents), counts)
    first = list(itertools.islice(waiting, 1))
    if not first:
        return
    workers = available_cores()
    with worker_processes(workers, _start_worker, tokenizer_file) as pool:
        pending: deque[tuple[Future[list[EncodedDocument]], CorpusCounts]] = deque()
        for documents, counts in itertools.chain(first, waiting):
            pending.append((pool.submit(_encode, documents), counts))
            if len(pending) > workers * _CHUNKS_AHEAD:
                future, counts = pending.popleft()
                yield EncodedChunk(future.result(), counts)
        for future, counts in pending:
            yield EncodedChunk(future.result(), counts)


AnyDocument = TypeVar("AnyDocument", Document, EncodedDocument)


def chunks(documents: Iterable[AnyDocument]) -> Iterator[list[AnyDocument]]:
    """Documents in groups of `CHUNK_CHARACTERS` or a little more; the last is smaller, and may hold none."""
    chunk: list[AnyDocument] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += document.characters
        if characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    yield chunk


def make_data(recipe: Recipe, model_max_length: int, base: Path | None = None) -> None:
    """Make or reuse tokenizer and tokens.

    Raises:
        AntError: see `make_tokenizer` and `make_tokens`.
    """
    make_tokenizer(recipe, model_max_length, base)
    make_tokens(recipe)


def find_data(recipe: Recipe, model_max_length: int, base: Path | None = None) -> None:
    """On a machine that is not the first: check the tokens the first one made, or make them here too.

    Where data_dir is shared they are there already, and this machine needs no corpus.

    Raises:
        AntError: a shard is damaged; or see `make_data`.
    """
    if not (recipe.tokens_dir / MANIFEST).exists():
        make_data(recipe, model_max_length, base)
    else:
        verify_shards(recipe.tokens_dir)


def make_tokens(recipe: Recipe) -> dict[str, Any]:
    """Pack the recipe's corpus with its tokenizer, or reuse what is there after checking every hash.

    Raises:
        AntError: the folder holds tokens made of something else, the corpus is unusable, or the validation
            split is empty, or too short to be scored.
    """
    folder, corpus = recipe.tokens_dir, Corpus.from_recipe(recipe.corpus)
    kept = f"The tokenizer in {recipe.tokenizer_dir} is kept. Run the same command again to pack the text."
    with locked(folder.parent, "data", wait=True), phase("packing", kept):
        inputs = packing_inputs(recipe, corpus)
        reused = packed_before(folder, inputs)
        if not reused:
            with closing(encoded(corpus, recipe.tokenizer_dir / TOKENIZER)) as stream:
                manifest = write_tokens(recipe, inputs, stream, corpus.text_bytes())
            if problem := unfit(recipe, manifest):
                # Nothing can be trained on them, and with another share they would be in the way.
                shutil.rmtree(folder)
                raise problem
    if reused:
        manifest = reused
        verify_shards(folder)
    counts, splits = manifest["documents"], manifest["splits"]
    say("tokens", f"{folder} ({'reused, hashes verified' if reused else 'packed'})")
    for name in (TRAIN, VALIDATION):
        split = splits[name]
        say(
            "",
            f"{name:<10} {split['documents']:>9,} documents {split['tokens']:>13,} tokens "
            f"{split['bytes']:>14,} bytes",
        )
    for name, of_part in manifest.get("parts", {}).items():
        train, held_out = of_part[TRAIN], of_part[VALIDATION]
        say(
            "",
            f"part {name}: {train['documents']:,} documents {train['tokens']:,} tokens, and "
            f"{held_out['documents']:,} documents {held_out['tokens']:,} tokens held out",
        )
    say(
        "",
        f"{counts['read']:,} documents read: {counts['empty']:,} empty, "
        f"{counts['duplicate']:,} duplicates, {counts['past_limit']:,} past max_tokens",
    )
    if by_set := counts.get("contaminated_by_set"):
        shared = ", ".join(f"{name} {count:,}" for name, count in by_set.items() if count)
        say("", f"{counts['contaminated']:,} left out, because they share text with {shared or 'no set'}")
    if cut := counts.get("cut"):
        say(
            "",
            f"few documents, so their {cut['characters']:,} characters are cut at paragraphs: "
            f"{cut['held_out']:,} pieces held out, {cut['repeated']:,} left out because they repeat others",
        )
    if not recipe.corpus.validation_fraction:
        say("warning", "no text is held out, so nothing will show whether the model learns or only repeats")
    if problem := unfit(recipe, manifest):
        raise problem
    return manifest


def unfit(recipe: Recipe, manifest: dict[str, Any]) -> AntError | None:
    """What is wrong with a validation split that cannot be scored, or a part that cannot be trained on."""
    for name, part in manifest.get("parts", {}).items():
        if not part[TRAIN]["tokens"]:
            return AntError(
                f"part {name!r} of the mix gives no text to train on",
                hint="Its documents are empty, held out, or the same as those of another part. Check its "
                f"path, or leave it out. If {recipe.tokens_dir} exists, remove it.",
            )
    # With replay a run is scored on its own text alone; of some seconds of text the parts are not counted.
    own = manifest.get("parts", {}).get(OWN_TEXT) if recipe.corpus.replay else None
    held_out, counts = (own or manifest["splits"])[VALIDATION], manifest["documents"]
    # The first token is not scored and an end of text counts no bytes: of two tokens, none are left.
    fraction = recipe.corpus.validation_fraction
    if held_out["tokens"] > 2 or not fraction:
        return None
    hint = f"Raise the share: --set corpus.validation_fraction={larger_share(fraction):g}"
    if counts["past_limit"] or recipe.corpus.max_tokens:
        hint += ", or raise corpus.max_tokens, where reading the text ends"
    elif counts.get("contaminated"):
        hint += ", or leave corpus.decontaminate out"
    return AntError(
        "the one document of the validation split is too short to be scored"
        if held_out["documents"]
        else "no document fell into the validation split",
        seen=f"{held_out['tokens']} tokens at validation_fraction {fraction}",
        hint=f"{hint}. If {recipe.tokens_dir} exists, remove it.",
    )


def packing_inputs(recipe: Recipe, corpus: Corpus) -> dict[str, Any]:
    """What decides every packed token, as JSON values."""
    folder = recipe.tokens_dir
    before = read_manifest(folder)["inputs"].get("corpus") if (folder / MANIFEST).exists() else None
    return {
        "format_version": 1,
        "corpus": corpus.identity(made_before=before),
        "tokenizer_sha256": file_sha256(recipe.tokenizer_dir / TOKENIZER),
        "max_tokens": recipe.corpus.max_tokens,
    }


def write_tokens(
    recipe: Recipe, inputs: dict[str, Any], stream: Iterable[EncodedChunk], text_bytes: int | None = None
) -> dict[str, Any]:
    """Write encoded documents, in the order of the corpus, as shards and a manifest, which is returned.

    Stops after the document with which the training split reaches the recipe's `max_tokens`.

    Args:
        stream: at least one chunk.
        text_bytes: about how much text there is, where that is known.
    """
    limit = recipe.corpus.max_tokens
    counts = CorpusCounts({})
    # A text alone is a mix of one.
    parts = list(recipe.corpus.parts)
    splits: dict[str, _SplitWriter] = {}

    def room_needed() -> int:
        """Bytes of all shards, by the limit or by what was read and written so far."""
        read = sum(split.bytes for split in splits.values())
        written = 2 * sum(split.tokens for split in splits.values())
        estimates = [2 * limit] if limit else []
        if text_bytes and read:
            estimates.append(written * text_bytes // read)
        return max(min(estimates, default=0), written)

    def within_limit() -> Iterator[EncodedDocument]:
        nonlocal counts
        for chunk in stream:
            counts = chunk.counts
            for document in chunk.documents:
                if limit and splits[TRAIN].tokens >= limit:
                    return
                yield document

    def bytes_expected() -> float | None:
        """Of text, until its end or the limit."""
        expected = text_bytes
        if limit and (tokens := splits[TRAIN].tokens):
            until_limit = sum(split.bytes for split in splits.values()) * limit / tokens
            expected = round(min(expected or until_limit, until_limit))
        return expected

    with ExitStack() as stack:
        stack.enter_context(writing("the packed tokens", recipe.tokens_dir, room_needed))
        partial = stack.enter_context(whole_folder(recipe.tokens_dir))
        advance = stack.enter_context(progress_bar("packing", "B"))
        for name in (TRAIN, VALIDATION):
            splits[name] = stack.enter_context(closing(_SplitWriter(partial, name, parts)))
        for document in within_limit():
            splits[document.split].add(document)
            advance(document.size, bytes_expected())
        manifest = {
            "format_version": FORMAT_VERSION,
            "inputs_sha256": fingerprint(inputs),
            "inputs": inputs,
            "dtype": "uint16",
            "documents": counts.as_written(sum(split.documents for split in splits.values())),
            "splits": {name: split.finish() for name, split in splits.items()},
        }
        if parts:
            manifest["parts"] = {
                part: {name: split.of_parts[number].counts() for name, split in splits.items()}
                for number, part in enumerate(parts)
            }
        write_sealed(partial / MANIFEST, manifest)
    for name, count in counts.spelled.items():
        say("warning", f"the text has {count:,} times {_hardly_meant(name)}")
    return manifest


def _hardly_meant(name: str) -> str:
    """What was found in a text, and what to do about it."""
    if name == END_OF_TEXT:
        return (
            f"{name} inside a line, where it is learned as text. To end a document there, put it on a line "
            f"of its own: sed 's/{name}/\\n&\\n/g' OLD.txt > NEW.txt"
        )
    return _TRACES.get(name, f"{name}, which is learned as text and not as the special token")


class _SplitWriter:
    """The documents of a split, each part's in shards of its own, so that the parts follow one another.

    Args:
        parts: names of the parts of a mix; none for a text alone.
    """

    def __init__(self, folder: Path, split: str, parts: Sequence[str]) -> None:
        names = (f"{split}-{number:05d}.bin" for number in itertools.count())
        self.of_parts = [_PartWriter(folder, names, part) for part in parts or [""]]

    @property
    def documents(self) -> int:
        return sum(part.documents for part in self.of_parts)

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.of_parts)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.of_parts)

    def close(self) -> None:
        for part in self.of_parts:
            part.close()

    def add(self, document: EncodedDocument) -> None:
        self.of_parts[document.part].add(document)

    def finish(self) -> dict[str, Any]:
        """What the split holds; `tokens` counts one end-of-text token per document."""
        shards = [shard for part in self.of_parts for shard in part.finish()]
        return {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes, "shards": shards}


class _PartWriter:
    """Appends documents to shards of at most `SHARD_TOKENS`, hashing and counting as it goes.

    Args:
        names: of the files, one after the other.
    """

    def __init__(self, folder: Path, names: Iterator[str], part: str) -> None:
        self.documents = self.tokens = self.bytes = 0
        self._shards: list[dict[str, Any]] = []
        self._folder, self._names = folder, names
        self._part = {"part": part} if part else {}
        self._handle: BinaryIO | None = None

    def close(self) -> None:
        """Let go of a file that was not finished."""
        if self._handle is not None:
            # Left open by an error; closing flushes, which on a full disk fails once more.
            with suppress(OSError):
                self._handle.close()

    def add(self, document: EncodedDocument) -> None:
        self.documents += 1
        self.tokens += len(document.ids) // 2
        self.bytes += document.size
        ids = document.ids
        while ids:
            if self._handle is None:
                self._handle = (self._folder / next(self._names)).open("wb")
                self._digest, self._room = hashlib.sha256(), 2 * SHARD_TOKENS
            piece, ids = ids[: self._room], ids[self._room :]
            self._handle.write(piece)
            self._digest.update(piece)
            self._room -= len(piece)
            if not self._room:
                self._finish_shard()

    def counts(self) -> dict[str, int]:
        return {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes}

    def finish(self) -> list[dict[str, Any]]:
        """The shards."""
        self._finish_shard()
        return self._shards

    def _finish_shard(self) -> None:
        if self._handle is None:
            return
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        self._shards.append(
            {
                "file": Path(self._handle.name).name,
                "tokens": SHARD_TOKENS - self._room // 2,
                "sha256": self._digest.hexdigest(),
                **self._part,
            }
        )
        self._handle = None
