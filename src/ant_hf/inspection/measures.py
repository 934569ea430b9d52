"""Measures of a model: its matrices, its heads, its embedding rows, and what a text sets off in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.utils.console import progress_bar

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# A Gaussian matrix of a million entries has 0.002 beyond it.
OUTLIER_DEVIATIONS = 6.0
# Of the model's median head. A trained head is a few times larger or smaller than another.
DEAD_SHARE = 0.01
# Independent heads are near 0 in both; only copies come near 1 in both.
DUPLICATE_COSINE = 0.95
# Attention of eager kernels takes heads x tokens^2 floats a layer.
MAX_TOKENS = 1024


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The decoder layers.

    Raises:
        AntError: the model is not built like a Llama.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    # A model that reads images too keeps its sizes elsewhere.
    is_of_text = model.config is model.config.get_text_config(decoder=True)
    if not isinstance(layers, torch.nn.ModuleList) or not all([is_of_text, *map(_is_llama_like, layers)]):
        raise AntError(
            "only models built like a Llama can be inspected",
            seen=type(model).__name__,
            expected="dense layers with self_attn of " + ", ".join(ATTENTION),
        )
    return layers


def _is_llama_like(layer: torch.nn.Module) -> bool:
    attention = getattr(layer, "self_attn", None)
    linear = (isinstance(getattr(attention, name, None), torch.nn.Linear) for name in ATTENTION)
    # Experts are stacked in tensors of three dimensions, which none of the measures here is made for.
    dense = all(parameter.dim() <= 2 for parameter in layer.parameters())
    return hasattr(attention, "head_dim") and all(linear) and dense


@dataclass(frozen=True)
class Matrix:
    """One weight matrix of one layer."""

    layer: int
    name: str
    shape: tuple[int, int]
    """(outputs, inputs)."""
    rms: float
    """Root mean square of the entries: the Frobenius norm over the root of their number."""
    singular_values: np.ndarray
    """All of them, largest first, shape (min(shape),)."""
    outliers: int
    """Entries beyond OUTLIER_DEVIATIONS standard deviations of the matrix."""
    largest_deviation: float
    """|entry - mean| of the largest, in standard deviations."""
    largest_at: tuple[int, int]
    """Its row (output) and column (input)."""

    @property
    def effective_rank(self) -> float:
        return effective_rank(self.singular_values)

    @property
    def rank_share(self) -> float:
        """Effective rank over the largest possible one."""
        return self.effective_rank / min(self.shape)

    @property
    def frobenius_norm(self) -> float:
        return float(np.sqrt((self.singular_values**2).sum()))

    @property
    def top_singular_values(self) -> list[float]:
        return self.singular_values[:5].tolist()


def effective_rank(singular_values: np.ndarray) -> float:
    """The exponential of the entropy of singular values that are scaled to sum 1; 0 for a matrix of zeros.

    Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality" (EUSIPCO).
    Between 1 (one direction) and the number of values (all directions alike).
    """
    total = singular_values.sum()
    if total <= 0:
        return 0.0
    shares = singular_values[singular_values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def read_matrices(model: PreTrainedModel) -> list[Matrix]:
    """Measure every linear matrix of every layer, in the order of the module tree."""
    todo = [
        (number, name.rpartition(".")[2], module.weight.detach())
        for number, layer in enumerate(layers_of(model))
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    matrices = []
    with progress_bar("spectra") as advance:
        for number, name, weight in todo:
            matrices.append(_matrix(number, name, weight.double().cpu()))
            advance(1, len(todo))
    return matrices


def _matrix(layer: int, name: str, values: torch.Tensor) -> Matrix:
    deviation = (values - values.mean()).abs() / values.std().clamp(min=1e-30)
    return Matrix(
        layer=layer,
        name=name,
        shape=(values.shape[0], values.shape[1]),
        rms=float(values.square().mean().sqrt()),
        singular_values=torch.linalg.svdvals(values).numpy(),
        outliers=int((deviation > OUTLIER_DEVIATIONS).sum()),
        largest_deviation=float(deviation.max()),
        largest_at=divmod(int(deviation.argmax()), values.shape[1]),
    )


@dataclass(frozen=True)
class Head:
    """One query head; layers and heads count from 0."""

    layer: int
    head: int
    write_norm: float
    """Frobenius norm of W_O W_V, the head's map from the residual stream to itself."""
    write_share: float
    """write_norm over that of the model's median head."""
    duplicates: int | None
    """Another head of the layer that does the same."""
    cosine: float
    """The smaller of the two cosines to the head of the layer that is most like it."""

    @property
    def dead(self) -> bool:
        """Writes less than DEAD_SHARE of what the median head does."""
        return self.write_share < DEAD_SHARE


def read_heads(model: PreTrainedModel) -> list[Head]:
    """Measure every query head by its two low-rank maps, W_O W_V and W_Q^T W_K.

    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": a head reads and writes
    through these products alone. Two heads are duplicates if the cosine (Frobenius inner product over
    norms) is above DUPLICATE_COSINE for both; rotary embeddings are taken at distance 0.
    """
    found = [
        (layer, head, *values)
        for layer, module in enumerate(layers_of(model))
        for head, values in enumerate(_layer_heads(module.self_attn))
    ]
    middle = median(norm for _, _, norm, _, _ in found) or 1.0
    return [
        Head(layer, head, norm, norm / middle, other if cosine > DUPLICATE_COSINE else None, cosine)
        for layer, head, norm, other, cosine in found
    ]


def _layer_heads(attention: Any) -> Iterator[tuple[float, int, float]]:
    """(write norm, most similar head, its cosine) for each head of a layer."""

    def by_head(projection: torch.nn.Linear, dim: int = 0) -> torch.Tensor:
        return projection.weight.detach().double().unflatten(dim, (-1, attention.head_dim))

    q_HDC, k_GDC, v_GDC = map(by_head, (attention.q_proj, attention.k_proj, attention.v_proj))
    repeat = len(q_HDC) // len(k_GDC)
    k_HDC, v_HDC = k_GDC.repeat_interleave(repeat, 0), v_GDC.repeat_interleave(repeat, 0)
    o_HDC = by_head(attention.o_proj, 1).permute(1, 2, 0)
    writes_HH, reads_HH = _inner_products(o_HDC, v_HDC), _inner_products(q_HDC, k_HDC)
    norms_H = writes_HH.diagonal().clamp(min=0).sqrt()
    # Not itself; a single head of a layer is like no other.
    itself = -1.0 if len(norms_H) > 1 else 0.0
    cosines_HH = torch.minimum(_cosines(writes_HH), _cosines(reads_HH)).fill_diagonal_(itself)
    best = cosines_HH.max(dim=1)
    return zip(norms_H.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)


def _inner_products(left_HDC: torch.Tensor, right_HDC: torch.Tensor) -> torch.Tensor:
    """<A_i^T B_i, A_j^T B_j> in the Frobenius sense for all pairs of heads, without forming the products."""
    lefts, rights = (torch.einsum("idc,jec->ijde", maps, maps) for maps in (left_HDC, right_HDC))
    return (lefts * rights).sum((-2, -1))


def _cosines(products_HH: torch.Tensor) -> torch.Tensor:
    norms = products_HH.diagonal().clamp(min=0).sqrt()
    # A head of zeros is like no other.
    return products_HH / (norms[:, None] * norms).clamp(min=1e-30)


@dataclass(frozen=True)
class Embeddings:
    """Norms of the input embeddings' rows beside how often their tokens occur."""

    norms: np.ndarray
    """Euclidean norms, shape (vocab_size,)."""
    counts: np.ndarray
    """How often each token occurs in the counted tokens, shape (vocab_size,)."""
    counted: str
    """What was counted, in words."""
    from_training: bool
    """Whether the counted tokens are the training's."""

    @property
    def unseen(self) -> list[int]:
        """Ids that do not occur."""
        return np.flatnonzero(self.counts == 0).tolist()

    @property
    def rank_correlation(self) -> float:
        """Spearman's, between norm and count of the tokens that occur; nan for fewer than three."""
        seen = self.counts > 0
        by_norm, by_count = _ranks(self.norms[seen]), _ranks(self.counts[seen])
        if seen.sum() < 3 or by_norm.std() == 0 or by_count.std() == 0:
            return float("nan")
        return float(np.corrcoef(by_norm, by_count)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Ranks, the mean rank for ties."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def embedding_norms(model: PreTrainedModel) -> np.ndarray:
    """Euclidean norms of the input embeddings' rows, shape (vocab_size,)."""
    embeddings: Any = model.get_input_embeddings()
    return embeddings.weight.detach().double().norm(dim=1).cpu().numpy()


@dataclass(frozen=True)
class Activations:
    """Measured on one window of a text."""

    tokens: int
    entropy: np.ndarray
    """Attention entropy by layer and head as a share of that of even attention, shape (layers, heads)."""
    first_token_share: np.ndarray
    """Mean attention on the very first token, shape (layers, heads)."""
    hidden_rank: np.ndarray
    """Effective rank of the residual stream: embeddings, then after each layer, shape (layers + 1,)."""
    hidden_size: int
    logit_std: float
    """Standard deviation over the vocabulary, mean over the tokens."""
    logit_max: float
    """Largest logit over the mean of its place, mean over the tokens."""

    @property
    def rank_bound(self) -> int:
        """No text of so few tokens could show more dimensions than this."""
        return min(self.tokens - 1, self.hidden_size)


@torch.no_grad()
def read_activations(model: PreTrainedModel, token_ids: list[int]) -> Activations:
    """Run the first tokens of a text, at most the context and MAX_TOKENS, and measure on the way.

    Entropy is the mean over the places from the second on of H / ln(tokens that can be seen there): 1 is
    even attention, 0 is one token only. Hidden states are centred first; effective rank is Roy and
    Vetterli's (2007), of the singular values of the tokens x hidden_size matrix.

    Raises:
        AntError: fewer than two tokens.
    """
    ids = token_ids[: min(MAX_TOKENS, model.config.max_position_embeddings)]
    if len(ids) < 2:
        raise AntError(
            "the text is too short to inspect the model with",
            seen=f"{len(ids)} tokens",
            expected="at least 2 tokens",
            hint="Pass a longer one with --text.",
        )
    inputs_1T = torch.tensor([ids], device=model.device)
    with _watching(model) as (attention, hidden):
        logits_TV = model(input_ids=inputs_1T, use_cache=False).logits[0].float()
    entropy, first_token_share = (np.stack(figures) for figures in zip(*attention, strict=True))
    return Activations(
        tokens=len(ids),
        entropy=entropy,
        first_token_share=first_token_share,
        hidden_rank=np.array(hidden),
        hidden_size=model.config.hidden_size,
        logit_std=float(logits_TV.std(dim=-1).mean()),
        logit_max=float((logits_TV.max(dim=-1).values - logits_TV.mean(dim=-1)).mean()),
    )


@contextmanager
def _watching(model: PreTrainedModel) -> Iterator[tuple[list[tuple[np.ndarray, np.ndarray]], list[float]]]:
    """Collect what each layer shows while it runs, and keep none of its tensors."""
    attention: list[tuple[np.ndarray, np.ndarray]] = []
    hidden: list[float] = []

    def on_attention(module: Any, inputs: Any, output: Any) -> None:
        # Means over the places from the second on.
        p_HTT = output[1][0][:, 1:].float()
        even_T = torch.tensor([math.log(seen) for seen in range(2, p_HTT.shape[1] + 2)], device=p_HTT.device)
        entropy_HT = torch.special.entr(p_HTT).sum(-1) / even_T
        attention.append((entropy_HT.mean(-1).cpu().numpy(), p_HTT[:, :, 0].mean(-1).cpu().numpy()))

    def on_layer(module: Any, inputs: Any, output: Any) -> None:
        if not hidden:
            hidden.append(_hidden_rank(inputs[0][0]))
        hidden.append(_hidden_rank((output[0] if isinstance(output, tuple) else output)[0]))

    layers: Any = layers_of(model)
    before = model.config._attn_implementation
    # The others show no weights.
    model.set_attn_implementation("eager")
    handles = [layer.register_forward_hook(on_layer) for layer in layers]
    handles += [layer.self_attn.register_forward_hook(on_attention) for layer in layers]
    try:
        yield attention, hidden
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(before)


def _hidden_rank(states_TC: torch.Tensor) -> float:
    centred_TC = states_TC.double() - states_TC.double().mean(0)
    return effective_rank(torch.linalg.svdvals(centred_TC).cpu().numpy())
