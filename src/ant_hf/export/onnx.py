"""ONNX as transformers.js loads it, through transformers' own exporter: one graph, in three types.

optimum-onnx would do the same and allows no transformers as new as ours.
"""

from __future__ import annotations

import copy
import inspect
import io
import re
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.export.questions import (
    check_cost,
    check_greedy,
    check_texts,
    end_ids,
    greedy_starts,
    nats,
    one_line,
    scored_ids,
)
from ant_hf.utils.console import quiet_libraries


@dataclass(frozen=True)
class OnnxType:
    """How a graph stores weights, and how far that may take it from the model it was made of."""

    file: str
    """As transformers.js looks for it."""
    dtype: torch.dtype
    """The dtype in which the model is traced."""
    bytes: float
    """Of a weight."""
    difference: float
    """The largest of a logit of random tokens, in standard deviations of the logits."""
    tie: float
    """Where greedy outputs part: as in `GgufType`."""
    loss: float
    """What plain English may cost more: as in `GgufType`."""


# By transformers.js' name, its `dtype`. Random tokens are not text: 8 bits, which round what goes into each
# product too, are judged by the other two.
TYPES = {
    "fp32": OnnxType("model.onnx", torch.float32, 4, 1e-3, 1e-3, 0.0002),
    "fp16": OnnxType("model_fp16.onnx", torch.float16, 2, 0.1, 0.1, 0.001),
    "q8": OnnxType("model_quantized.onnx", torch.float32, 1.03, np.inf, 0.5, 0.02),
}
DEFAULT_TYPES = tuple(TYPES)
# What a file of the format holds at most; transformers.js would want a larger one in parts.
_MOST_BYTES = 2**31 - 2**24
# Batch and tokens; the last is longer than what a graph might have frozen in.
_SHAPES = ((1, 1), (1, 7), (3, 16), (2, 61), (1, 1100))
# Rotary positions that depend on the length of the text: a graph would keep those of one length.
_BY_LENGTH = ("dynamic", "longrope")
# Inputs and outputs beside the cache, with what is counted after the batch.
_NAMED = {
    "input_ids": "sequence_length",
    "attention_mask": "total_sequence_length",
    "position_ids": "sequence_length",
    "logits": "sequence_length",
}


def check_architecture(model: PreTrainedModel, kinds: Sequence[str]) -> None:
    """Refuse what no graph of a fixed computation, or no file of one of `TYPES`, holds.

    Raises:
        AntError: names the key of the config, or the type.
    """
    config, parameters = model.config, model.num_parameters()
    if large := [kind for kind in kinds if parameters * TYPES[kind].bytes > _MOST_BYTES]:
        raise AntError(
            f"an ONNX file holds at most 2 GB, and this model has {parameters:,} parameters",
            seen=f"{parameters * TYPES[large[0]].bytes / 1e9:.1f} GB in {large[0]}",
            hint="Leave this type out with --type, or export to GGUF: --to gguf",
        )
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    # Some models have one for each kind of layer.
    each = (part for part in (rope, *rope.values()) if isinstance(part, dict))
    if seen := next((part["rope_type"] for part in each if part.get("rope_type") in _BY_LENGTH), None):
        raise AntError(
            "ONNX cannot hold rotary positions that change with the length of the text: "
            "config.json has rope_parameters.rope_type",
            seen=seen,
            expected="default, linear, llama3 or yarn",
        )
    if other := {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}:
        raise AntError(
            "only models whose layers attend to the whole text can be exported to ONNX: config.json has "
            "others in layer_types",
            seen=sorted(other),
            expected="full_attention",
        )


def trace(model: PreTrainedModel, dtype: torch.dtype) -> Any:
    """The model as one graph, an `onnx_ir.Model`, for prompts and for every token after them.

    In float16 it is what Transformers computes there, rotary angles in float32: converters of finished graphs
    round those, and lose late positions.

    Inputs: `input_ids`, `attention_mask`, `position_ids` where the model has them, and the keys and values so
    far, which may be empty; batch, new tokens and cached tokens are free. Norms, rotary positions and
    attention are ONNX Runtime's own operators, in the forms that run on a CPU, in WASM and on WebGPU.

    Raises:
        AntError: this transformers has no such exporter, or it failed.
    """
    try:
        from transformers.exporters.configs import OnnxConfig
        from transformers.exporters.exporter_dynamo import get_auto_dynamic_shapes
        from transformers.exporters.exporter_onnx import OnnxExporter
        from transformers.exporters.utils import decompose_for_generation

        known = "multi_token_decode" in inspect.signature(decompose_for_generation).parameters
    except ImportError:
        known = False
    if not known:
        raise AntError(
            "the export to ONNX needs a newer version of transformers",
            seen=f"transformers {transformers.__version__}",
            expected="5.23 or newer",
            hint="pip install --upgrade transformers",
        )
    model = copy.deepcopy(model)
    model.to(dtype)  # type: ignore[arg-type]  # wrapped by a decorator of transformers
    # A window as wide as the context hides nothing, and its cache has no place in the graph.
    model.config.sliding_window = None
    # One padded row, or the mask would be left out of the graph as needless.
    ids = torch.arange(2, 16).reshape(2, 7) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 0] = 0
    # Without the exporter's notes on what this graph does not have or what is checked below.
    failed = f"transformers' ONNX exporter cannot write a model of type {model.config.model_type}"
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), quiet_libraries(), one_line(failed):
        warnings.simplefilter("ignore")
        prompt = {"input_ids": ids, "attention_mask": mask}
        parts: Any = decompose_for_generation(model, prompt, multi_token_decode=True)
        graph, inputs = parts["decode"]
        if "past_key_values" not in inputs:
            raise TypeError("it has no cache of keys and values")
        free_of = get_auto_dynamic_shapes(inputs).items()
        shapes: dict[str, Any] = {name: free for name, free in free_of if free is not None}
        # Heads and their width are the model's own.
        shapes["past_key_values"] = [{0: free[0], 2: free[2]} for free in shapes["past_key_values"]]
        config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, ort_fusions="webgpu")
        program: Any = OnnxExporter().export(graph, inputs, config).program
        _rename(program)
    return program


def _rename(program: Any) -> None:
    """Give inputs, outputs and free dimensions the names that transformers.js looks for."""
    from onnx_ir import Shape
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, NameFixPass

    # Where in the code each node comes from: more bytes than the nodes.
    ClearMetadataAndDocStringPass()(program)
    NameFixPass()(program)
    for values, cache, length in (
        (program.graph.inputs, "past_key_values", "past_sequence_length"),
        (program.graph.outputs, "present", "total_sequence_length"),
    ):
        for value in values:
            layer = re.fullmatch(r"(?:in|out)put\.past_key_values\.layers\.(\d+)\.(key|value)s", value.name)
            if layer:
                value.name = f"{cache}.{layer[1]}.{layer[2]}"
                value.shape = Shape(["batch_size", value.shape[1], length, value.shape[3]])
            elif value.name in _NAMED:
                value.shape = Shape(["batch_size", _NAMED[value.name], *value.shape[2:]])
            else:
                raise TypeError(f"transformers.js has no name for {value.name}")


def write_onnx(file: Path, program: Any, kind: str) -> None:
    """Write a graph of `trace` as one of `TYPES`, weights inside, tied embeddings once.

    Raises:
        AntError: the converter of the type failed.
    """
    import onnx_ir

    file.parent.mkdir(exist_ok=True)
    with quiet_libraries(), one_line(f"{file.name} cannot be written"):
        onnx_ir.save(_in_8_bits(program) if kind == "q8" else program, file)


def _in_8_bits(program: Any) -> Any:
    """The same with weights of 8 bits; what they are multiplied with is rounded to 8 bits as it comes.

    Unsigned ones, because CPUs without VNNI cut off sums of signed ones and would give other texts.
    """
    from onnxruntime.quantization import QuantType
    from transformers.exporters.configs import ExportFormat
    from transformers.exporters.quantizers.quantizer_onnxruntime import (
        OnnxRuntimeDynamicConfig,
        OnnxRuntimeQuantizer,
    )

    unsigned = OnnxRuntimeDynamicConfig(weight_type=QuantType.QUInt8)
    return OnnxRuntimeQuantizer(unsigned).quantize(program, {}, ExportFormat.ONNX)


class OnnxModel:
    """A graph in ONNX Runtime on the CPU."""

    def __init__(self, file: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._failed = f"ONNX Runtime failed on {file.name}"
        with one_line(self._failed):
            self._session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
        given = self._session.get_inputs()
        self.inputs = [value.name for value in given]
        self._cache = {it.name: it for it in given if it.name.startswith("past_key_values")}
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __call__(
        self,
        ids: NDArray[np.int64],
        cache: dict[str, NDArray[Any]] | None = None,
        mask: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Logits, shape (batch, tokens, vocabulary), and the cache with these tokens in it.

        Args:
            mask: 0 for padding, of cached tokens and these, shape (batch, all tokens); None: no padding.
        """
        batch, length = ids.shape
        cache = cache or {
            name: np.zeros(
                (batch, it.shape[1], 0, it.shape[3]),
                dtype=np.float16 if it.type == "tensor(float16)" else np.float32,
            )
            for name, it in self._cache.items()
        }
        past = next(iter(cache.values())).shape[2]
        if mask is None:
            mask = np.ones((batch, past + length), dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": _positions(mask)[:, past:], **cache}
        # Not every architecture counts positions.
        feed = {name: values for name, values in feed.items() if name in self.inputs}
        with one_line(self._failed):
            results = self._session.run(None, feed)
        outputs = dict(zip(self._outputs, results, strict=True))
        logits = outputs["logits"].astype(np.float32)
        return logits, {name: outputs[name.replace("past_key_values", "present", 1)] for name in cache}

    def greedy(self, ids: list[int], new_tokens: int, ends: list[int]) -> list[int]:
        """A greedy continuation through the cache, up to one of the ends of a text."""
        found: list[int] = []
        logits, cache = self(np.array([ids], dtype=np.int64))
        while len(found) < new_tokens:
            found.append(int(logits[0, -1].argmax()))
            if found[-1] in ends:
                break
            logits, cache = self(np.array([found[-1:]], dtype=np.int64), cache)
        return found

    def read(self, ids: list[int], step: int) -> torch.Tensor:
        """Logits of a text, shape (tokens, vocabulary), read so many tokens at a time through the cache."""
        rows, cache = list[NDArray[np.float32]](), None
        for start in range(0, len(ids), step):
            logits, cache = self(np.array([ids[start : start + step]], dtype=np.int64), cache)
            rows.append(logits[0])
        return torch.from_numpy(np.concatenate(rows))


def _positions(mask: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions as `generate` counts them where rows begin with padding."""
    return (mask.cumsum(axis=1) - 1).clip(0)


def check_onnx(
    file: Path, model: PreTrainedModel, tokenizer: Any, context: int, threads: int, kind: str
) -> dict[str, Any]:
    """Check a graph in ONNX Runtime against the model: logits at several shapes, greedy outputs, likelihoods.

    Raises:
        AntError: ONNX Runtime does not load the graph, or it gives other numbers than its type may.
    """
    limit, graph, scored = TYPES[kind], OnnxModel(file, threads), scored_ids(tokenizer, context)
    shapes = sorted({(batch, min(length, context)) for batch, length in _SHAPES})
    difference = max(_difference(file.name, graph, model, *shape, limit.difference) for shape in shapes)
    with torch.no_grad():
        wanted = nats([model(torch.tensor([ids])).logits[0] for ids in scored], scored)
    # 8 bits are rounded otherwise where a text is read at once than where it is written: the worse counts.
    found = [nats([graph.read(ids, step) for ids in scored], scored) for step in (1, context)]
    seen = max(found, key=lambda each: abs((each - wanted).sum().item()))
    starts, new_tokens = greedy_starts(tokenizer, context)
    ends, started = end_ids(model, tokenizer), time.perf_counter()
    outputs = [graph.greedy(ids, new_tokens, ends) for ids in starts]
    seconds = time.perf_counter() - started
    pairs = zip(starts, outputs, strict=True)
    return {
        "largest_logit_difference": difference,
        "shapes": [list(shape) for shape in shapes],
        **check_cost(file.name, kind, limit.loss, seen, wanted, tokenizer, scored),
        **check_greedy(file.name, model, tokenizer, context, outputs, ends, limit.tie),
        "prompts_with_equal_output_without_cache": sum(
            _uncached(file.name, graph, start, output, limit.tie) for start, output in pairs
        ),
        "tokens_per_second": sum(map(len, outputs)) / seconds,
        "threads": threads,
    }


def _uncached(name: str, graph: OnnxModel, start: list[int], output: list[int], tie: float) -> bool:
    """Whether the graph chooses the same tokens where it reads all of the text again for each.

    One pass over the text says so: if each choice is the same, so are those before it.

    Raises:
        AntError: it chooses another where it was sure.
    """
    rows = graph.read([*start, *output[:-1]], len(start) + len(output))[len(start) - 1 :]
    for row, token in zip(rows, output, strict=True):
        if row.argmax() != token:
            gap, most = float(row.max() - row[token]), tie * float(row.std())
            if not gap <= most:
                raise AntError(
                    f"{name} continues a text differently with its cache than without it",
                    seen=f"logits {gap:.3g} apart",
                    expected=f"at most {most:.3g}",
                )
            return False
    return True


def _difference(
    name: str, graph: OnnxModel, model: PreTrainedModel, batch: int, length: int, limit: float
) -> float:
    """Of logits of random tokens, read at once and again with the second half after a cache.

    All rows but the first begin with padding, as prompts of one batch do.
    """
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, length), dtype=np.int64)
    mask = np.ones_like(ids)
    mask[1:, : length // 3] = 0
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": _positions(mask)}
    with torch.no_grad():
        read = {name: torch.from_numpy(each) for name, each in given.items() if name in graph.inputs}
        wanted = model(**read).logits.numpy()
    whole, _ = graph(ids, mask=mask)
    apart = np.abs(whole - wanted)
    if half := length // 2:
        _, cache = graph(ids[:, :half], mask=mask[:, :half])
        second, _ = graph(ids[:, half:], cache, mask)
        apart[:, half:] = np.maximum(apart[:, half:], np.abs(second - wanted[:, half:]))
    found = float(apart[mask.astype(bool)].max())
    if not found <= (most := limit * float(wanted.std())):
        raise AntError(
            f"{name} gives different logits than the model",
            seen=f"up to {found:.2e} apart at {batch} x {length} tokens",
            expected=f"at most {most:.2e}, {limit} of their standard deviation",
        )
    return found


def check_tokenizer(folder: Path, tokenizer: Any) -> dict[str, int]:
    """Load the tokenizer that lies beside the graphs, and compare it with the model's.

    Raises:
        AntError: it does not load, gives other tokens, or has another chat template.
    """
    with quiet_libraries(), one_line(f"transformers cannot load the tokenizer in {folder.name}"):
        again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    texts = check_texts()
    if any(again(text)["input_ids"] != tokenizer(text)["input_ids"] for text in texts):
        raise AntError("the exported tokenizer turns texts into other tokens than the model's own")
    if again.chat_template != tokenizer.chat_template:
        raise AntError("the exported tokenizer has another chat template than the model's own")
    return {"texts": len(texts), "texts_with_equal_tokens": len(texts)}
