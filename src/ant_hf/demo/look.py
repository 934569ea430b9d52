"""How the page looks and answers to keys: style sheet and script, nothing of which is fetched."""

from __future__ import annotations

import gradio as gr

from ant_hf.demo.fragments_view import surprise_css

_CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.head h1 { font-size: 1.5rem; margin: 0 0 .2rem; }
.head p { margin: 0; }
.output h2 { font-size: 1rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
.output .text { white-space: pre-wrap; overflow-wrap: anywhere; min-height: 4.5em; font-size: 1.05rem;
  line-height: 1.5; margin: 0; padding: .6rem .7rem; border-radius: 6px;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary); }
.output .text .given { color: var(--body-text-color-subdued); }
.output .text .made { color: var(--body-text-color); font-weight: 600; }
.output .facts { margin: .3rem 0 0; font-size: .85rem; color: var(--body-text-color-subdued); }
.output .loop, #status .error { margin: .4rem 0 0; padding: .4rem .6rem; border-left: 4px solid #c04a00;
  background: #c04a0022; overflow-wrap: anywhere; white-space: pre-wrap; }
#status p { margin: 0; min-height: 1.4em; }
.fragments { position: relative; margin-top: .4rem; line-height: 1.9; }
.f { display: inline-block; max-width: 100%; line-height: 1.35; padding: .1em .15em; margin-right: 1px;
  border-radius: 3px; overflow-wrap: anywhere; white-space: pre-wrap;
  font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .9rem; }
.f.of-prompt { border-bottom: 2px dotted currentColor; border-radius: 3px 3px 0 0; }
.fragments .f { cursor: help; }
.fragments .f:hover, .fragments .f:focus { outline: 2px solid var(--body-text-color); outline-offset: 1px; }
/* Over the whole block, so that it never leaves the screen. */
.fragments .f:hover::after, .fragments .f:focus::after { content: attr(aria-label); position: absolute;
  left: 0; bottom: 100%; max-width: 100%; box-sizing: border-box; padding: .3rem .6rem; z-index: 10;
  border-radius: 5px; background: #16181d; color: #fff; border: 1px solid #888; white-space: pre-wrap;
  overflow-wrap: anywhere; pointer-events: none; line-height: 1.4; }
.fragments:hover .f:focus:not(:hover)::after { display: none; }
.scale { display: flex; flex-wrap: wrap; gap: 2px; align-items: center; font-size: .85rem; }
.scale .f { min-width: 1.6em; text-align: center; }
.scale > span:first-child { margin-right: .5rem; }
"""

_KEYS = """
<script>
document.addEventListener("keydown", (event) => {
  const press = (id) => document.getElementById(id)?.click();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    event.stopPropagation();
    press("generate");
  } else if (event.key === "Escape") {
    press("stop");
  } else if (event.target.matches?.(".fragments .f")) {
    const all = [...event.target.parentElement.children], here = all.indexOf(event.target);
    const to = {ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: all.length - 1}[event.key];
    if (all[to]) {
      event.preventDefault();
      all[to].focus();
    }
  }
}, true);
</script>
"""


def launch_options() -> dict[str, object]:
    """Arguments for Gradio's `launch`: our style and keys; fonts of the reader's system."""
    theme = gr.themes.Default(
        primary_hue="orange",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        # Gradio's own greys are too faint to read (WCAG 2.2 asks for a contrast of 4.5).
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )
    return {"theme": theme, "css": _CSS + surprise_css(), "head": _KEYS}
