"""What a card is made of: the files of one release folder, checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ant_hf.card.eval_results import HubTask
from ant_hf.errors import AntError
from ant_hf.utils import names
from ant_hf.utils.files import check_hash, read_json, read_sealed
from ant_hf.utils.metrics import read_metrics

# What each record is, and what makes it; in the order of `CardInputs`.
_RECORDS = {
    names.RUN_RECORD: ("run record", "Train first: accelerate launch --quiet pretrain.py --config RECIPE"),
    names.RESULTS: ("results", "Measure first: ant-hf evaluate MODEL_FOLDER"),
    names.GATE: ("gate report", "Make the release again: ant-hf card MODEL_FOLDER"),
    names.FRAGMENTATION: ("fragmentation report", "Train the tokenizer again."),
    names.RELEASED_MANIFEST: ("token manifest", "Pack the tokens again."),
    names.COMPARISON: ("comparison", "Compare again: ant-hf compare MODEL_FOLDER BASE --for-card"),
    names.VERIFIED: ("record of the ONNX export", "Export again: ant-hf export MODEL_FOLDER --to onnx"),
}
# Records that a model need not have.
_SEALED = (names.COMPARISON, names.VERIFIED)


class Record(dict[str, Any]):
    """A JSON object of a record; a key that is asked for and not there is told with its file.

    Raises:
        AntError: by `record[key]`; `get` and `in` are a dictionary's.
    """

    def __init__(self, file: Path, values: dict[str, Any], path: str = "") -> None:
        super().__init__({key: _held(file, value, f"{path}{key}.") for key, value in values.items()})
        self._file, self._path = file, path

    def __missing__(self, key: str) -> Any:
        raise AntError(
            f"{self._file} lacks {self._path}{key}, which the card shows",
            hint="Train and measure again with this version.",
        )


def _held(file: Path, value: Any, path: str) -> Any:
    if isinstance(value, list):
        return [_held(file, item, f"{path}{index}.") for index, item in enumerate(value)]
    return Record(file, value, path) if isinstance(value, dict) else value


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
    comparison: dict[str, Any] | None = None
    """With a base or a predecessor, by `ant-hf compare`."""
    listed: Mapping[str, HubTask] = field(default_factory=dict)
    """The sets that the Hub lists as benchmarks, by our name."""
    gguf_repository: str | None = None
    """Where its GGUF files are, if they are published with it."""
    onnx: dict[str, Any] | None = None
    """The record of the graphs' verification, if they lie beside the weights."""

    @property
    def name(self) -> str:
        return self.repository.rpartition("/")[2]

    @property
    def wikitext(self) -> dict[str, Any] | None:
        """The perplexities on WikiText-2, if they were measured."""
        return self.results["perplexity"].get("wikitext")

    @property
    def recipe(self) -> dict[str, Any]:
        return self.run["recipe"]


def read_inputs(
    folder: Path,
    repository: str,
    license_id: str,
    files: dict[str, dict[str, Any]],
    listed: Mapping[str, HubTask] | None = None,
    gguf_repository: str | None = None,
) -> CardInputs:
    """Read a release folder's records.

    Raises:
        AntError: one is missing, damaged, or belongs to other weights than the rest.
    """
    run, results, gate, fragments, tokens = (_read(folder / name) for name in _RECORDS if name not in _SEALED)
    log = folder / names.METRICS
    metrics: list[dict[str, Any]] = [Record(log, row) for row in read_metrics(log)]
    if not any("loss" in row and "learning_rate" in row for row in metrics):
        raise AntError(
            f"{log} has no rows, and the card shows how the training went", hint="Restore it, or train again."
        )
    weights, measure = files[names.WEIGHTS]["sha256"], "Measure this model: ant-hf evaluate MODEL_FOLDER"
    for what, seen, hint in (
        (names.RUN_RECORD, run["final"].get("weights_sha256"), None),
        (names.RESULTS, results.get("model", {}).get("weights_sha256"), measure),
        (names.GATE, gate.get("sha256", {}).get(names.WEIGHTS), None),
    ):
        check_hash(f"{what} belongs to other weights than {folder / names.WEIGHTS}", seen, weights, hint)
    comparison = _read(folder / names.COMPARISON) if names.COMPARISON in files else None
    if comparison is not None:
        check_hash(
            f"{folder / names.COMPARISON} compares another model",
            comparison["models"][0]["weights_sha256"],
            weights,
            f"{_RECORDS[names.COMPARISON][1]} Or remove it.",
        )
    graphs = f"{names.ONNX}/{names.VERIFIED}"
    onnx = _read(folder / graphs) if graphs in files else None
    records = (run, results, gate, fragments, tokens, metrics, files, comparison)
    return CardInputs(repository, license_id, *records, listed or {}, gguf_repository, onnx)


def _read(path: Path) -> dict[str, Any]:
    """One record, which names itself where a key of it is missing."""
    what, hint = _RECORDS[path.name]
    values = (read_sealed if path.name in _SEALED else read_json)(path, what, hint)
    if path.name == names.RUN_RECORD and "sample" in values:
        # Earlier records have one, of seed 0.
        values = {"samples": [{"seed": 0, "text": values["sample"]}], **values}
    return Record(path, values)
