"""A text as the model meets it: its fragments with their bytes, losses and colours, and what was expected.

In three parts: the bytes behind token ids, the reading of a text, the colours of surprise.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from transformers import PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ant_hf.errors import AntError
from ant_hf.model.encoding import added_ids, context_length, encode, first_ids

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
        ends = (tail[-n:] for n in (3, 2, 1) if len(tail) >= n)
        return next((end for end in ends if _tail(end) == end), b"")


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
            "the bytes of this tokenizer's entries are not known",
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
    """The unfinished character at the end of `data`; None if it is not a start of valid UTF-8."""
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


def readable(raw: bytes) -> str:
    """Bytes as people can read them: white space visible, what is not valid UTF-8 as `<E2>`."""
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


# Tokens whose probabilities over the vocabulary are held at once.
_PIECE = 256


@dataclass(frozen=True)
class Fragment:
    """A token in its place."""

    token_id: int
    raw: bytes
    text: str
    """Readable form: white space visible, bytes that are not a character of their own as `<E2>`."""
    nats: float | None
    """-ln p(token | tokens before it); None if nothing comes before it."""
    start: int
    end: int
    """Byte offsets in the text's UTF-8."""


class Candidate(NamedTuple):
    """A token that could come next."""

    token_id: int
    raw: bytes
    text: str
    probability: float


@dataclass(frozen=True)
class NextTokens:
    """What a model expects at one place."""

    entropy_bits: float
    candidates: list[Candidate]
    """The most probable, best first."""
    invalid_utf8_share: float
    """Probability on tokens whose bytes cannot follow in valid UTF-8."""


@dataclass(frozen=True)
class Predictability:
    """A token's mean loss over its places in a text."""

    token_id: int
    text: str
    count: int
    nats: float


@dataclass(frozen=True)
class Reading:
    """A text's fragments, and for each what the model expected there (None if nothing came before)."""

    fragments: list[Fragment]
    expected: list[NextTokens | None]

    @property
    def losses(self) -> list[float]:
        """Nats of the tokens that have a loss."""
        return [fragment.nats for fragment in self.fragments if fragment.nats is not None]

    @property
    def bits_per_byte(self) -> float:
        """Over the scored tokens' bytes."""
        size = sum(len(fragment.raw) for fragment in self.fragments if fragment.nats is not None)
        return sum(self.losses) / (math.log(2) * size)

    @property
    def step_shares(self) -> list[float]:
        """Share of the scored tokens in each step of the colour scale."""
        steps = Counter(map(surprise_step, self.losses))
        return [steps[step] / len(self.losses) for step in range(SURPRISE_STEPS)]

    @property
    def by_predictability(self) -> list[Predictability]:
        """Tokens of the text, lowest mean loss first: those scored three times or more, else all."""
        losses: dict[int, list[float]] = defaultdict(list)
        texts = {fragment.token_id: fragment.text for fragment in self.fragments}
        for fragment in self.fragments:
            if fragment.nats is not None:
                losses[fragment.token_id].append(fragment.nats)
        tokens = [
            Predictability(index, texts[index], len(values), sum(values) / len(values))
            for index, values in losses.items()
        ]
        often = [token for token in tokens if token.count >= 3] or tokens
        return sorted(often, key=lambda token: (token.nats, token.token_id))

    def extremes(self, most: int) -> tuple[list[Predictability], list[Predictability]]:
        """The most and the least predictable tokens, best and worst first; none is in both."""
        ordered = self.by_predictability
        most = min(most, len(ordered) // 2)
        return ordered[:most], ordered[::-1][:most]


@torch.no_grad()
def read_text(model: PreTrainedModel, tokenizer: Any, text: str, top: int = 5) -> Reading:
    """Fragments of a text with what the model expected in each one's place.

    What stands before it is what `score_text` puts there; without anything the first token has no loss.
    Texts longer than the context are read in windows that stand end to end. Names of special tokens in
    the text are read as plain text.

    Args:
        top: candidates kept a place.

    Raises:
        AntError: the text is empty or no valid Unicode, or the tokenizer is of a kind that cannot be read.
    """
    if not text:
        raise AntError("the text is empty", hint="Pass some: --text 'In the beginning'")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AntError(f"the text is not valid Unicode: {error}") from None
    entries = vocabulary(tokenizer)
    ids, before, prefix = encode(tokenizer, text), added_ids(tokenizer), first_ids(tokenizer)
    nats: list[float | None] = [] if prefix else [None]
    expected: list[NextTokens | None] = [] if prefix else [None]
    context = context_length(model, tokenizer)
    for logits_TV, targets in _pieces(model, before, ids if before else prefix + ids, context):
        log_p_TV = torch.log_softmax(logits_TV, dim=-1)
        nats += (-log_p_TV.gather(1, torch.tensor(targets)[:, None])[:, 0]).tolist()
        # Without a prefix the first token is none of the targets.
        for place, log_p_V in enumerate(log_p_TV, len(expected)):
            pending = entries.pending(ids[max(0, place - 3) : place])
            expected.append(_next_tokens(log_p_V, entries, pending, top))
    raws = [entries.of(index) for index in ids]
    # SentencePiece may put a space before the text, which belongs to no byte of it.
    if b"".join(raws) == b" " + text.encode():
        raws[0] = raws[0][1:]
    fragments, start = [], 0
    for index, raw, loss in zip(ids, raws, nats, strict=True):
        fragments.append(Fragment(index, raw, readable(raw), loss, start, start + len(raw)))
        start += len(raw)
    return Reading(fragments, expected)


@torch.no_grad()
def next_tokens(model: PreTrainedModel, tokenizer: Any, token_ids: list[int], top: int = 20) -> NextTokens:
    """The distribution of the token after `token_ids`, which are taken as they are; of too many, the last.

    Raises:
        AntError: the tokenizer is of a kind that cannot be read.
    """
    entries = vocabulary(tokenizer)
    input_ids = torch.tensor([token_ids[-context_length(model, tokenizer) :]], device=model.device)
    logits_V = model(input_ids=input_ids, use_cache=False).logits[0, -1].float().cpu()
    return _next_tokens(torch.log_softmax(logits_V, dim=-1), entries, entries.pending(token_ids[-4:]), top)


def _pieces(
    model: PreTrainedModel, before: list[int], ids: list[int], context: int
) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Logits in fp32 on the CPU, shape (T, V), with their T targets, each token of `ids` once.

    Where nothing stands `before` each window, the first of them is not a target. Pieces of a window, because
    large vocabularies make large tables.
    """
    unscored = max(1, len(before))
    for start in range(0, len(ids) - (not before), context + 1 - unscored):
        row = before + ids[start : start + context + 1 - len(before)]
        inputs_1T, targets = torch.tensor([row[:-1]], device=model.device), row[unscored:]
        logits_TV = model(input_ids=inputs_1T, use_cache=False).logits[0, unscored - 1 :]
        for first in range(0, len(targets), _PIECE):
            yield logits_TV[first : first + _PIECE].float().cpu(), targets[first : first + _PIECE]


def _next_tokens(log_p_V: torch.Tensor, entries: Vocabulary, pending: bytes, top: int) -> NextTokens:
    p_V = log_p_V.exp()
    best = torch.topk(p_V, min(top, len(p_V)))
    return NextTokens(
        entropy_bits=-float((p_V * log_p_V.clamp(min=-1e4)).sum()) / math.log(2),
        candidates=[
            Candidate(index, entries.of(index), entries.text(index), p)
            for index, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ],
        invalid_utf8_share=float(p_V[entries.invalid_after(pending, len(p_V))].sum()),
    )


# One step a nat; a uniform guess among 4,096 entries costs 8.3.
SURPRISE_STEPS = 10
# Lightness rises or falls all the way, so that the order survives any colour vision and grey.
_RAMPS = {
    "light": ("#f4f4f1", "#fbd9a0", "#f0913c", "#c04a00", "#5c2000"),
    "dark": ("#24272d", "#4d3118", "#94470b", "#e07b28", "#ffd9a8"),
}
_TEXTS = ("#16181d", "#ffffff")


def surprise_step(nats: float | None) -> int:
    """Step of the colour scale: whole nats, from 0 to SURPRISE_STEPS - 1; no loss counts as none."""
    return min(int(nats or 0.0), SURPRISE_STEPS - 1)


def surprise_colours(theme: str) -> list[tuple[str, str]]:
    """Background and text colour of each step, as `#rrggbb`.

    Args:
        theme: "light" or "dark"; the lowest step is close to that theme's page.
    """
    ramp = LinearSegmentedColormap.from_list("surprise", _RAMPS[theme])
    backgrounds = [to_hex(ramp(step / (SURPRISE_STEPS - 1))) for step in range(SURPRISE_STEPS)]
    return [(colour, max(_TEXTS, key=lambda text: contrast(text, colour))) for colour in backgrounds]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2, definition of contrast ratio)."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
