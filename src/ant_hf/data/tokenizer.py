"""A byte-level BPE tokenizer that every Transformers since 4.57 loads: trained, written, read, measured.

Byte-level means that all 256 bytes are entries, so any text survives encoding and decoding, and
an unknown token does not exist. The pre-tokenizer is GPT-2's, after single digits when asked.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ant_hf.data.corpus import Corpus
from ant_hf.data.finding import listed
from ant_hf.data.sources import LocalFiles
from ant_hf.errors import AntError
from ant_hf.recipe import SMALLEST_VOCABULARY, Recipe, TokenizerRecipe
from ant_hf.utils.console import progress_bar, say
from ant_hf.utils.files import (
    check_file,
    check_made_of,
    file_sha256,
    fingerprint,
    read_json,
    read_sealed,
    whole_folder,
    write_json,
    write_sealed,
    writing,
)
from ant_hf.utils.locks import locked
from ant_hf.utils.names import FRAGMENTATION, TOKENIZER, config_file
from ant_hf.utils.stopping import phase

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD)
# In a folder that was trained here: what of, and the hashes of the files.
_RECORD = "training.json"
_SETTINGS = "tokenizer_config.json"
_ONLY_NEW = "TokenizersBackend"
# The space in a byte-level vocabulary, and a byte's name in others.
_BYTE_LEVEL_SPACE, _BYTE = "\u0120", re.compile("<0x[0-9A-F]{2}>")
# Pairs seen once would make merges out of single documents.
_MIN_FREQUENCY = 2
# Letters, with apostrophes inside: "king's" is one word, numbers and punctuation are none.
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_WORST_WORDS = 10
_LONGEST_WORD_SHOWN = 60
# What a small text gives is rounded down to a multiple of this, as GPUs like it.
_ROUND_ENTRIES = 64
# Characters; ordinary text has no run near to it.
_LONGEST_RUN = 8192
# A long run is a word that comes once: 60 bytes of memory a letter, and seconds a megabyte.
_RUN_WEIGHT = 32
_RUN = re.compile(r"[^\W\d_]+|\d+|\s+|(?:[^\w\s]|_)+")
# Enough words for three digits of every figure in the fragmentation report.
_HELD_OUT_CHARACTERS = 4_000_000


def make_tokenizer(recipe: Recipe, model_max_length: int, base: Path | None = None) -> Tokenizer:
    """Train the recipe's tokenizer on the training split or reuse the one that is there, and say what it is.

    Where the recipe leaves the vocabulary open it is the architecture's, or less if the text gives less.

    Args:
        base: folder of a tokenizer that is taken as it is, instead of training one.

    Raises:
        AntError: the folder holds a tokenizer made of something else, there is no text, or too little for the
            vocabulary that the recipe asks for.
    """
    corpus, folder = Corpus.from_recipe(recipe.corpus), recipe.tokenizer_dir
    sources = [member.source for member in corpus.members]
    if left_out := [name for source in sources if isinstance(source, LocalFiles) for name in source.left_out]:
        say("left out", f"{len(left_out):,} of the files there: {listed(left_out)}")
    kept = "Nothing is written yet. Run the same command again to start over."
    with locked(folder.parent, "data", wait=True), phase("making the tokenizer", kept):
        tokenizer, inputs = trained_before(recipe, corpus, model_max_length, base)
        how = "reused"
        if tokenizer is None:
            # Here and not above: matplotlib takes half a second, and few commands train a tokenizer.
            from ant_hf.utils.plots import plot_fragmentation

            how = f"taken from {base}" if base else "trained"
            tokenizer, held_out = _tokenizer_for(recipe, corpus, base)
            # Files of about 40 bytes an entry and as much again for the report and its figure.
            room = 200_000 + 80 * tokenizer.get_vocab_size()
            with writing("the tokenizer", folder, room), whole_folder(folder) as partial:
                if base:
                    copy_tokenizer(base, partial)
                else:
                    save_tokenizer(tokenizer, partial, model_max_length)
                report = fragmentation_report(tokenizer, held_out)
                write_json(partial / FRAGMENTATION, report)
                plot_fragmentation(report, partial / "fragmentation.png")
                record = {
                    "format_version": 2,
                    "inputs_sha256": fingerprint(inputs),
                    "inputs": inputs,
                    "files": {path.name: file_sha256(path) for path in sorted(partial.iterdir())},
                }
                write_sealed(partial / _RECORD, record)
    say("tokenizer", f"{folder} ({how}, {tokenizer.get_vocab_size():,} entries)")
    report = read_json(folder / FRAGMENTATION, "fragmentation report", f"Remove {folder} to make it again.")
    say(
        "",
        f"held-out text: {report['bytes_per_token']:.2f} bytes per token, {report['tokens_per_word']:.2f} "
        f"tokens per word, {report['words_kept_whole']:.1%} of words kept whole",
    )
    return tokenizer


def _tokenizer_for(recipe: Recipe, corpus: Corpus, base: Path | None) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of a recipe, and held-out texts to measure it."""
    if not base:
        assert recipe.tokenizer, "without a base the recipe has one"
        return train_on(corpus, recipe.tokenizer, most_entries(recipe))
    held_out: list[str] = []
    # Read only for the held-out texts among them.
    for _ in _training_texts(corpus, TokenizerRecipe(), held_out, lambda done: None):
        pass
    return load_tokenizer(base), held_out


def trained_before(
    recipe: Recipe, corpus: Corpus, model_max_length: int, base: Path | None = None
) -> tuple[Tokenizer | None, dict[str, Any]]:
    """The recipe's tokenizer if it is there, and what decides every file of it, as JSON values.

    Raises:
        AntError: the folder holds a tokenizer made of something else, or not made here, or a damaged one.
    """
    folder = recipe.tokenizer_dir
    is_there = (folder / _RECORD).exists()
    if not is_there and (folder / TOKENIZER).exists():
        raise AntError(
            f"{folder} has a tokenizer, but not the record of its training, {_RECORD}",
            hint="Move it away, or set another data_dir: --set data_dir=FOLDER",
        )
    before = _read_record(folder)["inputs"]["corpus"] if is_there else None
    inputs: dict[str, Any] = {"corpus": corpus.identity(made_before=before)}
    if recipe.tokenizer:
        inputs["tokenizer"] = recipe.tokenizer.model_dump() | {"vocab_size": most_entries(recipe)}
        inputs["model_max_length"] = model_max_length
    elif base:
        inputs["taken"] = {name: file_sha256(base / name) for name in (TOKENIZER, _SETTINGS)}
    if not is_there:
        return None, inputs
    tokenizer = load_tokenizer(folder)
    check_made_of(folder, "a tokenizer", _read_record(folder), inputs)
    if recipe.tokenizer:
        _check_size(tokenizer, recipe.tokenizer)
    return tokenizer, inputs


def most_entries(recipe: Recipe) -> int:
    """The vocabulary of the recipe, or of the architecture where the recipe leaves it open."""
    if recipe.tokenizer and recipe.tokenizer.vocab_size is not None:
        return recipe.tokenizer.vocab_size
    assert recipe.architecture, "without a base the recipe has one"
    values = read_json(config_file(recipe.architecture), "model config", "Set architecture.")
    return int(values["vocab_size"])


def larger_share(fraction: float) -> float:
    """A share of held-out text to try next, never the one that was tried."""
    return min(0.5, max(0.1, 2 * fraction)) if fraction < 0.5 else (1 + fraction) / 2


def _check_size(tokenizer: Tokenizer, recipe: TokenizerRecipe) -> None:
    size = tokenizer.get_vocab_size()
    if recipe.vocab_size not in (None, size):
        raise AntError(
            f"the text is too small for a vocabulary of {recipe.vocab_size} entries",
            seen=f"{size} entries",
            hint="Add text, or let tokenizer and model have the vocabulary that the text gives: "
            "--set tokenizer.vocab_size=null",
        )


def train_on(corpus: Corpus, recipe: TokenizerRecipe, entries: int) -> tuple[Tokenizer, list[str]]:
    """A tokenizer of so many entries, or fewer where that is left open, and held-out texts to measure it."""
    held_out: list[str] = []
    with progress_bar("tokenizer", "B") as advance:
        size = corpus.text_bytes()
        expected = min(size, recipe.max_bytes) if size else None
        texts = _training_texts(corpus, recipe, held_out, lambda done: advance(done, expected))
        settings = recipe.model_copy(update={"vocab_size": entries})
        tokenizer = train_bpe(texts, settings, lambda: advance(0, expected))
    _check_size(tokenizer, recipe)
    if not held_out:
        share = larger_share(corpus.validation_fraction)
        raise AntError(
            "there is no held-out text to measure the tokenizer on",
            seen=f"validation_fraction {corpus.validation_fraction}",
            hint="The documents held out may all quote the sets of corpus.decontaminate. Raise the share: "
            f"--set corpus.validation_fraction={share:g}",
        )
    if (size := tokenizer.get_vocab_size()) < entries:
        fewer = max(SMALLEST_VOCABULARY, size // _ROUND_ENTRIES * _ROUND_ENTRIES)
        say(
            "vocabulary",
            f"{fewer:,} entries instead of {entries:,}: the text does not give more, and the model follows",
        )
        return train_on(corpus, recipe, fewer)
    return tokenizer, held_out


def _training_texts(
    corpus: Corpus, recipe: TokenizerRecipe, held_out: list[str], advance: Callable[[int], None]
) -> Iterator[str]:
    """Texts of the training split, without long runs; the first held-out ones (or one) go to `held_out`.

    Where nothing is held out, those of the training split do too.
    """
    read = held_out_characters = 0
    for document in corpus:
        measures = document.is_validation or not corpus.validation_fraction
        if measures and held_out_characters < _HELD_OUT_CHARACTERS:
            held_out.append(document.text)
            held_out_characters += document.characters
        if not document.is_validation and read < recipe.max_bytes:
            pieces = cut_long_runs(document.text)
            size = len(document.text.encode())
            read += size + _RUN_WEIGHT * _LONGEST_RUN * (len(pieces) - 1)
            advance(size)
            yield from pieces
        if read >= recipe.max_bytes and held_out:
            return
    if read:
        return
    counts = corpus.counts
    if not counts.validation:
        raise AntError(
            "the corpus has no text to train on",
            seen=f"{counts.read:,} documents, {counts.empty:,} of them empty, "
            f"{counts.contaminated:,} shared with evaluation sets",
            hint="Check what corpus.path (--data) names.",
        )
    raise AntError(
        f"all {counts.validation:,} documents of the corpus that have text are held out",
        seen=f"validation_fraction {corpus.validation_fraction}",
        hint="Lower it: --set corpus.validation_fraction=0.05",
    )


def train_bpe(
    texts: Iterable[str], recipe: TokenizerRecipe, waiting: Callable[[], None] = lambda: None
) -> Tokenizer:
    """Train a byte-level BPE; the same texts in the same order give the same tokenizer.

    It has fewer entries than `vocab_size` if the texts have too few distinct words. Memory holds the distinct
    words and their counts, not the texts; `recipe.max_bytes` bounds them.

    Args:
        waiting: called about once per second.
    """
    assert recipe.vocab_size is not None
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if recipe.split_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    errors: list[BaseException] = []

    def train() -> None:
        try:
            tokenizer.train_from_iterator(texts, trainer)
        except BaseException as error:
            errors.append(error)

    # Beside this thread, which could not end at a signal while it computes.
    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(1.0)
        waiting()
    if errors:
        raise errors[0]
    return tokenizer


def cut_long_runs(text: str) -> list[str]:
    """A text in pieces without very long runs of letters, digits, signs or spaces; most are one piece.

    Such a run (DNA, a line of dashes) is one word to the tokenizer, which takes time with the square of it.
    """
    cuts = [0]
    for start in range(0, len(text) - _LONGEST_RUN, _LONGEST_RUN):
        run = _RUN.match(text, start, start + _LONGEST_RUN)
        if run and run.end() == start + _LONGEST_RUN:
            cuts.append(run.end())
    return [text[start:end] for start, end in itertools.pairwise([*cuts, len(text)])]


def save_tokenizer(tokenizer: Tokenizer, folder: Path, model_max_length: int) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(folder)` reads."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    _write_settings(json.loads((folder / _SETTINGS).read_text(encoding="utf-8")), folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer as Transformers reads it, of anyone's model."""
    shutil.copyfile(source / TOKENIZER, folder / TOKENIZER)
    settings = read_json(source / _SETTINGS, "tokenizer settings", "Copy the model's folder again.")
    _write_settings(settings, folder)


def _write_settings(settings: dict[str, Any], folder: Path) -> None:
    if settings.get("tokenizer_class", _ONLY_NEW) == _ONLY_NEW:
        # transformers 4.57 cannot import what 5 writes; both know this class.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    # They only say where the files lay.
    for key in ("is_local", "local_files_only", "name_or_path", "tokenizer_file", "special_tokens_map_file"):
        settings.pop(key, None)
    write_json(folder / _SETTINGS, settings)


def end_of_text(folder: Path) -> str:
    """The token that ends a text, by the settings beside a tokenizer; where there are none, that of ours.

    Raises:
        AntError: the settings name none, or are damaged.
    """
    if not (folder / _SETTINGS).is_file():
        return END_OF_TEXT
    settings = read_json(folder / _SETTINGS, "tokenizer settings", "Copy the model's folder again.")
    found = settings.get("eos_token")
    # As text, or with its properties.
    token = found.get("content") if isinstance(found, dict) else found
    if not isinstance(token, str):
        raise AntError(
            f"{folder / _SETTINGS} does not name an end-of-text token",
            seen=f"eos_token {found!r}",
            hint="Set eos_token there: it is put between the documents of the packed text.",
        )
    return token


def load_tokenizer(folder: Path) -> Tokenizer:
    """The `tokenizers` object of a saved folder, checked against its record if it was trained here.

    Raises:
        AntError: no tokenizer is there, it is damaged, or lacks the token that ends a text.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise AntError(f"tokenizer not found: {path}", hint="Train one: ant-hf tokenizer --config RECIPE")
    if (folder / _RECORD).exists():
        record, hint = _read_record(folder), f"Remove {folder} to train it again."
        # Format 1 named tokenizer.json only.
        files = record.get("files", {TOKENIZER: record.get("tokenizer_sha256")})
        if not isinstance(files, dict):
            raise AntError(f"tokenizer record {folder / _RECORD} is damaged", seen=files, hint=hint)
        for name, expected in files.items():
            check_file(folder / Path(name).name, expected, "was changed after it was trained", hint)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise AntError(f"{path} cannot be read as a tokenizer: {error}") from None
    if tokenizer.token_to_id(end := end_of_text(folder)) is None:
        raise AntError(f"{path} lacks the end-of-text token {end}")
    return tokenizer


def _read_record(folder: Path) -> dict[str, Any]:
    """What a tokenizer was trained on, with the hashes of its files.

    Raises:
        AntError: as `read_sealed`.
    """
    return read_sealed(folder / _RECORD, "tokenizer record", f"Remove {folder} to train it again.")


def token_byte_lengths(tokenizer: Tokenizer, rows: int = 0) -> list[int]:
    """Bytes of text each token id stands for, shape (vocab_size,); special tokens stand for none.

    In a byte-level vocabulary each character of an entry is one byte. Others (SentencePiece) hold text, with
    a sign of their own for the space, and single bytes by their names.

    Args:
        rows: of the model's embedding, which may have more than the tokenizer has entries.
    """
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    vocabulary = tokenizer.get_vocab()
    is_byte_level = _BYTE_LEVEL_SPACE in vocabulary
    lengths = [0] * max(rows, *(index + 1 for index in vocabulary.values()))
    for entry, index in vocabulary.items():
        if entry in added:
            lengths[index] = 0 if added[entry] else len(entry.encode())
        elif is_byte_level:
            lengths[index] = len(entry)
        else:
            lengths[index] = 1 if _BYTE.fullmatch(entry) else len(entry.replace("\u2581", " ").encode())
    return lengths


def fragmentation_report(tokenizer: Tokenizer, texts: list[str]) -> dict[str, Any]:
    """Measure bytes per token, tokens per word, and which words suffer most.

    Words are encoded as they stand inside a sentence, after a space. In texts without any (sums, for example)
    they are what spaces separate.

    Args:
        texts: at least one.
    """
    lengths: Counter[int] = Counter()
    size = tokens = 0
    pieces = [piece for text in texts for piece in cut_long_runs(text)]
    for piece in pieces:
        size += len(piece.encode())
        entries = tokenizer.encode(piece, add_special_tokens=False).tokens
        tokens += len(entries)
        # A character of a byte-level entry is one byte.
        lengths.update(len(entry) for entry in entries)
    words = Counter(word for piece in pieces for word in _WORD.findall(piece))
    words = words or Counter(word for piece in pieces for word in piece.split())
    encoded = {word: tokenizer.encode(f" {word}", add_special_tokens=False).tokens for word in words}
    needed: Counter[int] = Counter()
    for word, count in words.items():
        needed[len(encoded[word])] += count
    total = words.total()
    shown = [word for word in words if len(word) <= _LONGEST_WORD_SHOWN]
    worst = sorted(shown, key=lambda word: (-len(encoded[word]), -words[word], word))[:_WORST_WORDS]
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "documents": len(texts),
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": size / tokens,
        "words": total,
        "tokens_per_word": sum(n * count for n, count in needed.items()) / total,
        "words_kept_whole": needed[1] / total,
        "tokens_per_word_histogram": {str(n): needed[n] for n in sorted(needed)},
        "token_length_histogram": {str(n): lengths[n] for n in sorted(lengths)},
        "worst_shattered_words": [
            {"word": word, "tokens": len(encoded[word]), "count": words[word]} for word in worst
        ],
    }
