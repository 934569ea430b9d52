"""A recipe for a text of one's own: vocabulary, model, split and steps, by its size and this machine's speed."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ant_hf.data.sources import Source, open_source
from ant_hf.data.survey import survey
from ant_hf.errors import AntError
from ant_hf.recipe import Recipe, load_recipe
from ant_hf.train.estimates import in_words, measure_training, training_phases
from ant_hf.train.setup import ratio, set_up
from ant_hf.utils.console import facts_table, say, show
from ant_hf.utils.files import write_json, write_text
from ant_hf.utils.locks import check_free, check_usable
from ant_hf.utils.names import RUN_RECORD, expand_home

RECIPE, MINUTES = "recipe.yaml", 10.0
_ARCHITECTURE = "architecture.json"
# How these were found: docs/decisions.md, "A text of one's own".
_BYTES_AN_ENTRY, _VOCABULARIES = 256, (1024, 2048, 4096)
_HELD_OUT_BYTES, _HELD_OUT_SHARES = 200_000, (0.001, 0.1)
_MOST_PASSES, _DECAY_A_PASS = 10, 0.1
_STEPS, _BLOCKS_A_STEP = 1000, 8
_BLOCK, _LONGEST_BLOCK, _MOST_TOKENS_A_STEP = 256, 1024, 1 << 16
# Spent on each of the five evaluations while training.
_EVALUATION_SECONDS = 2.0


class _Shape(NamedTuple):
    """A Llama's."""

    width: int
    head_dim: int
    layers: int

    @property
    def weights(self) -> int:
        """Parameters without embeddings and norms: two key-value heads' worth of attention, and the MLP."""
        return round(self.layers * self.width**2 * (3 + 3 * 2.75))


# From the least to Ant-10M's, and the tokens that a weight of a larger one than the least should be trained on.
_SHAPES = (_Shape(128, 32, 4), _Shape(192, 32, 6), _Shape(256, 64, 6), _Shape(256, 64, 12))
_TOKENS_A_WEIGHT = 1.0


class _Sizes(NamedTuple):
    """What is chosen."""

    vocabulary: int
    held_out: float
    shape: _Shape
    passes: float
    tokens: int
    """That are trained on, all passes together."""
    most_tokens: int | None = None
    """To pack: where the text has more than can be trained on."""
    evaluated: int = 2000
    """Held-out tokens scored while training."""

    @property
    def tokens_per_step(self) -> int:
        return min(_MOST_TOKENS_A_STEP, max(_BLOCK, 2 ** int(math.log2(max(1, self.tokens / _STEPS)))))

    @property
    def block(self) -> int:
        return min(_LONGEST_BLOCK, max(_BLOCK, self.tokens_per_step // _BLOCKS_A_STEP))

    @property
    def steps(self) -> int:
        return max(20, self.tokens // self.tokens_per_step)

    def architecture(self) -> dict[str, Any]:
        """As a LlamaConfig JSON holds it: Ant-10M's but for the sizes."""
        heads = self.shape.width // self.shape.head_dim
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.shape.width,
            "intermediate_size": self.shape.width * 11 // 4,
            "num_hidden_layers": self.shape.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "head_dim": self.shape.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.block,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "rms_norm_eps": 1e-5,
            "initializer_range": 0.02,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 1,
        }

    def recipe(self, name: str, paths: list[str], prompt: str, output_dir: str) -> dict[str, Any]:
        """As a recipe's YAML holds it."""
        return {
            "name": name,
            "architecture": _ARCHITECTURE,
            "output_dir": output_dir,
            "sample_prompt": prompt,
            "corpus": {
                "source": "files",
                "path": paths[0] if len(paths) == 1 else paths,
                "validation_fraction": self.held_out,
                "max_tokens": self.most_tokens,
            },
            "tokenizer": {"vocab_size": self.vocabulary},
            "training": {
                "sequence_length": self.block,
                "sequences_per_step": self.tokens_per_step // self.block,
                "max_steps": self.steps,
                # Rates and schedule of the quickstart.
                "optimizer": "muon",
                "muon_learning_rate": 0.03,
                "learning_rate": 0.02,
                "lr_scheduler_type": "warmup_stable_decay",
                "warmup_steps": self.steps // 20,
                "stable_fraction": 0.5,
                "min_lr_rate": 0.0,
                "weight_decay": round(min(1.0, max(_DECAY_A_PASS, _DECAY_A_PASS * self.passes)), 2),
                "logging_steps": max(1, self.steps // 80),
                "eval_steps": max(1, self.steps // 5),
                "eval_max_tokens": self.evaluated,
                "save_steps": max(1, self.steps // 4),
                "save_total_limit": 1,
            },
        }


@contextmanager
def own_recipe(
    data: Sequence[str],
    output_dir: str | None = None,
    minutes: float | None = None,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    look_only: bool = False,
) -> Iterator[Path]:
    """The recipe for a text: the one in the run's folder, or a new one, which is shown.

    Args:
        data: files, folders or patterns.
        output_dir: of the run; default: runs/ and the text's name.
        minutes: that the whole run is to take here; default: 10.
        overrides: as of `load_recipe`; what follows from the keys they set is chosen to fit.
        fresh: choose again, unless the recipe that is there was edited.
        look_only: write nothing; the recipe lasts as long as the block.

    Raises:
        AntError: the folder is no place for a run, or its recipe is for another text; several processes would
            choose; or as `survey` and `measure_training`.
    """
    paths = [str(Path(expand_home(path)).resolve()) for path in data]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(paths[0]).name.partition(".")[0]).strip("-._") or "text"
    folder = Path(expand_home(output_dir)) if output_dir else Path("runs") / name
    file = folder / RECIPE
    is_chosen = file.is_file() and _is_as_chosen(file)
    if file.is_file() and not (fresh and is_chosen):
        _check_text(file, paths)
        why = "as it was edited; remove it for new choices" if fresh else "as it is; --fresh chooses again"
        say(f"recipe      {file}, {why}")
        yield file
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise AntError(
            "several processes cannot choose a recipe",
            hint=f"Let one do it, and stop it once it trains: ant-hf train --data {data[0]}. "
            f"Then start several with --config {file}",
        )
    check_usable(folder)
    check_free(folder, "run")
    if (folder / RUN_RECORD).exists() and not fresh:
        raise AntError(
            f"{folder} holds a run of another recipe", hint="Set another folder with --output-dir, or --fresh."
        )
    with tempfile.TemporaryDirectory() as scratch:
        draft = _Draft(Path(scratch), name, paths, overrides)
        draft.choose(60 * (minutes or MINUTES))
        text = draft.text(str(folder.absolute()))
        if look_only:
            write_text(draft.file, text)
            yield draft.file
            return
    for made in ("tokenizer", "tokens") if is_chosen else ():
        # Perhaps of another text or vocabulary.
        shutil.rmtree(folder / made, ignore_errors=True)
    write_json(folder / _ARCHITECTURE, draft.sizes.architecture())
    write_text(file, text)
    say(f"recipe      {file}, with {_ARCHITECTURE} beside it: edit them as you like")
    yield file
