"""Export a trained model so that anyone's Transformers loads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from ant_hf.utils.console import quiet_libraries
from ant_hf.utils.files import file_sha256, whole_folder, write_json
from ant_hf.utils.names import CONFIG, WEIGHTS

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


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
            # Without the second name of those that are tied.
            tied = getattr(model, "_tied_weights_keys", None) if model.config.tie_word_embeddings else None
            whole = model.state_dict() if weights is None else weights
            weights = {name: value.to(dtype) for name, value in whole.items() if name not in (tied or ())}
        with quiet_libraries():
            model.save_pretrained(partial, state_dict=weights)
        values = json.loads((partial / CONFIG).read_text(encoding="utf-8"))
        values |= {"dtype": str(dtype).removeprefix("torch."), "use_cache": True}
        # Where transformers 4.57 reads it, beside 5's `rope_parameters`.
        values["rope_theta"] = values["rope_parameters"]["rope_theta"]
        write_json(partial / CONFIG, values)
        for name in TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, partial / name)
        # safetensors leaves its file to the owner alone, whatever the umask; others would read all but it.
        (partial / WEIGHTS).chmod((partial / CONFIG).stat().st_mode)
        return {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
