"""Attention heads by their weights: which write nothing, which do the same as another."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from ant_hf.inspection.weights import layers_of

# Of the model's median head. A trained head is a few times larger or smaller than another.
DEAD_SHARE = 0.01
# Independent heads are near 0 in both; only copies come near 1 in both.
DUPLICATE_COSINE = 0.95


@dataclass(frozen=True)
class Head:
    """One query head; layers and heads count from 0."""

    layer: int
    head: int
    write_norm: float
    """Frobenius norm of W_O W_V, the head's map from the residual stream to itself."""
    write_share: float
    """write_norm over that of the model's median head."""
    like: int | None
    """Another head of the layer that it duplicates."""
    cosine: float
    """The smaller of the two cosines to the head of the layer that is most like it."""

    @property
    def is_dead(self) -> bool:
        """Writes less than DEAD_SHARE of what the median head does."""
        return self.write_share < DEAD_SHARE


def read_heads(model: PreTrainedModel) -> list[Head]:
    """Measure every query head by its two low-rank maps, W_O W_V and W_Q^T W_K.

    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": a head reads and writes
    through these products alone. Two heads are duplicates if the cosine (Frobenius inner product over
    norms) is above DUPLICATE_COSINE for both; rotary embeddings are taken at distance 0.
    """
    found = [
        (number, *values)
        for number, layer in enumerate(layers_of(model))
        for values in _layer_heads(layer.self_attn)
    ]
    middle = median(norm for _, _, norm, _, _ in found) or 1.0
    return [
        Head(number, head, norm, norm / middle, other if cosine > DUPLICATE_COSINE else None, cosine)
        for number, head, norm, other, cosine in found
    ]


def _layer_heads(attention: Any) -> list[tuple[int, float, int | None, float]]:
    """(head, write norm, most similar head, its cosine) for each head of a layer."""
    size = attention.head_dim
    q_HDC = attention.q_proj.weight.detach().double().unflatten(0, (-1, size))
    k_GDC, v_GDC = (
        projection.weight.detach().double().unflatten(0, (-1, size))
        for projection in (attention.k_proj, attention.v_proj)
    )
    repeat = len(q_HDC) // len(k_GDC)
    k_HDC, v_HDC = k_GDC.repeat_interleave(repeat, 0), v_GDC.repeat_interleave(repeat, 0)
    o_HDC = attention.o_proj.weight.detach().double().unflatten(1, (-1, size)).permute(1, 2, 0)
    writes_HH, reads_HH = _inner_products(o_HDC, v_HDC), _inner_products(q_HDC, k_HDC)
    norms = writes_HH.diagonal().clamp(min=0).sqrt()
    cosines_HH = torch.minimum(_cosines(writes_HH), _cosines(reads_HH)).fill_diagonal_(-1.0)
    if len(norms) == 1:
        return [(0, float(norms[0]), None, 0.0)]
    best = cosines_HH.max(dim=1)
    return list(
        zip(range(len(norms)), norms.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
    )


def _inner_products(left_HDC: torch.Tensor, right_HDC: torch.Tensor) -> torch.Tensor:
    """<A_i^T B_i, A_j^T B_j> in the Frobenius sense for all pairs of heads, without forming the products."""
    lefts = torch.einsum("idc,jec->ijde", left_HDC, left_HDC)
    rights = torch.einsum("idc,jec->ijde", right_HDC, right_HDC)
    return (lefts * rights).sum((-2, -1))


def _cosines(products_HH: torch.Tensor) -> torch.Tensor:
    norms = products_HH.diagonal().clamp(min=0).sqrt()
    # A head of zeros is like no other.
    return products_HH / (norms[:, None] * norms).clamp(min=1e-30)
