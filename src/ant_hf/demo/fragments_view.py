"""Output and fragments as HTML in which nothing that a person or a model wrote is markup."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ant_hf.inspection.colours import SURPRISE_STEPS, surprise_colours, surprise_step
from ant_hf.inspection.fragments import Fragment

# Also what starts an expression in the templates that the page's library fills in.
_TEMPLATE = {ord(character): f"&#{ord(character)};" for character in "{}$`@"}


def safe(text: str) -> str:
    """A text that reads the same as HTML, whatever it holds."""
    # HTML has no NUL, not even escaped.
    return html.escape(text.replace("\0", "\N{REPLACEMENT CHARACTER}")).translate(_TEMPLATE)


def output_html(name: str, prompt: str, made: str, facts: str, loop: str | None) -> str:
    """One model's text: the prompt, what it made of it, facts about that, and a warning of a loop."""
    warning = f'<p class="loop" role="alert">{safe(loop)}</p>' if loop else ""
    return (
        f'<section class="output" aria-label="{safe(name)}"><h2>{safe(name)}</h2>'
        f'<p class="text"><span class="given">{safe(prompt)}</span>'
        f'<span class="made">{safe(made)}</span></p>'
        f'<p class="facts">{safe(facts)}</p>{warning}</section>'
    )


def fragments_html(fragments: Sequence[Fragment], given: int) -> str:
    """Fragments in the colour of their surprise; bytes, id and nats of one on hover or focus.

    Args:
        given: how many of them, from the first, are the prompt's.
    """
    if not fragments:
        return ""
    spans = "".join(_span(fragment, index, index < given) for index, fragment in enumerate(fragments))
    return f'<div class="fragments" role="listbox" aria-label="Fragments">{spans}</div>'


def _span(fragment: Fragment, index: int, given: bool) -> str:
    kind = f"f s{surprise_step(fragment.nats)}{' of-prompt' if given else ''}"
    # One stop of the Tab key for all of them; the arrow keys go on from there.
    return (
        f'<span class="{kind}" role="option" tabindex="{0 if index == 0 else -1}" '
        f'aria-label="{safe(describe(fragment))}">{safe(fragment.text)}</span>'
    )


def describe(fragment: Fragment) -> str:
    """One line: readable text, surprise in nats, token id, bytes in hexadecimal."""
    nats = "no loss: nothing comes before" if fragment.nats is None else f"{fragment.nats:.2f} nats"
    data = " ".join(f"{byte:02X}" for byte in fragment.raw)
    return f"{fragment.text}  |  {nats}  |  id {fragment.token_id}  |  bytes {data}"


def scale_html() -> str:
    """The colours' legend."""
    last = SURPRISE_STEPS - 1
    steps = "".join(
        f'<span class="f s{step}">{step}{"+" if step == last else ""}</span>' for step in range(last + 1)
    )
    return f'<div class="scale"><span>Surprise of a fragment in nats</span> {steps}</div>'


def surprise_css() -> str:
    """The colours, for light and dark pages."""
    rules = []
    for theme, scope in (("light", ""), ("dark", ".dark ")):
        for step in range(SURPRISE_STEPS):
            background, text = surprise_colours(step, theme)
            # Stronger than the library's own colour of all text inside such a block.
            rules.append(f"{scope}.f.f.s{step}{{background:{background};color:{text}!important}}")
    return "\n".join(rules)
