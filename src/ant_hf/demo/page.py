"""The page: a prompt, the card's sampling, each model's text with its fragments as it grows; and its start.

In three parts: what happens on the page, how it looks, and how it is launched, here or in a Space.
"""

from __future__ import annotations

import functools
import html
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Read when Gradio is imported: nobody is told that this page was opened.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import torch

from ant_hf.demo.sampling import LIMITS, TOP_K, Generation, Sampling, generate_together
from ant_hf.errors import AntError
from ant_hf.evaluation.degeneration import loop_period
from ant_hf.inspection import fragments
from ant_hf.model.generation import encode_prompt
from ant_hf.model.loading import Subject, load_subject

EXAMPLE = "The basic principles of small language models require"
# Seconds between two updates: more than people can see would only keep the browser busy.
_PAUSE = 0.04
# Generations that run at the same time; more wait for their turn.
AT_ONCE = 4
_HELP = "Enter generates, Shift-Enter starts a new line, Escape stops."
_RUNNING = '<p role="status" class="running">Generating ...</p>'
_STOPPED = '<p role="status">Stopped.</p>'
# For every event: no spinner over the page, and no address by which programs could call it.
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def build_page(subjects: Sequence[Subject]) -> gr.Blocks:
    """The page for one model or several side by side; it holds no state between two events."""
    with gr.Blocks(title=f"Try {subjects[0].name}", analytics_enabled=False) as page:
        gr.HTML(_header(subjects))
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                prompt = gr.Textbox(
                    EXAMPLE, label="Prompt", info=_HELP, max_lines=12, autofocus=True, elem_id="prompt"
                )
                with gr.Row():
                    generate = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
                    stop = gr.Button("Stop", elem_id="stop", min_width=120)
                status = gr.HTML("", elem_id="status")
                panes = []
                # Side by side where there is room.
                with gr.Row(equal_height=False):
                    for number, subject in enumerate(subjects):
                        with gr.Column(min_width=280):
                            empty = output_html(subject.name, "", "", "Nothing generated yet.", None)
                            panes.append(gr.HTML(empty, elem_id=f"output-{number}"))
                            panes.append(gr.HTML("", elem_id=f"fragments-{number}"))
                gr.HTML(_legend())
            with gr.Column(scale=1, min_width=260):
                controls = _controls()

        started = gr.on(
            [generate.click, prompt.submit],
            functools.partial(_respond, subjects),
            [prompt, *controls],
            [status, *panes],
            concurrency_limit=AT_ONCE,
            trigger_mode="once",
            **_QUIET,
        )
        # After the cancellation, lest a last update overtakes the word.
        stop.click(None, cancels=started, api_visibility="private").then(
            lambda now: _STOPPED if now == _RUNNING else now, status, status, **_QUIET
        )
    return page


def _header(subjects: Sequence[Subject]) -> str:
    models = "; ".join(
        f"<b>{safe(subject.name)}</b>, {subject.identity['parameters']:,} parameters, "
        f"context {subject.context_length:,} tokens"
        for subject in subjects
    )
    return f'<header class="head"><h1>Try the model</h1><p>{models}</p></header>'


def _controls() -> list[Any]:
    """In the order of Sampling's fields."""
    card = Sampling()

    def slider(key: str, label: str, step: float) -> gr.Slider:
        return gr.Slider(*LIMITS[key], getattr(card, key), step=step, label=label, elem_id=key)

    with gr.Accordion("Sampling as on the card"):
        temperature = slider("temperature", "Temperature", 0.05)
        top_p = slider("top_p", f"Top-p (top-k {TOP_K})", 0.05)
        penalty = slider("repetition_penalty", "Repetition penalty", 0.05)
        new_tokens = slider("max_new_tokens", "New tokens", 1)
        seed = gr.Number(
            card.seed, precision=0, minimum=0, label="Seed (same seed, same text)", elem_id="seed"
        )
        greedy = gr.Checkbox(card.greedy, label="Greedy (no sampling)", elem_id="greedy")
    random = [temperature, top_p, seed]
    greedy.change(lambda chosen: [gr.update(interactive=not chosen)] * 3, greedy, random, **_QUIET)
    return [temperature, top_p, penalty, new_tokens, seed, greedy]


def _respond(subjects: Sequence[Subject], prompt: str, *values: Any) -> Iterator[list[Any]]:
    """Status and panes, again and again while the texts grow."""
    unchanged = [gr.skip() for _ in subjects for _ in range(2)]
    try:
        sampling = Sampling(*values)
        generations = [_start(subject, prompt, sampling, len(subjects) > 1) for subject in subjects]
        given = [fragments.read_text(it.model, it.tokenizer, prompt, top=0).fragments for it in subjects]
        began = shown = time.perf_counter()
        for _ in generate_together(generations):
            now = time.perf_counter()
            if now - shown >= _PAUSE or all(generation.finished for generation in generations):
                shown = now
                models = zip(subjects, generations, given, strict=True)
                yield [_RUNNING, *(part for model in models for part in _pane(*model, prompt, now - began))]
        yield ['<p role="status">Done.</p>', *unchanged]
    except AntError as error:
        yield [f'<p role="alert" class="error">{safe(str(error))}</p>', *unchanged]


def _start(subject: Subject, prompt: str, sampling: Sampling, named: bool) -> Generation:
    try:
        ids = encode_prompt(subject.model, subject.tokenizer, prompt)
    except AntError as error:
        raise AntError(f"{subject.name}: {error}" if named else str(error)) from None
    return Generation(subject.model, ids, sampling)


def _pane(
    subject: Subject, generation: Generation, given: list[fragments.Fragment], prompt: str, seconds: float
) -> tuple[str, str]:
    """Output and fragments of one model as they are now."""
    entries, decode = fragments.vocabulary(subject.tokenizer), subject.tokenizer.decode
    made, start = [], given[-1].end
    for token_id, nats in zip(generation.ids, generation.nats, strict=True):
        raw = entries.of(token_id)
        made.append(fragments.Fragment(token_id, raw, entries.text(token_id), nats, start, start + len(raw)))
        start += len(raw)
    # Decoded together, because a tokenizer may need what comes before to place a space.
    before = decode(generation.prompt_ids, skip_special_tokens=True)
    text = decode(generation.prompt_ids + generation.ids, skip_special_tokens=True)[len(before) :]
    if not generation.finished:
        # The next token may finish the character.
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    loop = None
    if period := loop_period(generation.ids):
        loop = f'In a loop: the last {period} tokens again and again: "{decode(generation.ids[-period:])}"'
    output = output_html(subject.name, prompt, text, _facts(generation, seconds), loop)
    return output, fragments_html([*given, *made], len(given))


def _facts(generation: Generation, seconds: float) -> str:
    count, limit, room = len(generation.ids), generation.sampling.max_new_tokens, generation.room
    parts = [f"{len(generation.prompt_ids)} + {count} tokens"]
    if count:
        parts += [f"{count / seconds:.0f} tokens/s", f"mean surprise {sum(generation.nats) / count:.2f} nats"]
    if generation.finished and room < limit and count == room:
        parts.append(f"the context had room for {room} of {limit} new tokens")
    elif generation.finished and count < limit:
        parts.append("the model ended the text")
    return ", ".join(parts)


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


def fragments_html(tokens: Sequence[fragments.Fragment], given: int) -> str:
    """Fragments in the colour of their surprise; bytes, id and nats of one on hover or focus.

    Args:
        given: how many of them, from the first, are the prompt's.
    """
    # One stop of the Tab key for all of them; the arrow keys go on from there.
    spans = "".join(
        f'<span class="f s{fragments.surprise_step(token.nats)}{" of-prompt" if index < given else ""}" '
        f'role="option" tabindex="{-1 if index else 0}" '
        f'aria-label="{safe(describe(token))}">{safe(token.text)}</span>'
        for index, token in enumerate(tokens)
    )
    return f'<div class="fragments" role="listbox" aria-label="Fragments">{spans}</div>'


def describe(fragment: fragments.Fragment) -> str:
    """One line: readable text, surprise in nats, token id, bytes in hexadecimal."""
    nats = "no loss: nothing comes before" if fragment.nats is None else f"{fragment.nats:.2f} nats"
    return f"{fragment.text}  |  {nats}  |  id {fragment.token_id}  |  bytes {fragment.raw.hex(' ').upper()}"


def _legend() -> str:
    last = fragments.SURPRISE_STEPS - 1
    names = [*map(str, range(last)), f"{last}+"]
    steps = "".join(f'<span class="f s{step}">{name}</span>' for step, name in enumerate(names))
    return f'<div class="scale"><span>Surprise of a fragment in nats</span> {steps}</div>'


def _style() -> str:
    """The style sheet, with the fragments' colours on light and dark pages."""
    # Their rules are stronger than the library's own colour of all text inside such a block.
    return Path(__file__).with_suffix(".css").read_text(encoding="utf-8") + "\n".join(
        f"{scope}.f.f.s{step}{{background:{background};color:{text}!important}}"
        for theme, scope in (("light", ""), ("dark", ".dark "))
        for step, (background, text) in enumerate(fragments.surprise_colours(theme))
    )


def _theme() -> gr.themes.Base:
    """Fonts of the reader's system; Gradio's own greys are too faint to read (WCAG 2.2 asks for 4.5)."""
    colours = {
        "body_text_color_subdued": "*neutral_600",
        "block_info_text_color": "*neutral_600",
        "button_primary_background_fill": "*primary_700",
        "button_primary_background_fill_hover": "*primary_800",
    }
    dark = {f"{name}_dark": colour.replace("neutral_600", "neutral_300") for name, colour in colours.items()}
    return gr.themes.Default(
        primary_hue="orange", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(**colours, **dark)


def load_page(models: Sequence[str]) -> gr.Blocks:
    """The page of one or two model folders or Hub ids, in fp32 on the GPU if there is one.

    Raises:
        AntError: a model cannot be loaded.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return build_page([load_subject(model, "float32", device) for model in models])


def launch(page: gr.Blocks, **where: Any) -> gr.Blocks:
    """Start the page's server in a thread; nothing that the page needs is fetched from elsewhere.

    Raises:
        OSError: there is no free port.
    """
    # What makes the page answer to keys.
    script = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
    page.launch(
        theme=_theme(),
        css=_style(),
        head=f"<script>\n{script}</script>",
        **where,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
    )
    return page


def serve_space(models: Sequence[str]) -> None:
    """Serve the page where GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say, as they do in a Space."""
    launch(load_page(models)).block_thread()
