"""What the page shows of a text, as HTML: the text, its fragments, and what else the model considered."""

from __future__ import annotations

import html
import math
import sys
from collections.abc import Sequence

from ant_hf.inspection.fragments import SURPRISE_STEPS, Candidate, Fragment, surprise_step

# Also what starts an expression in the templates that the page's library fills in.
_TEMPLATE = {ord(character): f"&#{ord(character)};" for character in "{}$`@"}


def safe(text: str) -> str:
    """A text that reads the same as HTML, whatever it holds."""
    # HTML has no NUL, not even escaped.
    return html.escape(text.replace("\0", "\N{REPLACEMENT CHARACTER}")).translate(_TEMPLATE)


def output_html(name: str, prompt: str, made: str, facts: str, loop: str | None) -> str:
    """One model's text: the prompt, what it made of it, facts about that, and a warning of a loop."""
    warning = f'<p class="loop" role="alert">{safe(loop)}</p>' if loop else ""
    copy = f'<button type="button" class="copy" aria-label="Copy the text of {safe(name)}">Copy</button>'
    return (
        f'<section class="output" aria-label="{safe(name)}">'
        f'<div class="title"><h2>{safe(name)}</h2>{copy if prompt else ""}</div>'
        f'<p class="text" dir="auto"><span class="given">{safe(prompt)}</span>'
        f'<span class="made">{safe(made)}</span></p>'
        f'<p class="facts">{safe(facts)}</p>{warning}</section>'
    )


def fragments_html(model: int, name: str, tokens: Sequence[Fragment], given: int) -> str:
    """Fragments in the colour of their surprise; bytes, id and nats of one at a hover, a focus or a click.

    Args:
        given: how many of them, from the first, are the prompt's.
    """
    if not tokens:
        return '<p class="none">The tokens of this tokenizer cannot be shown one by one.</p>'
    # One stop of the Tab key for all of them; the arrow keys continue from there.
    spans = "".join(
        f'<span class="f s{surprise_step(token.nats)}{" of-prompt" if index < given else ""}" '
        f'role="option" tabindex="{-1 if index else 0}" data-model="{model}" data-index="{index}" '
        f'aria-label="{safe(describe(token))}">{safe(token.text)}</span>'
        for index, token in enumerate(tokens)
    )
    label = f"Fragments of {safe(name)}"
    return f'<div class="fragments" role="listbox" dir="auto" aria-label="{label}">{spans}</div>'


def describe(fragment: Fragment) -> str:
    """One line: readable text, surprise in nats, token id, bytes in hexadecimal."""
    nats = "no loss: nothing comes before it" if fragment.nats is None else f"{fragment.nats:.2f} nats"
    return f"{fragment.text}  |  {nats}  |  id {fragment.token_id}  |  bytes {fragment.raw.hex(' ').upper()}"


def alternatives_html(
    model: int, index: int, chosen: Fragment, candidates: Sequence[Candidate], given: bool
) -> str:
    """What the model found probable in a fragment's place, best first, as buttons to continue from.

    Args:
        given: the fragment is the prompt's, where the model has no choice.
    """
    rows = "".join(
        f'<li><button type="button" data-model="{model}" data-index="{index}" data-token="{each.token_id}"'
        f"{' disabled' if given else ''}{' class=taken' if each.token_id == chosen.token_id else ''}>"
        f'<span class="f s{surprise_step(surprise(each.probability))}">{safe(each.text)}</span> '
        f"{percent(each.probability)}</button></li>"
        for each in candidates
    )
    told = "Nothing comes before it, so the model did not predict it."
    if chosen.nats is not None:
        told = f"The model gave it {percent(math.exp(-chosen.nats))}. Its most probable choices here"
        told += ":" if given else "; click one to continue from it:"
    return (
        '<section class="alternatives" aria-label="Alternatives">'
        f'<p class="place">{safe(describe(chosen))}</p><p>{told}</p><ul>{rows}</ul></section>'
    )


def surprise(probability: float) -> float:
    """In nats; of what is too improbable for a number, as of the smallest."""
    return -math.log(max(probability, sys.float_info.min))


def percent(probability: float) -> str:
    """A probability in few digits."""
    return f"{100 * probability:.1f} %" if probability >= 0.001 else "under 0.1 %"


def legend_html() -> str:
    """The scale of the fragments' colours."""
    last = SURPRISE_STEPS - 1
    names = [*map(str, range(last)), f"{last}+"]
    steps = "".join(f'<span class="f s{step}">{name}</span>' for step, name in enumerate(names))
    return f'<div class="scale"><span>Surprise of a fragment in nats</span> {steps}</div>'
