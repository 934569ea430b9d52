"""A model folder or a Hub id, loaded as anyone would load it, and refused unless it is whole."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ant_hf.errors import AntError, missing_file
from ant_hf.hub import HubClient, hub_or_cache, status_of
from ant_hf.model.architecture import load_architecture, size_problems
from ant_hf.utils.console import quiet_libraries
from ant_hf.utils.files import check_file, file_sha256, fingerprint, read_json, read_sealed
from ant_hf.utils.names import CONFIG, FINAL, RUN_RECORD, TOKENIZER, WEIGHTS

_LOADERS = r"(transformers|tokenizers|safetensors|torch|ant_hf)\b"
# Any of them makes a tokenizer for Transformers.
_TOKENIZERS = (TOKENIZER, "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def load_any(
    folder: str | Path, dtype: torch.dtype = torch.float32, strict: bool = False
) -> tuple[PreTrainedModel, Any]:
    """Load a model and its tokenizer by the calls a user makes; nothing in the folder is executed.

    Args:
        strict: accept nothing less than a perfect match, as of a model that was exported here. Otherwise
            anyone's model is loaded, unless it and its tokenizer cannot be meant for each other.

    Raises:
        AntError: no model is there, or a file is damaged (names it); weights are missing or of another
            shape; the tokenizer has more entries than the model. If strict also: files are not those that
            were exported; keys are unexpected; tied weights are not tied; the tokenizer has fewer entries;
            anything was warned about.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise missing_file(folder / CONFIG, "model folder", "Train one: make quickstart")
    if strict:
        _check_exported(folder)
    _check_files(folder)
    with warnings.catch_warnings(), quiet_libraries():
        if strict:
            # Of the loading libraries alone: filters are the whole process's, and an upload may run beside.
            warnings.filterwarnings("error", module=_LOADERS)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
                # They are refused below by name; transformers refers to a report that is not shown.
                ignore_mismatched_sizes=True,
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # The tokenizer's reader raises bare Exception, and damaged JSON a dozen kinds.
        except Exception as error:
            raise AntError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from None
    model, info = loaded
    for problem in ("missing_keys", "mismatched_keys", *["unexpected_keys"] * strict):
        if info[problem]:
            what = f"{folder}: the weights have {problem.replace('_', ' ')}"
            raise AntError(what, seen=sorted(info[problem]))
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if strict and model.config.tie_word_embeddings and head.weight.data_ptr() != embeddings.weight.data_ptr():
        raise AntError(f"{folder}: embeddings and output projection are tied in the config only")
    entries, places = len(tokenizer), model.config.vocab_size
    if entries > places or (strict and entries < places):
        raise AntError(
            f"{folder}: tokenizer and config differ in vocabulary",
            seen=f"{entries} entries",
            expected=f"{'' if strict else 'at most '}vocab_size {places}",
        )
    return model, tokenizer


def load_final(folder: str | Path) -> tuple[PreTrainedModel, Any]:
    """A model that was exported here, in fp32.

    Raises:
        AntError: as `load_any`, strictly.
    """
    return load_any(folder, strict=True)


def _check_files(folder: Path) -> None:
    """Name the file that is damaged or missing: the libraries name none.

    Raises:
        AntError: no tokenizer, JSON or weights that cannot be read, or sizes that no model has.
    """
    again = "Copy or download the folder again."
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise AntError(
            f"{folder} has no tokenizer",
            expected=f"{TOKENIZER} ({', '.join(_TOKENIZERS[1:])} of other models)",
            hint="Copy it from the model it was trained with.",
        )
    for name in (CONFIG, "generation_config.json", TOKENIZER, "tokenizer_config.json"):
        values = read_json(folder / name, "file of the model", again) if (folder / name).is_file() else {}
        if name == CONFIG and (problems := size_problems(values)):
            raise AntError(f"{folder / name}: {'; '.join(problems)}", hint=again)
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise AntError(f"{file} is cut short or damaged: {error}", hint=again) from None


def _check_exported(folder: Path) -> None:
    """Hashes, config and size, as far as they are known, before anything is allocated or run.

    Raises:
        AntError: a file is not the one that was exported (names it and both hashes), the config is none of
            ours, the tokenizer asks for code, or the weights are smaller than the config says.
    """
    record = folder.parent / RUN_RECORD
    if folder.name == FINAL and record.exists():
        hint = f"Train it again with --fresh, or remove {record} if it belongs to another model."
        for name, expected in (read_sealed(record, "run record", hint).get("exported_sha256") or {}).items():
            path = folder / Path(name).name
            if not path.is_file():
                raise missing_file(path, "a file of the exported model", hint)
            check_file(path, expected, "was changed after it was exported", hint)
    _, ledger = load_architecture(folder)
    settings, weights = folder / "tokenizer_config.json", folder / WEIGHTS
    if settings.exists() and "auto_map" in read_json(settings, "tokenizer settings", ""):
        raise AntError(
            f"{settings} asks for code of its own (auto_map)", hint="Code from models is never run."
        )
    if not weights.is_file():
        raise missing_file(weights, "weights", "Only safetensors are read: pickles can run code.")
    if (size := weights.stat().st_size) < ledger.total:
        raise AntError(
            f"{weights} is cut short, or its config.json is another model's",
            seen=f"{size:,} bytes",
            expected=f"more than one for each of {ledger.total:,} parameters",
        )


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Everything from_pretrained may need; pickles are left out.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


@dataclass(frozen=True)
class Subject:
    """A loaded model with its tokenizer."""

    name: str
    folder: Path
    model: PreTrainedModel
    tokenizer: Any
    identity: dict[str, Any]

    @property
    def context_length(self) -> int:
        return int(self.model.config.max_position_embeddings)

    @property
    def bos_policy(self) -> str:
        """One sentence: what stands before the first token of a text."""
        prefix = self.tokenizer.bos_token or self.tokenizer.eos_token
        added = self.tokenizer("a")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        prompts = f"{prefix} before every prompt" if added else "nothing added to a prompt"
        return f"{prompts}; {prefix} before an empty one and before the first token of a text"


def locate(model: str) -> tuple[str, Path]:
    """Name and folder of a model; a Hub id is downloaded to the cache first.

    Raises:
        AntError: it is no model folder and cannot be had from the Hub.
    """
    path = Path(model)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            there = (path / FINAL / CONFIG).is_file()
            hint = (
                f"Did you mean {path / FINAL}?"
                if there
                else "Pass the folder that pretrain.py wrote as final/."
            )
            raise AntError(f"{model} is no model folder: it has no config.json", hint=hint)
        resolved = path.resolve()
        # A run's `final` says less than the run's own name.
        return (f"{resolved.parent.name}/final" if resolved.name == FINAL else resolved.name), path
    check_hub_id(model)
    try:
        with hub_or_cache():
            return model, Path(snapshot_download(model, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if status_of(error):
            raise HubClient(anonymous=True).explain(
                f"{model} is no folder here; getting it from the Hub", error
            ) from None
        reason = "offline" if isinstance(error, LocalEntryNotFoundError) else type(error).__name__
        raise AntError(
            f"{model} is no folder here and cannot be had from the Hub ({reason})",
            hint="Check the name and the network, or pass a model folder.",
        ) from None


def check_hub_id(model: str) -> None:
    """Refuse a name that is no folder and cannot be a repository either: a path that was mistyped.

    Raises:
        AntError: it has another form than `user/name`, or is a file.
    """
    if Path(model).exists() or model.count("/") != 1 or model.startswith((".", "/")):
        raise AntError(
            f"model not found: {model}",
            hint="Pass a model folder (make quickstart trains one), or a Hub id such as user/name.",
        )


def load_subject(model: str, dtype: str, device: str) -> Subject:
    """Locate, load and identify a model.

    Raises:
        AntError: no model there, weights or tokenizer do not fit, or the dtype or device is not available.
    """
    if dtype not in DTYPES:
        raise AntError("unknown dtype", seen=dtype, expected=", ".join(DTYPES))
    name, folder = locate(model)
    loaded, tokenizer = load_any(folder, DTYPES[dtype])
    try:
        loaded.to(device)  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise AntError(f"device {device} cannot be used: {str(error).splitlines()[0]}") from None
    loaded.eval()
    parameters = sum(parameter.numel() for parameter in loaded.parameters())
    identity = {
        "name": name,
        "weights_sha256": _hash(folder, "*.safetensors"),
        "tokenizer_sha256": _hash(folder, TOKENIZER),
        "config_sha256": _hash(folder, CONFIG),
        "parameters": parameters,
        "vocab_size": loaded.config.vocab_size,
    }
    return Subject(name, folder, loaded, tokenizer, identity)


def _hash(folder: Path, pattern: str) -> str | None:
    """sha256 of the one file, or of the hashes of several shards."""
    hashes = {path.name: file_sha256(path) for path in sorted(folder.glob(pattern))}
    if len(hashes) > 1:
        return fingerprint(hashes)
    return next(iter(hashes.values()), None)
