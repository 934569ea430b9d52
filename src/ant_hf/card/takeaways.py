"""Sentences that follow from the numbers by rule, so that no conclusion is typed by hand.

A difference is one from two standard errors on. Nothing here explains why a number is as it is.
"""

from __future__ import annotations

from typing import Any

from ant_hf.card.benchmarks import Row

_SURE = 2.0


def takeaways(
    rows: list[Row], slices: list[Row], wikitext: dict[str, Any] | None, results: dict[str, Any]
) -> list[str]:
    """The list under "Key takeaways"."""
    lines = [_floors(rows)] if any(row.verdict for row in rows) else []
    # The first documents of a set are no sample of it, so they stand beside no published figure.
    complete = [row for row in rows if row.complete]
    names = dict.fromkeys(name for row in complete for name in row.published)
    lines += [_against(complete, name) for name in names]
    if partial := [row for row in rows if not row.complete]:
        lines.append(f"Not the complete set, so not compared with published figures: {_listed(partial)}.")
    if slices:
        lines.append(_slices(slices))
    if wikitext:
        lines.append(_wikitext(wikitext))
    if degeneration := results.get("degeneration"):
        greedy, sampled = degeneration["greedy"], degeneration["sampled"]
        lines.append(
            f"Loops: {greedy['loop_rate']:.1%} of {degeneration['prompts']} greedy continuations end in a "
            f"repeated span{_error(greedy)}, {sampled['loop_rate']:.1%}{_error(sampled)} with the sampling "
            "settings of the snippet below."
        )
    return lines


def _error(loops: dict[str, Any]) -> str:
    # All or none of the prompts: the formula gives zero, which is no statement about others.
    return f" (± {loops['stderr']:.1%})" if loops["stderr"] else ""


def _floors(rows: list[Row]) -> str:
    groups = {
        verdict: [row for row in rows if row.verdict == verdict]
        for verdict in ("above", "indistinguishable", "below")
    }
    parts = [f"above it on {_listed(groups['above'], _distance)}"] if groups["above"] else []
    if groups["indistinguishable"]:
        parts.append(f"not distinguishable from it on {_listed(groups['indistinguishable'])}")
    if groups["below"]:
        parts.append(f"below it on {_listed(groups['below'], _distance)}")
    return f"Against the floor of each benchmark, at two standard errors: {'; '.join(parts)}."


def _distance(row: Row) -> str:
    return f" ({row.errors_from_floor():+.1f} standard errors)"


def _against(rows: list[Row], name: str) -> str:
    shared = [row for row in rows if name in row.published]

    def distance(row: Row) -> str:
        return f" ({row.errors_from(name):+.1f} standard errors)"

    better = [row for row in shared if row.errors_from(name) >= _SURE]
    worse = [row for row in shared if row.errors_from(name) <= -_SURE]
    parts = [f"better on {_listed(better, distance)}"] if better else []
    parts += [f"worse on {_listed(worse, distance)}"] if worse else []
    alike = len(shared) - len(better) - len(worse)
    if alike:
        parts.append(f"no difference that two standard errors show on {alike} of {len(shared)}")
    return f"Against the published figures of {name}: {'; '.join(parts)}."


def _slices(slices: list[Row]) -> str:
    parts = [f"{row.label}: {row.value:.2%}, {_FLOOR_WORDS[row.verdict]}{_distance(row)}" for row in slices]
    return f"Arithmetic, against a floor of {slices[0].floor:.1%}: {'; '.join(parts)}."


_FLOOR_WORDS: dict[str | None, str] = {
    "above": "above it",
    "below": "below it",
    "indistinguishable": "not distinguishable from it",
}


def _wikitext(wikitext: dict[str, Any]) -> str:
    uniform, byte = wikitext["uniform_guess_byte_perplexity"], wikitext["byte_perplexity"]
    text = (
        f"{wikitext['label']}: byte perplexity {byte:.3f}, where guessing all tokens alike has {uniform:.2f}"
    )
    if byte >= uniform:
        return f"{text}: on this text the model is broken."
    return f"{text}: {wikitext['bits_per_byte']:.3f} bits for each byte of text."


def _listed(rows: list[Row], note: Any = lambda row: "") -> str:
    return ", ".join(f"{row.label}{note(row)}" for row in rows)
