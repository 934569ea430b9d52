"""A Llama as one GGUF file, and what Ollama reads beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.export.vocabulary import Vocabulary
from ant_hf.model.generation import CARD_SAMPLING


@dataclass(frozen=True)
class GgufType:
    """How weights are stored, and how far that may take a file from the model it was made of."""

    file_type: str
    """In the file's head, of llama.cpp's `llama_ftype`."""
    bytes: float
    """Of a weight."""
    tie: float
    """Where greedy outputs part: how near the two tokens' logits must be for it to be rounding, in standard
    deviations of the logits."""
    loss: float
    """How far the bits that plain English costs may be from those of the original, as a share of these,
    or of 1 bit a byte if they are fewer."""
    embeddings: str | None = None
    """The type of the embeddings and the output projection, if it is another one."""


# llama.cpp multiplies F16 with activations rounded to F16, and the smaller types with activations rounded to
# 8 bits. The token of another model would be some three standard deviations from the likeliest. Below 8 bits
# embeddings and output stay finer, as in llama.cpp's own llama-quantize (there Q6_K, which the gguf package
# does not write). Its K types need rows of a multiple of 256, and Ant-10M has some of 704.
TYPES = {
    "f32": GgufType("ALL_F32", 4, 1e-3, 0.0002),
    "f16": GgufType("MOSTLY_F16", 2, 0.1, 0.001),
    "q8_0": GgufType("MOSTLY_Q8_0", 34 / 32, 0.5, 0.02),
    "q5_1": GgufType("MOSTLY_Q5_1", 24 / 32, 0.5, 0.05, "q8_0"),
    "q5_0": GgufType("MOSTLY_Q5_0", 22 / 32, 0.5, 0.05, "q8_0"),
    "q4_1": GgufType("MOSTLY_Q4_1", 20 / 32, 0.5, 0.1, "q8_0"),
    "q4_0": GgufType("MOSTLY_Q4_0", 18 / 32, 0.5, 0.1, "q8_0"),
}
# On Ant-10M the types of 5 bits lost no less than Q4_1 (docs/export.md).
DEFAULT_TYPES = ("f32", "f16", "q8_0", "q4_1", "q4_0")
# Numbers that share a scale in the types that begin with q.
_BLOCK = 32
# In Transformers and in GGUF.
_EMBEDDINGS = {"model.embed_tokens.weight", "lm_head.weight", "token_embd.weight", "output.weight"}


def suggested(kinds: Sequence[str]) -> str:
    """The smallest type of at least 8 bits, whose loss nobody notices; without one, the largest."""
    return min(kinds, key=lambda kind: (TYPES[kind].bytes < 1, abs(TYPES[kind].bytes - 1)))


def file_name(name: str, kind: str) -> str:
    """Of a model's file: the type at the end is what llama.cpp and Ollama take as a tag, as in `:Q8_0`."""
    return f"{name}-{kind.upper()}.gguf"


# --- The weights: llama.cpp's names, its order of rotary dimensions, its types.

# What llama.cpp's `llama` computes, by key of config.json. Mistral is the same without its window.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama", "mistral"),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
}


def check_architecture(model: PreTrainedModel, kinds: Sequence[str]) -> None:
    """Check that llama.cpp's `llama` architecture and the types can hold the model.

    Raises:
        AntError: names the key of the config, or the weight.
    """
    rope = getattr(model.config, "rope_parameters", None) or {}
    found = {key: (getattr(model.config, key, None), allowed) for key, allowed in _PLAIN.items()}
    found["rope_parameters.rope_type"] = rope.get("rope_type", "default"), ("default",)
    for key, (seen, allowed) in found.items():
        if seen not in allowed:
            raise AntError(
                f"only plain Llama models can be exported to GGUF, and config.json has another {key}",
                seen=seen,
                expected=" or ".join(str(value) for value in allowed if value is not None),
                hint="Export to ONNX, which takes more architectures: --to onnx",
            )
    blocks = next((kind.upper() for kind in kinds if kind.startswith("q")), None)
    for name, weight in model.state_dict().items():
        if weight.ndim != 2:
            continue
        if blocks and weight.shape[1] % _BLOCK:
            raise AntError(
                f"{blocks} stores blocks of {_BLOCK} numbers, and the row length of {name} is not a multiple "
                f"of {_BLOCK}",
                seen=weight.shape[1],
                hint="Export without it: --type f32 --type f16",
            )
        if "f16" in kinds and (peak := weight.abs().max().item()) > torch.finfo(torch.float16).max:
            raise AntError(
                f"{name} holds a value too large for F16",
                seen=peak,
                expected="at most 65504",
                hint="Export in F32: --type f32",
            )


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Name in GGUF and values of every weight, shape (out, in) or (width,).

    The output projection is left out when it is the embedding; llama.cpp then takes the embedding.

    Raises:
        AntError: a weight has no name in llama.cpp's `llama` architecture.
    """
    import gguf

    config, embeddings = model.config, cast("torch.nn.Embedding", model.get_input_embeddings()).weight
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and weight.data_ptr() == embeddings.data_ptr():
            continue
        target = names.get_name(name, try_suffixes=(".weight",))
        if target is None:
            raise AntError(
                "llama.cpp's llama architecture has no place for a weight of this model",
                seen=name,
                hint="Export to ONNX, which takes more architectures: --to onnx",
            )
        values = weight.to(torch.float32).numpy()
        if rotated := heads.get(name.split(".")[-2]):
            values = interleave(values, rotated)
        yield target, values


def interleave(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a query or key projection, from halves to pairs.

    Transformers rotates dimension i of a head with i + head_dim / 2; llama.cpp's `llama` rotates neighbours.

    Args:
        weight: shape (heads * head_dim, hidden).
    """
    rows, hidden = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, hidden).swapaxes(1, 2).reshape(rows, hidden)


def stored(name: str, values: NDArray[np.float32], kind: str) -> tuple[NDArray[Any], Any]:
    """The bytes and the GGUF type of a tensor: norms, being vectors, stay in F32."""
    import gguf

    if values.ndim == 1:
        kind = "f32"
    elif name in _EMBEDDINGS:
        kind = TYPES[kind].embeddings or kind
    quantization = gguf.GGMLQuantizationType[kind.upper()]
    return gguf.quants.quantize(values, quantization), quantization


def rounded(model: PreTrainedModel, kind: str) -> dict[str, torch.Tensor]:
    """The model's own state with every weight rounded as the type stores it.

    Interleaving moves whole rows, and blocks lie within rows, so rounding before or after it is the same.
    """
    import gguf

    state = {}
    for name, weight in model.state_dict().items():
        data, quantization = stored(name, weight.to(torch.float32).numpy(), kind)
        state[name] = torch.from_numpy(np.array(gguf.quants.dequantize(data, quantization)))
    return state


# --- The file, written with the gguf package's own writer.


@dataclass(frozen=True)
class Origin:
    """What a file says about where it comes from."""

    name: str
    repository: str | None = None
    """`owner/name` on the Hub."""
    license: str | None = None
    """As the Hub spells it."""


def write_gguf(path: Path, model: PreTrainedModel, vocabulary: Vocabulary, kind: str, origin: Origin) -> None:
    """Write a model that `check_architecture` lets pass as one of `TYPES`.

    Raises:
        AntError: llama.cpp has no name for a weight.
    """
    import gguf

    config, writer = model.config, gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(origin.name)
    writer.add_size_label(f"{model.num_parameters() / 1e6:.1f}M")
    if origin.license:
        writer.add_license(origin.license)
    if origin.repository:
        writer.add_source_repo_url(f"https://huggingface.co/{origin.repository}")
    writer.add_file_type(gguf.LlamaFileType[TYPES[kind].file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for name, index in vocabulary.special_ids.items():
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    # transformers would put one there by itself.
    writer.add_add_space_prefix(False)
    templates = vocabulary.chat_templates.items()
    writer.add_chat_template([{"name": name, "template": template} for name, template in templates])
    for name, value in (settings := sampling(model)).items():
        getattr(writer, f"add_sampling_{SAMPLING[name][0]}")(value)
    if settings:
        # All of the context, as Transformers.
        writer.add_sampling_penalty_last_n(-1)
    try:
        for name, values in tensors(model):
            data, quantization = stored(name, values, kind)
            writer.add_tensor(name, data, raw_dtype=quantization)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


# By name in generation_config.json: the name in GGUF, and what Transformers takes where none is given.
SAMPLING: dict[str, tuple[str, float]] = {
    "temperature": ("temp", 1.0),
    "top_k": ("top_k", 50),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
    "repetition_penalty": ("penalty_repeat", 1.0),
}


def sampling(model: PreTrainedModel) -> dict[str, float]:
    """How `generate` samples from a model by itself, by names of `SAMPLING`; empty if it does not."""
    given: Any = model.generation_config
    if not given.do_sample:
        return {}
    found = {name: (getattr(given, name, None), default) for name, (_, default) in SAMPLING.items()}
    return {name: default if value is None else value for name, (value, default) in found.items()}


# What Ollama reads in a repository of the Hub: https://huggingface.co/docs/hub/ollama
TEMPLATE, PARAMS = "template", "params"
_PROMPT_ALONE = "{{ .Prompt }}"


def ollama_files(
    file: str, model: PreTrainedModel, vocabulary: Vocabulary, license_id: str | None
) -> dict[str, str]:
    """What Ollama reads beside a GGUF file, by name.

    `params` and `template` are for `ollama run` on a repository of the Hub; the `Modelfile` says the same to
    `ollama create` in a folder. The sampling is the model's own or else that of the public card. Ollama keeps
    the 40 likeliest tokens and penalizes the last 64 by default; Transformers keeps the 50 likeliest and
    penalizes all of the context.

    Without a chat template the prompt alone is the template: Ollama would put a chat around it. With one,
    Ollama looks for it in the GGUF file, and there is no `template`.
    """
    defaults = {name: default for name, (_, default) in SAMPLING.items()}
    settings = sampling(model) or defaults | CARD_SAMPLING
    parameters: dict[str, Any] = {"num_ctx": model.config.max_position_embeddings}
    parameters |= {name.replace("repetition", "repeat"): value for name, value in settings.items()}
    parameters |= {"repeat_last_n": -1}
    stops = vocabulary.names(index for index in vocabulary.other_ends if index in vocabulary.named)
    completes = not vocabulary.chat_templates
    lines = [f"FROM ./{file}"] + [f"TEMPLATE {_PROMPT_ALONE}"] * completes
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    lines += [f'PARAMETER stop "{name}"' for name in stops]
    lines += [f"LICENSE {license_id}"] if license_id else []
    params = parameters | ({"stop": stops} if stops else {})
    found = {"Modelfile": "\n".join(lines) + "\n", PARAMS: json.dumps(params, indent=2) + "\n"}
    # A line end would be part of every prompt.
    return found | ({TEMPLATE: _PROMPT_ALONE} if completes else {})
