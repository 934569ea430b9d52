"""The held-out text of a run, as text again, so that the gate starts where a reader starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ant_hf.artefacts import file_sha256
from ant_hf.errors import AntError
from ant_hf.tokenizer import END_OF_TEXT, load_tokenizer
from ant_hf.tokens import MANIFEST, VALIDATION, PackedTokens, read_manifest, verify_shards


def write_held_out(run: dict[str, Any], tokens: Path, tokenizer: Path, target: Path) -> None:
    """Decode the validation split with the tokenizer that packed it, one JSON object a document.

    Stops once it covers the tokens that the recorded loss was measured on.

    Raises:
        AntError: tokens or tokenizer are not those of the run.
    """
    if (seen := file_sha256(tokens / MANIFEST)) != run["sha256"]["tokens"]:
        raise AntError(
            f"{tokens} is not what this run was trained on",
            seen=f"sha256 {seen[:12]}",
            expected=run["sha256"]["tokens"][:12],
            hint="Pass the right folder: --tokens FOLDER",
        )
    verify_shards(tokens)
    packed_with = read_manifest(tokens)["inputs"]["tokenizer_sha256"]
    if (seen := file_sha256(tokenizer / "tokenizer.json")) != packed_with:
        raise AntError(
            f"{tokenizer} is not the tokenizer that packed {tokens}",
            seen=f"sha256 {seen[:12]}",
            expected=packed_with[:12],
        )
    loaded = load_tokenizer(tokenizer)
    end = loaded.token_to_id(END_OF_TEXT)
    split = PackedTokens(tokens, VALIDATION)
    wanted = min(len(split), run["final"]["tokens"] + 1)
    ids = split.slice(0, len(split)).tolist()
    # Where text was cut the last document has no end: with this one it is found like the others.
    ids.append(end)
    with target.open("w", encoding="utf-8") as handle:
        start = 0
        while start < wanted:
            stop = ids.index(end, start)
            handle.write(json.dumps({"text": loaded.decode(ids[start:stop])}, ensure_ascii=False) + "\n")
            start = stop + 1


def expected_scores(run: dict[str, Any]) -> dict[str, Any]:
    """What the run recorded on its held-out text, for the gate to find again."""
    final = run["final"]
    return {
        "loss": final["loss_in_training"],
        "byte_perplexity": final["byte_perplexity"],
        "tokens": final["tokens"],
        "context_tokens": final["context_tokens"],
    }
