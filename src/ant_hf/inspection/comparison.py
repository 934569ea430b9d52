"""One model, or two beside each other on the same text."""

from __future__ import annotations

from pathlib import Path

from ant_hf.inspection.embeddings import fits_tokenizer, run_tokens
from ant_hf.inspection.examination import Bar, Inspection, inspect_model
from ant_hf.inspection.texts import choose_text
from ant_hf.model.loading import load_subject, locate
from ant_hf.utils.names import FINAL, RUN_RECORD

REPORT = "inspection.html"


def compare(
    model: str, other: str | None, text: str | None, position: int | None, tokens: Path | None, bar: Bar
) -> list[Inspection]:
    """Inspect a model, and another on the same text and at the same place of it.

    Args:
        model, other: folders or Hub ids.
        text: a text or a file; see `choose_text`.
        tokens: packed tokens of the first model's training, used for the other if its tokenizer is the same.

    Raises:
        AntError: a model cannot be loaded or is not built like a Llama; the text, the tokens or the
            position do not fit.
    """
    subject = load_subject(model, "float32", "cpu")
    # Both before any work: a mistake in the second should not cost the minute that the first takes.
    beside = load_subject(other, "float32", "cpu") if other is not None else None
    found = run_tokens(subject.folder, tokens)
    chosen = choose_text(text, found, subject.tokenizer)
    first = inspect_model(subject, chosen, found, position, bar)
    if beside is None:
        return [first]
    own = run_tokens(beside.folder)
    if own is None and found and fits_tokenizer(found, beside.folder):
        own = found
    return [first, inspect_model(beside, chosen, own, None, bar, beside=first)]


def default_report(model: str, other: str | None) -> Path:
    """In the run's folder for a run's final model, else in the current one.

    Never inside a model's folder: a release is sealed file by file, and all of a final folder is published.
    """
    name = REPORT if other is None else f"inspection-beside-{_short(other)}.html"
    _, folder = locate(model)
    run = folder.resolve().parent
    if folder.resolve().name == FINAL and (run / RUN_RECORD).is_file():
        return run / name
    return Path(f"{_short(model)}-{name}")


def _short(model: str) -> str:
    return locate(model)[0].replace("/", "-")
