"""From a wish to a recipe: a number of parameters, a vocabulary, a number of tokens or hours."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from ant_hf.data.sources import open_source
from ant_hf.data.survey import Survey
from ant_hf.errors import AntError
from ant_hf.model.shapes import Shape, shapes_for
from ant_hf.recipe import NAME, Recipe, load_recipe
from ant_hf.train.estimates import choose_compilation, facts_on, measure_training, seconds_on
from ant_hf.train.pretrain import dry_run
from ant_hf.train.setup import Setup, ratio, set_up, show_plan
from ant_hf.train.sizing import (
    FEWEST_STEPS,
    MEASURED,
    Saving,
    Steps,
    as_yaml,
    first_words,
    held_out_share,
    scaled_rates,
    steps_for,
    training_section,
)
from ant_hf.utils.console import facts_table, say, show
from ant_hf.utils.files import write_json, write_text
from ant_hf.utils.hardware import gpu_named
from ant_hf.utils.names import expand_home, shipped_file

# Hoffmann et al. 2022, arXiv 2203.15556: what is best for the compute.
_TOKENS_A_PARAMETER = 20
# Of the hours; the rest is for tokenizer, packing and evaluations, which the plan then tells.
_TRAINING_SHARE = 0.9
# Weight, gradient and two moments in fp32.
_BYTES_A_PARAMETER = 16
_EVALUATIONS, _SAVES = 20, 30
# Held-out tokens scored each time: so few that all evaluations take about a twentieth of the training.
_EVALUATED, _FEWEST_EVALUATED, _EVALUATED_SHARE = 65_536, 2000, 1 / 150
_SHOWN_SHAPES, _OUT_OF_PROPORTION = 4, 1.8


@dataclass(frozen=True)
class Wish:
    """What a model is to be."""

    name: str
    parameters: int
    vocabulary: int = 4096
    context: int = 1024
    """Tokens."""
    tokens: int | None = None
    """To train on; None with no hours either: 20 for each parameter."""
    hours: float | None = None
    device: str | None = None
    """A GPU of the table in utils/hardware.py that is not here."""
    width: int | None = None
    """Of the model, if it is not to be chosen."""
    data: list[str] | None = None
    """Files, folders or patterns; none: the embedded text."""


def new_recipe(wish: Wish, overwrite: bool = False) -> Path:
    """Write architecture and recipe below configs/ of this folder; show them, and what the run takes.

    Returns:
        The recipe's file.

    Raises:
        AntError: the wish cannot be, or contradicts itself; the files are there; or as `dry_run`, which looks
            at the text and this machine when they are written.
    """
    files = _Files(Path("configs"), wish.name)
    _check(wish)
    shapes = shapes_for(wish.parameters, wish.vocabulary)
    shape = _chosen(wish, shapes)
    corpus = _corpus(wish)
    with tempfile.TemporaryDirectory() as scratch:
        draft = _Draft(wish, shape, corpus, _Files(Path(scratch), wish.name))
        tokens = wish.tokens or _TOKENS_A_PARAMETER * shape.parameters(wish.vocabulary)
        if wish.hours is not None:
            tokens = draft.tokens_in(3600 * _TRAINING_SHARE * wish.hours)
        steps = steps_for(tokens, wish.context)
        setup = draft.set_up(steps)
        files.take(draft.files, overwrite)
    show(_shapes_table(wish, shape, shapes))
    shortage = _shortage(setup)
    _show_choices(wish, setup, wish.device or ("t4" if shortage else None))
    say("recipe", f"{files.recipe}, with {files.architecture}")
    recipe = load_recipe(files.recipe)
    if not wish.data:
        say(
            "note",
            "the recipe reads the World English Bible, 4 MB, to try it out; for your text add --data FILE",
        )
    if shortage:
        show_plan(replace(setup, recipe=recipe), Survey("nothing"))
        say("note", f"not timed on this machine: {shortage}")
    else:
        dry_run(recipe)
    return files.recipe


class _Files:
    """Where recipe and architecture lie."""

    def __init__(self, configs: Path, name: str) -> None:
        self.architecture, self.recipe = configs / f"llama_{name}.json", configs / "recipes" / f"{name}.yaml"

    def take(self, draft: _Files, overwrite: bool) -> None:
        """Become what the draft holds; the recipe last, which needs the other.

        Raises:
            AntError: one of the files is there, and is not of the same command, interrupted and run again.
        """
        pairs = [(self.architecture, draft.architecture), (self.recipe, draft.recipe)]
        for file, new in pairs:
            if file.exists() and not overwrite and file.read_bytes() != new.read_bytes():
                raise AntError(
                    f"{file} exists already", hint="Choose another name, or replace the file: --overwrite"
                )
        for file, new in pairs:
            write_text(file, new.read_text(encoding="utf-8"))


def _check(wish: Wish) -> None:
    if not re.fullmatch(NAME, wish.name):
        raise AntError(
            "the name of the recipe is not valid",
            seen=wish.name,
            expected="letters, digits, dots, dashes and underscores, with a letter or digit first",
            hint="For example: my-20m",
        )
    if wish.tokens is not None and wish.hours is not None:
        raise AntError(
            "--tokens and --hours were both given", hint="Leave one out: one follows from the other."
        )
    if wish.device is not None:
        gpu_named(wish.device)
    if wish.tokens is not None and wish.tokens < FEWEST_STEPS * wish.context:
        raise AntError(
            f"--tokens is {wish.tokens:,}",
            expected=f"at least {FEWEST_STEPS} steps of one block of {wish.context} tokens, "
            f"{FEWEST_STEPS * wish.context:,}",
        )
    if shipped_file("configs").resolve() != Path("configs").resolve():
        shipped = _Files(shipped_file("configs"), wish.name)
        if shipped.recipe.exists() or shipped.architecture.exists():
            raise AntError(
                f"{wish.name!r} is the name of a recipe or model that comes with the package",
                hint="Choose another name.",
            )


def _chosen(wish: Wish, shapes: list[Shape]) -> Shape:
    if wish.width is None:
        return shapes[0]
    for shape in shapes:
        if shape.width == wish.width:
            return shape
    widths = ", ".join(str(shape.width) for shape in sorted(shapes, key=lambda shape: shape.width))
    raise AntError(
        f"a model of width {wish.width} cannot have about {wish.parameters:,} parameters",
        expected=f"--width with one of {widths}",
    )


def _corpus(wish: Wish) -> dict[str, Any]:
    """The section `corpus`; for a text of one's own without what follows from its size."""
    if not wish.data:
        return {"source": "embedded", "language": "en", "validation_fraction": 0.05}
    paths = [str(Path(expand_home(path)).resolve()) for path in wish.data]
    return {"source": "files", "path": paths[0] if len(paths) == 1 else paths}


class _Draft:
    """Recipe and architecture while the length of the run is open, in a folder that does not last."""

    def __init__(self, wish: Wish, shape: Shape, corpus: dict[str, Any], files: _Files) -> None:
        self._wish, self._shape, self._corpus, self.files = wish, shape, corpus, files
        self._prompt = "In the beginning"
        write_json(files.architecture, shape.architecture(wish.vocabulary, wish.context))
        if wish.data:
            source = open_source(self._recipe(steps_for(wish.parameters, wish.context)).corpus)
            self._corpus = corpus | {"validation_fraction": held_out_share(source.text_bytes() or 1e9)}
            self._prompt = first_words(source)

    def text(self, steps: Steps) -> str:
        """The recipe's file."""
        wish, shape = self._wish, self._shape
        evaluated = min(_EVALUATED, max(_FEWEST_EVALUATED, round(_EVALUATED_SHARE * steps.tokens)))
        values = {
            "name": wish.name,
            # Beside the recipe's own folder, so that it is found from any other.
            "architecture": f"../{self.files.architecture.name}",
            "output_dir": f"runs/{wish.name}",
            "sample_prompt": self._prompt,
            "corpus": self._corpus,
            # The embedded text has too few distinct words for a large one, and is there to try things with.
            "tokenizer": {"vocab_size": wish.vocabulary} if wish.data else {},
            "training": training_section(
                steps, scaled_rates(steps, shape.width), Saving(evaluated, _EVALUATIONS, _SAVES)
            ),
        }
        return _comment(wish, shape, steps) + as_yaml(values)

    def _recipe(self, steps: Steps) -> Recipe:
        write_text(self.files.recipe, self.text(steps))
        return load_recipe(self.files.recipe)

    def set_up(self, steps: Steps) -> Setup:
        return set_up(self._recipe(steps), self.files.recipe.parent)

    def tokens_in(self, seconds: float) -> int:
        """Tokens that so many seconds of training allow, on the device of the wish.

        Raises:
            AntError: this machine has too little memory to be measured; or there is no time for a few steps.
        """
        wish = self._wish
        tokens = _TOKENS_A_PARAMETER * wish.parameters
        # The batch follows from the tokens, and their speed a little from the batch.
        for _ in range(2):
            setup = self.set_up(steps_for(tokens, wish.context))
            if wish.device:
                speed = setup.plan.total_tokens / seconds_on(gpu_named(wish.device), setup)
            elif shortage := _shortage(setup):
                raise AntError(
                    f"--hours cannot be turned into tokens on this machine: {shortage}",
                    hint="Name a GPU, for example --device t4, or pass --tokens instead.",
                )
            else:
                say("probe", "timing a few steps on random tokens")
                speed = measure_training(choose_compilation(setup)).tokens_per_second
            tokens = int(speed * seconds)
        if tokens < FEWEST_STEPS * wish.context:
            raise AntError(
                f"--hours is {wish.hours:g}, time for {tokens:,} tokens",
                expected=f"at least {FEWEST_STEPS} steps of {wish.context} tokens",
            )
        return tokens


def _comment(wish: Wish, shape: Shape, steps: Steps) -> str:
    """What stands above the values, and why they are as they are."""
    length = f"{steps.tokens:,} tokens"
    if wish.hours is not None:
        where = (
            f"on one {wish.device.upper()}, calculated" if wish.device else "on the machine it was made on"
        )
        length += f", about {wish.hours:g} hours {where}"
    lines = [
        f"{wish.name}: {shape.parameters(wish.vocabulary):,} parameters, {length}.",
        f"Made by ant-hf new. Batch and rates are those of {MEASURED} (docs/recipe-27m.md), scaled by the",
        "rules of docs/new.md and not measured: batch x tokens^0.383; both rates x tokens^-0.32 x batch^0.5;",
        "learning_rate (AdamW's) also x width^-0.5; weight_decay such that rate x decay x steps is the same.",
    ]
    if not wish.data:
        lines.append("The text is the embedded one, to try it with. For yours: --data FILE when you train.")
    return "".join(f"# {line}\n" for line in lines)


def _shapes_table(wish: Wish, chosen: Shape, shapes: list[Shape]) -> Table:
    shown = [shape for shape in shapes[:_SHOWN_SHAPES] if shape.disproportion < _OUT_OF_PROPORTION]
    table = Table(
        title=f"Shapes of about {wish.parameters:,} parameters with a vocabulary of {wish.vocabulary:,}",
        title_justify="left",
        caption="* chosen; above it narrower and deeper, below it wider and shallower: --width N",
        caption_justify="left",
    )
    names = ("width", "layers", "heads (kv)", "head_dim", "MLP", "parameters", "off", "embeddings")
    for name in names:
        table.add_column(name, justify="right")
    for shape in sorted({chosen, *shown}, key=lambda shape: shape.width):
        count = shape.parameters(wish.vocabulary)
        table.add_row(
            f"* {shape.width}" if shape == chosen else str(shape.width),
            str(shape.layers),
            f"{shape.heads} ({shape.key_value_heads})",
            str(shape.head_dim),
            str(shape.mlp),
            f"{count:,}",
            f"{count / wish.parameters - 1:+.1%}",
            f"{wish.vocabulary * shape.width / count:.0%}",
            style="bold" if shape == chosen else None,
        )
    return table


def _show_choices(wish: Wish, setup: Setup, gpu_name: str | None) -> None:
    training, plan, ledger = setup.recipe.training, setup.plan, setup.ledger
    why = "as asked for" if wish.tokens else "the best use of the compute (Hoffmann et al. 2022)"
    if wish.hours is not None:
        why = f"{_TRAINING_SHARE:.0%} of {wish.hours:g} hours "
        why += f"on one {wish.device.upper()}" if wish.device else "at the speed of this machine"
    share = f"{ledger.embedding_share:.0%} of the parameters are its embeddings"
    if ledger.embedding_share > 0.5:
        share += "; a smaller one leaves more for the layers"
    facts = [
        ("vocabulary", f"{setup.config.vocab_size:,} entries; {share}"),
        ("tokens", f"{plan.total_tokens:,}, {ratio(plan.tokens_per_parameter)} for each parameter: {why}"),
        (
            "rates",
            f"Muon {training.muon_learning_rate:g}, AdamW {training.learning_rate:g}, weight decay "
            f"{training.weight_decay:g}: those of {MEASURED}, scaled by a rule (docs/new.md), not measured",
        ),
    ]
    if gpu_name:
        facts += facts_on(gpu_named(gpu_name), f"one {gpu_name.upper()}", setup)
    show(facts_table(f"Chosen for {wish.name}", facts))


def _shortage(setup: Setup) -> str:
    """Why this machine cannot train the model, as far as the memory of a CPU tells; empty if it may."""
    needed, free = _BYTES_A_PARAMETER * setup.ledger.total, psutil.virtual_memory().available
    if setup.execution.device != "cpu" or needed < free:
        return ""
    return f"it needs at least {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
