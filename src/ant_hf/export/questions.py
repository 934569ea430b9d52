"""What a verification asks another program: texts to cut, prompts to continue; and how near the answers are.

Nothing is read or downloaded: for the texts, words of each kind below are strung together by a seeded
generator. Code points are written as escapes where an editor would hide or change them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.evaluation.degeneration import prompts
from ant_hf.model.texts import ENGLISH, ROUND_TRIP
from ant_hf.utils.files import is_full

NEW_TOKENS = 32
TEXTS_PER_KIND = 90
_SCORED_TOKENS = 48
_SEED = 7
_DIGITS = (
    "0", "7", "42", "007", "1234567890", " 3", "  15", "1,234,567.89", "-0.5", "3e-4", "0x1F", "1/2",
    "2026-11-22", "12:30", "v2.0.1", "x9y8", "\u0663\u0664\u0665", "\u096a\u0968", "\u2460", "\u00bd",
    "\u2163", "\uff11\uff12", "H\u2082O", "10\u00b2", "\n5", "\t6 ", "1st", "2nd", "50%", "$9", "#1",
)  # fmt: skip
_EMOJI = (
    "\U0001f600", "\U0001f469\u200d\U0001f680", "\u2764\ufe0f", "\U0001f1fa\U0001f1f3",
    "\U0001f44d\U0001f3fd", " \U0001f525\U0001f525", "1\ufe0f\u20e3", "\u2603", "ok\U0001f44c",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
)  # fmt: skip
_CODE = (
    "def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n", "if x!=y:",
    "# comment\n", "return {'key': [1, None]}", "<div class=\"a b\">&nbsp;</div>",
    "SELECT * FROM t WHERE id=5;", "a->b::c<T>", "\\n\\t\\\\", "/* ... */",
    "https://example.org/a?b=c&d=%20", "~/.config", "import os, sys\r\n", "fn main() {}", "```python\n",
    "__init__", "camelCaseName", "snake_case_name", "CONST_1", "$(echo \"$HOME\")", "1 << 31",
)  # fmt: skip
_WHITESPACE = (
    " ", "  ", "   ", "        ", "\n", "\n\n", "\n\n\n", "\r\n", "\r", "\t", "\t\t", " \n", "\n ", "  \n  ",
    "\u00a0", "\u2003", "\u3000", "\u2028", "\u0085", "\u200b", "\v", "\f", "\ufeff", "\x1c", "word", "a",
    ".", "7",
)  # fmt: skip
_SCRIPTS = (
    "\u4f60\u597d\u3001\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f", "\u30ab\u30bf\u30ab\u30ca",
    "\uc548\ub155", "\u041f\u0440\u0438\u0432\u0435\u0442", "\u03ba\u03b1\u03bb\u03b7",
    "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627", "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0",
    "Stra\u00dfe", "na\u00efve", "\u0130stanbul", " ", "\u3002", "\uff01", "3", "\U00020000", "\U0001d49c",
)  # fmt: skip
_MARKS = (
    "e\u0301", "n\u0303", "A\u030a", "\u0301", "q\u0307\u0323", "\u0b95\u0bcd\u0bb7", "\u1100\u1161\u11a8",
    "a\u20dd", "\u064e", "z\u0351\u036b\u0343", "\u200d", "\u200c", "x", " ", "1\u0302", "\ufb01", "\u00e9",
    "\u0344",
)  # fmt: skip
_CONTRACTIONS = (
    "it's", "I'm", "we'll", "they've", "you're", "he'd", "don't", "IT'S", "WE'LL", "o'clock", "'tis",
    "rock 'n' roll", "y'all'd've", "''", "'s", " 's", "'S", "the dogs'", "it\u2019s", "don\u2019t", "'",
    "\"'re\"", "l'eau", "'m'",
)  # fmt: skip
_ODD = (
    "\ufffd", "\x00", "\x01", "\x7f", "\u00ad", "\u202e", "\u2066", "\ufff9", "\ufffe", "\U0010ffff",
    "\ue000", "\u0378", "\U000e0001", "\u180e", "\u00c3\u00a9", "\u00e2\u20ac\u2122", "a", " ", "\n",
    "\\u0041", "%FF%FE", "&#0;",
)  # fmt: skip
_SPECIAL = (
    "<|endoftext|>", "<|pad|>", "<|endoftext", "|>", "<|", "< |endoftext|>", "<|ENDOFTEXT|>", "<s>", "</s>",
    "<unk>", "[INST]", "<0x0A>", "\u2581", "\u0120", "<|im_start|>", "word", " ", "\n", "3",
)  # fmt: skip
_WORDS = (
    "the", "The", "river", "king", "small", "language", "model", "antidisestablishmentarianism", "Xyzzy",
    "I", "a", ",", ".", ";", "?!", "...", "--", "(see", "above)", "\u201cquoted\u201d", "\u2014", "[1]",
    "e.g.", "U.S.A.",
)  # fmt: skip
_KINDS = (
    (_DIGITS, ""), (_DIGITS, " "), (_EMOJI, ""), (_CODE, ""), (_WHITESPACE, ""), (_SCRIPTS, ""), (_MARKS, ""),
    (_CONTRACTIONS, " "), (_ODD, ""), (_SPECIAL, ""), (_WORDS, " "),
)  # fmt: skip
_EVERYTHING = tuple(dict.fromkeys(piece for pieces, _ in _KINDS for piece in pieces))


def check_texts() -> list[str]:
    """1,299 texts of every kind above, the same ones every time."""
    generator = random.Random(_SEED)
    strung = [
        separator.join(generator.choices(pieces, k=generator.randint(1, 12)))
        for pieces, separator in (*_KINDS, (_EVERYTHING, ""))
        for _ in range(TEXTS_PER_KIND)
    ]
    return [*ROUND_TRIP, *ENGLISH, *prompts(), *strung]


def greedy_prompts() -> list[str]:
    """Twenty prompts, two of each opening of the degeneration test."""
    return prompts()[3::10][:20]


def greedy_starts(tokenizer: Any, context: int) -> tuple[list[list[int]], int]:
    """Ids of `greedy_prompts`, of each at most half a context, and how many tokens to put after them."""
    most = max(1, context // 2)
    starts = [tokenizer(prompt)["input_ids"][:most] for prompt in greedy_prompts()]
    return starts, min(NEW_TOKENS, context - max(map(len, starts)))


def scored_ids(tokenizer: Any, context: int) -> list[list[int]]:
    """Token ids of a page of plain English, a beginning of each of its paragraphs."""
    length = min(context, _SCORED_TOKENS)
    return [tokenizer(text, add_special_tokens=False)["input_ids"][:length] for text in ENGLISH]


def nats(logits: Sequence[torch.Tensor], sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """What each token of the sequences but the first of each costs, shape (tokens,).

    Args:
        logits: of each sequence, shape (positions, vocabulary).
    """
    rows = torch.cat([row[:-1] for row in logits])
    followers = torch.tensor([index for ids in sequences for index in ids[1:]])
    return torch.nn.functional.cross_entropy(rows, followers, reduction="none")


def check_cost(
    program: str,
    kind: str,
    most: float,
    seen: torch.Tensor,
    wanted: torch.Tensor,
    tokenizer: Any,
    sequences: Sequence[Sequence[int]],
) -> dict[str, float]:
    """Bits per byte of plain English, from nats, and what the type costs, with its standard error.

    Both read the same tokens: the error is of the differences at them, taken as independent of each other.

    Args:
        kind: the type's name.
        most: how far they may be from those of the original, as a share of these, or of 1 bit a byte if they
            are fewer.

    Raises:
        AntError: the type costs more than it may, or gains as much.
    """
    # An entry of a byte-level vocabulary has a character a byte.
    size = sum(len(entry) for ids in sequences for entry in tokenizer.convert_ids_to_tokens(ids[1:]))
    bits, original = (each.sum().item() / size / math.log(2) for each in (seen, wanted))
    if not abs(bits - original) <= most * max(original, 1):
        raise AntError(
            f"{program} does not give plain English the same likelihood as the model",
            seen=f"{bits:.4f} bits per byte",
            expected=f"{original:.4f} within {most:.2%} in {kind}",
            hint="Leave this type out with --type",
        )
    error = (seen - wanted).std().item() * math.sqrt(len(seen)) / size / math.log(2)
    return {
        "bytes": size,
        "bits_per_byte": bits,
        "bits_per_byte_difference": bits - original,
        "bits_per_byte_difference_stderr": error,
    }


def end_ids(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Tokens at which `generate` ends a text, the tokenizer's own first; if it has none, that one."""
    own, named = tokenizer.eos_token_id, getattr(model.generation_config, "eos_token_id", None)
    ends = named if isinstance(named, list) else [own if named is None else named]
    return sorted({index for index in ends if index is not None}, key=lambda index: (index != own, index))


def check_greedy(
    file: str,
    model: PreTrainedModel,
    tokenizer: Any,
    context: int,
    outputs: list[list[int]],
    ends: Sequence[int],
    tie: float,
) -> dict[str, Any]:
    """Check greedy outputs against the model: each token must be the likeliest after those before it.

    One forward pass per output says for every token what `generate` would have chosen there.

    Args:
        context: as `greedy_starts` took it.
        outputs: ids after each of its prompts, with or without the end of the text.
        ends: tokens at which a text ends.
        tie: the largest gap of two logits that counts as equally likely, in standard deviations of the
            logits there; an output may part there.

    Raises:
        AntError: an output parts where the model was sure.
    """
    (starts, new_tokens), gaps = greedy_starts(tokenizer, context), list[float]()
    for start, ids in zip(starts, outputs, strict=True):
        if (parted := _parting(model, start, ids, new_tokens, ends)) is None:
            continue
        gap, spread = parted
        if not gap <= tie * spread:
            most = f"{tie * spread:.3g}"
            expected = f"the model's greedy output, or logits at most {most} apart (here {gap:.3g})"
            what = f"{file} continues {tokenizer.decode(start)!r} differently than the model"
            raise AntError(what, seen=tokenizer.decode(ids), expected=expected)
        gaps.append(gap)
    return {
        "prompts": len(outputs),
        "new_tokens": new_tokens,
        "prompts_with_equal_output": len(outputs) - len(gaps),
        "largest_logit_gap_where_they_part": max(gaps, default=None),
    }


def _parting(
    model: PreTrainedModel, start: Sequence[int], output: Sequence[int], new_tokens: int, ends: Sequence[int]
) -> tuple[float, float] | None:
    """The gap of two logits where an output first differs from the model's choice, and the logits' spread."""
    ended = next((place for place, index in enumerate(output) if index in ends), None)
    chosen = list(output if ended is None else output[: ended + 1])
    stopped = ended is None and len(chosen) < new_tokens
    with torch.no_grad():
        read = [*start, *(chosen if stopped else chosen[:-1])]
        logits = model(torch.tensor([read])).logits[0, len(start) - 1 :]
    if stopped:
        # It does not say at which of the ends; without any, it should not have stopped.
        chosen.append(max(ends, key=lambda index: logits[-1, index].item(), default=-1))
    for row, theirs in zip(logits, chosen, strict=True):
        if (ours := int(row.argmax())) != theirs:
            gap = float((row[ours] - row[theirs]).item()) if theirs >= 0 else math.inf
            return gap, float(row.std().item())
    return None


@contextmanager
def one_line(problem: str) -> Iterator[None]:
    """Whatever another library raises, as one line of ours; only its own calls belong inside.

    An error whose words say little, such as a KeyError's, is shown with its kind.

    Raises:
        AntError: the problem, then the error's words; a full disk's error goes through.
    """
    try:
        yield
    except Exception as error:
        if is_full(error):
            raise
        words = " ".join(str(error).split())[:300]
        raise AntError(f"{problem}: {words if ' ' in words else repr(error)[:300]}") from error
