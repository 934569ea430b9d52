"""One GGUF file, written with the gguf package's own writer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ant_hf.export.gguf_tensors import check_architecture, stored, tensors
from ant_hf.export.gguf_vocabulary import Vocabulary

_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}


@dataclass(frozen=True)
class Origin:
    """What a file says about where it comes from."""

    name: str
    repository: str | None = None
    """`owner/name` on the Hub."""
    license: str | None = None
    """As the Hub spells it."""


def write_gguf(path: Path, model: PreTrainedModel, vocabulary: Vocabulary, kind: str, origin: Origin) -> None:
    """Write a model as `f32`, `f16` or `q8_0`.

    Raises:
        AntError: the architecture or the type cannot hold these weights.
    """
    import gguf

    check_architecture(model, kind)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    try:
        _describe(writer, model, kind, origin)
        _add_vocabulary(writer, vocabulary)
        for name, values in tensors(model):
            data, quantization = stored(values, kind)
            writer.add_tensor(name, data, raw_dtype=quantization)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _describe(writer: Any, model: PreTrainedModel, kind: str, origin: Origin) -> None:
    import gguf

    config = model.config
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(origin.name)
    writer.add_size_label(f"{model.num_parameters() / 1e6:.1f}M")
    if origin.license:
        writer.add_license(origin.license)
    if origin.repository:
        writer.add_source_repo_url(f"https://huggingface.co/{origin.repository}")
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[kind]])
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


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for add, token in (
        (writer.add_bos_token_id, vocabulary.bos_id),
        (writer.add_eos_token_id, vocabulary.eos_id),
        (writer.add_pad_token_id, vocabulary.pad_id),
        (writer.add_unk_token_id, vocabulary.unknown_id),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    # transformers would put one there by itself.
    writer.add_add_space_prefix(False)
