"""A byte-level BPE tokenizer that every Transformers since 4.57 loads: trained, written, read, measured.

Byte-level means that all 256 bytes are entries, so any text survives encoding and decoding, and
an unknown token does not exist. The pre-tokenizer is GPT-2's, after single digits when asked.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from ant_hf.data.corpus import Corpus
from ant_hf.errors import AntError
from ant_hf.recipe import Recipe, TokenizerRecipe
from ant_hf.utils.console import say
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
from ant_hf.utils.names import FRAGMENTATION, TOKENIZER

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
# Enough words for three digits of every figure in the fragmentation report.
_HELD_OUT_CHARACTERS = 4_000_000


def make_tokenizer(recipe: Recipe, model_max_length: int) -> Tokenizer:
    """Train the recipe's tokenizer on the training split or reuse the one that is there, and say what it is.

    Raises:
        AntError: the folder holds a tokenizer made of something else, or there is no text.
    """
    corpus, folder = Corpus.from_recipe(recipe.corpus), recipe.tokenizer_dir
    with locked(folder.parent, "data", wait=True):
        inputs = tokenizer_inputs(recipe, corpus, model_max_length)
        how, tokenizer = "reused", trained_before(folder, inputs)
        if tokenizer is None:
            # Here and not above: matplotlib takes half a second, and few commands train a tokenizer.
            from ant_hf.utils.plots import plot_fragmentation

            how = "trained"
            tokenizer, report = train_on(corpus, recipe.tokenizer)
            # Files of about 40 bytes an entry and as much again for the report and its figure.
            room = 200_000 + 80 * recipe.tokenizer.vocab_size
            with writing("the tokenizer", folder, room), whole_folder(folder) as partial:
                save_tokenizer(tokenizer, partial, model_max_length)
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


def tokenizer_inputs(recipe: Recipe, corpus: Corpus, model_max_length: int) -> dict[str, Any]:
    """What decides every file of a tokenizer, as JSON values."""
    return {
        "corpus": corpus.identity(),
        "tokenizer": recipe.tokenizer.model_dump(),
        "model_max_length": model_max_length,
    }


def trained_before(folder: Path, inputs: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer of a folder that was trained on these inputs; None where there is none.

    Raises:
        AntError: the folder holds a tokenizer made of something else, or not made here, or a damaged one.
    """
    if not (folder / _RECORD).exists():
        if (folder / TOKENIZER).exists():
            raise AntError(
                f"{folder} holds a tokenizer without the record of its training, {_RECORD}",
                hint="Move it away, or set another data_dir: --set data_dir=FOLDER",
            )
        return None
    tokenizer = load_tokenizer(folder)
    check_made_of(folder, "a tokenizer", _read_record(folder), inputs)
    return tokenizer


def train_on(corpus: Corpus, recipe: TokenizerRecipe) -> tuple[Tokenizer, dict[str, Any]]:
    """A tokenizer trained on the training split, and the report of how it cuts the held-out text.

    Raises:
        AntError: there is no text for one of them, or too little.
    """
    held_out: list[str] = []
    tokenizer = train_bpe(_training_texts(corpus, recipe, held_out), recipe)
    return tokenizer, fragmentation_report(tokenizer, held_out)


def _training_texts(corpus: Corpus, recipe: TokenizerRecipe, held_out: list[str]) -> Iterator[str]:
    """Texts of the training split; the first held-out ones met on the way go to `held_out`."""
    read = held_out_characters = 0
    with tqdm(desc="tokenizer: reading", unit="B", unit_scale=True, leave=False) as bar:
        for document in corpus:
            if not document.is_validation:
                size = len(document.text.encode())
                read += size
                bar.update(size)
                yield document.text
                if read >= recipe.max_bytes:
                    return
            elif held_out_characters < _HELD_OUT_CHARACTERS:
                held_out.append(document.text)
                held_out_characters += document.characters
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
        hint="A txt file is one document; separate several by lines of <|endoftext|>, or pass more files. "
        "With many, lower corpus.validation_fraction.",
    )


def train_bpe(texts: Iterable[str], recipe: TokenizerRecipe) -> Tokenizer:
    """Train a byte-level BPE; the same texts in the same order give the same tokenizer.

    Memory holds the distinct words and their counts, not the texts; `recipe.max_bytes` bounds them.

    Raises:
        AntError: the texts have too few distinct words for `vocab_size` entries.
    """
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
    )
    tokenizer.train_from_iterator(texts, trainer)
    size = tokenizer.get_vocab_size()
    if size != recipe.vocab_size:
        raise AntError(
            f"the text is too small for a vocabulary of {recipe.vocab_size} entries",
            seen=f"{size} entries",
            hint=f"Add text or lower tokenizer.vocab_size (and the architecture's) to at most {size}.",
        )
    return tokenizer


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


def fragmentation_report(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, Any]:
    """Measure bytes a token, tokens a word, and which words suffer most.

    Words are encoded as they stand inside a sentence, after a space.

    Raises:
        AntError: the texts hold no words.
    """
    words: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    documents = size = tokens = 0
    for text in texts:
        documents += 1
        size += len(text.encode())
        entries = tokenizer.encode(text, add_special_tokens=False).tokens
        tokens += len(entries)
        # A character of a byte-level entry is one byte.
        lengths.update(len(entry) for entry in entries)
        words.update(_WORD.findall(text))
    if not words:
        raise AntError(
            "no held-out text with words to measure fragmentation on",
            seen=f"{documents} held-out documents",
            hint="Raise the share: --set corpus.validation_fraction=0.1",
        )
    pieces = {word: tokenizer.encode(f" {word}", add_special_tokens=False).tokens for word in words}
    needed: Counter[int] = Counter()
    for word, count in words.items():
        needed[len(pieces[word])] += count
    total = words.total()
    worst = sorted(words, key=lambda word: (-len(pieces[word]), -words[word], word))[:_WORST_WORDS]
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "documents": documents,
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": size / tokens,
        "words": total,
        "tokens_per_word": sum(n * count for n, count in needed.items()) / total,
        "words_kept_whole": needed[1] / total,
        "tokens_per_word_histogram": {str(n): needed[n] for n in sorted(needed)},
        "token_length_histogram": {str(n): lengths[n] for n in sorted(lengths)},
        "worst_shattered_words": [
            {"word": word, "tokens": len(pieces[word]), "count": words[word]} for word in worst
        ],
    }
