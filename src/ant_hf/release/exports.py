"""GGUF files on their way into a release: the verified ones, of these very weights."""

from __future__ import annotations

import shutil
from pathlib import Path

from ant_hf.artefacts import check_file, file_sha256, read_sealed
from ant_hf.card.inputs import VERIFIED, WEIGHTS
from ant_hf.errors import AntError


def copy_gguf(gguf: Path, folder: Path) -> None:
    """Put an export's files and its record beside the weights they were made of.

    Raises:
        AntError: the export is of other weights or another tokenizer, was not verified in llama.cpp, or a
            file was changed since.
    """
    hint = "Export anew: ant-hf export MODEL_FOLDER --to gguf"
    record = read_sealed(gguf / VERIFIED, "record of the export", hint)
    for name, key in ((WEIGHTS, "weights_sha256"), ("tokenizer.json", "tokenizer_sha256")):
        if (seen := record["made_of"][key]) != (expected := file_sha256(folder / name)):
            raise AntError(
                f"{gguf} was made of another {name}",
                seen=f"sha256 {str(seen)[:12]}",
                expected=expected[:12],
                hint=hint,
            )
    if record["left_out"]:
        raise AntError(
            "GGUF files are published only after llama.cpp has verified them",
            seen="; ".join(record["left_out"]),
        )
    for name, values in record["files"].items():
        check_file(gguf / name, values["sha256"], "was changed after it was verified", hint)
        shutil.copyfile(gguf / name, folder / name)
    shutil.copyfile(gguf / VERIFIED, folder / VERIFIED)
