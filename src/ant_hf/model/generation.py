"""Continue a prompt: with the model's own sampling settings, or with those of the public card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from ant_hf.errors import AntError
from ant_hf.model.encoding import added_ids, context_length, decode, encode

# The public card's snippet.
CARD_SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.5}
# What `generate` takes where nothing is said: as if there were no such setting, but for top_k.
_PLAIN: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}
NEW_TOKENS = 64


def sampling(model: PreTrainedModel, greedy: bool, given: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Temperature, top_p, top_k and repetition penalty, and a line about them.

    What is not given is the model's own, of its generation_config.json; where that has none of them, the
    public card's. Greedy, only the repetition penalty counts, and the card's is left out.
    """
    found = {key: getattr(model.generation_config, key, None) for key in _PLAIN}
    own = {key: value for key, value in found.items() if value not in (None, _PLAIN[key])}
    default, whose = CARD_SAMPLING, "the public card's settings"
    if own or greedy:
        default, whose = own, "the model's own settings" if own else ""
    settings = _PLAIN | default | given
    if greedy:
        settings = _PLAIN | {"repetition_penalty": settings["repetition_penalty"]}
    shown = list(_PLAIN)[-1:] if greedy else _PLAIN
    facts = ["greedy"] * greedy + [f"{key.replace('_', ' ')} {settings[key]:g}" for key in shown]
    is_open = whose and not {*default} <= {*given}
    note = f" ({whose}{', where not given' if given else ''})" if is_open else ""
    return settings, f"sampling    {', '.join(facts)}{note}"


def encode_prompt(model: PreTrainedModel, tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt; names of special tokens in it are read as plain text, as in training.

    Before them stands what the tokenizer puts before a text, but nothing stands behind: there the model
    continues.

    Raises:
        AntError: the prompt is empty, no valid Unicode, or leaves no room in the model's context.
    """
    try:
        # Arguments that the locale could not read come as surrogates for their bytes.
        prompt = prompt.encode("utf-8", "surrogateescape").decode()
    except UnicodeError as error:
        raise AntError(f"the prompt is not valid Unicode: {error}") from None
    ids = added_ids(tokenizer) + encode(tokenizer, prompt)
    if not ids:
        raise AntError("the prompt is empty", hint="Write a few words for the model to continue from.")
    if len(ids) >= (context := context_length(model, tokenizer)):
        raise AntError(
            f"the prompt has {len(ids):,} tokens, and the model takes at most {context - 1:,}",
            hint=f"Shorten it: the context of {context:,} tokens must also hold a new token.",
        )
    return ids


def generate_sample(
    model: PreTrainedModel,
    tokenizer: Any,
    prompt: str,
    seed: int = 0,
    *,
    max_new_tokens: int = NEW_TOKENS,
    greedy: bool = False,
    show: Callable[[str], None] | None = None,
    **settings: Any,
) -> str:
    """Continue a prompt by up to `max_new_tokens`, or as far as the model's context goes.

    Args:
        seed: of the sampling; of numbers beyond 64 bits the last 64 are taken.
        greedy: always take the most probable token, after a repetition penalty if there is one.
        show: called with each new piece of the text, which together are the text.
        settings: temperature, top_p, top_k or repetition_penalty, instead of those of `sampling`.

    Returns:
        The prompt and its continuation.

    Raises:
        AntError: as `encode_prompt`; or the model fails, or its scores are not numbers.
    """
    ids = encode_prompt(model, tokenizer, prompt)
    inputs = torch.tensor([ids], device=model.device)
    chosen, _ = sampling(model, greedy, settings)
    torch.manual_seed(seed % 2**64)
    text = _Text(tokenizer, show)
    generated(
        model,
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=min(max_new_tokens, context_length(model, tokenizer) - len(ids)),
        do_sample=not greedy,
        pad_token_id=0,  # of one text nothing is filled up, and without an id there is a warning
        streamer=text,
        **chosen,
    )
    return text.shown


@torch.no_grad()
def generated(model: PreTrainedModel, **arguments: Any) -> Any:
    """What `model.generate` returns, without beams: ids, or more if `return_dict_in_generate` says so.

    Raises:
        AntError: the model fails, or its scores are not numbers.
    """
    try:
        return model.generate(  # type: ignore[operator]
            num_beams=1, logits_processor=LogitsProcessorList([_Finite()]), **arguments
        )
    except (AntError, OSError):
        raise
    # Architectures fail in their own ways, each with another kind of error.
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise AntError(f"this {type(model).__name__} cannot generate text: {reason}") from error


class _Finite(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # False for NaN too. A score of minus infinity rules a token out, which is allowed.
        if not bool((scores < torch.inf).all()):
            raise AntError(
                "the model's scores are not numbers",
                hint="Its weights contain NaN or infinity, or are so large that they overflow. Pass another "
                "model or checkpoint.",
            )
        return scores


class _Text(BaseStreamer):
    """The text so far, of tokens as they come; a character whose last bytes are missing waits for them."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None] | None) -> None:
        self.shown = ""
        self._tokenizer, self._show, self._ids = tokenizer, show, list[int]()

    def put(self, value: torch.Tensor) -> None:
        self._ids += value.flatten().tolist()
        if self._show:
            self._grow(self._text().rstrip("\N{REPLACEMENT CHARACTER}"))

    def end(self) -> None:
        self._grow(self._text())

    def _text(self) -> str:
        return decode(self._tokenizer, self._ids, skip_special_tokens=True)

    def _grow(self, text: str) -> None:
        new = text[len(self.shown) :]
        self.shown += new
        if new and self._show:
            self._show(new)
