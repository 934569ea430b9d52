"""The figures of an inspection as JSON values."""

from __future__ import annotations

from typing import Any

import numpy as np

from ant_hf.inspection.examination import Inspection
from ant_hf.inspection.findings import findings
from ant_hf.inspection.fragments import NextTokens


def as_json(inspection: Inspection) -> dict[str, Any]:
    """Every figure that is shown and those behind the figures; losses in nats, entropies in bits.

    Bytes are in hexadecimal. Figures that are not finite are null.
    """
    seen, embeddings = inspection.activations, inspection.embeddings
    return {
        "name": inspection.name,
        "facts": dict(inspection.facts),
        "parameters": {**dict(inspection.ledger.rows), "total": inspection.ledger.total},
        "findings": [finding._asdict() for finding in findings(inspection)],
        "matrices": [
            {
                "layer": matrix.layer,
                "name": matrix.name,
                "shape": list(matrix.shape),
                "rms": matrix.rms,
                "frobenius_norm": matrix.frobenius_norm,
                "top_singular_values": matrix.top_singular_values,
                "effective_rank": matrix.effective_rank,
                "outliers": matrix.outliers,
                "largest_deviation": matrix.largest_deviation,
                "largest_at": list(matrix.largest_at),
            }
            for matrix in inspection.matrices
        ],
        "heads": [
            {
                "layer": head.layer,
                "head": head.head,
                "write_norm": head.write_norm,
                "write_share": head.write_share,
                "dead": head.is_dead,
                "duplicates": head.like,
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
            "rank_correlation": None
            if np.isnan(embeddings.rank_correlation)
            else embeddings.rank_correlation,
            "unseen": embeddings.unseen,
        },
        "text": _text(inspection),
    }


def _text(inspection: Inspection) -> dict[str, Any]:
    reading = inspection.reading
    return {
        "source": inspection.text_source,
        "tokens": len(reading.fragments),
        "bits_per_byte": reading.bits_per_byte,
        "entropy_bits": inspection.entropy_bits,
        "invalid_utf8_share": inspection.invalid_utf8_share,
        "fragments": [
            {"id": f.token_id, "bytes": f.raw.hex(), "start": f.start, "end": f.end, "nats": f.nats}
            for f in reading.fragments
        ],
        "position": inspection.place.position,
        "next": _next(inspection.place.expected),
    }


def _next(expected: NextTokens) -> dict[str, Any]:
    return {
        "entropy_bits": expected.entropy_bits,
        "invalid_utf8_share": expected.invalid_utf8_share,
        "candidates": [
            {"id": c.token_id, "bytes": c.raw.hex(), "probability": c.probability}
            for c in expected.candidates
        ],
    }
