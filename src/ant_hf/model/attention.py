"""Causal attention for training on whole blocks: two functions that Transformers finds by name.

`causal_sdpa` is PyTorch's own attention, called so that its fast kernels can run. Transformers hides
them in two ways. Under `torch.compile` it builds a mask of all pairs of positions, and a call with a
mask is not flash attention (huggingface/transformers issue 48925). And it asks for grouped heads where
only flash attention knows them, so that fp32, and a GPU below SM 8.0, fall to the slow math kernel
(issues 48633 and 45776).

`causal_blocks` is for CPUs in 16 bits. PyTorch's CPU flash kernel reaches a quarter of the matrix rate
that the same processor reaches in plain bf16 products. This does the same sums as products over blocks
of queries, so that little above the diagonal is computed, and keeps the probabilities for the backward
pass. They cost `num_attention_heads x sequence_length / 2` numbers of 16 bits per token and layer, 4 KiB
for Ant-10M at 1,024 tokens. Measured in docs/performance.md.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

CAUSAL_BLOCKS = "causal_blocks"
CAUSAL_SDPA = "causal_sdpa"
"""The names under which Transformers finds them, as `attn_implementation`."""
_BLOCK = 128


# Operators of their own, so that a compiled layer is one graph and holds each as one call. Traced, they would
# be hundreds of small products for the compiler, which takes minutes over them.
@torch.library.custom_op("ant_hf::causal_blocks", mutates_args=())
def _causal_blocks(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """softmax(Q K^T) V for queries and keys of the same positions, and the probabilities by blocks.

    Shapes: queries (groups, heads, tokens, head_dim), keys and values (groups, tokens, head_dim),
    where a group is one key-value head of one sequence and `heads` are the query heads that share it.
    Probabilities of a block: (groups, heads x its queries, keys up to its last query).
    """
    groups, heads, tokens, head_dim = queries.shape
    output = torch.empty_like(queries)
    probabilities = []
    future = queries.new_full((_BLOCK, _BLOCK), -torch.inf).triu(1)
    for start, stop in _blocks(tokens):
        size = stop - start
        block = queries[:, :, start:stop].reshape(groups, heads * size, head_dim)
        scores = torch.bmm(block, keys[:, :stop].mT)
        scores.view(groups, heads, size, stop)[..., start:] += future[:size, :size]
        weights = torch.softmax(scores, dim=-1)
        output[:, :, start:stop] = torch.bmm(weights, values[:, :stop]).view_as(output[:, :, start:stop])
        probabilities.append(weights)
    return output, probabilities


@torch.library.custom_op("ant_hf::causal_blocks_backward", mutates_args=())
def _causal_blocks_backward(
    gradient: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    probabilities: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of queries, keys and values, in their shapes and types."""
    groups, _, tokens, head_dim = queries.shape
    d_queries = torch.empty_like(queries)
    # Every block of queries adds to these; in 16 bits the sum would lose digits.
    d_keys = torch.zeros_like(keys, dtype=torch.float32)
    d_values = torch.zeros_like(values, dtype=torch.float32)
    for (start, stop), weights in zip(_blocks(tokens), probabilities, strict=True):
        block = queries[:, :, start:stop].reshape(groups, -1, head_dim)
        d_block = gradient[:, :, start:stop].reshape(groups, -1, head_dim)
        d_weights = torch.bmm(d_block, values[:, :stop].mT)
        # Of softmax: p (dp - sum(p dp)).
        d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        d_queries[:, :, start:stop] = torch.bmm(d_scores, keys[:, :stop]).view_as(d_queries[:, :, start:stop])
        d_keys[:, :stop] += torch.bmm(d_scores.mT, block)
        d_values[:, :stop] += torch.bmm(weights.mT, d_block)
    return d_queries, d_keys.to(keys.dtype), d_values.to(values.dtype)


def _blocks(tokens: int) -> list[tuple[int, int]]:
    """First query of each block, and the one after its last."""
    return [(start, min(start + _BLOCK, tokens)) for start in range(0, tokens, _BLOCK)]


# What the compiler needs to know of an operator that it does not look into: the shapes it returns.
@_causal_blocks.register_fake
def _(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    groups, heads, tokens, _ = queries.shape
    shapes = [(groups, heads * (stop - start), stop) for start, stop in _blocks(tokens)]
    return torch.empty_like(queries), [queries.new_empty(shape) for shape in shapes]


@_causal_blocks_backward.register_fake
def _(
    gradient: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    probabilities: list[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in (queries, keys, values))


def _save_for_backward(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[Any, ...]) -> None:
    # Nothing uses the probabilities outside; gradients of zeros for them would cost their memory again.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output[1])


def _differentiate(ctx: Any, gradient: torch.Tensor, _: Any) -> tuple[torch.Tensor, ...]:
    queries, keys, values, *probabilities = ctx.saved_tensors
    return _causal_blocks_backward(gradient, queries, keys, values, probabilities)


_causal_blocks.register_autograd(_differentiate, setup_context=_save_for_backward)


def causal_blocks_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as Transformers calls it; anything but training in 16 bits goes to `causal_sdpa_forward`.

    Args:
        query: (batch, heads, tokens, head_dim).
        key: (batch, key_value_heads, tokens, head_dim), and so `value`.

    Returns:
        (batch, tokens, heads, head_dim), and no attention weights.
    """
    batch, heads, tokens, head_dim = query.shape
    whole = attention_mask is None and key.shape[2] == tokens and not dropout
    if not whole or value.dtype == torch.float32 or not torch.is_grad_enabled():
        return causal_sdpa_forward(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
    groups = batch * key.shape[1]
    # Under autocast the rotary embedding has made fp32 of queries and keys.
    scaled = (query * (scaling if scaling is not None else head_dim**-0.5)).to(value.dtype)
    output, _ = _causal_blocks(
        scaled.reshape(groups, heads // key.shape[1], tokens, head_dim),
        key.to(value.dtype).reshape(groups, tokens, head_dim),
        value.reshape(groups, tokens, head_dim),
    )
    return output.view(batch, heads, tokens, head_dim).transpose(1, 2), None


def causal_sdpa_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """PyTorch's attention with `is_causal`; padded batches and generation go to Transformers' own call.

    Shapes are those of `causal_blocks_forward`.
    """
    if attention_mask is not None or key.shape[2] != query.shape[2]:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    grouped = _knows_grouped_heads(value)
    if not grouped:
        repeats = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    return output.transpose(1, 2).contiguous(), None


def _knows_grouped_heads(value: torch.Tensor) -> bool:
    """Whether flash attention runs, the only fast kernel that takes fewer key-value heads than query heads.

    Under autocast queries and keys are still fp32 here, and the values tell what the kernel will get.
    """
    if value.device.type != "cuda":
        return value.device.type == "cpu"
    return value.dtype != torch.float32 and torch.cuda.get_device_capability(value.device) >= (8, 0)


def whole_block_mask(
    *,
    q_length: int,
    kv_length: int,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **kwargs: Any,
) -> torch.Tensor | None:
    """The mask of `sdpa`, but None while compiling where queries and keys are the same whole blocks.

    Transformers cannot look at values then, and builds a mask in case the positions hold several
    sequences. Packed blocks are one sequence each, so this must not be used with `position_ids` of
    several: outside of compilation they are seen and masked as ever.
    """
    plain = attention_mask is None and local_size is None and not use_vmap
    if plain and q_length == kv_length and torch.compiler.is_compiling():
        return None
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        local_size=local_size,
        use_vmap=use_vmap,
        **kwargs,
    )


for _name, _forward in ((CAUSAL_BLOCKS, causal_blocks_forward), (CAUSAL_SDPA, causal_sdpa_forward)):
    ALL_ATTENTION_FUNCTIONS.register(_name, _forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_name, whole_block_mask)
