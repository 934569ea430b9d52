"""A byte-level BPE tokenizer that every Transformers since 4.57 loads: trained, written, read, measured.

Byte-level means that all 256 bytes are entries, so any text survives encoding and decoding, and
an unknown token does not exist. The pre-tokenizer is GPT-2's, after single digits when asked.
"""

from __future__ import annotations

import itertools
import json
import re
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


def make_tokenizer(recipe: Recipe, model_max_length: int) -> Tokenizer:
    """Train the recipe's tokenizer on the training split or reuse the one that is there, and say what it is.

    Where the recipe leaves the vocabulary open it is the architecture's, or less if the text gives less.

    Raises:
        AntError: the folder holds a tokenizer made of something else, there is no text, or too little for the
            vocabulary that the recipe asks for.
    """
    corpus, folder = Corpus.from_recipe(recipe.corpus), recipe.tokenizer_dir
    sources = [member.source for member in corpus.members]
    if left_out := [name for source in sources if isinstance(source, LocalFiles) for name in source.left_out]:
        say(f"left out    {len(left_out):,} of the files there: {listed(left_out)}")
    kept = "Nothing is written yet. Run the same command again to start over."
    with locked(folder.parent, "data", wait=True), phase("making the tokenizer", kept):
        tokenizer, inputs = trained_before(recipe, corpus, model_max_length)
        how = "reused"
        if tokenizer is None:
            # Here and not above: matplotlib takes half a second, and few commands train a tokenizer.
            from ant_hf.utils.plots import plot_fragmentation

            how = "trained"
            tokenizer, held_out = train_on(corpus, recipe.tokenizer, most_entries(recipe))
            # Files of about 40 bytes an entry and as much again for the report and its figure.
            room = 200_000 + 80 * tokenizer.get_vocab_size()
            with writing("the tokenizer", folder, room), whole_folder(folder) as partial:
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
    say(f"tokenizer   {folder} ({how}, {tokenizer.get_vocab_size():,} entries)")
    report = read_json(folder / FRAGMENTATION, "fragmentation report", f"Remove {folder} to make it anew.")
    say(
        f"            held-out text: {report['bytes_per_token']:.2f} bytes a token, "
        f"{report['tokens_per_word']:.2f} tokens a word, {report['words_kept_whole']:.1%} of words kept whole"
    )
    return tokenizer


def trained_before(
    recipe: Recipe, corpus: Corpus, model_max_length: int
) -> tuple[Tokenizer | None, dict[str, Any]]:
    """The recipe's tokenizer if it is there, and what decides every file of it, as JSON values.

    Raises:
        AntError: the folder holds a tokenizer made of something else, or not made here, or a damaged one.
    """
    folder = recipe.tokenizer_dir
    is_there = (folder / _RECORD).exists()
    if not is_there and (folder / TOKENIZER).exists():
        raise AntError(
            f"{folder} holds a tokenizer without the record of its training, {_RECORD}",
            hint="Move it away, or set another data_dir: --set data_dir=FOLDER",
        )
    before = _read_record(folder)["inputs"]["corpus"] if is_there else None
    inputs = {
        "corpus": corpus.identity(made_before=before),
        "tokenizer": recipe.tokenizer.model_dump() | {"vocab_size": most_entries(recipe)},
        "model_max_length": model_max_length,
    }
    if not is_there:
        return None, inputs
    tokenizer = load_tokenizer(folder)
    check_made_of(folder, "a tokenizer", _read_record(folder), inputs)
    _check_size(tokenizer, recipe.tokenizer)
    return tokenizer, inputs


def most_entries(recipe: Recipe) -> int:
    """The vocabulary of the recipe, or of the architecture where the recipe leaves it open."""
    if recipe.tokenizer.vocab_size is not None:
        return recipe.tokenizer.vocab_size
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
            hint="Add text, or let the vocabularies of tokenizer and model be what the text gives: "
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
            "no held-out text to measure the tokenizer on",
            seen=f"validation_fraction {corpus.validation_fraction}",
            hint="The documents held out may all quote the sets of corpus.decontaminate. Raise the share: "
            f"--set corpus.validation_fraction={share:g}",
        )
    if (size := tokenizer.get_vocab_size()) < entries:
        fewer = max(SMALLEST_VOCABULARY, size // _ROUND_ENTRIES * _ROUND_ENTRIES)
        say(f"vocabulary  {fewer:,} entries, not {entries:,}: the text gives {size:,}. The model's follows.")
        return train_on(corpus, recipe, fewer)
    return tokenizer, held_out


def _training_texts(
    corpus: Corpus, recipe: TokenizerRecipe, held_out: list[str], advance: Callable[[int], None]
) -> Iterator[str]:
    """Texts of the training split, without long runs; the first held-out ones (or one) go to `held_out`."""
    read = held_out_characters = 0
    for document in corpus:
        if document.is_validation:
            if held_out_characters < _HELD_OUT_CHARACTERS:
                held_out.append(document.text)
                held_out_characters += document.characters
        elif read < recipe.max_bytes:
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
            "the corpus holds no text to train on",
            seen=f"{counts.read:,} documents, {counts.empty:,} of them empty, "
            f"{counts.contaminated:,} shared with evaluation sets",
            hint="Look into what corpus.path (--data) names.",
        )
    raise AntError(
        f"all documents of the corpus with text in them, {counts.validation:,}, are held out",
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
        waiting: called about once a second.
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
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    # transformers 5 writes `TokenizersBackend`, which 4.57 cannot import; both know this class.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    # Only says on which kind of disk the files lay.
    settings.pop("is_local", None)
    settings.pop("local_files_only", None)
    write_json(path, settings)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The `tokenizers` object of a saved folder, held to the hashes of its record if it was trained here.

    Raises:
        AntError: no tokenizer is there, it is damaged, or lacks the end-of-text token.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise AntError(f"tokenizer not found: {path}", hint="Train one: ant-hf tokenizer --config RECIPE")
    if (folder / _RECORD).exists():
        record, hint = _read_record(folder), f"Remove {folder} to train it anew."
        # Format 1 named tokenizer.json only.
        files = record.get("files", {TOKENIZER: record.get("tokenizer_sha256")})
        if not isinstance(files, dict):
            raise AntError(f"tokenizer record {folder / _RECORD} is damaged", seen=files, hint=hint)
        for name, expected in files.items():
            check_file(folder / Path(name).name, expected, "was changed after it was trained", hint)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise AntError(f"{path} is no readable tokenizer: {error}") from None
    for token in SPECIAL_TOKENS:
        if tokenizer.token_to_id(token) is None:
            raise AntError(f"{path} has no {token} token", expected=" and ".join(SPECIAL_TOKENS))
    return tokenizer


def _read_record(folder: Path) -> dict[str, Any]:
    """What a tokenizer was trained on, with the hashes of its files.

    Raises:
        AntError: as `read_sealed`.
    """
    return read_sealed(folder / _RECORD, "tokenizer record", f"Remove {folder} to train it anew.")


def token_byte_lengths(tokenizer: Tokenizer) -> list[int]:
    """Bytes of text each token id stands for, shape (vocab_size,); special tokens stand for none.

    In a byte-level vocabulary each character of an entry is one byte.
    """
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    lengths = [0] * tokenizer.get_vocab_size()
    for entry, index in tokenizer.get_vocab().items():
        lengths[index] = 0 if entry in special else len(entry)
    return lengths


def fragmentation_report(tokenizer: Tokenizer, texts: list[str]) -> dict[str, Any]:
    """Measure bytes a token, tokens a word, and which words suffer most.

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
