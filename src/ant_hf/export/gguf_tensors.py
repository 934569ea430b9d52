"""Weights of a Llama under llama.cpp's names, in its order of rotary dimensions and its types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ant_hf.errors import AntError

TYPES = ("f32", "f16", "q8_0")
# Numbers that share a scale in Q8_0.
_BLOCK = 32
_EXPECTED: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
}


def check_architecture(model: PreTrainedModel, kind: str) -> None:
    """Refuse what llama.cpp's `llama` architecture, or a type, cannot hold.

    Raises:
        AntError: names the key of the config, or the weight.
    """
    config = model.config
    for key, expected in _EXPECTED.items():
        if (seen := getattr(config, key, None)) != expected:
            raise AntError(
                f"GGUF export is for plain Llama models; {key} differs", seen=seen, expected=str(expected)
            )
    if (rope := config.rope_parameters.get("rope_type", "default")) != "default":
        raise AntError(
            "GGUF export knows no scaled rotary positions", seen=rope, expected="rope_type default"
        )
    for name, weight in model.state_dict().items():
        if kind == "q8_0" and weight.ndim == 2 and weight.shape[1] % _BLOCK:
            raise AntError(
                f"Q8_0 stores blocks of {_BLOCK} numbers, and the rows of {name} are no multiple of it",
                seen=weight.shape[1],
                hint="Export without it: --type f32 --type f16",
            )
        if (
            kind == "f16"
            and weight.ndim == 2
            and (peak := weight.abs().max().item()) > torch.finfo(torch.float16).max
        ):
            raise AntError(
                f"{name} does not fit into F16", seen=peak, expected="at most 65504", hint="--type f32"
            )


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Name in GGUF and values of every weight, shape (out, in) or (width,).

    The output projection is left out when it is the embedding; llama.cpp then takes the embedding.

    Raises:
        AntError: a weight has no name in llama.cpp's `llama` architecture.
    """
    import gguf

    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        target = names.get_name(name, try_suffixes=(".weight",))
        if target is None:
            raise AntError("llama.cpp's llama has no such weight", seen=name)
        values = weight.to(torch.float32).numpy()
        if name.endswith("q_proj.weight"):
            values = interleave(values, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            values = interleave(values, config.num_key_value_heads)
        yield target, values


def interleave(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a query or key projection, from halves to pairs.

    Transformers rotates dimension i of a head with i + head_dim / 2; llama.cpp's `llama` rotates neighbours.

    Args:
        weight: shape (heads * head_dim, hidden).
    """
    rows, hidden = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, hidden).swapaxes(1, 2).reshape(rows, hidden)


def stored(values: NDArray[np.float32], kind: str) -> tuple[NDArray[Any], Any]:
    """The bytes and the GGUF type of a tensor: norms, being vectors, stay in F32."""
    import gguf

    quantization = gguf.GGMLQuantizationType["F32" if values.ndim == 1 else kind.upper()]
    return gguf.quants.quantize(values, quantization), quantization


def rounded(model: PreTrainedModel, kind: str) -> dict[str, torch.Tensor]:
    """The model's own state with every weight rounded as the type stores it.

    Interleaving moves whole rows, and blocks lie within rows, so rounding before or after it is the same.
    """
    import gguf

    state = {}
    for name, weight in model.state_dict().items():
        data, quantization = stored(weight.to(torch.float32).numpy(), kind)
        state[name] = torch.from_numpy(np.array(gguf.quants.dequantize(data, quantization)))
    return state
