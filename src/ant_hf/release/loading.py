"""Loading a folder as a stranger does, and noting everything that is said on the way."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ant_hf.release.checks import Check


@dataclass(frozen=True)
class Loaded:
    """Model and tokenizer of one folder."""

    model: PreTrainedModel
    tokenizer: Any
    stored_parameters: int
    """Numbers in the safetensors files."""
    stored_dtype: torch.dtype
    """Of the largest tensor there."""


def load(
    folder: Path, dtype: torch.dtype, refuse: list[str] | None = None
) -> tuple[Loaded | None, list[Check]]:
    """Load through the Auto classes, without remote code and offline.

    Args:
        refuse: reasons not to try at all.

    Returns:
        None instead of the model if it does not load, and the checks made on the way.
    """
    name = "loading"
    reasons = [*(refuse or []), *_asks_for_code(folder)]
    if reasons:
        return None, [Check(name, False, "; ".join(reasons))]
    said: list[str] = []
    try:
        with _listening(said):
            both: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, local_files_only=True, trust_remote_code=False
            )
            model, info = both
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        stored_parameters, stored_dtype = _stored(folder)
    except Exception as error:  # whatever it is, a stranger would meet it too
        return None, [Check(name, False, f"does not load: {type(error).__name__}: {_one_line(error)}")]
    keys = {k: sorted(v) for k, v in info.items() if k.endswith("_keys") and v}
    problems = [f"{kind.replace('_', ' ')}: {', '.join(map(str, found[:3]))}" for kind, found in keys.items()]
    problems += [f"warning: {text}" for text in said]
    problems += _size_problem(model, tokenizer)
    seen = "; ".join(problems) or "Auto classes, no warning, no missing or unexpected key, no remote code"
    loaded = Loaded(model.eval(), tokenizer, stored_parameters, stored_dtype)
    return loaded, [Check(name, not problems, seen), _tied(model)]


def _size_problem(model: PreTrainedModel, tokenizer: Any) -> list[str]:
    if len(tokenizer) <= model.config.vocab_size:
        return []
    return [f"the tokenizer has {len(tokenizer):,} entries, the model {model.config.vocab_size:,}"]


def _tied(model: Any) -> Check:
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    shared = head.data_ptr() == embeddings.data_ptr()
    declared = bool(model.config.tie_word_embeddings)
    seen = f"tie_word_embeddings is {declared}, the two tensors share storage: {shared}"
    return Check("tied weights", shared == declared, seen)


def _asks_for_code(folder: Path) -> list[str]:
    found = []
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file() and "auto_map" in path.read_text(encoding="utf-8", errors="replace"):
            found.append(f"{name} asks for remote code (auto_map)")
    return found


def _stored(folder: Path) -> tuple[int, torch.dtype]:
    """Numbers in all safetensors files, read from their heads, and the dtype of the largest tensor."""
    total, largest, dtype = 0, -1, torch.float32
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                view = file.get_slice(key)
                count = 1
                for size in view.get_shape():
                    count *= size
                total += count
                if count > largest:
                    largest, dtype = count, _DTYPES.get(view.get_dtype(), torch.float32)
    return total, dtype


_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@contextmanager
def _listening(said: list[str]) -> Iterator[None]:
    """Collect warnings of Python and of the libraries' loggers instead of showing them."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(_one_line(record.getMessage()))

    collector = Collector(logging.WARNING)
    loggers = [logging.getLogger("transformers"), logging.getLogger("huggingface_hub")]
    before = [(logger.handlers[:], logger.propagate) for logger in loggers]
    transformers_logging.disable_progress_bar()
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [collector], False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        said += [_one_line(item.message) for item in caught]
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate


def _one_line(value: object) -> str:
    return " ".join(str(value).split())[:300]
