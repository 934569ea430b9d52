"""The model that a training starts from: where it is, whether it can be trained, what is known about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.repocard import metadata_load
from transformers import PreTrainedConfig
from yaml import YAMLError

from ant_hf.data.tokenizer import load_tokenizer, token_byte_lengths
from ant_hf.errors import AntError
from ant_hf.model.architecture import Ledger, load_architecture
from ant_hf.model.encoding import added_ids, decode, encode
from ant_hf.model.loading import (
    check_model_files,
    check_weights,
    is_checkpoint,
    load_any,
    locate,
    read_tokenizer,
    tokenizer_folder,
    weights_hash,
)
from ant_hf.model.texts import ENGLISH, ROUND_TRIP
from ant_hf.recipe import Recipe, named_texts
from ant_hf.utils.files import read_json
from ant_hf.utils.metrics import read_metrics
from ant_hf.utils.names import CARD, CONFIG, METRICS, RELEASE, RESULTS, RUN_RECORD, TOKENIZER, config_file

# A hash of a Hub's commit, as its cache names folders.
_COMMIT_LENGTH = 40


@dataclass(frozen=True)
class Base:
    """A model to continue from."""

    name: str
    """As the recipe gives it; of a folder, its name."""
    folder: Path
    tokenizer: Path
    """Folder of its tokenizer, which is the same but for checkpoints."""
    sha256: str
    """Of its weights."""

    @property
    def revision(self) -> str | None:
        """The commit, where it is from the Hub."""
        commit = self.folder.name
        return commit if self.folder.parent.name == "snapshots" and len(commit) == _COMMIT_LENGTH else None

    def weights(self) -> dict[str, torch.Tensor]:
        """By name, in fp32.

        Raises:
            AntError: as `load_any`, or they hold NaN or infinity.
        """
        model, _ = load_any(self.folder)
        check_weights(model)
        return model.state_dict()

    def described(self) -> dict[str, Any]:
        """What `run.json` and the card tell of it: licence and texts as its own card and record name them."""
        card = _metadata(self.folder / CARD)
        record = _record(self.folder / RUN_RECORD) or _record(self.folder.parent / RUN_RECORD)
        before = record.get("base") or {}
        corpus = (record.get("recipe") or {}).get("corpus") or {}
        datasets = card.get("datasets")
        released = _record(self.folder / RELEASE).get("repository")
        return {
            "name": self.name,
            "repository": self.name if self.revision else released,
            "revision": self.revision,
            "weights_sha256": self.sha256,
            "license": card.get("license"),
            "datasets": [datasets] if isinstance(datasets, str) else datasets or [],
            "sources": [*named_texts(corpus), *(before.get("sources") or [])],
            "tokens": _tokens_seen(self.folder) + (before.get("tokens") or 0),
            "results": _figures(_record(self.folder / RESULTS)),
        }


def architecture_of(recipe: Recipe) -> tuple[PreTrainedConfig, Ledger, Base | None]:
    """The config that a recipe trains, its count of parameters, and the model it begins with, if any.

    Raises:
        AntError: as `load_architecture`; or `training.init_from` names no model, or one that this package
            does not train: says why.
    """
    if not recipe.training.init_from:
        assert recipe.architecture, "without a base the recipe has one"
        return *load_architecture(recipe.architecture), None
    name, folder = locate(recipe.training.init_from)
    if "quantization_config" in read_json(folder / CONFIG, "model config", ""):
        raise AntError(
            f"the weights of {name} are quantized, and only unquantized ones can be trained",
            hint="Pass the model that it was made from.",
        )
    check_model_files(folder)
    config, ledger = load_architecture(folder, is_foreign=True)
    base = Base(name, folder, tokenizer_folder(folder), weights_hash(folder) or "")
    _check_tokenizer(base, config.vocab_size)
    longest = config.max_position_embeddings
    if recipe.training.sequence_length > longest:
        raise AntError(
            f"training.sequence_length is longer than the context of {name}",
            seen=recipe.training.sequence_length,
            expected=f"at most {longest}",
            hint=f"Use --set training.sequence_length={longest}",
        )
    return config, ledger, base


def config_source(recipe: Recipe, base: Base | None) -> Path:
    """The config.json, or another JSON, that a recipe's architecture is read from."""
    return config_file(base.folder if base else str(recipe.architecture))


def _check_tokenizer(base: Base, rows: int) -> None:
    """Check that a tokenizer does what packing, scoring and exporting rely on, with texts.

    Raises:
        AntError: it has more entries than the embedding has rows; it has no tokenizer.json, or Transformers
            reads that in another way; or texts do not come back from it, or not with the bytes counted.
    """
    of = f"the tokenizer of {base.name}"
    if not (base.tokenizer / TOKENIZER).is_file():
        raise AntError(
            f"{of} has no {TOKENIZER}",
            hint="Write it with Transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    loaded, plain = read_tokenizer(base.tokenizer), load_tokenizer(base.tokenizer)
    if (entries := plain.get_vocab_size()) > rows:
        raise AntError(
            f"{of} has more entries than the model's embedding has rows",
            seen=f"{entries:,} entries",
            expected=f"at most the {rows:,} rows of the embedding",
        )
    plain.encode_special_tokens = True
    lengths = token_byte_lengths(plain)
    for text in (*ROUND_TRIP, *ENGLISH):
        ids = plain.encode(text, add_special_tokens=False).ids
        if ids != encode(loaded, text) or plain.encode("a").ids != [*added_ids(loaded), *encode(loaded, "a")]:
            raise AntError(
                f"Transformers reads {of} differently than its {TOKENIZER} says",
                seen=f"{text[:40]!r} gives other tokens",
                hint="Both must be the same for training. Copy the folder, and set tokenizer_class to "
                "PreTrainedTokenizerFast in the copy's tokenizer_config.json.",
            )
        # SentencePiece puts a space before every text.
        extra = sum(lengths[index] for index in ids) - len(text.encode())
        if (back := decode(loaded, ids)) != text or extra not in (0, 1):
            # Metaspace takes it for the space that it puts before a text.
            lost = "; a space at its beginning is lost" if f" {back}" == text else ""
            raise AntError(
                f"{of} changes texts when it encodes and decodes them",
                seen=f"{text[:40]!r} comes back as {back[:40]!r}{lost}",
                hint="Training needs a tokenizer that loses nothing: a byte-level one, or one that keeps "
                "every space and has byte fallback.",
            )


def _metadata(card: Path) -> dict[str, Any]:
    try:
        return (metadata_load(card) or {}) if card.is_file() else {}
    except (ValueError, OSError, YAMLError):
        return {}


def _record(path: Path) -> dict[str, Any]:
    """A JSON record of ours, or nothing: a file of this name may be another program's."""
    try:
        return read_json(path, "record", "") if path.is_file() else {}
    except AntError:
        return {}


def _tokens_seen(folder: Path) -> int:
    """By the log beside a final model, or in its run's folder; 0 where there is none."""
    logs = [folder / METRICS, folder.parent / METRICS]
    try:
        rows = next((read_metrics(log) for log in logs if log.is_file() and not is_checkpoint(folder)), [])
    except AntError:
        return 0
    return next((int(row["tokens_seen"]) for row in reversed(rows) if "tokens_seen" in row), 0)


def _figures(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Value and standard error by benchmark, as `ant-hf evaluate` left them beside the model."""
    tasks = results.get("tasks")
    keys = ("label", "metric", "value", "stderr", "n", "complete")
    return {
        name: {key: values[key] for key in keys}
        for name, values in (tasks.items() if isinstance(tasks, dict) else ())
        if isinstance(values, dict) and values.keys() >= {*keys}
    }
