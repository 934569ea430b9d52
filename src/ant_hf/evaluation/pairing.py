"""Two models' figures lined up by document, tested, and told in words. Imports no torch.

What cannot be lined up fairly is refused with its reason, and what differs beside that is remarked on.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ant_hf.evaluation.entries import Document, Entry
from ant_hf.evaluation.results import DEGENERATION
from ant_hf.evaluation.statistics import (
    ALPHA,
    MIN_GROUPS,
    POWER,
    RESAMPLES,
    SEED,
    Estimate,
    Units,
    holm,
    more_items,
    paired,
    sign_flip_p,
    unpaired,
)

BETTER, WORSE, UNCLEAR = "better", "worse", "cannot be told apart"
# Beyond this nobody measures, and a figure would say more than is known.
_MOST_ITEMS = 10_000_000
# Conditions that say what a model was given, and are compared all the same: with a remark.
_SAID = {"dtype": "precision", "context_length": "context in tokens", "bos_policy": "beginning of a text"}
# And those under which seconds can be compared.
_OF_SPEED = ("dtype", "device", "torch_threads", "batch_size", "limit")
_NOT_LINED_UP = (
    "not paired by document, so only a larger difference counts; pairing needs the samples.jsonl of both "
    "models, which ant-hf evaluate writes"
)
METHOD = {
    "interval": f"95 %, paired bootstrap of {RESAMPLES:,} samples over documents, or over groups where "
    f"a set has {MIN_GROUPS} or more; expanded percentiles",
    "p": "McNemar's exact test of shares in documents, else signs of the units' differences drawn at random",
    "unpaired": "Newcombe's interval, and the normal p-value that agrees with it",
    "correction": f"Holm, over all figures; a difference counts below {ALPHA}",
    "more_items": f"for a power of {POWER:.0%} if the difference is the one that was seen",
    "seed": SEED,
    "resamples": RESAMPLES,
}


@dataclass(frozen=True)
class Row:
    """One figure of two models, compared."""

    name: str
    label: str
    metric: str
    unit: str
    higher_is_better: bool
    n: int
    """Documents or prompts that both have."""
    first: float
    second: float
    difference: float
    """First minus second."""
    interval: tuple[float, float]
    stderr: float
    p: float
    how: str
    """What was resampled, or why nothing could be."""
    is_paired: bool
    mcnemar: tuple[int, int, float] | None
    """Of shares: right in the first alone, in the second alone, and McNemar's exact p."""
    neither_beats_guessing: bool
    remarks: tuple[str, ...]
    p_corrected: float = 1.0
    verdict: str = UNCLEAR
    """Of the first model: `better`, `worse` or `cannot be told apart`."""
    more_items: int | None = None
    """That would be needed to tell them apart; None where they are, or where no difference was seen."""

    @property
    def advantage(self) -> tuple[float, float, float]:
        """Difference and interval, turned so that more is better."""
        low, high = self.interval
        return (self.difference, low, high) if self.higher_is_better else (-self.difference, -high, -low)

    @property
    def labelled(self) -> str:
        """The figure with the size of the difference."""
        size = abs(self.difference)
        by = f"{size:.2g} bits per byte" if self.metric == "bits_per_byte" else f"{100 * size:.1f} points"
        return f"{self.label} (by {by})"

    @property
    def in_words(self) -> str:
        """The verdict with what would change it."""
        if self.verdict != UNCLEAR:
            return self.verdict + (", but neither beats guessing" if self.neither_beats_guessing else "")
        if self.more_items is None:
            return f"{UNCLEAR}: no difference was seen"
        items = "items" if self.unit == "documents" else self.unit
        if self.more_items > _MOST_ITEMS:
            return f"{UNCLEAR}: more than {_MOST_ITEMS:,} more {items} would be needed"
        return f"{UNCLEAR}: about {self.more_items:,} more {items} would be needed"


@dataclass(frozen=True)
class Pair:
    """The first model against one other."""

    first: str
    second: str
    rows: list[Row]
    refused: dict[str, str]
    """Why a set is not compared, by its label."""
    remarks: list[str]
    seconds: tuple[float, float] | None = None
    """That each took for the same documents under the same conditions."""

    @property
    def answer(self) -> str:
        """One sentence: which is better?"""
        groups = {
            verdict: [row for row in self.rows if row.verdict == verdict] for verdict in (BETTER, WORSE)
        }
        wins = {
            verdict: [row.labelled for row in rows if not row.neither_beats_guessing]
            for verdict, rows in groups.items()
        }
        names = {BETTER: self.first, WORSE: self.second}
        told = [f"{names[verdict]} on {listed(labels)}" for verdict, labels in wins.items() if labels]
        left = len(self.rows) - sum(map(len, groups.values()))
        if len(told) == 2:
            answer = f"Neither is better everywhere: {told[0]}; {told[1]}."
        elif told:
            winner = names[next(verdict for verdict, labels in wins.items() if labels)]
            answer = f"{winner} is better {told[0].removeprefix(winner + ' ')}."
        else:
            answer = f"{self.first} and {self.second} cannot be told apart."
        if told and left:
            answer += f" On {left} of {len(self.rows)} figures the two cannot be told apart."
        if vain := [row.label for rows in groups.values() for row in rows if row.neither_beats_guessing]:
            answer += f" On {listed(vain)} they differ, but neither beats guessing there."
        return answer


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


Figures = Mapping[str, Entry]


def compare_figures(first: tuple[str, Figures], second: tuple[str, Figures], names: Sequence[str]) -> Pair:
    """Two models, each with its name, on the figures of these names; not yet corrected for their number."""
    pair = Pair(first[0], second[0], [], {}, [])
    remarks: dict[str, list[str]] = {}
    for name in names:
        ours, theirs = first[1].get(name), second[1].get(name)
        if ours is None or theirs is None:
            label = next((entry.label for entry in (ours, theirs) if entry), name)
            absent = [each[0] for each, entry in ((first, ours), (second, theirs)) if entry is None]
            pair.refused[label] = f"there are no results of {listed(absent)}"
            continue
        try:
            row = _row(name, ours, theirs)
        except _Unfair as reason:
            pair.refused[ours.label] = str(reason)
            continue
        pair.rows.append(row)
        if not row.is_paired:
            remarks.setdefault(_NOT_LINED_UP, []).append(row.label)
        for remark in _differing_conditions(ours, theirs):
            remarks.setdefault(remark, []).append(row.label)
    weights, others = (
        {entry.source.model["weights_sha256"] for entry in figures.values()} for _, figures in (first, second)
    )
    if weights & others:
        pair.remarks.insert(0, "both have the same weights, so differences come from something else")
    for remark, labels in remarks.items():
        pair.remarks.append(remark if len(labels) == len(pair.rows) else f"{remark} ({listed(labels)})")
    return replace(pair, seconds=_seconds(first[1], second[1], pair.rows))


class _Unfair(Exception):  # noqa: N818 (no error: a reason that is told)
    """Why two figures cannot be compared."""


def _row(name: str, ours: Entry, theirs: Entry) -> Row:
    """Two figures of one set, compared.

    Raises:
        _Unfair: they are of other questions, rules or documents.
    """
    for what in ours.asked.keys() | theirs.asked.keys():
        if ours.asked.get(what) != theirs.asked.get(what):
            raise _Unfair(f"another {what}: {ours.asked.get(what)} and {theirs.asked.get(what)}")
    remarks = []
    if ours.documents is None or theirs.documents is None:
        estimate, how = _unpaired(ours, theirs), "unpaired"
        a, b, n, mcnemar = ours.value, theirs.value, min(ours.n, theirs.n), None
    else:
        lined = _lined_up(ours.documents, theirs.documents)
        n = len(lined)
        amounts = np.array([(first.amount, second.amount) for first, second in lined])
        sizes = np.array([first.size for first, _ in lined])
        documents = Units(amounts[:, 0] - amounts[:, 1], sizes)
        groups = [first.group for first, _ in lined]
        grouped = documents.grouped(groups)
        how = f"{len(grouped.sizes)} groups" if grouped else ours.unit
        estimate = paired(grouped or documents)
        a, b = (float(column.sum() / sizes.sum()) for column in amounts.T)
        mcnemar = _mcnemar(documents) if ours.metric != "bits_per_byte" else None
        if n < max(ours.n, theirs.n):
            remarks.append(f"on the {n:,} {ours.unit} that both have, of {ours.n:,} and {theirs.n:,}")
    if complete := ours.complete_n or theirs.complete_n:
        remarks.append(f"not the complete set of {complete:,}")
    return Row(
        name=name,
        label=ours.label,
        metric=ours.metric,
        unit=ours.unit,
        higher_is_better=ours.higher_is_better,
        n=n,
        first=a,
        second=b,
        difference=estimate.difference,
        interval=estimate.interval,
        stderr=estimate.stderr,
        p=estimate.p,
        how=how,
        is_paired=how != "unpaired",
        mcnemar=mcnemar,
        neither_beats_guessing=ours.beats_guessing is False and theirs.beats_guessing is False,
        remarks=tuple(remarks),
    )


def _lined_up(
    ours: dict[Hashable, Document], theirs: dict[Hashable, Document]
) -> list[tuple[Document, Document]]:
    """The documents that both have, which must have been asked in the same words."""
    lined = [(document, theirs[key]) for key, document in ours.items() if key in theirs]
    if len(lined) < 2:
        raise _Unfair(f"a comparison needs 2 documents or more that both have, and there are {len(lined)}")
    if other := sum((a.asked, a.size) != (b.asked, b.size) for a, b in lined):
        raise _Unfair(f"prompts or choices differ in {other:,} of {len(lined):,} documents")
    return lined


def _mcnemar(documents: Units) -> tuple[int, int, float] | None:
    """Of 0 and 1 in each document."""
    differences = documents.differences
    if set(np.unique(differences)) - {-1.0, 0.0, 1.0}:
        return None
    alone = int((differences > 0).sum()), int((differences < 0).sum())
    return (*alone, sign_flip_p(differences, np.random.default_rng(SEED)))


def _unpaired(ours: Entry, theirs: Entry) -> Estimate:
    if ours.data != theirs.data or ours.n != theirs.n:
        raise _Unfair("the documents differ, and pairing them needs the samples.jsonl of both models")
    if ours.interval is None or theirs.interval is None:
        raise _Unfair(f"{ours.metric} has no interval here, and is not a mean over documents of both models")
    return unpaired((ours.value, ours.interval), (theirs.value, theirs.interval))


def _differing_conditions(ours: Entry, theirs: Entry) -> list[str]:
    a, b = ours.source.conditions, theirs.source.conditions
    remarks = [
        f"{words} differs: {a.get(key)} and {b.get(key)}"
        for key, words in _SAID.items()
        if a.get(key) != b.get(key)
    ]
    versions = [each.get("versions", {}).get("lm-eval") for each in (a, b)]
    if versions[0] != versions[1] and ours.task != DEGENERATION:
        same = "the same prompts" if ours.documents and theirs.documents else "the same version of the task"
        remarks.append(f"lm-eval differs: {versions[0]} and {versions[1]}, with {same}")
    return remarks


def corrected(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with Holm's correction over all of their figures, and the verdicts."""
    rows = [row for pair in pairs for row in pair.rows]
    left = iter(holm([row.p for row in rows]))

    def judged(row: Row) -> Row:
        p = next(left)
        if p < ALPHA:
            return replace(row, p_corrected=p, verdict=BETTER if row.advantage[0] > 0 else WORSE)
        estimate = Estimate(row.difference, row.interval, row.stderr, row.p)
        return replace(row, p_corrected=p, more_items=more_items(estimate, row.n, len(rows)))

    return [replace(pair, rows=[judged(row) for row in pair.rows]) for pair in pairs]


def _seconds(first: Figures, second: Figures, rows: Sequence[Row]) -> tuple[float, float] | None:
    """What both took for the same documents, where both were measured under the same conditions."""
    pairs = [(first[row.name], second[row.name]) for row in rows]
    timed = [(a, b) for a, b in pairs if a.seconds and b.seconds and (a.n, a.data) == (b.n, b.data)]
    for a, b in timed:
        ours, theirs = a.source.conditions, b.source.conditions
        if any(ours.get(key) != theirs.get(key) for key in _OF_SPEED):
            return None
        # What was scored before an interruption is in no time.
        if ours.get("resumed_requests") or theirs.get("resumed_requests"):
            return None
    return (sum(a.seconds or 0 for a, _ in timed), sum(b.seconds or 0 for _, b in timed)) if timed else None
