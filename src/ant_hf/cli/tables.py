"""The tables that the commands print."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from ant_hf.card.audit import Finding
from ant_hf.evaluation.boards import Board, Row
from ant_hf.evaluation.results import ABOVE, BELOW, SHARES, UNCLEAR
from ant_hf.published import PublishedModel
from ant_hf.utils.console import COMPACT, show
from ant_hf.utils.names import GATE

_VERDICTS = {ABOVE: "above", BELOW: "below", UNCLEAR: "same", None: ""}
_PERPLEXITIES = {
    "byte_perplexity": "byte_ppl",
    "bits_per_byte": "bits/byte",
    "word_perplexity": "word_ppl",
    "token_perplexity": "token_ppl",
}


def _table(title: str, columns: Sequence[str], no_wrap: bool = True, **style: Any) -> Table:
    """An empty table; a column whose name begins with ">" holds numbers and stands right."""
    table = Table(title=title, **{"title_justify": "left", **style})
    for name in columns:
        justify: Literal["left", "right"] = "right" if name.startswith(">") else "left"
        table.add_column(name.removeprefix(">"), justify=justify, no_wrap=no_wrap)
    return table


def results_table(results: dict[str, Any], published: list[PublishedModel]) -> Table:
    """One row per figure of results.json, within 80 columns; accuracies in %."""
    table = _table(
        f"{results['model']['name']}: measured here, in {results['conditions']['dtype']}",
        ["set", "metric", ">measured", ">floor", "", *(f">publ.\n{other.name}" for other in published)],
        caption="Accuracies in %, ± one standard error; where none or all are right, the exact 95 % "
        "interval. Floor: what guessing scores, or, where all questions have the same answers to choose "
        "from, always giving the most frequent one; above or below it by more than two standard errors, or "
        "with the whole interval. "
        "publ.: printed by the authors, not measured here.",
        **COMPACT,
    )
    # A long name continues below; a number is never cut.
    table.columns[0].no_wrap, table.columns[0].max_width = False, 20
    for row in _rows(results, published):
        table.add_row(*row)
    return table


def _rows(results: dict[str, Any], published: list[PublishedModel]) -> Iterator[list[str]]:
    for name, values in results["tasks"].items():
        is_share = values["metric"] in SHARES
        number, around = (_percent, [values.get("interval")]) if is_share else (_number, [])
        yield [
            _label(values),
            values["metric"],
            number(values["value"], values["stderr"], *around),
            number(values["floor"]),
            _VERDICTS[values["verdict"]],
            *(number(other.results.get(name, {}).get(values["metric"])) for other in published),
        ]
        for part, own in values.get("slices", {}).items():
            yield [
                f"  {part}",
                values["metric"],
                _percent(own["value"], own["stderr"], own.get("interval")),
                _percent(own["floor"]),
                _VERDICTS[own["verdict"]],
                *(_percent(other.results.get(name, {}).get(part)) for other in published),
            ]
    for name, values in results["perplexity"].items():
        uniform = _number(values["uniform_guess_byte_perplexity"])
        # Said once, beside the first of them.
        label, floor, verdict = _label(values), uniform, "broken" if values["broken"] else "better"
        for metric, short in _PERPLEXITIES.items():
            measured = _number(values[metric], values.get(f"{metric}_stderr"))
            printed = [_number(other.results.get(name, {}).get(metric)) for other in published]
            yield [label, short, measured, floor, verdict, *printed]
            label = floor = verdict = ""
    for way, values in results.get("degeneration", {}).items():
        if isinstance(values, dict):
            rate = _percent(values["loop_rate"], values["stderr"], values.get("interval"))
            yield [f"Loops, {way}", "loop_rate", rate, "", "", *("" for _ in published)]


def board_table(board: Board, rows: Sequence[Row]) -> Table:
    """A board with our row in it, best first."""
    metrics = ", ".join(f"{figure.label} {figure.metric}" for figure in board.figures)
    table = _table(
        f"{board.title}, looked up {board.looked_up}\n{board.address}",
        ["", "model", ">params", *(f">{figure.label}" for figure in board.figures), ">score", "tuned on"],
        no_wrap=False,
        caption=f"{metrics}; accuracies in %. score: {board.score}. here: measured on this model, ± one "
        "standard error. publ.: published by its authors, not measured here; without a score where a figure "
        "that counts was not published. tuned on: sets whose own training questions were trained on; ?: the "
        "authors do not say.",
        **COMPACT,
    )
    table.columns[1].overflow = "fold"
    labels = {figure.task: figure.label for figure in board.figures}
    for row in rows:
        tuned = "?" if row.tuned_on is None else ", ".join(labels[task] for task in row.tuned_on) or "none"
        table.add_row(
            "here" if row.is_measured else "publ.",
            row.name.rpartition("/")[2],
            f"{row.parameters / 1e6:.2f}M",
            # Within 80 columns: the error goes below its value.
            *(row.shown.get(task, "").replace(" ± ", "\n±") for task in board.tasks),
            "" if row.score is None else f"{row.score:.2f}",
            "" if row.is_measured else tuned,
            style="bold" if row.is_measured else None,
        )
    return table


def perplexity_lines(results: dict[str, Any]) -> list[str]:
    """The perplexities explained, and the word that a model at the uniform guess deserves."""
    lines = []
    for values in results["perplexity"].values():
        lines += [
            f"{values['label']}: one pass, {values['identity']}.",
            f"  Token perplexity belongs to this tokenizer ({values['tokenizer']}), word perplexity counts "
            "words split at spaces;",
            "  bits per byte and byte perplexity compare across tokenizers. Guessing every token alike "
            f"scores {values['uniform_guess_byte_perplexity']:.2f} byte perplexity.",
        ]
        if values["broken"]:
            lines.append(
                f"  BROKEN: {_number(values['byte_perplexity'])} is not better than that guess. Weights and "
                "tokenizer do not belong together, or the model was not trained."
            )
    return lines


def incomplete_line(results: dict[str, Any]) -> str | None:
    """Which sets are not the complete ones, if any."""
    parts = [
        f"{values['label']} {values['n']:,} of {values['expected_n']:,}"
        for values in (*results["tasks"].values(), *results["perplexity"].values())
        if values["complete"] is False
    ]
    return f"* not the complete set: {', '.join(parts)}" if parts else None


def _label(values: dict[str, Any]) -> str:
    return f"{values['label']}{'*' if values['complete'] is False else ''}"


def _percent(
    value: float | None, stderr: float | None = None, interval: Sequence[float] | None = None
) -> str:
    if value is None:
        return ""
    if interval and not stderr:
        # None or all are right: one end of it is the value.
        return f"{100 * interval[0]:.4g} to {100 * interval[1]:.4g}"
    return f"{100 * value:.2f}" + ("" if stderr is None else f" ±{100 * stderr:.2f}")


def _number(value: float | None, stderr: float | None = None) -> str:
    if value is None:
        return ""
    if value >= 1e4:
        return f"{value:.3g}"
    return f"{value:,.2f}" + ("" if stderr is None else f" ±{stderr:.2f}")


def comparison_table(pair: dict[str, Any]) -> Table:
    """One row per figure of two models, under the answer to which is better."""
    first, second = pair["first"], pair["second"]
    table = _table(
        pair["answer"],
        ["figure", f">{first}", f">{second}", ">difference (95 %)", f"{first} is"],
        caption="Shares in %, differences in points. Unclear: the two cannot be told apart; about so many "
        "more items would be needed. An interval is of its row alone. Better and worse hold for all rows at "
        "once, because of many differences some are large by chance. \N{DOWNWARDS ARROW} less is better.",
        no_wrap=False,
        **COMPACT,
    )
    table.columns[0].no_wrap = table.columns[3].no_wrap = True
    for row in pair["figures"]:
        scale, form, rough = (1, ".4f", ".4f") if row["metric"] == "bits_per_byte" else (100, ".2f", ".1f")
        scores = (f"{scale * row[key]:{form}}" for key in ("first", "second"))
        low, high = (f"{scale * bound:+{rough}}" for bound in row["interval"])
        # Told in full in the page and in comparison.json.
        verdict = row["in_words"].replace("cannot be told apart", "unclear").replace(": about", ":")
        verdict = verdict.removesuffix(" would be needed").removesuffix(" items")
        table.add_row(
            row["label"] + ("" if row["higher_is_better"] else " \N{DOWNWARDS ARROW}"),
            *scores,
            f"{scale * row['difference']:+{form}} ({low} to {high})",
            verdict,
            style="dim" if verdict.startswith("unclear") else None,
        )
    return table


def comparison_lines(values: dict[str, Any]) -> list[str]:
    """What a reader of the table should know beside it."""
    lines = []
    for pair in values["pairs"]:
        lines += [f"not compared: {label}: {reason}" for label, reason in pair["not_compared"].items()]
        lines += [f"note: {remark}" for remark in pair["remarks"]]
        lines += [f"note: {row['label']}, {remark}" for row in pair["figures"] for remark in row["remarks"]]
    sizes = ", ".join(f"{model['name']} {model['parameters']:,}" for model in values["models"])
    return [*lines, f"parameters: {sizes}"]


def audit_table(title: str, findings: Sequence[Finding]) -> Table:
    """What a card claims, what arithmetic gives, and whether the two go together."""
    table = _table(title, ("claim", "recomputed", "verdict"), no_wrap=False)
    for finding in findings:
        style = "bold" if finding.verdict == "DISAGREES" else None
        table.add_row(finding.claim, finding.recomputed, finding.verdict, style=style)
    return table


def checks_table(title: str, checks: Sequence[dict[str, Any]]) -> Table:
    """The gate's checks with what they saw."""
    table = _table(f"Gate: {title}", ("check", "outcome", "seen"), no_wrap=False)
    outcome = {True: "passed", False: "FAILED", None: "not checked"}
    for check in checks:
        style = "bold" if check["passed"] is False else None
        table.add_row(check["name"], outcome[check["passed"]], check["seen"], style=style)
    return table


def gate_report(folder: Path) -> None:
    """Show the gate report of a release folder."""
    report = json.loads((folder / GATE).read_text(encoding="utf-8"))
    show(checks_table(folder.parent.name, report["checks"]))


def verified_table(record: dict[str, Any]) -> Table:
    """One row a verified file."""
    table = _table(
        f"{record['name']}: verified against Transformers in float32",
        ["file", ">MB", ">logits", ">texts", ">greedy", ">bits/byte", ">tokens/s"],
        caption="logits: largest difference; texts: cut into the same tokens; greedy: prompts continued "
        "alike; bits/byte: what plain English costs more; tokens/s: one output at a time",
        **COMPACT,
    )
    # A long name continues below; a number is never cut.
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    for name, values in record["files"].items():
        if "verified" in values:
            table.add_row(name, f"{values['bytes'] / 1e6:.1f}", *_cells(values["verified"]))
    return table


def _cells(verified: dict[str, Any]) -> list[str]:
    # GGUF is read back by transformers for its logits, and run in llama.cpp for the rest.
    run = read = verified.get("onnxruntime")
    if read is None:
        read, run = verified["transformers"], verified["llama_cpp"]
    difference = f"{read['largest_logit_difference']:.1e}"
    if run is None:
        return [difference, *["not run"] * 4]
    return [
        difference,
        f"{run['texts_with_equal_tokens']:,}",
        f"{run['prompts_with_equal_output']}/{run['prompts']}",
        f"{run['bits_per_byte_difference']:+.5f}",
        f"{run['tokens_per_second']:,.0f}",
    ]
