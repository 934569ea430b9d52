"""A `-GGUF` repository's folder: an export of the weights of a release, with a card of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import metadata_load

from ant_hf.card.gguf import gguf_repository, render_gguf_card
from ant_hf.errors import AntError
from ant_hf.export.gguf import PARAMS, suggested
from ant_hf.release.files import read_release
from ant_hf.release.publish import check_repository
from ant_hf.release.verify import check_files, refusal
from ant_hf.utils import names
from ant_hf.utils.files import (
    check_file,
    check_hash,
    file_sha256,
    inventory,
    read_json,
    read_sealed,
    whole_folder,
    write_json,
    write_text,
)
from ant_hf.utils.provenance import install_command, source_commit

_AGAIN = "Export again: ant-hf export MODEL_FOLDER --to gguf"


def make_gguf_release(export: Path, release: Path) -> Path:
    """Write `release-gguf/` beside a release that passed the gate, whole or not at all.

    Args:
        export: what `ant-hf export --to gguf` wrote.

    Raises:
        AntError: the export is of other weights or another tokenizer, was not verified in llama.cpp, or a
            file was changed since; or a file must not be published.
    """
    there = read_release(release, "Make it: ant-hf card MODEL_FOLDER --repo OWNER/NAME")
    repository = gguf_repository(there["repository"])
    check_repository(repository)
    target = release.with_name("release-gguf")
    with whole_folder(target) as folder:
        record = read_sealed(export / names.VERIFIED, "record of the export", _AGAIN)
        for name, key in ((names.WEIGHTS, "weights_sha256"), (names.TOKENIZER, "tokenizer_sha256")):
            seen, published = record["made_of"][key], file_sha256(release / name)
            check_hash(f"{export} was made from another {name}", seen, published, _AGAIN)
        if any(
            values.get("verified", {}).get("llama_cpp", True) is None for values in record["files"].values()
        ):
            raise AntError(
                "GGUF files can be published only after llama.cpp has verified them",
                seen="; ".join(record["notes"]),
                hint=f"{install_command('gguf')}, then: {_AGAIN}",
            )
        for name, values in record["files"].items():
            check_file(export / name, values["sha256"], "was changed after it was verified", _AGAIN)
            shutil.copyfile(export / name, folder / name)
        shutil.copyfile(export / names.VERIFIED, folder / names.VERIFIED)
        params = read_json(folder / PARAMS, "Ollama's parameters", _AGAIN)
        metadata = metadata_load(release / names.CARD) or {}
        best = suggested(record["types"])
        card = render_gguf_card(record, there["repository"], best, params, metadata)
        write_text(folder / names.CARD, card)
        checked = check_files(folder, repository.partition("/")[0])
        if not checked.passed:
            raise refusal(folder, [vars(checked)])
        # Without a date: the same files again are the same bytes, and nothing is sent.
        about = {"repository": repository, "license": there["license"], "ant_hf_commit": source_commit()}
        files = inventory(folder, without=(names.RELEASE,))
        write_json(folder / names.RELEASE, {"schema": 1, **about, "files": files})
    return target
