"""The page: a prompt, the card's sampling, each model's text with its fragments as it grows; and its start.

In three parts: the components and what they do, how they look, and how the page is launched, here or in a
Space. What it shows of a text is in `texts.py`, and as HTML in `markup.py`.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Read when Gradio is imported: nobody is told that this page was opened.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import torch

from ant_hf.demo.markup import alternatives_html, fragments_html, legend_html, output_html, safe, surprise
from ant_hf.demo.sampling import LIMITS, TOP_K, Sampling, failure, generate_together
from ant_hf.demo.texts import EXAMPLES, PROMPT, Text, start_text
from ant_hf.errors import AntError
from ant_hf.inspection.fragments import surprise_colours
from ant_hf.model.loading import Subject, load_subject

# Seconds between two updates: more than people can see would only keep the browser busy.
_PAUSE = 0.04
# Generations that run at the same time; more wait, and look every _TURN seconds whether it is their turn.
AT_ONCE = 4
_TURN = 0.2
# New seeds are below it: short enough to write down.
_SEEDS = 10**6
_HELP = "Enter generates, Shift-Enter starts a new line, Escape stops."
# A screen reader speaks what changes within an element that was there before.
_LIVE = '<div role="status">${value}</div>'
_CLICKED = """element.addEventListener("click", (event) => {
  const place = event.target.closest("[data-index]");
  if (place) trigger("click", {...place.dataset});
})"""
_IN_SIGHT = """() => requestAnimationFrame(() => {
  const column = document.activeElement.closest(".column");
  column?.querySelector(".alternatives")?.scrollIntoView({block: "nearest"});
})"""
# For every event: no spinner over the page, and no address by which programs could call it.
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# A second start is not refused: it ends the first. Values come unchecked, as our messages say more.
_RUN: dict[str, Any] = _QUIET | {"concurrency_limit": None, "trigger_mode": "multiple", "preprocess": False}
# What an event changes, by component.
_Changes = dict[Any, Any]


@dataclass
class _Visit:
    """What is kept of one open page between two events."""

    run: object = None
    """The newest run that continues; an older one finds another here, and ends."""
    texts: dict[int, Text] = field(default_factory=dict)
    """By the model's number."""


def build_page(subjects: Sequence[Subject]) -> gr.Blocks:
    """The page for one model or several side by side."""
    with gr.Blocks(title=f"Try {subjects[0].name}", analytics_enabled=False) as page:
        _Page(page, subjects)
    return page


class _Page:
    """The components, and what they do."""

    def __init__(self, page: gr.Blocks, subjects: Sequence[Subject]) -> None:
        self.page, self.subjects = page, subjects
        self.room = threading.BoundedSemaphore(AT_ONCE)
        numbers = range(len(subjects))
        visit = gr.State(_Visit())
        gr.HTML(_header(subjects))
        with gr.Column(elem_id="page"):
            with gr.Column(elem_id="ask"):
                prompt = gr.Textbox(
                    PROMPT, label="Prompt", info=_HELP, max_lines=12, autofocus=True, elem_id="prompt"
                )
                gr.Examples(EXAMPLES, prompt, label="Examples", elem_id="examples", api_visibility="private")
                with gr.Row():
                    generate = gr.Button("Generate", variant="primary", elem_id="generate", min_width=90)
                    self.go_on = gr.Button("Continue", elem_id="continue", min_width=90, interactive=False)
                    self.stop = gr.Button("Stop", elem_id="stop", min_width=90, interactive=False)
                self.status = gr.HTML("", html_template=_LIVE, elem_id="status")
            # Side by side where there is room.
            with gr.Row(elem_id="texts"):
                self.outputs = []
                for number in numbers:
                    with gr.Column(min_width=280):
                        self.outputs.append(gr.HTML(_empty(subjects[number]), elem_id=f"output-{number}"))
            with gr.Column(elem_id="pieces"):
                self.fragments, self.alternatives = [], []
                with gr.Row():
                    for number in numbers:
                        with gr.Column(min_width=280):
                            self.fragments.append(
                                gr.HTML("", elem_id=f"fragments-{number}", js_on_load=_CLICKED)
                            )
                            self.alternatives.append(
                                gr.HTML("", elem_id=f"alternatives-{number}", js_on_load=_CLICKED)
                            )
                gr.HTML(legend_html())
            with gr.Column(elem_id="controls"):
                controls = self._controls()

        inputs = [visit, *controls]
        # The status last: what it says is then so.
        shown = [*self.outputs, *self.fragments, *self.alternatives]
        shown += [self.seed, self.go_on, self.stop, self.status]
        starts = [generate.click, prompt.submit, self.seed.submit]
        gr.on(starts, self._generate, [visit, prompt, *controls], shown, **_RUN)
        self.go_on.click(self._continue, inputs, shown, **_RUN)
        self.stop.click(self._stop, visit, queue=False, **_QUIET)
        looked = gr.on(
            [pane.click for pane in self.fragments], self._look, visit, self.alternatives, **_QUIET
        )
        looked.then(None, js=_IN_SIGHT, api_visibility="private")
        gr.on([pane.click for pane in self.alternatives], self._choose, inputs, shown, **_RUN)

    def _controls(self) -> list[Any]:
        """In the order of Sampling's fields; then whether the seed is kept."""
        card = Sampling()

        def slider(key: str, label: str, step: float) -> gr.Slider:
            return gr.Slider(*LIMITS[key], getattr(card, key), step=step, label=label, elem_id=key)

        with gr.Accordion("Sampling as on the card"):
            temperature = slider("temperature", "Temperature", 0.05)
            top_p = slider("top_p", f"Top-p (top-k {TOP_K})", 0.05)
            penalty = slider("repetition_penalty", "Repetition penalty", 0.05)
            new_tokens = slider("max_new_tokens", "New tokens", 1)
            self.seed = gr.Number(card.seed, label="Seed (same seed, same text)", elem_id="seed")
            keep = gr.Checkbox(False, label="Keep this seed (else a new one each time)", elem_id="keep")
            greedy = gr.Checkbox(card.greedy, label="Greedy (no sampling)", elem_id="greedy")
        # Who writes a seed wants that one.
        self.seed.input(None, None, keep, js="() => true", api_visibility="private")
        random = [temperature, top_p, self.seed, keep]
        greedy.change(lambda chosen: [gr.update(interactive=not chosen)] * 4, greedy, random, **_QUIET)
        return [temperature, top_p, penalty, new_tokens, self.seed, greedy, keep]

    def _generate(self, visit: _Visit, prompt: str, *values: Any) -> Iterator[_Changes]:
        """A new text of every model."""

        def begin(sampling: Sampling) -> dict[int, Text]:
            return {
                number: self._start(subject, prompt, sampling) for number, subject in enumerate(self.subjects)
            }

        # The last text would be taken for this prompt's, should this one fail.
        visit.texts = {}
        yield from self._run(visit, values, begin)

    def _start(self, subject: Subject, prompt: str, sampling: Sampling) -> Text:
        try:
            return start_text(subject, prompt, sampling)
        except AntError as error:
            raise AntError(f"{subject.name}: {error}" if len(self.subjects) > 1 else str(error)) from None

    def _continue(self, visit: _Visit, *values: Any) -> Iterator[_Changes]:
        """Every text continues from its end, whatever the prompt's field says by now."""

        def begin(sampling: Sampling) -> dict[int, Text]:
            return {
                number: text.again(sampling, len(text.generation.nats) - text.generation.ended)
                for number, text in visit.texts.items()
            }

        yield from self._run(visit, values, begin)

    def _choose(self, visit: _Visit, event: gr.EventData, *values: Any) -> Iterator[_Changes]:
        """One text continues from another fragment than the one that stands there."""
        number, index, token_id = int(event.model), int(event.index), int(event.token)

        def begin(sampling: Sampling) -> dict[int, Text]:
            text = visit.texts.get(number)
            share = {each.token_id: each.probability for each in text.considered(index)} if text else {}
            if text is None or token_id not in share:
                raise AntError(
                    "the text has changed in the meantime", hint="Click on a fragment of the new one."
                )
            chosen = (token_id, surprise(share[token_id]))
            return {number: text.again(sampling, index - len(text.given), chosen)}

        yield from self._run(visit, values, begin)

    def _look(self, visit: _Visit, event: gr.EventData) -> _Changes:
        """What the model considered in the place of the fragment that was clicked."""
        number, index = int(event.model), int(event.index)
        text, html = visit.texts.get(number), ""
        if text and 0 <= index < len(pieces := text.fragments()):
            given = index < len(text.given)
            html = alternatives_html(number, index, pieces[index], text.considered(index), given)
        return {self.alternatives[number]: html}

    def _stop(self, visit: _Visit) -> None:
        """The run sees it, and says so."""
        visit.run = None

    def _run(
        self, visit: _Visit, values: Sequence[Any], begin: Callable[[Sampling], dict[int, Text]]
    ) -> Iterator[_Changes]:
        """What changes on the page while the texts grow that `begin` returns."""
        visit.run = mine = object()
        temperature, top_p, penalty, new_tokens, seed, greedy, keep = values
        if greedy or not keep:
            seed = secrets.randbelow(_SEEDS)
        yield {
            self.status: _say("Generating ..."),
            self.seed: gr.skip() if greedy else seed,
            self.go_on: gr.update(interactive=False),
            self.stop: gr.update(interactive=True),
            **dict.fromkeys(self.alternatives, ""),
        }
        word, kind = "Done.", ""
        try:
            texts = begin(Sampling(temperature, top_p, penalty, new_tokens, seed, greedy))
            if visit.run is mine:
                visit.texts |= texts
                yield from self._grow(visit, mine, texts)
        # Whatever fails must be said on the page, which would wait for ever otherwise.
        except Exception as error:
            word, kind = str(error if isinstance(error, AntError) else failure(error)), "error"
        if visit.run not in (mine, None):
            # A newer run has the page; Gradio repeats what came last, so it must be nothing.
            yield {self.status: gr.skip()}
            return
        if visit.run is None and not kind:
            word = "Stopped."
        visit.run = None
        empty = {n: subject for n, subject in enumerate(self.subjects) if n not in visit.texts}
        yield {
            self.status: _say(word, kind),
            self.go_on: gr.update(interactive=bool(visit.texts)),
            self.stop: gr.update(interactive=False),
            **{self.outputs[number]: _empty(subject) for number, subject in empty.items()},
            **{self.fragments[number]: "" for number in empty},
        }

    def _grow(self, visit: _Visit, mine: object, texts: dict[int, Text]) -> Iterator[_Changes]:
        yield self._panes(texts, 0.0)
        while not self.room.acquire(timeout=_TURN):
            if not self._wanted(visit, mine):
                return
            yield {self.status: _say("Waiting until other visitors' texts are done ...")}
        try:
            began = shown = now = time.perf_counter()
            with closing(generate_together([text.generation for text in texts.values()])) as steps:
                for _ in steps:
                    now = time.perf_counter()
                    if not self._wanted(visit, mine):
                        break
                    if now - shown >= _PAUSE:
                        shown = now
                        yield {self.status: _say("Generating ..."), **self._panes(texts, now - began)}
        finally:
            self.room.release()
        if visit.run in (mine, None):
            yield self._panes(texts, now - began)

    def _wanted(self, visit: _Visit, mine: object) -> bool:
        return visit.run is mine and self.page.is_running

    def _panes(self, texts: dict[int, Text], seconds: float) -> _Changes:
        changes = {}
        for number, text in texts.items():
            name, made, facts = text.subject.name, text.made, text.facts(seconds)
            changes[self.outputs[number]] = output_html(name, text.prompt, made, facts, text.loop)
            pieces = fragments_html(number, name, text.fragments(), len(text.given))
            changes[self.fragments[number]] = pieces
        return changes


def _header(subjects: Sequence[Subject]) -> str:
    models = "; ".join(
        f"<b>{safe(subject.name)}</b>, {subject.identity['parameters']:,} parameters, "
        f"context {subject.context_length:,} tokens"
        for subject in subjects
    )
    return f'<header class="head"><h1>Try the model</h1><p>{models}</p></header>'


def _say(word: str, kind: str = "") -> str:
    return f'<p class="{kind}">{safe(word)}</p>'


def _empty(subject: Subject) -> str:
    return output_html(subject.name, "", "", "Nothing generated yet.", None)


def _style() -> str:
    """The style sheet, with the fragments' colours on light and dark pages."""
    # Their rules are stronger than the library's own colour of all text inside such a block.
    return Path(__file__).with_suffix(".css").read_text(encoding="utf-8") + "\n".join(
        f"{scope}.f.f.s{step}{{background:{background};color:{text}!important}}"
        for theme, scope in (("light", ""), ("dark", ".dark "))
        for step, (background, text) in enumerate(surprise_colours(theme))
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
