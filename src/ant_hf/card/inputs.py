"""What a card is made of: the files of one release folder, held against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError
from ant_hf.utils.files import read_json, read_sealed
from ant_hf.utils.metrics import read_metrics
from ant_hf.utils.names import (
    FRAGMENTATION,
    GATE,
    METRICS,
    RELEASED_MANIFEST,
    RESULTS,
    RUN_RECORD,
    VERIFIED,
    WEIGHTS,
)


@dataclass(frozen=True)
class CardInputs:
    """The records of one model, from its training to its gate."""

    repository: str
    """`owner/name` on the Hub."""
    license: str
    run: dict[str, Any]
    results: dict[str, Any]
    gate: dict[str, Any]
    fragmentation: dict[str, Any]
    manifest: dict[str, Any]
    """Of the packed tokens: documents, tokens and bytes by split."""
    metrics: list[dict[str, Any]]
    files: dict[str, dict[str, Any]]
    """Size in bytes and sha256 by file name."""
    exported: dict[str, Any] | None = None
    """The record of the GGUF files' verification."""

    @property
    def name(self) -> str:
        return self.repository.rpartition("/")[2]

    @property
    def recipe(self) -> dict[str, Any]:
        return self.run["recipe"]


def read_inputs(
    folder: Path, repository: str, license_id: str, files: dict[str, dict[str, Any]]
) -> CardInputs:
    """Read a release folder's records.

    Raises:
        AntError: one is missing, damaged, or belongs to other weights than the rest.
    """
    run = read_json(
        folder / RUN_RECORD, "run record", "Train first: accelerate launch pretrain.py --config RECIPE"
    )
    results = read_json(folder / RESULTS, "results", "Measure first: ant-hf evaluate MODEL_FOLDER")
    gate = read_json(folder / GATE, "gate report", "Make the release anew: ant-hf card MODEL_FOLDER")
    report = read_json(folder / FRAGMENTATION, "fragmentation report", "Train the tokenizer anew.")
    manifest = read_json(folder / RELEASED_MANIFEST, "token manifest", "Pack the tokens anew.")
    metrics = read_metrics(folder / METRICS)
    if not metrics:
        raise AntError(f"no metrics in {folder / METRICS}", hint="The card shows the training's course.")
    weights = files[WEIGHTS]["sha256"]
    for what, seen in (
        (RUN_RECORD, run.get("final", {}).get("weights_sha256")),
        (RESULTS, results.get("model", {}).get("weights_sha256")),
        (GATE, gate.get("sha256", {}).get(WEIGHTS)),
    ):
        if seen != weights:
            raise AntError(
                f"{what} is about other weights than {folder / WEIGHTS}",
                seen=f"sha256 {str(seen)[:12]}",
                expected=weights[:12],
                hint="Measure this model: ant-hf evaluate MODEL_FOLDER" if what == RESULTS else None,
            )
    exported = None
    if VERIFIED in files:
        exported = read_sealed(folder / VERIFIED, "record of the export", "Export anew: ant-hf export")
    return CardInputs(repository, license_id, run, results, gate, report, manifest, metrics, files, exported)
