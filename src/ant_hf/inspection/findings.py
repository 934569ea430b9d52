"""What stands out, in sentences, each by a criterion that is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ant_hf.inspection.examination import Inspection
from ant_hf.inspection.heads import DEAD_SHARE, DUPLICATE_COSINE
from ant_hf.inspection.weights import OUTLIER_DEVIATIONS

# Even attention carries no information about which token is needed; first layers often have some.
EVEN_ATTENTION = 0.95
_MANY_EVEN = 0.25
# Of the dimensions there are (or that the text can show).
LOW_RANK = 0.1
_NAMED = 12


class Finding(NamedTuple):
    """One sentence; `notable` if it is something to look into, None if that cannot be told."""

    topic: str
    notable: bool | None
    sentence: str


def findings(inspection: Inspection) -> list[Finding]:
    """Judge a model by the criteria of this module, in the order of the report."""
    checks: Sequence[Callable[[Inspection], Finding]] = (
        _dead, _duplicated, _even, _residual, _outliers, _unseen, _utf8,
    )  # fmt: skip
    return [check(inspection) for check in checks]


def _dead(inspection: Inspection) -> Finding:
    dead = [f"{head.layer}.{head.head}" for head in inspection.heads if head.is_dead]
    limit = f"{DEAD_SHARE:.0%} of what the median head writes (norm of W_O W_V)"
    if not dead:
        least = min(head.write_share for head in inspection.heads)
        return Finding(
            "dead heads", False, f"none: the weakest writes {least:.0%} of the median; dead is under {limit}"
        )
    return Finding("dead heads", True, f"{len(dead)} under {limit}: {_listed(dead)} (layer.head)")


def _duplicated(inspection: Inspection) -> Finding:
    found = [
        f"{head.layer}.{head.head} = {head.layer}.{head.like}"
        for head in inspection.heads
        if head.like is not None and head.head < head.like
    ]
    if not found:
        most = max(head.cosine for head in inspection.heads)
        return Finding(
            "duplicated heads", False,
            f"none: the largest cosine of two heads of a layer is {most:.2f}; a duplicate is above "
            f"{DUPLICATE_COSINE}",
        )  # fmt: skip
    return Finding(
        "duplicated heads", True,
        f"{len(found)} pairs with cosines above {DUPLICATE_COSINE} in what they read and write: "
        f"{_listed(found)}",
    )  # fmt: skip


def _even(inspection: Inspection) -> Finding:
    entropy = inspection.activations.entropy
    even = [f"{layer}.{head}" for layer, head in zip(*(entropy > EVEN_ATTENTION).nonzero(), strict=True)]
    if not even:
        return Finding(
            "even attention",
            False,
            f"none: the most even head has {entropy.max():.2f} of the largest entropy",
        )
    return Finding(
        "even attention", len(even) > _MANY_EVEN * entropy.size,
        f"{len(even)} of {entropy.size} heads look at everything alike (over {EVEN_ATTENTION} of the largest "
        f"entropy): {_listed(even)} (layer.head)",
    )  # fmt: skip


def _residual(inspection: Inspection) -> Finding:
    rank = inspection.activations.hidden_rank
    layer, bound = int(rank.argmin()), inspection.activations.rank_bound
    where = f"after layer {layer - 1}" if layer else "in the embeddings"
    text = (
        f"at least {rank.min():.0f} of {bound} dimensions in use ({rank.min() / bound:.0%}), fewest {where}"
    )
    if bound < inspection.activations.hidden_size:
        text += f"; {inspection.activations.tokens} tokens cannot show more than {bound}"
    return Finding("residual stream", bool(rank.min() < LOW_RANK * bound), text)


def _outliers(inspection: Inspection) -> Finding:
    count = sum(matrix.outliers for matrix in inspection.matrices)
    worst = max(inspection.matrices, key=lambda matrix: matrix.largest_deviation)
    where = f"layer {worst.layer} {worst.name} [{worst.largest_at[0]}, {worst.largest_at[1]}]"
    text = f"{count:,} weights beyond {OUTLIER_DEVIATIONS:.0f} standard deviations of their matrix"
    # At twice the limit 8-bit rounding of the whole matrix suffers.
    notable = worst.largest_deviation > 2 * OUTLIER_DEVIATIONS
    return Finding("outliers", notable, f"{text}; the largest at {worst.largest_deviation:.1f}: {where}")


def _unseen(inspection: Inspection) -> Finding:
    embeddings = inspection.embeddings
    unseen, size = embeddings.unseen, len(embeddings.counts)
    if not embeddings.from_training:
        return Finding(
            "never-trained tokens", None,
            f"not known without the training tokens (--tokens); {size - len(unseen):,} of {size:,} occur in "
            "the text",
        )  # fmt: skip
    if not unseen:
        return Finding("never-trained tokens", False, f"none: all {size:,} occur in {embeddings.counted}")
    names = [inspection.entries.text(index) for index in unseen]
    return Finding(
        "never-trained tokens", True,
        f"{len(unseen):,} of {size:,} never occur in {embeddings.counted}: {_listed(names)}",
    )  # fmt: skip


def _utf8(inspection: Inspection) -> Finding:
    share = inspection.invalid_utf8_share
    text = f"{share:.3%} of the probability is on bytes that cannot follow, mean over the text"
    return Finding("invalid UTF-8", share > 0.01, text)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
