"""Matrices of each layer: norms, spectra, outliers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from ant_hf.errors import AntError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# A Gaussian matrix of a million entries has 0.002 beyond it.
OUTLIER_DEVIATIONS = 6.0
TOP_SINGULAR_VALUES = 5


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
        return [float(value) for value in self.singular_values[:TOP_SINGULAR_VALUES]]


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


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The decoder layers.

    Raises:
        AntError: the model is not built like a Llama.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or not all(_is_llama_like(layer) for layer in layers):
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


def linear_weights(layer: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and weight of every linear module of a layer, in the order of the module tree."""
    for name, module in layer.named_modules():
        if isinstance(module, torch.nn.Linear):
            yield name.rpartition(".")[2], module.weight.detach()


def check_finite(model: PreTrainedModel) -> None:
    """Refuse weights of which no spectrum can be computed.

    Raises:
        AntError: a tensor holds NaN or infinity; names it and how many.
    """
    for name, parameter in model.named_parameters():
        if bad := int((~torch.isfinite(parameter)).sum()):
            raise AntError(f"{name} holds NaN or infinity", seen=f"{bad:,} of {parameter.numel():,} entries")


def read_matrices(
    model: PreTrainedModel, advance: Callable[[int, int], None] = lambda done, total: None
) -> list[Matrix]:
    """Measure every linear matrix of every layer.

    Args:
        advance: told the matrices newly done and their total.
    """
    todo = [
        (number, name, weight)
        for number, layer in enumerate(layers_of(model))
        for name, weight in linear_weights(layer)
    ]
    matrices = []
    for number, name, weight in todo:
        matrices.append(_matrix(number, name, weight))
        advance(1, len(todo))
    return matrices


def _matrix(layer: int, name: str, weight: torch.Tensor) -> Matrix:
    values = weight.double().cpu()
    deviation = (values - values.mean()).abs() / values.std().clamp(min=1e-30)
    row, column = divmod(int(deviation.argmax()), values.shape[1])
    return Matrix(
        layer=layer,
        name=name,
        shape=(values.shape[0], values.shape[1]),
        rms=float(values.square().mean().sqrt()),
        singular_values=torch.linalg.svdvals(values).numpy(),
        outliers=int((deviation > OUTLIER_DEVIATIONS).sum()),
        largest_deviation=float(deviation.max()),
        largest_at=(row, column),
    )
