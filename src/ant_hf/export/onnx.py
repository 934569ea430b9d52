"""ONNX through transformers' own exporter: one graph for prompts and for every token after them.

optimum-onnx would do the same and allows no transformers as new as ours.
"""

from __future__ import annotations

import inspect
import io
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.export.questions import check_greedy, check_texts, end_ids, greedy_starts, one_line
from ant_hf.utils.console import quiet_libraries

GRAPH = "model.onnx"
# Largest difference of a logit, and the gap of two that may be decided by rounding, in standard deviations
# of the logits.
TOLERANCE = 1e-3
_FAILED = f"ONNX Runtime failed on {GRAPH}"
# Batch and tokens; the last is longer than what a graph might have frozen in.
_SHAPES = ((1, 1), (1, 7), (3, 16), (2, 61), (1, 1100))
# Rotary positions that depend on the length of the text: a graph would keep those of one length.
_BY_LENGTH = ("dynamic", "longrope")


def check_architecture(model: PreTrainedModel) -> None:
    """Refuse what no graph of a fixed computation holds.

    Raises:
        AntError: names the key of the config.
    """
    config = model.config
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    # Some models have one for each kind of layer.
    each = (part for part in (rope, *rope.values()) if isinstance(part, dict))
    if seen := next((part["rope_type"] for part in each if part.get("rope_type") in _BY_LENGTH), None):
        raise AntError(
            "ONNX holds no rotary positions that change with the length of the text: "
            "config.json has rope_parameters.rope_type",
            seen=seen,
            expected="default, linear, llama3 or yarn",
        )
    if other := {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}:
        raise AntError(
            "ONNX export holds layers that see the whole text: config.json has others in layer_types",
            seen=sorted(other),
            expected="full_attention",
        )


def write_onnx(folder: Path, model: PreTrainedModel) -> None:
    """Write `model.onnx`, its weights in `model.onnx.data` and transformers' manifest.

    Inputs: `input_ids`, `attention_mask`, `position_ids` and a cache of keys and values that may be
    empty; batch, new tokens and cached tokens are free.

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
            "ONNX export needs the exporter that newer versions of transformers have",
            seen=f"transformers {transformers.__version__}",
            expected="5.23 or newer",
            hint="pip install --upgrade transformers",
        )
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
        exported: Any = OnnxExporter().export(graph, inputs, OnnxConfig(dynamic=True, dynamic_shapes=shapes))
        exported.generation_config = model.generation_config
        exported.save_pretrained(folder)


class OnnxModel:
    """A graph in ONNX Runtime on the CPU."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        with one_line(_FAILED):
            self._session = onnxruntime.InferenceSession(
                str(folder / GRAPH), options, ["CPUExecutionProvider"]
            )
        self.inputs = [value.name for value in self._session.get_inputs()]
        self._cache = {it.name: it.shape for it in self._session.get_inputs() if "past_key_values" in it.name}
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
            name: np.zeros((batch, shape[1], 0, shape[3]), dtype=np.float32)
            for name, shape in self._cache.items()
        }
        past = next(iter(cache.values())).shape[2]
        if mask is None:
            mask = np.ones((batch, past + length), dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": _positions(mask)[:, past:], **cache}
        # Not every architecture counts positions.
        feed = {name: values for name, values in feed.items() if name in self.inputs}
        with one_line(_FAILED):
            results = self._session.run(None, feed)
        outputs = dict(zip(self._outputs, results, strict=True))
        return outputs["logits"], {name: outputs[name.replace("input.", "output.", 1)] for name in cache}

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


def _positions(mask: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions as `generate` counts them where rows begin with padding."""
    return (mask.cumsum(axis=1) - 1).clip(0)


def check_onnx(
    folder: Path, model: PreTrainedModel, tokenizer: Any, context: int, threads: int
) -> dict[str, Any]:
    """Hold the graph in ONNX Runtime to the model: logits at several shapes, greedy outputs.

    Raises:
        AntError: ONNX Runtime does not load the graph, or it gives other numbers.
    """
    graph = OnnxModel(folder, threads)
    shapes = sorted({(batch, min(length, context)) for batch, length in _SHAPES})
    difference = max(_difference(graph, model, *shape) for shape in shapes)
    starts, new_tokens = greedy_starts(tokenizer, context)
    ends = end_ids(model, tokenizer)
    outputs = [graph.greedy(ids, new_tokens, ends) for ids in starts]
    return {
        "largest_logit_difference": difference,
        "shapes": [list(shape) for shape in shapes],
        "threads": threads,
        **check_greedy(GRAPH, model, tokenizer, context, outputs, ends, TOLERANCE),
    }


def _difference(graph: OnnxModel, model: PreTrainedModel, batch: int, length: int) -> float:
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
    if not found <= (most := TOLERANCE * float(wanted.std())):
        raise AntError(
            f"{GRAPH} gives other logits than the model",
            seen=f"up to {found:.2e} apart at {batch} x {length} tokens",
            expected=f"at most {most:.2e}, {TOLERANCE} of their standard deviation",
        )
    return found


def check_tokenizer(folder: Path, tokenizer: Any) -> dict[str, int]:
    """Load the tokenizer that lies beside the graph, and hold it to the model's.

    Raises:
        AntError: it does not load, cuts texts otherwise, or has another chat template.
    """
    with quiet_libraries(), one_line(f"transformers does not load the tokenizer of {folder.name}"):
        again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    texts = check_texts()
    if any(again(text)["input_ids"] != tokenizer(text)["input_ids"] for text in texts):
        raise AntError(f"the tokenizer written beside {GRAPH} cuts texts otherwise than the model's")
    if again.chat_template != tokenizer.chat_template:
        raise AntError(f"the tokenizer written beside {GRAPH} has another chat template")
    return {"texts": len(texts), "texts_with_equal_tokens": len(texts)}
