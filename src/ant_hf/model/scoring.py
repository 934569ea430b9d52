"""The loss of packed tokens under a model: in training, of what was exported, and in the gate."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from ant_hf.data.tokenizer import load_tokenizer, token_byte_lengths
from ant_hf.data.tokens import VALIDATION, PackedTokens, read_manifest, verify_shards
from ant_hf.errors import AntError
from ant_hf.model.loading import load_final
from ant_hf.utils.files import check_hash, file_sha256
from ant_hf.utils.metrics import TextScore
from ant_hf.utils.names import TOKENIZER

# How far a reloaded model's loss may lie from the one recorded in training; 16-bit against fp32 differs
# by far less.
SAME_LOSS = 0.005


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
) -> TextScore:
    """Score every token but the first, each once, with at most `context` tokens before it.

    Windows of `context` inputs stand end to end; a window's targets are its inputs moved by one, so the
    first token of the next window is scored too.

    Args:
        byte_lengths: bytes of text by token id, shape (vocab_size,).
        batch_size: windows a forward pass.
        max_tokens: score at most this many, in whole windows spread evenly: a corpus is packed source
            by source, and its first tokens speak for the first source alone.
        share: (i, n) scores every n-th batch from the i-th on, to be summed over n processes.
    """
    was_training = model.training
    model.eval()
    device = model.device
    lengths = np.asarray(byte_lengths, dtype=np.int64)
    autocast = (
        torch.autocast(device.type, dtype=autocast_dtype) if autocast_dtype else contextlib.nullcontext()
    )
    starts = _window_starts(len(tokens), context, max_tokens)
    # Summed on the device, which would otherwise wait after each batch; Apple's GPUs have no float64.
    nats = torch.zeros((), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    count, size = 0, 0
    for first in range(share[0] * batch_size, len(starts), share[1] * batch_size):
        windows = [
            tokens.slice(s, min(s + context + 1, len(tokens))) for s in starts[first : first + batch_size]
        ]
        for group in _equal_lengths(windows):
            ids_BT = torch.from_numpy(np.stack(group).astype(np.int64)).to(device)
            targets_BT = ids_BT[:, 1:]
            with autocast:
                logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
            losses = torch.nn.functional.cross_entropy(
                logits_BTV.float().flatten(0, 1), targets_BT.flatten(), reduction="none"
            )
            nats += losses.to(nats.device).double().sum()
            count += targets_BT.numel()
            size += int(lengths[np.stack(group)[:, 1:]].sum())
    model.train(was_training)
    return TextScore(float(nats), count, size, len(lengths))


def _window_starts(tokens: int, context: int, max_tokens: int | None) -> list[int]:
    starts = range(0, tokens - 1, context)
    if max_tokens is None or max_tokens >= tokens - 1:
        return list(starts)
    count = max(1, max_tokens // context)
    return [starts[index * len(starts) // count] for index in range(count)]


def _equal_lengths(windows: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Only the very last window can be shorter: it is scored alone rather than padded."""
    full = [window for window in windows if len(window) == len(windows[0])]
    rest = [window for window in windows if len(window) != len(windows[0])]
    return [group for group in (full, rest) if group]


def score_folder(
    model_folder: Path, tokens_folder: Path, context: int | None = None, batch_size: int = 8
) -> tuple[TextScore, int]:
    """Reload a model folder in fp32 and score a tokens folder's validation split.

    Args:
        context: tokens before a token at most, from 1 to the model's maximum; None for the maximum.

    Returns:
        The score, and the context used, in tokens.

    Raises:
        AntError: the folder is no model, the context is out of its range, the tokens are damaged, were made
            with another tokenizer, or hold nothing to score.
    """
    model, _ = load_final(model_folder)
    longest = model.config.max_position_embeddings
    context = longest if context is None else context
    if not 1 <= context <= longest:
        raise AntError(
            "--context is out of the model's range",
            seen=context,
            expected=f"1 to {longest} tokens",
            hint=f"Leave it out for {longest}.",
        )
    check_hash(
        f"{tokens_folder} was packed with another tokenizer than {model_folder} has",
        read_manifest(tokens_folder)["inputs"]["tokenizer_sha256"],
        file_sha256(model_folder / TOKENIZER),
    )
    verify_shards(tokens_folder, (VALIDATION,))
    lengths = token_byte_lengths(load_tokenizer(model_folder))
    tokens = PackedTokens(tokens_folder, VALIDATION)
    scores = score_tokens(model, tokens, lengths, context=context, batch_size=batch_size)
    if not scores.bytes:
        raise AntError(
            f"the validation split of {tokens_folder} is too short to be scored",
            seen=f"{len(tokens)} tokens, of which the first and the ends of texts count no bytes",
            hint="Pass a longer one: --tokens FOLDER",
        )
    return scores, context
