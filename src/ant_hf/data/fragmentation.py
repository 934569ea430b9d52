"""How much a small vocabulary shatters English, measured on text the tokenizer was not trained on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

from ant_hf.errors import AntError

# Letters, with apostrophes inside: "king's" is one word, numbers and punctuation are none.
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_WORST_WORDS = 10


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
