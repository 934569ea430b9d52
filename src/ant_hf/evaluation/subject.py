"""The model under test: a folder or a Hub id, loaded as anyone would load it, with its identity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedModel

from ant_hf.artefacts import file_sha256, fingerprint
from ant_hf.checkpoints import load_any
from ant_hf.errors import AntError

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
