"""What a card is made of: the files of one release folder, held against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError
from ant_hf.utils.files import check_hash, read_json, read_sealed
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

# What each record is, and what makes it.
_RECORDS = {
    RUN_RECORD: ("run record", "Train first: accelerate launch pretrain.py --config RECIPE"),
    RESULTS: ("results", "Measure first: ant-hf evaluate MODEL_FOLDER"),
    GATE: ("gate report", "Make the release anew: ant-hf card MODEL_FOLDER"),
    FRAGMENTATION: ("fragmentation report", "Train the tokenizer anew."),
    RELEASED_MANIFEST: ("token manifest", "Pack the tokens anew."),
    VERIFIED: ("record of the export", "Export anew: ant-hf export"),
}
# The keys of it that a card shows, by what they lie in: `*` is every entry, and what `?` ends may be missing.
_SHOWN = {
    RUN_RECORD: {
        "": "training_seconds tokens_per_second recipe.output_dir plan.tokens_per_step parameters.total "
        "parameters.by_component.embeddings",
        "recipe.corpus": "source path subset split revision",
        "recipe.corpus.sources?.*": "name license url",
        "recipe.training": "max_steps warmup_steps stable_fraction lr_scheduler_type min_lr_rate optimizer "
        "learning_rate muon_learning_rate adam_beta1 adam_beta2 weight_decay max_grad_norm sequence_length "
        "seed logging_steps eval_max_tokens",
        "config": "num_hidden_layers hidden_size intermediate_size num_attention_heads num_key_value_heads "
        "head_dim max_position_embeddings vocab_size tie_word_embeddings hidden_act "
        "rope_parameters.rope_theta",
        "environment": "device device_name num_processes cpu_cores precision precision_reason python commit "
        "packages",
        "sha256": "config tokenizer tokens",
        "final": "loss perplexity bits_per_byte byte_perplexity uniform_byte_perplexity tokens bytes dtype",
        "samples.*": "seed text",
        "changes?.*": "step what",
    },
    RESULTS: {
        "conditions": "dtype context_length bos_policy versions.lm-eval",
        "tasks.*": "label metric value stderr floor verdict n expected_n complete",
        "tasks.*.slices?.*": "value stderr n",
        "perplexity.*": "label n complete nats_per_token token_perplexity bytes_per_token bits_per_byte "
        "byte_perplexity uniform_guess_byte_perplexity",
        "degeneration?": "prompts greedy.loop_rate greedy.stderr sampled.loop_rate sampled.stderr",
    },
    GATE: {"": "verdict finished", "checks.*": "name passed seen"},
    FRAGMENTATION: {
        "": "documents bytes_per_token tokens_per_word words_kept_whole",
        "worst_shattered_words.*": "word tokens",
    },
    RELEASED_MANIFEST: {
        "": "documents",
        "splits": "train.documents train.tokens train.bytes validation.documents",
    },
    VERIFIED: {
        "": "versions.xllamacpp files.*.bytes files.*.verified?.transformers.largest_logit_difference",
        "files.*.verified?.llama_cpp": "texts texts_with_equal_tokens prompts prompts_with_equal_output "
        "nats_per_token nats_per_token_difference",
    },
}


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
    def wikitext(self) -> dict[str, Any] | None:
        """The perplexities on WikiText-2, if they were measured."""
        return self.results["perplexity"].get("wikitext")

    @property
    def recipe(self) -> dict[str, Any]:
        return self.run["recipe"]


def read_inputs(
    folder: Path, repository: str, license_id: str, files: dict[str, dict[str, Any]]
) -> CardInputs:
    """Read a release folder's records.

    Raises:
        AntError: one is missing, damaged, lacks a key that the card shows (names file and key), or belongs
            to other weights than the rest.
    """
    run, results, gate, fragmentation, manifest = (
        _read(folder / name) for name in (RUN_RECORD, RESULTS, GATE, FRAGMENTATION, RELEASED_MANIFEST)
    )
    if manifest["documents"].get("contaminated_by_set"):
        for key in ("documents.contaminated", "documents.read", "inputs.corpus.decontaminate.ngram_words"):
            _hold(folder / RELEASED_MANIFEST, manifest, key)
    metrics = read_metrics(folder / METRICS)
    if not any("loss" in row and "learning_rate" in row for row in metrics):
        raise AntError(f"no metrics in {folder / METRICS}", hint="The card shows the training's course.")
    _hold(folder / METRICS, metrics[-1], "tokens_seen")
    weights, measure = files[WEIGHTS]["sha256"], "Measure this model: ant-hf evaluate MODEL_FOLDER"
    for what, seen, hint in (
        (RUN_RECORD, run["final"].get("weights_sha256"), None),
        (RESULTS, results.get("model", {}).get("weights_sha256"), measure),
        (GATE, gate.get("sha256", {}).get(WEIGHTS), None),
    ):
        check_hash(f"{what} is about other weights than {folder / WEIGHTS}", seen, weights, hint)
    exported = _read(folder / VERIFIED) if VERIFIED in files else None
    return CardInputs(
        repository, license_id, run, results, gate, fragmentation, manifest, metrics, files, exported
    )


def _read(path: Path) -> dict[str, Any]:
    """One record, with every key that a card shows."""
    what, hint = _RECORDS[path.name]
    values = (read_sealed if path.name == VERIFIED else read_json)(path, what, hint)
    if path.name == RUN_RECORD and "sample" in values:
        # Earlier records have one, of seed 0.
        values = {"samples": [{"seed": 0, "text": values["sample"]}], **values}
    for parent, keys in _SHOWN[path.name].items():
        for key in keys.split():
            _hold(path, values, f"{parent}.{key}" if parent else key)
    return values


def _hold(file: Path, values: Any, key: str, parent: str = "") -> None:
    """Refuse values without a dotted key.

    Raises:
        AntError: names the file and the key.
    """
    name, _, rest = key.partition(".")
    if name == "*" and isinstance(values, (dict, list)):
        for entry, value in values.items() if isinstance(values, dict) else enumerate(values):
            _hold(file, value, rest, f"{parent}{entry}.")
        return
    known = name.rstrip("?")
    if isinstance(values, dict) and known in values:
        if rest and (values[known] is not None or known == name):
            _hold(file, values[known], rest, f"{parent}{known}.")
    elif known == name or not isinstance(values, dict):
        raise AntError(
            f"{file} has no {parent}{name}, which the card shows",
            hint="Train and measure anew with this version.",
        )
