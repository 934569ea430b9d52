"""Export the trained model so that anyone's Transformers loads it, and load it back to prove it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging

from ant_hf.architecture import load_config, parameter_ledger, size_problems
from ant_hf.artefacts import check_file, file_sha256, read_json, read_sealed, whole_folder, write_json
from ant_hf.errors import AntError, missing_file

WEIGHTS = "model.safetensors"
_LOADERS = r"(transformers|tokenizers|safetensors|torch|ant_hf)\b"
# Any of them makes a tokenizer for Transformers.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# The public card's snippet.
CARD_SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.5}


def export_final(
    model: PreTrainedModel,
    tokenizer_dir: Path,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, str]:
    """Write weights, configs and tokenizer as one folder, whole or not at all.

    The tied output projection is stored once, under the embedding's name.

    Args:
        weights: those of the model, where it holds a slice of them only.
        dtype: type the weights are stored in; the model itself stays as it is.

    Returns:
        sha256 by file name.
    """
    with whole_folder(folder) as partial:
        model.generation_config = GenerationConfig(
            bos_token_id=model.config.bos_token_id,
            eos_token_id=model.config.eos_token_id,
            pad_token_id=model.config.pad_token_id,
        )
        if dtype != torch.float32:
            weights = _stored_once(model, weights, dtype)
        with quiet_transformers():
            model.save_pretrained(partial, state_dict=weights)
        _make_config_portable(partial / "config.json", dtype)
        for name in TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, partial / name)
        # safetensors leaves its file to the owner alone, whatever the umask; others would read all but it.
        (partial / WEIGHTS).chmod((partial / "config.json").stat().st_mode)
        return {path.name: file_sha256(path) for path in sorted(partial.iterdir())}


def _stored_once(
    model: PreTrainedModel, weights: dict[str, torch.Tensor] | None, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Weights in another type, without the second name of those that are tied."""
    tied = (
        set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    )
    whole = model.state_dict() if weights is None else weights
    return {name: value.to(dtype) for name, value in whole.items() if name not in tied}


def _make_config_portable(path: Path, dtype: torch.dtype) -> None:
    """Keep `rope_theta` where transformers 4.57 reads it, beside 5's `rope_parameters`."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values["dtype"] = str(dtype).removeprefix("torch.")
    values["rope_theta"] = values["rope_parameters"]["rope_theta"]
    values["use_cache"] = True
    write_json(path, values)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars for files of 40 MB, and no printed key report where the keys are checked anyway."""
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


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
    with quiet_transformers():
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


def encode_prompt(model: PreTrainedModel, tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt; names of special tokens in it are read as plain text, as in training.

    Raises:
        AntError: the prompt is empty, no valid Unicode, or leaves no room in the model's context.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise AntError(f"the prompt is no valid Unicode: {error}") from None
    ids = tokenizer(prompt, split_special_tokens=True, verbose=False)["input_ids"]
    if not ids:
        raise AntError("the prompt is empty", hint="Write a few words for the model to go on from.")
    if len(ids) >= (context := model.config.max_position_embeddings):
        raise AntError(
            f"the prompt has {len(ids):,} tokens and the model takes at most {context - 1:,}",
            hint=f"Its context of {context:,} must hold one new token too; shorten the prompt.",
        )
    return list(ids)


def generate_sample(model: PreTrainedModel, tokenizer: Any, prompt: str, seed: int = 0) -> str:
    """Continue a prompt by up to 64 tokens with the public card's sampling settings.

    Raises:
        AntError: as `encode_prompt`.
    """
    ids = encode_prompt(model, tokenizer, prompt)
    inputs = torch.tensor([ids], device=model.device)
    torch.manual_seed(seed)
    with torch.no_grad():
        output = model.generate(  # type: ignore[operator]
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=min(64, model.config.max_position_embeddings - len(ids)),
            do_sample=True,
            **CARD_SAMPLING,
        )
    return str(tokenizer.decode(output[0], skip_special_tokens=True))
