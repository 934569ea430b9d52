"""ONNX through transformers' own exporter: one graph for prompts and for every token after them.

optimum-onnx would do the same and allows no transformers as new as ours.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.export.questions import check_greedy, greedy_prompts, one_line, room_for
from ant_hf.utils.console import quiet_libraries

GRAPH = "model.onnx"
TOLERANCE = 1e-3
# Greedy outputs that part where two logits are nearer than this were decided by rounding.
_TIE = 1e-3
_FAILED = f"ONNX Runtime failed on {GRAPH}"
_SHAPES = ((1, 1), (1, 7), (3, 16), (2, 61))


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
    # One padded row, or the mask would be left out of the graph as needless.
    ids = torch.arange(2, 16).reshape(2, 7) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 0] = 0
    # Without the exporter's notes on what this graph does not have or what is checked below.
    with warnings.catch_warnings(), quiet_libraries(), one_line("transformers' ONNX exporter failed"):
        warnings.simplefilter("ignore")
        prompt = {"input_ids": ids, "attention_mask": mask}
        parts: Any = decompose_for_generation(model, prompt, multi_token_decode=True)
        graph, inputs = parts["decode"]
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
        self._cache = {it.name: it.shape for it in self._session.get_inputs() if "past_key_values" in it.name}
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __call__(
        self, ids: NDArray[np.int64], cache: dict[str, NDArray[Any]] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Logits, shape (batch, tokens, vocabulary), and the cache with these tokens in it."""
        batch, length = ids.shape
        cache = cache or {
            name: np.zeros((batch, shape[1], 0, shape[3]), dtype=np.float32)
            for name, shape in self._cache.items()
        }
        past = next(iter(cache.values())).shape[2]
        positions = np.tile(np.arange(past, past + length, dtype=np.int64), (batch, 1))
        mask = np.ones((batch, past + length), dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache}
        with one_line(_FAILED):
            results = self._session.run(None, feed)
        outputs = dict(zip(self._outputs, results, strict=True))
        return outputs["logits"], {name: outputs[name.replace("input.", "output.", 1)] for name in cache}

    def greedy(self, ids: list[int], new_tokens: int, end: int | None) -> list[int]:
        """A greedy continuation through the cache."""
        found: list[int] = []
        logits, cache = self(np.array([ids], dtype=np.int64))
        while len(found) < new_tokens:
            found.append(int(logits[0, -1].argmax()))
            if found[-1] == end:
                break
            logits, cache = self(np.array([found[-1:]], dtype=np.int64), cache)
        return found


def check_onnx(folder: Path, model: PreTrainedModel, tokenizer: Any, threads: int) -> dict[str, Any]:
    """Hold the graph in ONNX Runtime to the model: logits at several shapes, greedy outputs.

    Raises:
        AntError: ONNX Runtime does not load the graph, or it gives other numbers.
    """
    graph = OnnxModel(folder, threads)
    difference = _largest_difference(graph, model)
    if not difference <= TOLERANCE:
        raise AntError(
            f"{GRAPH} gives other logits than the model",
            seen=f"{difference:.2e} apart",
            expected=f"at most {TOLERANCE}",
        )
    room = room_for(tokenizer, model.config.max_position_embeddings)
    starts = [tokenizer(prompt)["input_ids"] for prompt in greedy_prompts()]
    outputs = [graph.greedy(ids, room, tokenizer.eos_token_id) for ids in starts]
    return {
        "largest_logit_difference": difference,
        "shapes": [list(shape) for shape in _SHAPES],
        "threads": threads,
        **check_greedy(GRAPH, model, tokenizer, outputs, _TIE),
    }


def _largest_difference(graph: OnnxModel, model: PreTrainedModel) -> float:
    """Over all shapes, each at once and again with its second half after a cache."""
    generator = np.random.default_rng(0)
    worst = 0.0
    for batch, length in _SHAPES:
        length = min(length, model.config.max_position_embeddings)
        ids = generator.integers(0, model.config.vocab_size, (batch, length), dtype=np.int64)
        with torch.no_grad():
            wanted = model(torch.from_numpy(ids)).logits.numpy()
        seen, _ = graph(ids)
        worst = max(worst, float(np.abs(seen - wanted).max()))
        if half := length // 2:
            _, cache = graph(ids[:, :half])
            seen, _ = graph(ids[:, half:], cache)
            worst = max(worst, float(np.abs(seen - wanted[:, half:]).max()))
    return worst
