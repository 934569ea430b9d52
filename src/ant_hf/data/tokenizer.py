"""A byte-level BPE tokenizer that every Transformers since 4.57 loads: trained, written, read, measured.

Byte-level means that all 256 bytes are entries, so any text survives encoding and decoding, and
an unknown token does not exist. The pre-tokenizer is GPT-2's, after single digits when asked.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ant_hf.errors import AntError
from ant_hf.recipe import TokenizerRecipe
from ant_hf.utils.files import check_file, read_sealed, write_json
from ant_hf.utils.names import TOKENIZER

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD)
# In a folder that was trained here: what of, and the hashes of the files.
RECORD = "training.json"
# Pairs seen once would make merges out of single documents.
_MIN_FREQUENCY = 2
# Letters, with apostrophes inside: "king's" is one word, numbers and punctuation are none.
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_WORST_WORDS = 10


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
    if (folder / RECORD).exists():
        record, hint = read_record(folder), f"Remove {folder} to train it anew."
        # Format 1 named tokenizer.json only.
        files = record.get("files", {TOKENIZER: record.get("tokenizer_sha256")})
        if not isinstance(files, dict):
            raise AntError(f"tokenizer record {folder / RECORD} is damaged", seen=files, hint=hint)
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


def read_record(folder: Path) -> dict[str, Any]:
    """What a tokenizer was trained on, with the hashes of its files.

    Raises:
        AntError: as `read_sealed`.
    """
    return read_sealed(folder / RECORD, "tokenizer record", f"Remove {folder} to train it anew.")


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
