"""A recipe for a text of one's own: vocabulary, model, split and steps, by its size and this machine."""

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

from ant_hf.data.corpus import Corpus
from ant_hf.data.dataset import check_one_block
from ant_hf.data.sources import open_source
from ant_hf.data.survey import Survey, survey
from ant_hf.data.tokens import TRAIN
from ant_hf.errors import AntError
from ant_hf.model.base import architecture_of
from ant_hf.model.shapes import Shape, usual_shape
from ant_hf.recipe import CorpusRecipe, Recipe, load_recipe, parsed_override
from ant_hf.train.estimates import TrainingRate, in_words, measure_training, without_compilation
from ant_hf.train.setup import ratio, set_up
from ant_hf.train.sizing import (
    MOST_HELD_OUT,
    Saving,
    Steps,
    as_yaml,
    first_words,
    held_out_share,
    rates_of,
    training_section,
)
from ant_hf.utils.console import facts_table, say, show
from ant_hf.utils.files import write_json, write_text
from ant_hf.utils.locks import check_free, check_usable
from ant_hf.utils.names import RUN_RECORD, expand_home

RECIPE, MINUTES = "recipe.yaml", 10.0
_ARCHITECTURE = "architecture.json"
# What they give stands in the table that the run shows (docs/decisions.md: the recipe that it chose).
_BYTES_AN_ENTRY, _VOCABULARIES = 256, (1024, 2048, 4096)
_MOST_PASSES, _DECAY_A_PASS = 10, 0.1
_STEPS, _FEWEST_STEPS, _BLOCKS_A_STEP = 1000, 20, 8
_BLOCK, _LONGEST_BLOCK, _MOST_TOKENS_A_STEP = 256, 1024, 1 << 16
_READ_WHOLE_BYTES, _LEAST_TOKENIZER_BYTES = 20_000_000, 5_000_000
_FIRST_GUESS, _TIMED_SECONDS = 2_000_000, 3.0
# Spent on each of the five evaluations while training.
_EVALUATION_SECONDS = 2.0


# The last is Ant-10M's.
_SHAPES = (usual_shape(128, 4), usual_shape(192, 6), usual_shape(256, 6), usual_shape(256, 12))
_TOKENS_A_WEIGHT = 1.0


def _needed(shape: Shape) -> int:
    """Tokens to train on, below which a smaller model does as well in less time; the least needs none."""
    return 0 if shape == _SHAPES[0] else round(_TOKENS_A_WEIGHT * shape.matrices)


class _Sizes(NamedTuple):
    """What is chosen, and what follows from it."""

    vocabulary: int
    tokens: int = 1_000_000
    """That are trained on, all passes together."""
    passes: float = 1.0
    shape: Shape = _SHAPES[0]
    held_out: float = MOST_HELD_OUT
    limit: int | None = None
    """Training tokens to pack, where the text has more than there is time for."""
    tokenizer_bytes: int = 200_000_000
    evaluated: int = 2000
    """Held-out tokens scored while training."""

    @property
    def tokens_per_step(self) -> int:
        power = round(math.log2(max(1, self.tokens / _STEPS)))
        return min(_MOST_TOKENS_A_STEP, max(_BLOCK, 2**power))

    @property
    def block(self) -> int:
        return min(_LONGEST_BLOCK, max(_BLOCK, self.tokens_per_step // _BLOCKS_A_STEP))

    @property
    def steps(self) -> int:
        return max(_FEWEST_STEPS, self.tokens // self.tokens_per_step)

    def trained_on(self, tokens: int, there: int, size: int) -> _Sizes:
        """With all that follows from the tokens trained on, of a text of so many tokens and bytes."""
        passes = tokens / there
        used = min(size, max(_READ_WHOLE_BYTES, size * passes))
        return self._replace(
            tokens=tokens,
            passes=passes,
            held_out=held_out_share(used),
            limit=round(there * used / size) if used < size else None,
            tokenizer_bytes=max(_LEAST_TOKENIZER_BYTES, round(used)),
        )

    def recipe(self, steps: int) -> dict[str, dict[str, Any]]:
        """As a recipe's YAML holds it, for a run of so many steps and without what names files."""
        decay = round(min(1.0, _DECAY_A_PASS * max(1.0, self.passes)), 2)
        return {
            "corpus": {"validation_fraction": self.held_out, "max_tokens": self.limit},
            "tokenizer": {"max_bytes": self.tokenizer_bytes},
            "training": training_section(
                Steps(steps, self.tokens_per_step // self.block, self.block),
                rates_of("quickstart")._replace(weight_decay=decay),
                Saving(evaluated=self.evaluated),
            ),
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
        AntError: the folder cannot hold a run, or its recipe is for another text; several processes would
            choose; or as `survey` and `measure_training`.
    """
    paths = [str(Path(expand_home(path)).resolve()) for path in data]
    name = folder_for(data[0]).name
    folder = Path(expand_home(output_dir)) if output_dir else folder_for(data[0])
    file = folder / RECIPE
    is_chosen = file.is_file() and _is_as_chosen(file)
    if file.is_file() and not (fresh and is_chosen):
        _check_text(file, paths)
        why = (
            "used as you edited it; remove it to have it chosen again"
            if fresh
            else "used as it is; --fresh chooses again"
        )
        say("recipe", f"{file}, {why}")
        yield file
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise AntError(
            "several processes cannot choose a recipe together",
            hint=f"Let one process choose it, and stop that when it trains: ant-hf train --data {data[0]}. "
            f"Then start several with --config {file}",
        )
    check_usable(folder)
    check_free(folder, "run")
    if (folder / RUN_RECORD).exists() and not fresh:
        raise AntError(
            f"{folder} already holds another run",
            hint="Name another folder with --output-dir. Or remove that run and its model with --fresh.",
        )
    with tempfile.TemporaryDirectory() as scratch:
        draft = _Draft(Path(scratch), name, paths, overrides)
        recipe = draft.choose(60 * (minutes or MINUTES))
        values = recipe.model_dump(exclude_unset=True) | {"output_dir": str(folder.absolute())}
        if look_only:
            write_text(draft.file, as_yaml(values))
            yield draft.file
            return
        if recipe.architecture == str(draft.architecture_file):
            values["architecture"] = _ARCHITECTURE
            write_text(folder / _ARCHITECTURE, draft.architecture_file.read_text(encoding="utf-8"))
    for made in ("tokenizer", "tokens") if is_chosen else ():
        # Perhaps of another text or vocabulary.
        shutil.rmtree(folder / made, ignore_errors=True)
    write_text(file, _sealed(as_yaml(values)))
    say("recipe", f"{file}: edit it as you like, and the architecture beside it")
    yield file


def folder_for(text: str) -> Path:
    """Where a run on a text goes if nobody says: runs/ and the text's name."""
    name = Path(expand_home(text)).resolve().name.partition(".")[0]
    return Path("runs") / (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "text")


class _Draft:
    """A recipe while its sizes are chosen.

    Args:
        scratch: an empty folder.
    """

    def __init__(self, scratch: Path, name: str, paths: list[str], overrides: Sequence[str]) -> None:
        self.file, self.architecture_file = scratch / RECIPE, scratch / _ARCHITECTURE
        self._overrides = overrides
        self._steps = dict(map(parsed_override, overrides)).get("training.max_steps")
        self._names: dict[str, Any] = {
            "name": name,
            "architecture": str(self.architecture_file),
            "output_dir": str(scratch / "run"),
        }
        self._corpus = {"source": "files", "path": paths[0] if len(paths) == 1 else paths}

    def _recipe(self, sizes: _Sizes) -> Recipe:
        """Write recipe and architecture; the overrides have the last word in both."""
        steps = self._steps if isinstance(self._steps, int) and self._steps > 0 else sizes.steps
        values = self._names | sizes.recipe(steps)
        values["corpus"] = self._corpus | values["corpus"]
        write_text(self.file, as_yaml(values))
        recipe = load_recipe(self.file, self._overrides)
        entries = (recipe.tokenizer and recipe.tokenizer.vocab_size) or sizes.vocabulary
        write_json(self.architecture_file, sizes.shape.architecture(entries, recipe.training.sequence_length))
        return recipe

    def choose(self, seconds: float) -> Recipe:
        """The recipe for a run of so many seconds; shows what was chosen, and why.

        Raises:
            AntError: as `survey` and `measure_training`.
        """
        sizes = _Sizes(_VOCABULARIES[0])
        source = open_source(self._recipe(sizes).corpus)
        size = source.text_bytes() or _VOCABULARIES[0] * _BYTES_AN_ENTRY
        fitting = [entries for entries in _VOCABULARIES if entries * _BYTES_AN_ENTRY <= size]
        sizes = _Sizes(max(fitting, default=_VOCABULARIES[0])).trained_on(size, size, size)
        self._names["sample_prompt"] = first_words(source)
        say("text", f"{size / 1e6:,.2f} MB: reading a sample of it, and timing a few steps")
        recipe = self._recipe(sizes)
        text = survey(recipe, _BLOCK)
        if not text.train_tokens:
            raise AntError(text.what)
        # Before a recipe is written that would be for too little text also when there is more.
        check_one_block(TRAIN, text.train_tokens, recipe.training.sequence_length)
        sizes = sizes._replace(vocabulary=text.vocab_size or sizes.vocabulary)
        there = text.train_tokens
        most = _MOST_PASSES * there
        preparing = (text.tokenizer_seconds or 0.0) + (text.packing_seconds or 0.0)
        tokens = min(most, _FIRST_GUESS)
        for shape in [shape for shape in reversed(_SHAPES) if _needed(shape) <= most]:
            # Again where the batch that follows from the speed is quite another than the one that was timed.
            for _ in range(2):
                sizes = sizes.trained_on(tokens, there, size)._replace(shape=shape)
                setup = set_up(self._recipe(sizes), self.file.parent)
                # Compiling each candidate would take longer than the run; compiled, it ends the sooner.
                rate = measure_training(without_compilation(setup), _TIMED_SECONDS)
                sizes = sizes._replace(
                    evaluated=max(2000, round(_EVALUATION_SECONDS * rate.scoring_tokens_per_second))
                )
                held_out = (sizes.limit or there) * sizes.held_out
                rest = (
                    preparing * (sizes.limit or there) / there + 5 * _EVALUATION_SECONDS + rate.start_seconds
                )
                rest += held_out / rate.scoring_tokens_per_second + held_out / rate.final_tokens_per_second
                left = max(seconds - rest, seconds / 3)
                timed, tokens = tokens, min(most, round(left * rate.tokens_per_second))
                if 1 / 4 < tokens / timed < 4:
                    break
            if tokens >= _needed(shape):
                break
        sizes = sizes.trained_on(tokens, there, size)
        # One file is read in documents of a megabyte, and a small share of few may be none.
        while (
            sizes.limit
            and sizes.held_out < 0.4
            and not _has_held_out(self._recipe(sizes).corpus, size * sizes.limit / there)
        ):
            sizes = sizes._replace(held_out=2 * sizes.held_out)
        recipe = self._recipe(sizes)
        self._show(recipe, text, rate, rest)
        return recipe

    def _show(self, recipe: Recipe, text: Survey, rate: TrainingRate, rest: float) -> None:
        config, ledger, _ = architecture_of(recipe)
        training = recipe.training
        step, there = training.sequences_per_step * training.sequence_length, text.train_tokens or 1
        tokens = training.max_steps * step
        passes = tokens / min(there, recipe.corpus.max_tokens or there)
        counted = f"{'' if text.is_whole else 'about '}{there:,} tokens to train on"
        if recipe.corpus.max_tokens:
            counted += (
                f"; only the first {recipe.corpus.max_tokens:,} are used, because there is no time for more"
            )
        why = (
            "as many as the time allows"
            if passes < _MOST_PASSES - 1
            else "with more, the model would learn it by heart"
        )
        facts = [
            ("text", f"{(text.text_bytes or 0) / 1e6:,.2f} MB, {counted}"),
            ("held out", f"{recipe.corpus.validation_fraction:.1%} of it, to measure the model on"),
            ("vocabulary", f"{config.vocab_size:,} entries, chosen by the size of the text"),
            (
                "model",
                f"{ledger.total:,} parameters: {config.num_hidden_layers} layers, {config.hidden_size} wide, "
                "as large as the text and the time allow",
            ),
            (
                "a step",
                f"{training.sequences_per_step} x {training.sequence_length} = {step:,} tokens",
            ),
            ("steps", f"{training.max_steps:,}, or {ratio(passes)} passes over the text: {why}"),
            (
                "rates",
                f"Muon {training.muon_learning_rate}, AdamW {training.learning_rate}, as in the quickstart; "
                f"weight decay {training.weight_decay}, higher for more passes",
            ),
            ("time", f"about {in_words(rest + tokens / rate.tokens_per_second)}; change it with --minutes"),
        ]
        show(facts_table(f"Chosen for {recipe.name}", facts))


def _has_held_out(recipe: CorpusRecipe, size: float) -> bool:
    """Whether some text is held out among the first bytes of a corpus."""
    for document in Corpus.from_recipe(recipe):
        size -= len(document.text.encode())
        if document.is_validation or size < 0:
            return document.is_validation
    return True


def _sealed(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"# Chosen by ant-hf train ({digest}). After you edit it, no command replaces it.\n{text}"


def _is_as_chosen(file: Path) -> bool:
    text = file.read_text(encoding="utf-8", errors="replace")
    return _sealed(text.partition("\n")[2]) == text


def _check_text(file: Path, paths: list[str]) -> None:
    there = load_recipe(file).corpus.path
    if [str(Path(path).resolve()) for path in ([there] if isinstance(there, str) else there or [])] != paths:
        raise AntError(
            f"{file} is the recipe for another text",
            seen=there,
            hint="Name another folder: --output-dir FOLDER. Or change corpus.path in that file, and run: "
            f"ant-hf train --config {file}",
        )
