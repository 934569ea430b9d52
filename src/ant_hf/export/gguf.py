"""A Llama as one GGUF file: its tokenizer, its weights, the file, what two programs make of it, a Modelfile.

llama.cpp knows pre-tokenizers by name and has no way to describe one. `smollm` cuts out every digit and then
applies GPT-2's expression, which is what `Digits(individual_digits=True)` followed by `ByteLevel` does
here; `gpt-2` applies the expression alone.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.export.llama_cpp import Questions, ask
from ant_hf.export.questions import check_greedy, check_texts, greedy_prompts, one_line, room_for
from ant_hf.model.generation import CARD_SAMPLING
from ant_hf.model.texts import ENGLISH
from ant_hf.utils.console import quiet_libraries
from ant_hf.utils.files import read_json


@dataclass(frozen=True)
class GgufType:
    """How weights are stored, and how far that may take a file from the model it was made of."""

    file_type: str
    """In the file's head, of llama.cpp's `llama_ftype`."""
    bytes: float
    """Of a weight."""
    logits: float
    """Largest difference of a logit, in standard deviations of the logits."""
    tie: float
    """Where greedy outputs part: how near the two tokens' logits must be for it to be rounding."""
    nats: float
    """Difference of the mean log-likelihood of a token."""


# llama.cpp multiplies F16 with activations rounded to F16, and Q8_0 with activations rounded to 8 bits.
TYPES = {
    "f32": GgufType("ALL_F32", 4, 0.0, 1e-3, 1e-3),
    "f16": GgufType("MOSTLY_F16", 2, 0.01, 0.02, 0.005),
    "q8_0": GgufType("MOSTLY_Q8_0", 34 / 32, 0.1, 0.1, 0.02),
}
# Numbers that share a scale in Q8_0.
_BLOCK = 32
_SCORED_TOKENS = 48


# --- The vocabulary: a byte-level BPE tokenizer as llama.cpp's `gpt2`, or a refusal.

# token_type in GGUF, as in llama.cpp's llama_token_type.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
# What llama.cpp's BPE does not have.
_BPE_OPTIONS = (
    "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback",
    "ignore_merges",
)  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF holds of a tokenizer."""

    pre_tokenizer: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special_ids: dict[str, int]
    """Of `bos`, `eos`, `pad` and `unk`, those that there are."""
    adds_bos: bool
    adds_eos: bool


def read_vocabulary(folder: Path, tokenizer: Any, vocab_size: int) -> Vocabulary:
    """Translate `tokenizer.json`.

    Args:
        tokenizer: the same tokenizer as transformers loads it, for what it adds to a text.
        vocab_size: rows of the model's embeddings; rows without an entry are filled up as unused.

    Raises:
        AntError: llama.cpp has nothing that cuts texts the same way; says what it lacks.
    """
    values = read_json(
        folder / "tokenizer.json", "tokenizer", "Only byte-level BPE in that file is exported."
    )
    pre_tokenizer, model = _pre_tokenizer(values), values["model"]
    if model.get("type") != "BPE":
        raise _refused("its model is no BPE", model.get("type"))
    if used := {name: model[name] for name in _BPE_OPTIONS if model.get(name)}:
        raise _refused("its BPE has options", used)
    tokens, types = _entries(values, vocab_size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
    special_ids = {name: index for name, index in ids.items() if index is not None}
    return Vocabulary(pre_tokenizer, tokens, types, merges, special_ids, *_added(tokenizer))


def _pre_tokenizer(values: dict[str, Any]) -> str:
    """llama.cpp's name for a tokenizer's pre-tokenizer."""
    if values.get("normalizer") is not None:
        raise _refused("it normalizes texts", values["normalizer"])
    given = values.get("pre_tokenizer") or {}
    steps = given.get("pretokenizers", []) if given.get("type") == "Sequence" else [given]
    # trim_offsets concerns offsets only; use_regex was not written by older versions.
    steps = [{"use_regex": True, **step} if step.get("type") == "ByteLevel" else step for step in steps]
    steps = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    if steps == [_DIGITS, _BYTE_LEVEL]:
        return "smollm"
    if steps == [_BYTE_LEVEL]:
        return "gpt-2"
    raise _refused("its pre-tokenizer is another one", steps)


def _entries(values: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Entries and their types by id."""
    by_id = {index: entry for entry, index in values["model"]["vocab"].items()}
    added = values.get("added_tokens", [])
    by_id |= {token["id"]: token["content"] for token in added}
    if sorted(by_id) != list(range(len(by_id))) or len(by_id) > vocab_size:
        raise _refused("its ids have gaps, or are more than the model has", f"{len(by_id)} entries")
    kinds = dict.fromkeys(by_id, NORMAL)
    for token in added:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _refused(
                f"the token {token['content']} takes spaces around it or wants a whole word", token
            )
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    tokens = [by_id.get(index, f"<unused{index}>") for index in range(vocab_size)]
    return tokens, [kinds.get(index, UNUSED) for index in range(vocab_size)]


def _added(tokenizer: Any) -> tuple[bool, bool]:
    """Whether a beginning and an end of text is added to every text; anything else is refused."""
    bare, whole = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    for bos in ([], [tokenizer.bos_token_id]):
        for eos in ([], [tokenizer.eos_token_id]):
            if whole == [*bos, *bare, *eos]:
                return bool(bos), bool(eos)
    raise _refused("it adds tokens to a text that are neither its beginning nor its end", whole)


def _refused(why: str, seen: object) -> AntError:
    return AntError(
        f"llama.cpp cannot cut texts as this tokenizer does: {why}",
        seen=json.dumps(seen, ensure_ascii=True)[:200],
        expected="byte-level BPE after GPT-2's expression, with digits split singly or not at all",
        hint="Export to ONNX, which leaves the tokenizer as it is: --to onnx",
    )


# --- The weights: llama.cpp's names, its order of rotary dimensions, its types.


def check_architecture(model: PreTrainedModel, kind: str) -> None:
    """Refuse what llama.cpp's `llama` architecture, or a type, cannot hold.

    Raises:
        AntError: names the key of the config, or the weight.
    """
    plain = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    for key, expected in plain.items():
        if (seen := getattr(model.config, key, None)) != expected:
            raise AntError(
                f"GGUF export is for plain Llama models; {key} differs", seen=seen, expected=str(expected)
            )
    if (rope := model.config.rope_parameters.get("rope_type", "default")) != "default":
        raise AntError(
            "GGUF export knows no scaled rotary positions", seen=rope, expected="rope_type default"
        )
    for name, weight in model.state_dict().items():
        if weight.ndim != 2:
            continue
        if kind == "q8_0" and weight.shape[1] % _BLOCK:
            raise AntError(
                f"Q8_0 stores blocks of {_BLOCK} numbers, and the rows of {name} are no multiple of it",
                seen=weight.shape[1],
                hint="Export without it: --type f32 --type f16",
            )
        if kind == "f16" and (peak := weight.abs().max().item()) > torch.finfo(torch.float16).max:
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
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        target = names.get_name(name, try_suffixes=(".weight",))
        if target is None:
            raise AntError("llama.cpp's llama has no such weight", seen=name)
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
    """Write a model as one of `TYPES`.

    Raises:
        AntError: the architecture or the type cannot hold these weights.
    """
    import gguf

    check_architecture(model, kind)
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
    try:
        for name, values in tensors(model):
            data, quantization = stored(values, kind)
            writer.add_tensor(name, data, raw_dtype=quantization)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def modelfile(file: str, context: int, license_id: str | None) -> str:
    """The `Modelfile` for `ollama create`: a plain completion model with the sampling of the public card.

    The template is the prompt alone: this is no chat model, and Ollama would put one around it. Ollama keeps
    the 40 likeliest tokens and penalizes the last 64 by default; Transformers, by which the card samples,
    keeps the 50 likeliest and penalizes all of the context.
    """
    parameters = {
        "num_ctx": context,
        "temperature": CARD_SAMPLING["temperature"],
        "top_p": CARD_SAMPLING["top_p"],
        "top_k": 50,
        "min_p": 0.0,
        "repeat_penalty": CARD_SAMPLING["repetition_penalty"],
        "repeat_last_n": -1,
    }
    lines = [f"FROM ./{file}", "TEMPLATE {{ .Prompt }}"]
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    lines += [f"LICENSE {license_id}"] if license_id else []
    return "\n".join(lines) + "\n"


# --- The file read back by transformers, for its contents, and by llama.cpp, for its use.


def scored_ids(tokenizer: Any, context: int) -> list[list[int]]:
    """Token ids of a page of plain English, a beginning of each of its paragraphs."""
    length = min(context, _SCORED_TOKENS)
    return [tokenizer(text, add_special_tokens=False)["input_ids"][:length] for text in ENGLISH]


def read_back(
    file: Path, model: PreTrainedModel, tokenizer: Any, kind: str
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a file with transformers' `gguf_file=` and compare it with what should be in it.

    Every weight must be the original one as the type rounds it, bit for bit, and so must the logits of
    a model with these weights; against the original the type's tolerance holds.

    Returns:
        The model of the file, and the figures.

    Raises:
        AntError: the file does not load, or holds another model.
    """
    # The reader draws a bar that no setting turns off, and raises whatever the bytes lead it to.
    with (
        quiet_libraries(),
        contextlib.redirect_stderr(io.StringIO()),
        one_line(f"transformers does not load {file.name}"),
    ):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
    expected = copy.deepcopy(model)
    expected.load_state_dict(rounded(model, kind))
    for name, weight in expected.state_dict().items():
        if not torch.equal(weight, loaded.state_dict()[name]):
            raise AntError(f"{file.name} holds another {name} than the model it was made of")
    sequences = scored_ids(tokenizer, model.config.max_position_embeddings)
    wanted, seen, original = (torch.cat(_logits(m, sequences)) for m in (expected, loaded, model))
    if not torch.equal(wanted, seen):
        worst = (wanted - seen).abs().max().item()
        raise AntError(f"{file.name} gives other logits than its weights should", seen=f"{worst:.2e} apart")
    difference, spread = (seen - original).abs().max().item(), original.std().item()
    if difference > (most := TYPES[kind].logits * spread):
        raise AntError(
            f"{file.name} is too far from the model it was made of",
            seen=f"logits up to {difference:.3g} apart",
            expected=f"at most {most:.3g} in {kind.upper()}",
            hint="Leave this type out with --type",
        )
    return loaded, {"largest_logit_difference": difference, "logits_standard_deviation": spread}


def _logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits of each sequence, shape (positions, vocabulary)."""
    with torch.no_grad():
        return [model(torch.tensor([list(ids)])).logits[0] for ids in sequences]


def run_in_llama_cpp(
    file: Path, model: PreTrainedModel, loaded: PreTrainedModel, tokenizer: Any, kind: str, threads: int
) -> dict[str, Any]:
    """Hold llama.cpp to Transformers: tokens of every check text, greedy outputs, likelihoods.

    Args:
        model: what the file was made of, for the likelihoods.
        loaded: the weights that are in the file, for the greedy outputs.

    Raises:
        AntError: anything differs by more than the type's tolerance.
    """
    texts, context = check_texts(), model.config.max_position_embeddings
    questions = Questions(
        texts=texts,
        prompts=greedy_prompts(),
        scored=scored_ids(tokenizer, context),
        speed_batches=(1,),
        new_tokens=room_for(tokenizer, context),
        context=min(context, 512),
        threads=threads,
        vocab_size=model.config.vocab_size,
    )
    answers = ask(file, questions)
    pairs = zip(texts, answers.tokens, strict=True)
    if differ := [text for text, ids in pairs if tokenizer(text)["input_ids"] != ids]:
        raise AntError(
            f"llama.cpp cuts {len(differ)} of {len(texts)} texts otherwise with {file.name}",
            seen=min(differ, key=len)[:80],
            hint="Export to ONNX, which leaves the tokenizer as it is: --to onnx",
        )
    figures = check_greedy(f"llama.cpp with {file.name}", loaded, tokenizer, answers.greedy, TYPES[kind].tie)
    logits = torch.cat([row[:-1] for row in _logits(model, questions.scored)])
    followers = torch.tensor([index for ids in questions.scored for index in ids[1:]])
    ours = torch.nn.functional.cross_entropy(logits, followers, reduction="none").mean().item()
    theirs = -sum(map(sum, answers.log_likelihoods)) / len(followers)
    if abs(theirs - ours) > TYPES[kind].nats:
        raise AntError(
            f"llama.cpp finds plain English as likely with {file.name} as another model would",
            seen=f"{theirs:.4f} nats a token",
            expected=f"{ours:.4f} within {TYPES[kind].nats}",
        )
    return figures | {
        "texts": len(texts),
        "texts_with_equal_tokens": len(texts),
        "scored_tokens": len(followers),
        "nats_per_token": theirs,
        "nats_per_token_difference": theirs - ours,
        "tokens_per_second": answers.tokens_per_second["1"],
        "threads": threads,
    }
