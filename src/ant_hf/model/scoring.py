"""The loss of packed tokens, or of a text, under a model: in training, of what was exported, in the gate."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ant_hf.data.tokenizer import load_tokenizer, token_byte_lengths
from ant_hf.data.tokens import VALIDATION, PackedTokens, TokensInMemory, read_manifest, verify_shards
from ant_hf.errors import AntError, missing_file
from ant_hf.model.causality import check_causal
from ant_hf.model.encoding import added_ids, context_length, decode, encode, first_ids
from ant_hf.model.loading import load_any, tokenizer_folder
from ant_hf.utils.files import check_hash, file_sha256, not_utf8, opened
from ant_hf.utils.metrics import TextScore
from ant_hf.utils.names import TOKENIZER

# How far a reloaded model's loss may lie from the one recorded in training; 16-bit against fp32 differs
# by far less.
SAME_LOSS = 0.005
_BATCH = 8
# The logits of longer windows would fill the memory; other contexts are given with --context.
_LONGEST_UNASKED = 2048
_LOGITS_AT_ONCE = 2**28


@torch.no_grad()
def score_tokens(
    model: PreTrainedModel,
    tokens: PackedTokens,
    byte_lengths: Sequence[int],
    *,
    context: int,
    batch_size: int,
    max_tokens: int | None = None,
    autocast_dtype: torch.dtype | None = None,
    share: tuple[int, int] = (0, 1),
    before: Sequence[int] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TextScore:
    """Score every token but the first, each once, with at most `context` tokens before it.

    Windows of `context` inputs stand end to end; a window's targets are its inputs moved by one, so the
    first token of the next window is scored too. With tokens `before`, every token is.

    Args:
        byte_lengths: bytes of text by token id, shape (vocab_size,).
        batch_size: windows a forward pass.
        max_tokens: score at most this many, in whole windows spread evenly: a corpus is packed source
            by source, and its first tokens speak for the first source alone.
        share: (i, n) scores every n-th batch from the i-th on, to be summed over n processes.
        before: token ids that stand before each window, are part of its context and are not scored.
        progress: called with the tokens just scored, and with how many there are.
    """
    was_training = model.training
    model.eval()
    device = model.device
    lengths = np.asarray(byte_lengths, dtype=np.int64)
    autocast = (
        torch.autocast(device.type, dtype=autocast_dtype) if autocast_dtype else contextlib.nullcontext()
    )
    # The first of a row, which are inputs alone.
    unscored = max(1, len(before))
    targets = len(tokens) - (not before)
    starts = _window_starts(targets, context + 1 - unscored, max_tokens)
    # Summed on the device, which would otherwise wait after each batch; Apple's GPUs have no float64.
    nats = torch.zeros((), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    count, size = 0, 0
    for first in range(share[0] * batch_size, len(starts), share[1] * batch_size):
        windows = [
            tokens.slice(s, min(s + context + 1 - len(before), len(tokens)))
            for s in starts[first : first + batch_size]
        ]
        # Only the very last window can be shorter: it is scored alone rather than padded.
        for _, group in itertools.groupby(windows, key=len):
            rows = np.stack(list(group)).astype(np.int64)
            start = np.tile(np.array(before, dtype=np.int64), (len(rows), 1))
            rows = np.hstack([start, rows])
            ids_BT = torch.from_numpy(rows).to(device)
            targets_BT = ids_BT[:, unscored:]
            with autocast:
                logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits[:, unscored - 1 :]
            losses = torch.nn.functional.cross_entropy(
                logits_BTV.float().flatten(0, 1), targets_BT.flatten(), reduction="none"
            )
            nats += losses.to(nats.device).double().sum()
            count += targets_BT.numel()
            size += int(lengths[rows[:, unscored:]].sum())
            progress(targets_BT.numel(), targets)
    model.train(was_training)
    return TextScore(float(nats), count, size, len(lengths))


def _window_starts(targets: int, step: int, max_tokens: int | None) -> list[int]:
    starts = range(0, targets, step)
    if max_tokens is None or max_tokens >= targets:
        return list(starts)
    count = max(1, max_tokens // step)
    return [starts[index * len(starts) // count] for index in range(count)]


def score_text(
    model: PreTrainedModel,
    tokenizer: Any,
    text: str,
    context: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TextScore:
    """Score a text under anyone's tokenizer, which says what stands before it (see `described_start`).

    Returns:
        The score; its bytes are those of the text.

    Raises:
        AntError: there is nothing to score, or the model's scores are not numbers.
    """
    before, ids = added_ids(tokenizer), encode(tokenizer, text)
    start = [] if before else first_ids(tokenizer)
    rows = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    scores = score_tokens(
        model,
        TokensInMemory([*start, *ids]),
        [0] * rows,
        context=context,
        batch_size=_batch_size(rows, context),
        before=before,
        progress=progress,
    )
    unscored = "" if before or start else decode(tokenizer, ids[:1])
    size = len(text.encode()) - len(unscored.encode())
    if not (scores.tokens and size > 0):
        raise AntError("the text is too short to be scored", seen=text[:40], expected="at least a few words")
    return check_finite(replace(scores, bytes=size))


def _batch_size(rows: int, context: int) -> int:
    """Windows a forward pass, whose logits fit the memory for a vocabulary of so many rows too."""
    return max(1, min(_BATCH, _LOGITS_AT_ONCE // (context * rows)))


def described_start(tokenizer: Any) -> str:
    """What `score_text` puts before a text, in words.

    The tokenizer's own rule holds for every window, for such a model has seen no text without it. Where the
    tokenizer has none, the beginning- or end-of-text token stands before the first token, as in lm-eval.
    """
    if not (ids := first_ids(tokenizer)):
        return "nothing before the first token, which is not scored"
    where = "every window" if added_ids(tokenizer) else "the first token"
    return f"{' '.join(tokenizer.convert_ids_to_tokens(ids))} before {where}"


def check_finite(scores: TextScore) -> TextScore:
    """The score, if it is one.

    Raises:
        AntError: the loss is not a number.
    """
    if not math.isfinite(scores.nats):
        raise AntError(
            "the model's loss is not a number",
            hint="Its weights contain NaN or infinity, or are so large that they overflow. Pass another "
            "model or checkpoint.",
        )
    return scores


def score_file(
    model_folder: Path,
    file: Path,
    context: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[TextScore, int, str]:
    """Score a text file under anyone's model, in fp32.

    Args:
        file: UTF-8, also as .gz; `-` for stdin.
        context: as `score_folder` takes it.

    Returns:
        The score, the context used, in tokens, and what stood before the text.

    Raises:
        AntError: as `load_any` and `score_text`, or the file is missing or not UTF-8.
    """
    text = read_text(file)
    model, tokenizer = load_any(model_folder)
    check_causal(model)
    context = _checked_context(context, context_length(model, tokenizer), len(added_ids(tokenizer)) or 1)
    return score_text(model, tokenizer, text, context, progress=progress), context, described_start(tokenizer)


def read_text(file: Path) -> str:
    """A text file, also as .gz; `-` for stdin.

    Raises:
        AntError: the file is missing or not UTF-8.
    """
    if str(file) == "-":
        data = sys.stdin.buffer.read()
    else:
        if not file.is_file():
            raise missing_file(file, "text file", "Pass one text file: --text FILE, or - for stdin.")
        with opened(file) as handle:
            data = handle.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if str(file) == "-":
            raise AntError(
                f"stdin is not UTF-8: byte offset {error.start:,}", hint="Convert the text to UTF-8 first."
            ) from None
        raise not_utf8(file, error.start) from None


def _checked_context(asked: int | None, longest: int, shortest: int = 1) -> int:
    """The context to score with, in tokens: the one asked for, else the model's own, at most 2,048."""
    if asked is None:
        return min(longest, _LONGEST_UNASKED)
    if not shortest <= asked <= longest:
        raise AntError(
            "--context is out of the model's range",
            seen=asked,
            expected=f"{shortest} to {longest} tokens",
            hint=f"Leave it out to use {min(longest, _LONGEST_UNASKED)}.",
        )
    return asked


def score_folder(
    model_folder: Path,
    tokens_folder: Path,
    context: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[TextScore, int]:
    """Reload a model folder in fp32 and score a tokens folder's validation split.

    Args:
        context: tokens before a token at most, from 1 to the model's maximum; None for the maximum, which
            of long ones is cut to 2,048.
        batch_size: windows a forward pass; None: as many as fit.

    Returns:
        The score, and the context used, in tokens.

    Raises:
        AntError: the folder is not a model, the context is out of its range, the tokens are damaged, made
            with another tokenizer, or hold nothing to score; the loss is not a number.
    """
    model, tokenizer = load_any(model_folder)
    context = _checked_context(context, context_length(model, tokenizer))
    files = tokenizer_folder(model_folder)
    check_hash(
        f"{tokens_folder} was packed with another tokenizer than that of {model_folder}",
        read_manifest(tokens_folder)["inputs"]["tokenizer_sha256"],
        file_sha256(files / TOKENIZER) if (files / TOKENIZER).is_file() else None,
    )
    verify_shards(tokens_folder, (VALIDATION,))
    lengths = token_byte_lengths(load_tokenizer(files))
    tokens = PackedTokens(tokens_folder, VALIDATION)
    batch_size = batch_size or _batch_size(len(lengths), context)
    scores = score_tokens(model, tokens, lengths, context=context, batch_size=batch_size, progress=progress)
    if not scores.bytes:
        raise AntError(
            f"the validation split of {tokens_folder} is too short to be scored",
            seen=f"{len(tokens)} tokens; the first one and end-of-text tokens do not count",
            hint="Pass a longer one: --tokens FOLDER",
        )
    return check_finite(scores), context
