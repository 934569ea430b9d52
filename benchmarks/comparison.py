"""Whether the verdicts of `ant-hf compare` can be believed: pairs of models whose true difference is known.

    python benchmarks/comparison.py --json docs/comparison-simulation.json

Draws answers of 1,000 pairs of models for sets of several sizes and kinds, and counts how often the
statistics call one better. Without a difference that is false, and may happen in 5 % of the pairs; with one,
it is the power. Needs no model and a few minutes; prints the tables of docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ant_hf.card.markdown import Safe, table
from ant_hf.evaluation.results import interval
from ant_hf.evaluation.statistics import (
    ALPHA,
    Estimate,
    Units,
    holm,
    more_items,
    paired,
    sign_flip_p,
    unpaired,
)
from ant_hf.utils.console import say
from ant_hf.utils.files import write_json

PAIRS = 1000
# Units of one set and one pair of models, drawn again at every call.
Draw = Callable[[np.random.Generator], Units]


def documents(n: int, discordance: float, difference: float = 0.0) -> Draw:
    """A set of `n` documents: the share that one model alone gets right, and the true difference."""
    shares = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]

    def draw(generator: np.random.Generator) -> Units:
        return Units(np.repeat([1.0, -1.0, 0.0], generator.multinomial(n, shares)), np.ones(n))

    return draw


def groups(count: int, each: int, spread: float, discordance: float = 0.3, difference: float = 0.0) -> Draw:
    """A set of groups whose own true differences spread around that of all groups there could be.

    Args:
        spread: standard deviation of the groups' differences; 0: documents err on their own.
    """

    def draw(generator: np.random.Generator) -> Units:
        own = np.clip(difference + spread * generator.standard_normal(count), -discordance, discordance)
        first = generator.binomial(each, (discordance + own) / 2)
        second = generator.binomial(each - first, (discordance - own) / (2 - discordance - own))
        return Units((first - second).astype(float), np.full(count, float(each)))

    return draw


def texts(n: int, spread: float, difference: float = 0.0) -> Draw:
    """Documents of very different lengths, whose bits per byte differ by Student's t with 3 degrees."""

    def draw(generator: np.random.Generator) -> Units:
        sizes = math.log(2) * 20_000 * generator.lognormal(-0.5, 1.0, n)
        return Units(sizes * (difference + spread * generator.standard_t(3, n)), sizes)

    return draw


# The public table: as many documents and groups, and how often small models of one kind differ.
TABLE = [
    *(documents(n, 0.3) for n in (1172, 2376, 1838, 1267, 1000, 3270, 10042, 2500)),
    groups(57, 246, 0.03),
    groups(67, 1000, 0.05),
    texts(62, 0.01),
]
ALIKE: dict[str, Draw] = {
    "200 documents, 10 % discordant": documents(200, 0.1),
    "1,000 documents, 5 % discordant": documents(1000, 0.05),
    "1,000 documents, 45 % discordant": documents(1000, 0.45),
    "10,000 documents, 20 % discordant": documents(10_000, 0.2),
    "57 groups of 246, all alike": groups(57, 246, 0.0),
    "57 groups of 246, which differ by 3 points": groups(57, 246, 0.03),
    "67 groups of 1,000, which differ by 10 points": groups(67, 1000, 0.1),
    "a text of 62 documents": texts(62, 0.01),
}


def alike(pairs: int, seed: int) -> Iterator[dict[str, Any]]:
    """Models without a difference: how often the verdict is false, and how often the interval holds 0."""
    for name, draw in ALIKE.items():
        generator = np.random.default_rng(seed)
        drawn = [draw(generator) for _ in range(pairs)]
        found = [paired(units, seed + index) for index, units in enumerate(drawn)]
        flat = [_by_document(units) for units in drawn] if "groups" in name else None
        yield {
            "set": name,
            "false": np.mean([each.p < ALPHA for each in found]),
            "interval_holds_0": np.mean([each.interval[0] <= 0 <= each.interval[1] for each in found]),
            "false_without_groups": None if flat is None else np.mean([p < ALPHA for p in flat]),
        }


def _by_document(units: Units) -> float:
    """McNemar's p, had the documents of all groups been taken as independent; discordance 0.3."""
    total, discordant = int(units.differences.sum()), round(0.3 * units.sizes.sum())
    signs = np.repeat([1.0, -1.0], [(discordant + total) // 2, discordant - (discordant + total) // 2])
    return sign_flip_p(signs, np.random.default_rng(0))


def families(pairs: int, seed: int) -> dict[str, Any]:
    """The whole table at once, without any difference: how often at least one verdict is false."""
    generator = np.random.default_rng(seed)
    found = [[sign_flip_p(draw(generator).differences, generator) for draw in TABLE] for _ in range(pairs)]
    return {
        "figures": len(TABLE),
        "any_false": np.mean([min(holm(p_values)) < ALPHA for p_values in found]),
        "any_false_uncorrected": np.mean([min(p_values) < ALPHA for p_values in found]),
    }


def power(pairs: int, seed: int) -> Iterator[dict[str, Any]]:
    """Models with a true difference: how often it is found, on its own, among all, and without pairing."""
    for n in (1000, 2376, 10_042):
        for discordance in (0.1, 0.45):
            for difference in (0.01, 0.02, 0.05):
                generator = np.random.default_rng(seed)
                draw = documents(n, discordance, difference)
                drawn = [draw(generator).differences for _ in range(pairs)]
                p_values = np.array([sign_flip_p(differences, generator) for differences in drawn])
                apart = [_apart(differences, generator) for differences in drawn]
                yield {
                    "documents": n,
                    "discordance": discordance,
                    "difference": difference,
                    "found": np.mean(p_values < ALPHA),
                    "found_among_11": np.mean(p_values < ALPHA / len(TABLE)),
                    "found_unpaired": np.mean([p < ALPHA for p in apart]),
                }


def _apart(differences: Any, generator: np.random.Generator) -> float:
    """The p-value of the same answers, of which only the two scores are known."""
    n, first, second = len(differences), int((differences > 0).sum()), int((differences < 0).sum())
    both = generator.binomial(n - first - second, 0.3)

    def known(right: int) -> tuple[float, list[float]]:
        value = right / n
        return value, interval(value, math.sqrt(value * (1 - value) / (n - 1)), n) or []

    return unpaired(known(both + first), known(both + second)).p


def needed(pairs: int, seed: int) -> Iterator[dict[str, Any]]:
    """How often as many items as are said to be needed show the difference; they are said to in 80 %."""
    for discordance, difference in ((0.1, 0.01), (0.45, 0.02), (0.45, 0.05)):
        n, generator = 500, np.random.default_rng(seed)
        stderr = math.sqrt((discordance - difference**2) / n)
        more = more_items(Estimate(difference, (0.0, 0.0), stderr, 1.0), n, 1) or 0
        draw = documents(n + more, discordance, difference)
        p_values = [sign_flip_p(draw(generator).differences, generator) for _ in range(pairs)]
        yield {
            "discordance": discordance,
            "difference": difference,
            "items": n + more,
            "found": np.mean([p < ALPHA for p in p_values]),
        }


def simulate(pairs: int, seed: int) -> dict[str, Any]:
    """All of it, as JSON values."""
    values = {
        "pairs": pairs,
        "seed": seed,
        "alike": list(alike(pairs, seed)),
        "families": families(pairs, seed),
        "power": list(power(pairs, seed)),
        "needed": list(needed(pairs, seed)),
    }
    plain: dict[str, Any] = json.loads(json.dumps(values, default=float))
    return plain


def tables(values: dict[str, Any]) -> list[Safe]:
    """The tables of the documentation."""
    none = [
        [row["set"], *map(_percent, (row["false"], row["interval_holds_0"], row["false_without_groups"]))]
        for row in values["alike"]
    ]
    found = [
        [
            f"{row['documents']:,}",
            *(f"{100 * row[key]:g}" for key in ("discordance", "difference")),
            *(_percent(row[key]) for key in ("found", "found_among_11", "found_unpaired")),
        ]
        for row in values["power"]
    ]
    return [
        table(["no difference", "false verdicts", "interval holds 0", "false if groups were ignored"], none),
        table(
            ["documents", "discordant, %", "true difference, points", "found", "found among 11", "unpaired"],
            found,
            numbers_from=0,
        ),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of models drawn for each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where every figure goes")
    options = parser.parse_args()
    values = simulate(options.pairs, options.seed)
    for each in tables(values):
        say(f"{each}\n")
    every = values["families"]
    say(
        f"{every['figures']} figures at once: a false verdict among them in {_percent(every['any_false'])} "
        f"({_percent(every['any_false_uncorrected'])} without the correction)"
    )
    for row in values["needed"]:
        say(f"{row['items']:,} items should be enough in 80 % of cases, and were in {_percent(row['found'])}")
    if options.json:
        write_json(options.json, values)


if __name__ == "__main__":
    main()
