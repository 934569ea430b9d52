"""`README.md` of a release: one template, strict about what is missing, escaping what is foreign."""

from __future__ import annotations

from typing import Any

import jinja2
import yaml
from huggingface_hub import ModelCard

from ant_hf.card.benchmarks import Row, benchmark_rows, slice_rows
from ant_hf.card.energy import co2_estimate
from ant_hf.card.facts import (
    NOT_MEASURED,
    architecture_table,
    benchmark_table,
    contamination_table,
    data_source,
    dynamics_table,
    exported_table,
    files_table,
    gate_table,
    hardware,
    perplexity_table,
    samples,
    sources_table,
    tokens_seen,
    training_table,
)
from ant_hf.card.inputs import CardInputs
from ant_hf.card.markdown import Safe, code, escape, plain, quote, table
from ant_hf.card.metadata import card_data
from ant_hf.card.takeaways import takeaways
from ant_hf.errors import AntError
from ant_hf.published import PublishedModel, published_models, shipped_file

TEMPLATE = "card.md.jinja"


def render_card(inputs: CardInputs) -> str:
    """The card's text.

    Raises:
        AntError: a number that the card shows is in none of the records.
    """
    try:
        context = _context(inputs)
        body = _environment().from_string(shipped_file(TEMPLATE).read_text(encoding="utf-8")).render(context)
    except jinja2.UndefinedError as error:
        raise AntError(f"the card does not render: {error.message}") from None
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise AntError(
            f"the card does not render, because a record lacks what it shows: {error!r}",
            hint="Train and measure anew with this version.",
        ) from None
    data = card_data(inputs, context["rows"], context["wikitext"], context["co2"])
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (the output is Markdown; `finalize` escapes every value)
    )
    environment.filters |= {"code": code, "quote": quote, "fenced": fenced}
    return environment


def _finalize(value: Any) -> Any:
    # Undefined must reach Jinja, which refuses it.
    return value if isinstance(value, jinja2.Undefined) else escape(value)


def fenced(text: str, language: str) -> Safe:
    """A code block whose fence no line of the text can close."""
    fence = "```"
    while fence in text:
        fence += "`"
    lines = "\n".join(plain(line) for line in text.rstrip().split("\n"))
    return Safe(f"{fence}{language}\n{lines}\n{fence}")


def compared_models(inputs: CardInputs) -> list[PublishedModel]:
    """The published models with figures, smallest first, so that ours stands beside its kin."""
    return sorted((m for m in published_models() if m.results), key=lambda model: model.parameters)


def measured_rows(inputs: CardInputs) -> list[Row]:
    """The benchmark rows of a card, also for its figure."""
    return benchmark_rows(inputs.results.get("tasks", {}), compared_models(inputs))


def _context(inputs: CardInputs) -> dict[str, Any]:
    published = compared_models(inputs)
    names = [model.name for model in published]
    rows = measured_rows(inputs)
    slices = [
        row
        for task, values in inputs.results.get("tasks", {}).items()
        for row in slice_rows(task, values, published)
    ]
    wikitext = inputs.results.get("perplexity", {}).get("wikitext")
    data, data_license = data_source(inputs)
    run = inputs.run
    return {
        "name": inputs.name,
        "repository": Safe(inputs.repository),
        "run": run,
        "training": inputs.recipe["training"],
        "config": run["config"],
        "final": run["final"],
        "environment": run["environment"],
        "results": inputs.results,
        "fragmentation": inputs.fragmentation,
        "manifest": inputs.manifest,
        "gate": inputs.gate,
        "changes": run.get("changes") or [],
        "license": inputs.license,
        "exported": inputs.exported,
        "hardware": hardware(run["environment"]),
        "data": data,
        "data_license": data_license,
        "samples": samples(inputs),
        "tokens_seen": tokens_seen(inputs),
        "co2": co2_estimate(run),
        "rows": rows,
        "slices": slices,
        "wikitext": wikitext,
        "takeaways": takeaways(rows, slices, wikitext, inputs.results),
        "recipe_yaml": yaml.safe_dump(inputs.recipe, sort_keys=False, allow_unicode=True),
        "tables": {
            "architecture": architecture_table(inputs),
            "training": training_table(inputs),
            "dynamics": dynamics_table(inputs),
            "perplexity": perplexity_table(inputs),
            "benchmarks": benchmark_table(rows, names, inputs.name),
            "slices": benchmark_table(slices, names, inputs.name),
            "published_wikitext": _published_wikitext(published),
            "gate": gate_table(inputs),
            "files": files_table(inputs),
            "exported": exported_table(inputs),
            "sources": sources_table(inputs),
            "contamination": contamination_table(inputs),
            "versions": table(["package", "version"], sorted(run["environment"]["packages"].items())),
        },
    }


def _published_wikitext(published: list[PublishedModel]) -> Safe:
    rows = []
    for model in published:
        figures = model.results.get("wikitext", {})
        word = figures.get("word_perplexity")
        shown = f"{word:,.2f}" if word is not None else NOT_MEASURED
        rows.append([f"{model.name} (published)", figures.get("byte_perplexity", NOT_MEASURED), shown])
    return table(["WikiText-2", "byte perplexity", "word perplexity"], rows)
