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
from ant_hf.hub import hub_or_cache
from ant_hf.model.architecture import load_config, parameter_ledger, size_problems
from ant_hf.utils.files import (
    check_file,
    file_sha256,
    fingerprint,
    read_json,
    read_sealed,
)
from ant_hf.utils.names import WEIGHTS
from ant_hf.utils.quiet import quiet_libraries

_LOADERS = r"(transformers|tokenizers|safetensors|torch|ant_hf)\b"
# Any of them makes a tokenizer for Transformers.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def load_any(folder: str | Path, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, Any]:
    """Load a model that anyone made, with its tokenizer, unless the two cannot be meant for each other.

    Raises:
        AntError: no model is there; weights are missing or of another shape; the tokenizer has more
            entries than the model.
    """
    if not Path(folder, "config.json").is_file():
        raise missing_file(Path(folder, "config.json"), "model folder", "Train one: make quickstart")
    loaded, tokenizer = _load(folder, dtype)
    model, info = loaded
    _refuse_keys(folder, info, "missing_keys", "mismatched_keys")
    if len(tokenizer) > model.config.vocab_size:
        raise _other_vocabulary(folder, tokenizer, model, "at most ")
    return model, tokenizer


def load_final(folder: str | Path, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, Any]:
    """Load model and tokenizer by the calls a user makes, refusing anything less than a perfect match.

    Raises:
        AntError: no model is there; keys are missing or unexpected; tied weights are not tied;
            the tokenizer has another size than the model; anything was warned about.
    """
    if not Path(folder, "config.json").is_file():
        raise missing_file(Path(folder, "config.json"), "model folder", "Train one: make quickstart")
    _check_before_loading(Path(folder))
    with warnings.catch_warnings():
        # Of the loading libraries alone: filters are the whole process's, and an upload may run beside.
        warnings.filterwarnings("error", module=_LOADERS)
        loaded, tokenizer = _load(folder, dtype)
    model, info = loaded
    _refuse_keys(folder, info, "missing_keys", "unexpected_keys", "mismatched_keys")
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if model.config.tie_word_embeddings and head.data_ptr() != embeddings.data_ptr():
        raise AntError(f"{folder}: embeddings and output projection are tied in the config only")
    if len(tokenizer) != model.config.vocab_size:
        raise _other_vocabulary(folder, tokenizer, model, "")
    return model, tokenizer


def _load(folder: str | Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model with its loading info, and tokenizer; nothing in the folder is executed."""
    _check_files(Path(folder))
    with quiet_libraries():
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
            return loaded, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # The tokenizer's reader raises bare Exception, and damaged JSON a dozen kinds.
        except Exception as error:
            raise AntError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from None


def _check_files(folder: Path) -> None:
    """Name the file that is damaged or missing: the libraries name none.

    Raises:
        AntError: no tokenizer, JSON or weights that cannot be read, or sizes that no model has.
    """
    again = "Copy or download the folder again."
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise AntError(
            f"{folder} has no tokenizer",
            expected=f"tokenizer.json ({', '.join(_TOKENIZERS[1:])} of other models)",
            hint="Copy it from the model it was trained with.",
        )
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        values = read_json(folder / name, "file of the model", again) if (folder / name).is_file() else {}
        if name == "config.json" and (problems := size_problems(values)):
            raise AntError(f"{folder / name}: {'; '.join(problems)}", hint=again)
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise AntError(f"{file} is cut short or damaged: {error}", hint=again) from None


def _refuse_keys(folder: str | Path, info: dict[str, Any], *problems: str) -> None:
    for problem in problems:
        if info[problem]:
            raise AntError(
                f"{folder}: the weights have {problem.replace('_', ' ')}", seen=sorted(info[problem])
            )


def _other_vocabulary(folder: str | Path, tokenizer: Any, model: PreTrainedModel, bound: str) -> AntError:
    return AntError(
        f"{folder}: tokenizer and config differ in vocabulary",
        seen=f"{len(tokenizer)} entries",
        expected=f"{bound}vocab_size {model.config.vocab_size}",
    )


def _check_before_loading(folder: Path) -> None:
    """Config, size and hashes, as far as they are known, before anything is allocated or run.

    Raises:
        AntError: the config is none of ours, the weights are smaller than it says, or a file is not
            the one that was exported (names it and both hashes).
    """
    record = folder.parent / "run.json"
    if folder.name == "final" and record.exists():
        _check_exported(folder, record)
    config = load_config(folder)
    settings = folder / "tokenizer_config.json"
    if settings.exists() and "auto_map" in read_json(settings, "tokenizer settings", ""):
        raise AntError(
            f"{settings} asks for code of its own (auto_map)", hint="Code from models is never run."
        )
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise missing_file(weights, "weights", "Only safetensors are read: pickles can run code.")
    total, size = parameter_ledger(config).total, weights.stat().st_size
    if size < total:
        raise AntError(
            f"{weights} is cut short, or its config.json is another model's",
            seen=f"{size:,} bytes",
            expected=f"more than one for each of {total:,} parameters",
        )


def _check_exported(folder: Path, record: Path) -> None:
    """Hold an exported folder to the hashes in its run's record."""
    hint = f"Train it again with --fresh, or remove {record} if it belongs to another model."
    exported = read_sealed(record, "run record", hint).get("exported_sha256")
    for name, expected in exported.items() if isinstance(exported, dict) else ():
        path = folder / Path(name).name
        if not path.is_file():
            raise missing_file(path, "a file of the exported model", hint)
        check_file(path, expected, "was changed after it was exported", hint)


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
        if not (path / "config.json").is_file():
            raise AntError(f"{model} is no model folder: it has no config.json", hint=_nearby(path))
        resolved = path.resolve()
        # A run's `final` says less than the run's own name.
        return (f"{resolved.parent.name}/final" if resolved.name == "final" else resolved.name), path
    check_hub_id(model)
    try:
        with hub_or_cache():
            return model, Path(snapshot_download(model, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
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


def _nearby(path: Path) -> str:
    if (path / "final" / "config.json").is_file():
        return f"Did you mean {path / 'final'}?"
    return "Pass the folder that pretrain.py wrote as final/."


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
        "tokenizer_sha256": _hash(folder, "tokenizer.json"),
        "config_sha256": _hash(folder, "config.json"),
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
