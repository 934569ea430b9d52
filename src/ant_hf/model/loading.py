"""A model folder or a Hub id, loaded as anyone would load it, and refused unless it is whole."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Sequence
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
from ant_hf.model.architecture import load_architecture, model_architecture
from ant_hf.model.encoding import added_ids, context_length
from ant_hf.utils.console import quiet_libraries
from ant_hf.utils.files import check_file, file_sha256, fingerprint, read_json, read_sealed
from ant_hf.utils.names import CONFIG, FINAL, RUN_RECORD, TOKENIZER, WEIGHTS, expand_home

_LOADERS = r"(transformers|tokenizers|safetensors|torch|ant_hf)\b"
# Any of them makes a tokenizer for Transformers. Some that are written in Python need their settings alone.
_TOKENIZERS = (TOKENIZER, "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_SETTINGS = "tokenizer_config.json"
_CHECKPOINT = re.compile(r"checkpoint-\d+")


def load_any(
    folder: str | Path, dtype: torch.dtype = torch.float32, strict: bool = False
) -> tuple[PreTrainedModel, Any]:
    """Load a model and its tokenizer by the calls a user makes; nothing in the folder is executed.

    Args:
        folder: of a model, or a run's `checkpoint-N`; or a Hub id.
        strict: accept nothing less than a perfect match, as of a model that was exported here. Otherwise
            anyone's model is loaded, unless it and its tokenizer cannot be meant for each other.

    Raises:
        AntError: no model is there, or a file is damaged (names it); weights are missing or of another
            shape; the tokenizer has more entries than the model. If strict also: files are not those that
            were exported; keys are unexpected; tied weights are not tied; anything was warned about.
    """
    folder = locate(str(folder))[1]
    if strict:
        _check_exported(folder)
    with warnings.catch_warnings(), quiet_libraries():
        if strict:
            # Of the loading libraries alone: filters are the whole process's, and an upload may run beside.
            warnings.filterwarnings("error", module=_LOADERS)
        try:
            model, tokenizer, info = from_pretrained(folder, dtype)
        except AntError:
            raise
        # The tokenizer's reader raises bare Exception, and damaged JSON a dozen kinds.
        except Exception as error:
            raise AntError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from None
    for problem in ("missing_keys", "mismatched_keys", *["unexpected_keys"] * strict):
        if info[problem]:
            what = f"{folder}: the weights have {problem.replace('_', ' ')}"
            raise AntError(what, seen=sorted(info[problem]))
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if strict and model.config.tie_word_embeddings and head.weight.data_ptr() != embeddings.weight.data_ptr():
        raise AntError(
            f"{folder}: embeddings and output projection are tied in config.json, but not in the weights"
        )
    entries, places = len(tokenizer), model.config.get_text_config(decoder=True).vocab_size
    if entries > places:
        raise AntError(
            f"{folder}: the tokenizer has more entries than the model",
            seen=f"{entries} entries",
            expected=f"at most vocab_size {places}",
        )
    return model, tokenizer


def from_pretrained(folder: Path, dtype: torch.dtype) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer and the report of the loading, by the Auto classes, from this disk and without code.

    Keys of another shape are in the report, as the missing and unexpected ones are.

    Raises:
        AntError: no tokenizer, a file that is missing, damaged or too small, or sizes that no model has.
        Exception: whatever else the libraries raise of files that they cannot read.
    """
    check_model_files(folder)
    tokenizer = read_tokenizer(tokenizer_folder(folder))
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        output_loading_info=True,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        # Else transformers refers to a report that is not shown.
        ignore_mismatched_sizes=True,
    )
    return loaded[0].eval(), tokenizer, loaded[1]


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, as `AutoTokenizer` reads it.

    Raises:
        AntError: there is none.
        Exception: whatever the libraries raise of files that they cannot read.
    """
    if not any((folder / name).is_file() for name in (*_TOKENIZERS, _SETTINGS)):
        raise _no_tokenizer(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # Of settings alone Transformers makes an empty one, unless it needs no files.
        is_empty = not tokenizer.encode("a", add_special_tokens=False)
    except Exception:
        if any((folder / name).is_file() for name in _TOKENIZERS):
            raise
        is_empty = True
    if is_empty:
        raise _no_tokenizer(folder)
    return tokenizer


def tokenizer_folder(folder: Path) -> Path:
    """Where a model's tokenizer lies: beside the weights; a run's checkpoints share the one of its data.

    Raises:
        AntError: the data's tokenizer is another one by now than the run was trained with.
    """
    run = folder.resolve().parent
    if not is_checkpoint(folder) or any((folder / name).is_file() for name in (*_TOKENIZERS, _SETTINGS)):
        return folder
    record = read_json(run / RUN_RECORD, "run record", "") if (run / RUN_RECORD).is_file() else {}
    data = Path((record.get("recipe") or {}).get("data_dir") or run)
    trained_with = (record.get("sha256") or {}).get("tokenizer")
    there = [each for each in (data / "tokenizer", run / "tokenizer") if (each / TOKENIZER).is_file()]
    for each in there:
        if trained_with in (None, file_sha256(each / TOKENIZER)):
            return each
    if there:
        raise AntError(
            f"{there[0]} holds another tokenizer than {run} was trained with",
            hint=f"Copy {TOKENIZER} and {_SETTINGS} of the run's own tokenizer into {folder}.",
        )
    return folder


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is called as Trainer calls its checkpoints."""
    return bool(_CHECKPOINT.fullmatch(folder.resolve().name))


def check_weights(model: PreTrainedModel) -> None:
    """Refuse weights that training destroyed: nothing can be computed with them.

    Raises:
        AntError: a tensor holds NaN or infinity; names it and how many.
    """
    for name, parameter in model.named_parameters():
        if bad := int((~torch.isfinite(parameter)).sum()):
            raise AntError(
                f"{name} contains NaN or infinity", seen=f"{bad:,} of {parameter.numel():,} entries"
            )


def load_final(folder: str | Path) -> tuple[PreTrainedModel, Any]:
    """A model that was exported here, in fp32.

    Raises:
        AntError: as `load_any`, strictly.
    """
    return load_any(folder, strict=True)


def check_model_files(folder: Path) -> None:
    """Name the file that is damaged or missing: the libraries name none.

    Raises:
        AntError: no tokenizer, JSON or weights that cannot be read, or sizes that no model has.
    """
    again = "Copy or download the folder again."
    files = list(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        what = f"{folder} has no weights in safetensors"
        hint = "Pickles can run code and are not read. Save the model again with save_pretrained."
        raise AntError(what, seen=", ".join(pickles) or None, hint=hint if pickles else again)
    is_quantized = False
    for name in (CONFIG, "generation_config.json", TOKENIZER, _SETTINGS):
        values = read_json(folder / name, "file of the model", again) if (folder / name).is_file() else {}
        is_quantized |= "quantization_config" in values
        if values.get("is_encoder_decoder"):
            what = f"{folder} has an encoder-decoder model"
            raise AntError(what, seen=values.get("model_type"), expected="a causal language model")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise AntError(f"{file} is cut short or damaged: {error}", hint=again) from None
    # Before anything of the config's size is allocated.
    _, ledger = model_architecture(folder)
    if (size := sum(file.stat().st_size for file in files)) < ledger.total:
        if is_quantized:
            what = f"the weights of {folder} are quantized to less than 8 bits, which are not read here"
            raise AntError(what, hint="Pass the model that it was made from.")
        raise AntError(
            f"{files[0] if len(files) == 1 else folder} is cut short, or {CONFIG} belongs to another model",
            seen=f"{size:,} bytes",
            expected=f"more than one byte for each of {ledger.total:,} parameters",
            hint=again,
        )


def _no_tokenizer(folder: Path) -> AntError:
    return AntError(
        f"{folder} has no tokenizer",
        expected=f"{TOKENIZER} ({', '.join(_TOKENIZERS[1:])} of other models)",
        hint="Copy it from the model it was trained with.",
    )


def _check_exported(folder: Path) -> None:
    """Hashes and config, as far as they are known, before anything is allocated or run.

    Raises:
        AntError: a file is not the one that was exported (names it and both hashes), the config is not
            ours, the tokenizer needs code, or the weights are missing.
    """
    record = folder.parent / RUN_RECORD
    if folder.name == FINAL and record.exists():
        hint = f"Train it again with --fresh, or remove {record} if it belongs to another model."
        for name, expected in (read_sealed(record, "run record", hint).get("exported_sha256") or {}).items():
            path = folder / Path(name).name
            if not path.is_file():
                raise missing_file(path, "a file of the exported model", hint)
            check_file(path, expected, "was changed after it was exported", hint)
    load_architecture(folder)
    settings, weights = folder / _SETTINGS, folder / WEIGHTS
    if settings.exists() and "auto_map" in read_json(settings, "tokenizer settings", ""):
        raise AntError(
            f"{settings} needs code that comes with the model (auto_map)",
            hint="Code from models is never run. Pass another model.",
        )
    if not weights.is_file():
        raise missing_file(weights, "weights", "Only safetensors are read: pickles can run code.")


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Everything from_pretrained may need, and the card; pickles are left out.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md"]


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
        return context_length(self.model, self.tokenizer)

    @property
    def bos_policy(self) -> str:
        """One sentence: what stands before the first token of a text."""
        prefix = self.tokenizer.bos_token or self.tokenizer.eos_token or "nothing"
        added = added_ids(self.tokenizer)
        prompts = f"{prefix} before every prompt" if added else "nothing added to a prompt"
        return f"{prompts}; {prefix} before an empty one and before the first token of a text"


def locate(model: str, files: Sequence[str] = _FILES) -> tuple[str, Path]:
    """Name and folder of a model; a Hub id is downloaded to the cache first.

    Args:
        files: which ones to download, as patterns.

    Raises:
        AntError: it is not a model folder and cannot be fetched from the Hub.
    """
    if is_here(model):
        folder = model_folder(model)
        resolved = folder.resolve()
        # A run's `final` says less than the run's own name.
        inside = resolved.name == FINAL or is_checkpoint(folder)
        return (f"{resolved.parent.name}/{resolved.name}" if inside else resolved.name), folder
    try:
        with hub_or_cache():
            return model, Path(snapshot_download(model, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if status_of(error):
            raise HubClient(anonymous=True).explain(
                f"{model} is not a folder here; downloading it from the Hub", error
            ) from None
        reason = "offline" if isinstance(error, LocalEntryNotFoundError) else type(error).__name__
        raise AntError(
            f"{model} is not a folder here and cannot be fetched from the Hub ({reason})",
            hint="Check the name and the network, or pass a model folder.",
        ) from None


def is_here(model: str) -> bool:
    """Whether a name is a folder's; otherwise it is a repository's, by its form at least.

    Raises:
        AntError: it is neither: a file, or a path that leads nowhere.
    """
    path = Path(expand_home(model))
    if path.is_dir():
        return True
    if path.is_file():
        raise AntError(f"{model} is a file", hint=f"Pass the folder of the model: {path.parent}")
    # What begins with a folder that is here is a path, mistyped, and the Hub need not be asked.
    if model.count("/") == 1 and not model.startswith((".", "/", "~")) and not path.parent.is_dir():
        return False
    there = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=1)
    raise AntError(
        f"model not found: {model}",
        hint=f"Did you mean {path.parent / near[0]}?"
        if near
        else "Pass a model folder (make quickstart trains one), or a Hub id such as user/name.",
    )


def model_folder(path: str | Path) -> Path:
    """A folder, if there is a model in it.

    Raises:
        AntError: it has no model; names the folder that may be meant instead.
    """
    folder = Path(expand_home(path))
    if (folder / CONFIG).is_file():
        return folder
    inside = [each.parent for each in folder.glob(f"*/{CONFIG}")]
    final = [each for each in inside if each.name == FINAL]
    newest = sorted(filter(is_checkpoint, inside), key=lambda each: int(each.name.rpartition("-")[2]))[-1:]
    hint = "Pass the folder that pretrain.py wrote as final/."
    if meant := final or newest or inside[:1]:
        hint = f"Did you mean {meant[0]}?"
    raise AntError(f"{path} is not a model folder: it has no config.json", hint=hint)


def load_subject(model: str, dtype: str, device: str) -> Subject:
    """Locate, load and identify a model.

    Raises:
        AntError: no model there, weights or tokenizer do not fit, or the dtype or device is not available.
    """
    if dtype not in DTYPES:
        raise AntError("--dtype is unknown", seen=dtype, expected=" or ".join(DTYPES))
    name, folder = locate(model)
    loaded, tokenizer = load_any(folder, DTYPES[dtype])
    try:
        loaded.to(device)  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise AntError(
            f"device {device} cannot be used: {str(error).splitlines()[0]}",
            hint="Leave --device out, or pass cpu.",
        ) from None
    loaded.eval()
    parameters = sum(parameter.numel() for parameter in loaded.parameters())
    identity = {
        "name": name,
        "weights_sha256": weights_hash(folder),
        "tokenizer_sha256": folder_sha256(tokenizer_folder(folder), TOKENIZER),
        "config_sha256": folder_sha256(folder, CONFIG),
        "parameters": parameters,
        "vocab_size": loaded.config.get_text_config(decoder=True).vocab_size,
    }
    return Subject(name, folder, loaded, tokenizer, identity)


def weights_hash(folder: Path) -> str | None:
    """sha256 of a model's weights."""
    return folder_sha256(folder, "*.safetensors")


def folder_sha256(folder: Path, pattern: str) -> str | None:
    """sha256 of the one file of a pattern, or of the hashes of several shards; None where there is none."""
    hashes = {path.name: file_sha256(path) for path in sorted(folder.glob(pattern))}
    if len(hashes) > 1:
        return fingerprint(hashes)
    return next(iter(hashes.values()), None)
