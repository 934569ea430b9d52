"""The page: a prompt, the card's sampling, and each model's text with its fragments as it grows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from ant_hf.demo.fragments_view import fragments_html, output_html, safe, scale_html
from ant_hf.demo.sampling import LIMITS, TOP_K, Generation, Sampling, generate_together
from ant_hf.errors import AntError
from ant_hf.evaluation.degeneration import loop_period
from ant_hf.inspection.fragments import Fragment, read_fragments
from ant_hf.inspection.vocabulary import vocabulary
from ant_hf.model.generation import encode_prompt
from ant_hf.model.loading import Subject

EXAMPLE = "The basic principles of small language models require"
# Seconds between two updates: more than people can see would only keep the browser busy.
_PAUSE = 0.04
# Generations that run at the same time; more wait for their turn.
AT_ONCE = 4
_RUNNING = '<p role="status" class="running">Generating ...</p>'
_HELP = "Enter generates, Shift-Enter starts a new line, Escape stops."


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
                panes = _panes(subjects)
                gr.HTML(scale_html())
            with gr.Column(scale=1, min_width=260):
                controls = _controls()

        def respond(*values: Any) -> Iterator[list[Any]]:
            yield from _respond(subjects, *values)

        started = gr.on(
            [generate.click, prompt.submit],
            respond,
            [prompt, *controls],
            [status, *panes],
            show_progress="hidden",
            concurrency_limit=AT_ONCE,
            trigger_mode="once",
            api_visibility="private",
        )
        # After the cancellation, lest a last update overtakes the word.
        stop.click(None, cancels=started, api_visibility="private").then(
            _stopped, status, status, show_progress="hidden", api_visibility="private"
        )
    return page


def _panes(subjects: Sequence[Subject]) -> list[gr.HTML]:
    """Output and fragments of each model, side by side where there is room."""
    panes = []
    with gr.Row(equal_height=False):
        for number, subject in enumerate(subjects):
            with gr.Column(min_width=280):
                panes.append(gr.HTML(_empty_pane(subject), elem_id=f"output-{number}"))
                panes.append(gr.HTML("", elem_id=f"fragments-{number}"))
    return panes


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
    greedy.change(
        lambda chosen: [gr.update(interactive=not chosen)] * 3,
        greedy,
        [temperature, top_p, seed],
        show_progress="hidden",
        api_visibility="private",
    )
    return [temperature, top_p, penalty, new_tokens, seed, greedy]


def _respond(subjects: Sequence[Subject], prompt: str, *values: Any) -> Iterator[list[Any]]:
    """Status and panes, again and again while the texts grow."""
    unchanged = [gr.skip() for _ in subjects for _ in range(2)]
    try:
        sampling = Sampling(*values)
        generations = [_start(subject, prompt, sampling, len(subjects) > 1) for subject in subjects]
        given = [read_fragments(subject.model, subject.tokenizer, prompt) for subject in subjects]
        began = shown = time.perf_counter()
        for _ in generate_together(generations):
            now = time.perf_counter()
            if now - shown < _PAUSE and not all(generation.finished for generation in generations):
                continue
            shown, seconds = now, now - began
            panes = [
                part
                for subject, generation, fragments in zip(subjects, generations, given, strict=True)
                for part in _pane(subject, prompt, generation, fragments, seconds)
            ]
            yield [_RUNNING, *panes]
        yield ['<p role="status">Done.</p>', *unchanged]
    except AntError as error:
        yield [f'<p role="alert" class="error">{safe(str(error))}</p>', *unchanged]


def _start(subject: Subject, prompt: str, sampling: Sampling, named: bool) -> Generation:
    try:
        ids = encode_prompt(subject.model, subject.tokenizer, prompt)
    except AntError as error:
        raise AntError(f"{subject.name}: {error}" if named else str(error)) from None
    return Generation(subject.model, ids, sampling)


def _stopped(status: str) -> str:
    return '<p role="status">Stopped.</p>' if status == _RUNNING else status


def _pane(
    subject: Subject, prompt: str, generation: Generation, given: list[Fragment], seconds: float
) -> tuple[str, str]:
    """Output and fragments of one model as they are now."""
    entries, decode = vocabulary(subject.tokenizer), subject.tokenizer.decode
    made, start = [], given[-1].end if given else 0
    for token_id, nats in zip(generation.ids, generation.nats, strict=True):
        raw = entries.of(token_id)
        made.append(Fragment(token_id, raw, entries.text(token_id), nats, start, start + len(raw)))
        start += len(raw)
    # Decoded together, because a tokenizer may need what comes before to place a space.
    before = decode(generation.prompt_ids, skip_special_tokens=True)
    text = decode(generation.prompt_ids + generation.ids, skip_special_tokens=True)[len(before) :]
    if not generation.finished:
        # The next token may finish the character.
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    return (
        output_html(subject.name, prompt, text, _facts(generation, seconds), _loop(subject, generation)),
        fragments_html([*given, *made], len(given)),
    )


def _facts(generation: Generation, seconds: float) -> str:
    count, limit = len(generation.ids), generation.sampling.max_new_tokens
    parts = [f"{len(generation.prompt_ids)} + {count} tokens"]
    if count:
        parts.append(f"{count / seconds:.0f} tokens/s")
        parts.append(f"mean surprise {sum(generation.nats) / count:.2f} nats")
    room = generation.model.config.max_position_embeddings - len(generation.prompt_ids)
    if generation.finished and room < limit and count == room:
        parts.append(f"the context had room for {room} of {limit} new tokens")
    elif generation.finished and count < limit:
        parts.append("the model ended the text")
    return ", ".join(parts)


def _loop(subject: Subject, generation: Generation) -> str | None:
    period = loop_period(generation.ids)
    if period is None:
        return None
    span = subject.tokenizer.decode(generation.ids[-period:])
    return f'In a loop: the last {period} tokens again and again: "{span}"'


def _header(subjects: Sequence[Subject]) -> str:
    models = "; ".join(
        f"<b>{safe(subject.name)}</b>, {subject.identity['parameters']:,} parameters, "
        f"context {subject.context_length:,} tokens"
        for subject in subjects
    )
    return f'<header class="head"><h1>Try the model</h1><p>{models}</p></header>'


def _empty_pane(subject: Subject) -> str:
    return output_html(subject.name, "", "", "Nothing generated yet.", None)
