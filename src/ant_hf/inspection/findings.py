"""What an inspection says: what stands out, in sentences with their criteria, and every figure as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ant_hf.inspection.examination import Inspection
from ant_hf.inspection.measures import DEAD_SHARE, DUPLICATE_COSINE, OUTLIER_DEVIATIONS

# Even attention carries no information about which token is needed; first layers often have some.
EVEN_ATTENTION = 0.95
_MANY_EVEN = 0.25
# Of the dimensions there are (or that the text can show).
LOW_RANK = 0.1
_NAMED = 12
# Of the records that are shown row by row.
_MATRIX = (
    *("layer", "name", "shape", "rms", "frobenius_norm", "top_singular_values", "effective_rank"),
    *("outliers", "largest_deviation", "largest_at"),
)
_HEAD = ("layer", "head", "write_norm", "write_share", "dead", "duplicates")


class Finding(NamedTuple):
    """One sentence; `notable` if it is something to look into, None if that cannot be told."""

    topic: str
    notable: bool | None
    sentence: str


def findings(inspection: Inspection) -> list[Finding]:
    """Judge a model by the criteria of this module, in the order of the report."""
    checks = {
        "dead heads": _dead,
        "duplicated heads": _duplicated,
        "even attention": _even,
        "residual stream": _residual,
        "outliers": _outliers,
        "never-trained tokens": _unseen,
        "invalid UTF-8": _utf8,
    }
    return [Finding(topic, *check(inspection)) for topic, check in checks.items()]


def _dead(inspection: Inspection) -> tuple[bool, str]:
    dead = [f"{head.layer}.{head.head}" for head in inspection.heads if head.dead]
    limit = f"{DEAD_SHARE:.0%} of what the median head writes (norm of W_O W_V)"
    if dead:
        return True, f"{len(dead)} under {limit}: {_listed(dead)} (layer.head)"
    least = min(head.write_share for head in inspection.heads)
    return False, f"none: the weakest writes {least:.0%} of the median; dead is under {limit}"


def _duplicated(inspection: Inspection) -> tuple[bool, str]:
    found = [
        f"{head.layer}.{head.head} = {head.layer}.{head.duplicates}"
        for head in inspection.heads
        if head.duplicates is not None and head.head < head.duplicates
    ]
    if found:
        pairs = f"{len(found)} pairs with cosines above {DUPLICATE_COSINE} in what they read and write"
        return True, f"{pairs}: {_listed(found)}"
    most = f"the largest cosine of two heads of a layer is {max(h.cosine for h in inspection.heads):.2f}"
    return False, f"none: {most}; a duplicate is above {DUPLICATE_COSINE}"


def _even(inspection: Inspection) -> tuple[bool, str]:
    entropy = inspection.activations.entropy
    even = [f"{layer}.{head}" for layer, head in np.argwhere(entropy > EVEN_ATTENTION)]
    if not even:
        return False, f"none: the most even head has {entropy.max():.2f} of the largest entropy"
    share = f"{len(even)} of {entropy.size} heads attend to everything equally"
    limit = f"over {EVEN_ATTENTION} of the largest entropy"
    return len(even) > _MANY_EVEN * entropy.size, f"{share} ({limit}): {_listed(even)} (layer.head)"


def _residual(inspection: Inspection) -> tuple[bool, str]:
    seen = inspection.activations
    least, layer, bound = seen.hidden_rank.min(), int(seen.hidden_rank.argmin()), seen.rank_bound
    where = f"after layer {layer - 1}" if layer else "in the embeddings"
    text = f"at least {least:.0f} of {bound} dimensions in use ({least / bound:.0%}), fewest {where}"
    if bound < seen.hidden_size:
        text += f"; {seen.tokens} tokens cannot show more than {bound}"
    return bool(least < LOW_RANK * bound), text


def _outliers(inspection: Inspection) -> tuple[bool, str]:
    count = sum(matrix.outliers for matrix in inspection.matrices)
    worst = max(inspection.matrices, key=lambda matrix: matrix.largest_deviation)
    where = f"layer {worst.layer} {worst.name} [{worst.largest_at[0]}, {worst.largest_at[1]}]"
    text = f"{count:,} weights beyond {OUTLIER_DEVIATIONS:.0f} standard deviations of their matrix"
    # At twice the limit 8-bit rounding of the whole matrix suffers.
    notable = worst.largest_deviation > 2 * OUTLIER_DEVIATIONS
    return notable, f"{text}; the largest at {worst.largest_deviation:.1f}: {where}"


def _unseen(inspection: Inspection) -> tuple[bool | None, str]:
    embeddings = inspection.embeddings
    unseen, size = embeddings.unseen, len(embeddings.counts)
    if not embeddings.from_training:
        occur = f"{size - len(unseen):,} of {size:,} occur in the text"
        return None, f"only the training tokens can tell (--tokens FOLDER); {occur}"
    if not unseen:
        return False, f"none: all {size:,} occur in {embeddings.counted}"
    names = _listed([inspection.entries.text(index) for index in unseen])
    return True, f"{len(unseen):,} of {size:,} never occur in {embeddings.counted}: {names}"


def _utf8(inspection: Inspection) -> tuple[bool, str]:
    share = inspection.invalid_utf8_share
    return share > 0.01, f"{share:.3%} of the probability is on bytes that cannot follow, on average"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def as_json(inspection: Inspection) -> dict[str, Any]:
    """Every figure that is shown and those behind the figures; losses in nats, entropies in bits.

    Bytes are in hexadecimal. Figures that are not finite are null.
    """
    seen, embeddings, reading = inspection.activations, inspection.embeddings, inspection.reading
    correlation = embeddings.rank_correlation
    return {
        "name": inspection.name,
        "facts": inspection.facts,
        "parameters": {**dict(inspection.ledger.rows), "total": inspection.ledger.total},
        "findings": [finding._asdict() for finding in findings(inspection)],
        "matrices": [{key: getattr(matrix, key) for key in _MATRIX} for matrix in inspection.matrices],
        "heads": [
            {key: getattr(head, key) for key in _HEAD}
            | {
                "attention_entropy": float(seen.entropy[head.layer, head.head]),
                "first_token_share": float(seen.first_token_share[head.layer, head.head]),
            }
            for head in inspection.heads
        ],
        "hidden_effective_rank": seen.hidden_rank.tolist(),
        "logit_std": seen.logit_std,
        "logit_max": seen.logit_max,
        "embeddings": {
            "counted": embeddings.counted,
            "mean_norm": float(embeddings.norms.mean()),
            "rank_correlation": None if np.isnan(correlation) else correlation,
            "unseen": embeddings.unseen,
        },
        "text": {
            "source": inspection.text_source,
            "tokens": len(reading.fragments),
            "bits_per_byte": reading.bits_per_byte,
            "entropy_bits": inspection.entropy_bits,
            "invalid_utf8_share": inspection.invalid_utf8_share,
            "fragments": [
                {"id": f.token_id, "bytes": f.raw.hex(), "start": f.start, "end": f.end, "nats": f.nats}
                for f in reading.fragments
            ],
            "position": inspection.position,
            "next": {
                "entropy_bits": inspection.next.entropy_bits,
                "invalid_utf8_share": inspection.next.invalid_utf8_share,
                "candidates": [
                    {"id": c.token_id, "bytes": c.raw.hex(), "probability": c.probability}
                    for c in inspection.next.candidates
                ],
            },
        },
    }
