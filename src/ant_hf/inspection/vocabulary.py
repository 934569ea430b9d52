"""The bytes behind token ids, and which of them may follow unfinished UTF-8."""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ant_hf.errors import AntError

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_VISIBLE = {" ": "\u00b7", "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d"}


@dataclass(frozen=True)
class Vocabulary:
    """Bytes by token id; ids of the model without an entry have none."""

    raw: tuple[bytes, ...]
    special: frozenset[int]
    """Ids that stand for no text; their `raw` is their name."""
    _masks: dict[bytes, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def of(self, token_id: int) -> bytes:
        return self.raw[token_id] if token_id < len(self.raw) else b""

    def text(self, token_id: int) -> str:
        """Readable form of an entry."""
        return readable(self.of(token_id)) or f"<no entry {token_id}>"

    def invalid_after(self, pending: bytes, size: int) -> torch.Tensor:
        """Mask of the ids that cannot come after the bytes of an unfinished character, shape (size,).

        Special tokens end a text or a document: they are invalid inside a character.
        """
        if (mask := self._masks.get(pending)) is None or len(mask) != size:
            bad = [
                bool(pending) if index in self.special else not _may_follow(pending, self.of(index))
                for index in range(size)
            ]
            mask = self._masks[pending] = torch.tensor(bad)
        return mask

    def pending(self, token_ids: Iterable[int]) -> bytes:
        """The first bytes of a character that the tokens leave unfinished; empty if there is none."""
        tail = b""
        for index in token_ids:
            tail = b"" if index in self.special else (tail + self.of(index))[-3:]
        return next((tail[-n:] for n in (3, 2, 1) if _is_unfinished(tail[-n:])), b"")


@lru_cache(maxsize=4)
def vocabulary(tokenizer: Any) -> Vocabulary:
    """Read the bytes of a tokenizer's entries: byte-level BPE, or SentencePiece with byte fallback.

    Raises:
        AntError: the tokenizer is of another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.dumps(json.loads(backend.to_str()).get("decoder")) if backend is not None else ""
    if "ByteLevel" in decoder:
        byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        to_bytes = lambda entry: bytes(byte_of[c] for c in entry)  # noqa: E731
    elif "ByteFallback" in decoder:
        to_bytes = _piece_bytes
    else:
        raise AntError(
            "this tokenizer's entries cannot be told apart by their bytes",
            seen=type(tokenizer).__name__,
            expected="byte-level BPE, or SentencePiece with byte fallback",
        )
    raw = [b""] * (max(tokenizer.get_vocab().values()) + 1)
    added = tokenizer.added_tokens_decoder
    for entry, index in tokenizer.get_vocab().items():
        # Added entries are stored as text, not in the vocabulary's spelling.
        raw[index] = entry.encode() if index in added else to_bytes(entry)
    return Vocabulary(tuple(raw), frozenset(index for index, token in added.items() if token.special))


def _piece_bytes(entry: str) -> bytes:
    if match := _BYTE.fullmatch(entry):
        return bytes([int(match[1], 16)])
    return entry.replace("\u2581", " ").encode()


def _tail(data: bytes) -> bytes | None:
    """The unfinished character at the end of `data`; None if it is no start of valid UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(data)
    except UnicodeDecodeError:
        return None
    tail = decoder.getstate()[0]
    # Python waits for a third byte before it refuses a surrogate (RFC 3629, section 3).
    return None if tail[:1] == b"\xed" and tail[1:2] >= b"\xa0" else tail


def _may_follow(pending: bytes, raw: bytes) -> bool:
    # Most entries end here, which makes large vocabularies quick.
    if pending and raw and not 0x80 <= raw[0] <= 0xBF:
        return False
    return _tail(pending + raw) is not None


def _is_unfinished(data: bytes) -> bool:
    return bool(data) and _tail(data) == data


def readable(raw: bytes) -> str:
    """Bytes as people can read them: white space visible, what is no valid UTF-8 as `<E2>`."""
    parts = []
    for character in raw.decode("utf-8", "surrogateescape"):
        if "\udc80" <= character <= "\udcff":
            parts.append(f"<{ord(character) - 0xDC00:02X}>")
        elif character in _VISIBLE:
            parts.append(_VISIBLE[character])
        elif unicodedata.category(character)[0] in "CZ":
            parts.append(f"<U+{ord(character):04X}>")
        else:
            parts.append(character)
    return "".join(parts)
