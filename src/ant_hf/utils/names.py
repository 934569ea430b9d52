"""Files and folders that more than one stage knows by name, and the files that come with the package."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from ant_hf.errors import missing_file

# In a run's folder.
RUN_RECORD = "run.json"
METRICS = "metrics.jsonl"
PLOTS = "plots"
FINAL = "final"
# In a folder of packed tokens, and in one of a tokenizer.
MANIFEST = "manifest.json"
FRAGMENTATION = "fragmentation.json"
# In a model's folder.
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
MODEL_FILES = (CONFIG, "generation_config.json", WEIGHTS)
TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json")
RESULTS = "results.json"
# Of a comparison's folder too.
COMPARISON = "comparison.json"
# In a checkpoint: its list of files, written last.
SEAL = "checkpoint.json"
# In a repository that a run pushes to: the state to continue from.
LAST_CHECKPOINT = "last-checkpoint"
# In a folder of exported files.
VERIFIED = "verified.json"
# Where transformers.js looks for graphs beside a model's config.json, in an export as on the Hub.
ONNX = "onnx"
# In a release folder; the manifest of the tokens has another name there.
CARD = "README.md"
GATE = "gate.json"
RELEASE = "release.json"
RELEASED_MANIFEST = "tokens.json"
# Where the Hub looks for results of sets that it keeps a leaderboard of.
EVAL_RESULTS = ".eval_results"


def shipped_file(name: str) -> Path:
    """Where a file of configs/ or model_card/ lies: inside the package in a wheel, else in the checkout."""
    package = Path(__file__).parents[1]
    packaged = package / name
    return packaged if packaged.exists() else package.parents[1] / name


def expand_home(path: str | Path) -> str:
    """A path with `~` as the shell takes it; as it is where there is no such user."""
    return os.path.expanduser(path)  # noqa: PTH111 (pathlib's raises for an unknown user)


def find_config(given: str | Path, what: str, pattern: str, prefix: str = "") -> Path:
    """The file behind a path, or behind the name of one that comes with the package.

    Args:
        what: for the message.
        pattern: of the files in configs/ that have names.
        prefix: what stands in those files' names before the name.

    Raises:
        AntError: there is none; lists the known names, and the nearest name or file.
    """
    path = Path(expand_home(given))
    if os.path.isfile(path):  # noqa: PTH113 (pathlib's raises for a name that is too long)
        return path
    configs = shipped_file("configs")
    known = {file.stem.removeprefix(prefix): file for file in sorted(configs.glob(pattern))}
    for name, file in known.items():
        # Also as it is called in the repository, so that its commands can be typed in any folder.
        if path.as_posix() in (name, f"configs/{file.relative_to(configs).as_posix()}"):
            return file
    suffix = Path(pattern).suffix
    likely = {file.stem: str(file) for file in path.parent.glob(f"*{suffix}")} | {
        name: name for name in known
    }
    near = difflib.get_close_matches(path.stem.removeprefix(prefix), likely, n=1)
    meant = f"Did you mean {likely[near[0]]}? " if near else ""
    hint = (
        f"{meant}Pass a {suffix} file, or one of these names: {', '.join(known)}. Paths start in the folder "
        f"you are in, {Path.cwd()}; those in a recipe first in the recipe's folder."
    )
    raise missing_file(path, what, hint)


def config_file(path: str | Path) -> Path:
    """The LlamaConfig JSON behind a file, a model folder, or a name: `ant10m`.

    Raises:
        AntError: there is none; lists the known names, and the nearest name or file.
    """
    inside = Path(path) / CONFIG
    return inside if inside.is_file() else find_config(path, "model config", "*.json", "llama_")
