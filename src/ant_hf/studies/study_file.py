"""A study, described once: typed, from YAML, and the runs that follow from it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from transformers import PreTrainedConfig

from ant_hf.errors import AntError
from ant_hf.model.architecture import Ledger, checked_architecture
from ant_hf.model.shapes import Shape, shape_of_width, usual_shape
from ant_hf.recipe import (
    NAME,
    Count,
    PathText,
    Recipe,
    Section,
    load_recipe,
    other_text,
    parsed_override,
    read_yaml,
    violations,
)
from ant_hf.studies.scores import known_score
from ant_hf.train.setup import training_flops_per_token
from ant_hf.train.sizing import Steps, scaled_rates
from ant_hf.utils.files import fingerprint, read_json
from ant_hf.utils.names import config_file, find_config

RECIPE, ARCHITECTURE = "recipe.yaml", "architecture.json"
Changes = dict[str, Any]
Positive = Annotated[float, Field(gt=0.0)]
_ARCHITECTURE_KEY = "architecture."
# Keys of a change that are not keys of a recipe.
_TOKENS, _FLOPS, _SHAPE, _PARAMETERS, _RATE, _SEEDS, _AT = _SPECIAL = (
    *("tokens", "flops", "shape", "parameters", "rate", "seeds", "at"),
)
# They go with the number of steps.
_COUNTED_IN_STEPS = ("warmup_steps", "logging_steps", "eval_steps", "save_steps")
_RATES = ("muon_learning_rate", "learning_rate", "weight_decay")


class Plot(Section):
    """What the figure of a study shows."""

    x: str | None = None
    """A fact of the runs (`parameters`, `tokens`, `vocab_size`, ...) or a key that is changed; default: the
    first axis of the grid, in its order."""
    y: str | None = None
    """What is drawn; default: the first score."""
    lines: str | None = None
    """Axis of the grid whose points are lines; default: the second."""


class Point(Section):
    """A model and a number of tokens whose loss is predicted."""

    run: PathText | None = None
    """Folder with the run.json of a trained model: parameters, tokens and loss are read from there."""
    parameters: Count | None = None
    """Non-embedding parameters."""
    tokens: Count | None = None
    published: Positive | None = None
    """A loss in nats per token that others print, to be shown beside the prediction."""
    source: str | None = None
    """Where the published loss stands."""


class Budgets(Section):
    """Compute for which the best size is sought."""

    gpu: str = "t4"
    """A GPU of the table in utils/hardware.py."""
    hours: Annotated[list[Positive], Field(min_length=1)]


class Fit(Section):
    """L(N, D) = E + A / N^a + B / D^b, with non-embedding parameters N and tokens D."""

    held_out: list[str] = Field(default_factory=list)
    """Cells that are left out of the fit and predicted by it."""
    without: list[str] = Field(default_factory=list)
    """Cells that are neither fitted nor predicted, such as those with other learning rates."""
    predict: dict[str, Point] = Field(default_factory=dict)
    """Points by name."""
    budgets: Budgets | None = None
    resamples: Annotated[int, Field(ge=20)] = 400
    """Of the bootstrap."""


class Study(Section):
    """A question and the runs that answer it."""

    name: Annotated[str, Field(pattern=NAME)]
    """Short name; also of its folder and its page."""
    question: str
    """What is asked, in a sentence."""
    answer: str | None = None
    """The answer in two sentences, written by a person after the runs."""
    does_not_show: list[str] = Field(default_factory=list)
    """What a reader must not conclude."""
    base: PathText
    """Recipe of all runs: a file, or the name of one that comes with the package."""
    changes: Changes = Field(default_factory=dict)
    """Changes of the base that all runs share."""
    grid: dict[str, Annotated[list[Any] | dict[str, Changes | None], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """Axes; a run for every combination of their points. An axis is a key with a list of values, or a name
    with named points, each a mapping of keys."""
    runs: dict[str, Changes | None] = Field(default_factory=dict)
    """Further runs by name, beside the grid; `at: {AXIS: NAME}` says on which line of the plot one stands."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [42], min_length=1)
    """Each run is trained once with each; `seeds` in a change replaces them there."""
    rates: Literal["base", "scaled"] = "base"
    """`base`: the base recipe's learning rates; `scaled`: by the rule of docs/new.md for width, batch and
    tokens."""
    score: list[str] = Field(default_factory=lambda: ["bits_per_byte"], min_length=1)
    """What is measured of each run; the first decides which is best."""
    limit: Count | None = None
    """Documents per set of lm-eval, and prompts of the loop rate; null for all."""
    data_dir: PathText | None = None
    """Folder of the packed tokens, one folder in it for each text and vocabulary; studies can share it.
    Default: data/ in the study's folder."""
    plot: Plot = Plot()
    fit: Fit | None = None


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study, ready to be trained."""

    cell: str
    """Runs of one cell differ in the seed alone."""
    point: dict[str, str]
    """Axis of the grid: name of its point."""
    changes: Changes
    """Of the base recipe, as the study file gives them."""
    seed: int
    folder: Path
    recipe: Recipe
    architecture: dict[str, Any]
    """Values of a LlamaConfig JSON."""
    config: PreTrainedConfig
    ledger: Ledger
    is_repeat: bool = False
    """An earlier run trains the same model, and this one has its folder."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def tokens(self) -> int:
        training = self.recipe.training
        return training.max_steps * training.sequences_per_step * training.sequence_length

    @property
    def flops_per_token(self) -> float:
        return training_flops_per_token(self.config, self.ledger, self.recipe.training.sequence_length)

    def facts(self) -> dict[str, float]:
        """Sizes of the run, known before it is trained; an x axis may be any of them."""
        values = {
            "parameters": self.ledger.total,
            "non_embedding_parameters": self.ledger.total - self._embeddings,
            "embedding_share": self._embeddings / self.ledger.total,
            "tokens": self.tokens,
            "flops": self.flops_per_token * self.tokens,
            "vocab_size": self.config.vocab_size,
            "hidden_size": self.config.hidden_size,
            "num_hidden_layers": self.config.num_hidden_layers,
            "learning_rate": self.recipe.training.learning_rate,
        }
        if self.recipe.training.muon_learning_rate:
            values["muon_learning_rate"] = self.recipe.training.muon_learning_rate
        return values

    @property
    def _embeddings(self) -> int:
        """Both matrices, where they are not tied."""
        tied = self.ledger.embeddings
        return tied if self.ledger.tied else 2 * tied


@dataclass(frozen=True)
class Options:
    """What the command line says beside the study's file."""

    overrides: Sequence[str] = ()
    """`KEY=VALUE`: changes of all runs, over those of the study; its grid and runs have the last word."""
    data: Sequence[str] = ()
    """Files, folders or patterns to train on instead of the recipe's corpus."""
    output_dir: str | None = None
    scale: float = 1.0
    """Times as many tokens in every run."""


@dataclass(frozen=True)
class LoadedStudy:
    """A study, its file, and its runs."""

    study: Study
    file: Path
    folder: Path
    scale: float
    shared: Changes
    """Changes of the base that all runs share, the command line's among them."""
    runs: list[PlannedRun]
    """Of every cell and seed."""

    @property
    def trainings(self) -> list[PlannedRun]:
        """The runs without repeats."""
        return [run for run in self.runs if not run.is_repeat]


def load_study(file: str | Path, options: Options | None = None) -> LoadedStudy:
    """Read a study file and plan all of its runs; nothing is written.

    Raises:
        AntError: the file is missing or has violations (all are listed); or a run that is impossible: names
            the run, and the key as `load_recipe` and `load_architecture` do.
    """
    options = options or Options()
    if not 0 < options.scale < math.inf:
        raise AntError("--scale is too small", seen=options.scale, expected="above 0, for example 100")
    path = find_config(file, "study", "studies/*.yaml")
    try:
        study = Study.model_validate(read_yaml(path, "study"))
    except ValidationError as error:
        raise violations(error, str(path), Study) from None
    for name in study.score:
        known_score(name, path)
    longer = "" if options.scale == 1 else f"-x{options.scale:g}"
    folder = Path(options.output_dir or f"runs/studies/{study.name}{longer}")
    shared = _shared(study, options)
    planner = _Planner(study, path, folder, options.scale)
    runs = [run for cell in _cells(study, path, shared) for run in planner.planned(cell)]
    _check_names(study, path, runs)
    return LoadedStudy(study, path, folder, options.scale, shared, _each_once(runs))


def _shared(study: Study, options: Options) -> Changes:
    forgotten, of_text = other_text(list(options.data)) if options.data else ([], {})
    return study.changes | dict(map(parsed_override, [*forgotten, *options.overrides])) | of_text


@dataclass(frozen=True)
class _Cell:
    name: str
    point: dict[str, str]
    changes: Changes
    seeds: list[int]


def _cells(study: Study, path: Path, shared: Changes) -> Iterator[_Cell]:
    axes = [[(axis, *point) for point in _points(axis, points)] for axis, points in study.grid.items()]
    found = []
    for combination in itertools.product(*axes) if axes else ():
        point = {axis: name for axis, name, _, _ in combination}
        changes = [own for _, _, _, own in combination]
        found.append((", ".join(shown for _, _, shown, _ in combination), point, changes))
    found += [(name, {}, [own or {}]) for name, own in study.runs.items()]
    for name, point, parts in found or [("base", {}, [])]:
        own = dict(shared)
        for part in parts:
            own |= part
        seeds = own.pop(_SEEDS, study.seeds)
        if not (
            isinstance(seeds, list)
            and seeds
            and all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)
        ):
            raise AntError(f"{path}: seeds of {name!r} is {seeds!r}", expected="a list such as [42, 43, 44]")
        at = own.pop(_AT, {})
        if not (isinstance(at, dict) and all(isinstance(text, str) for text in at.values())):
            raise AntError(f"{path}: at of {name!r} is {at!r}", expected="a mapping such as {AXIS: NAME}")
        yield _Cell(name, point | at, own, seeds)


def _points(axis: str, points: list[Any] | dict[str, Changes | None]) -> Iterator[tuple[str, str, Changes]]:
    """Name of each point, the same as part of a cell's name, and its changes."""
    if isinstance(points, dict):
        yield from ((name, name, own or {}) for name, own in points.items())
        return
    for value in points:
        yield str(value), f"{axis.rpartition('.')[2].replace('_', ' ')} {value}", {axis: value}


class _Planner:
    """Makes the recipe and the architecture of each run."""

    def __init__(self, study: Study, path: Path, folder: Path, scale: float) -> None:
        self._study, self._path, self._folder, self._scale = study, path, folder, scale
        beside = path.parent / study.base
        self._base = beside if beside.is_file() else study.base

    def planned(self, cell: _Cell) -> list[PlannedRun]:
        """A run for each seed of a cell."""
        try:
            first = self._planned(cell, cell.seeds[0])
        except AntError as error:
            raise AntError(f"{self._path}, run {cell.name!r}: {error}") from None
        return [first, *(self._with_seed(first, seed) for seed in cell.seeds[1:])]

    def _with_seed(self, run: PlannedRun, seed: int) -> PlannedRun:
        folder = self._folder_of(run.cell, seed)
        training = run.recipe.training.model_copy(update={"seed": seed})
        recipe = run.recipe.model_copy(update={**self._places(folder), "training": training})
        return replace(run, seed=seed, folder=folder, recipe=recipe)

    def _folder_of(self, cell: str, seed: int) -> Path:
        return self._folder / f"{_as_file_name(cell)}-s{seed}"

    def _places(self, folder: Path) -> Changes:
        return {
            "name": f"{self._study.name}-{folder.name}",
            "output_dir": str(folder),
            "architecture": str(folder / ARCHITECTURE),
        }

    def _planned(self, cell: _Cell, seed: int) -> PlannedRun:
        own = {key: value for key, value in cell.changes.items() if key not in _SPECIAL}
        of_recipe = {key: value for key, value in own.items() if not key.startswith(_ARCHITECTURE_KEY)}
        base = load_recipe(self._base, changes=of_recipe)
        if base.training.init_from or not base.architecture:
            raise AntError(
                f"the base recipe {self._study.base} starts from a trained model",
                seen=base.training.init_from,
                expected="a recipe with an architecture, whose weights start at random",
            )
        architecture = self._architecture(base, cell.changes)
        where = f"the changed {base.architecture}"
        config, ledger = checked_architecture(architecture, where)
        folder = self._folder_of(cell.name, seed)
        if base.tokenizer and "tokenizer.vocab_size" not in of_recipe:
            of_recipe["tokenizer.vocab_size"] = config.vocab_size
        of_recipe |= self._length(base, cell.changes, config, ledger, of_recipe)
        of_recipe |= {**self._places(folder), "training.seed": seed}
        recipe = load_recipe(self._base, changes=of_recipe)
        if "data_dir" not in cell.changes:
            # Runs of one text and vocabulary share it, whatever else they change.
            settings = recipe.tokenizer and recipe.tokenizer.model_dump()
            made_of = [recipe.corpus.model_dump(), settings, config.max_position_embeddings]
            data = Path(self._study.data_dir or self._folder / "data")
            place = str(data / f"{config.vocab_size}-{fingerprint(made_of)[:8]}")
            recipe = recipe.model_copy(update={"data_dir": place})
        changes = dict(cell.changes)
        return PlannedRun(cell.name, cell.point, changes, seed, folder, recipe, architecture, config, ledger)

    def _architecture(self, base: Recipe, changes: Changes) -> dict[str, Any]:
        values = read_json(config_file(str(base.architecture)), "model config", "Pass a LlamaConfig JSON.")
        own = {
            key.removeprefix(_ARCHITECTURE_KEY): value
            for key, value in changes.items()
            if key.startswith(_ARCHITECTURE_KEY)
        }
        if shape := self._shape(changes, values | own):
            sizes = shape.architecture(values["vocab_size"], values["max_position_embeddings"])
            values |= {key: sizes[key] for key in sizes.keys() & _SIZES}
        return values | own

    def _shape(self, changes: Changes, values: dict[str, Any]) -> Shape | None:
        """The shape that `shape` or `parameters` asks for."""
        given, parameters = changes.get(_SHAPE), changes.get(_PARAMETERS)
        if given is not None and parameters is not None:
            raise AntError(
                "shape and parameters are both set", hint="Leave one out: one follows from the other."
            )
        if parameters is not None:
            if type(parameters) is not int or parameters < 1:
                raise AntError(f"parameters is {parameters!r}", expected="a whole number above 0")
            return shape_of_width(values["hidden_size"], parameters, values["vocab_size"])
        if given is None:
            return None
        if not (
            isinstance(given, list)
            and len(given) in (2, 3)
            and all(type(size) is int and size > 0 for size in given)
        ):
            raise AntError(
                f"shape is {given!r}",
                expected="[hidden_size, num_hidden_layers], and as a third intermediate_size if you like",
            )
        return Shape(*given) if len(given) == 3 else usual_shape(*given)

    def _length(
        self, base: Recipe, changes: Changes, config: PreTrainedConfig, ledger: Ledger, explicit: Changes
    ) -> Changes:
        """Steps, what is counted in steps, and the rates that go with them."""
        training, study = base.training, self._study
        step = training.sequences_per_step * training.sequence_length
        tokens: float = training.max_steps * step
        if _TOKENS in changes and _FLOPS in changes:
            raise AntError("tokens and flops are both set", hint="Leave one out: one follows from the other.")
        for key in (_TOKENS, _FLOPS, _RATE):
            value = changes.get(key, 1)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise AntError(f"{key} is {value!r}", expected="a number above 0")
        if _TOKENS in changes:
            tokens = changes[_TOKENS]
        elif _FLOPS in changes:
            tokens = changes[_FLOPS] / training_flops_per_token(config, ledger, training.sequence_length)
        steps = max(1, round(tokens * self._scale / step))
        found: Changes = {"training.max_steps": steps}
        for key in _COUNTED_IN_STEPS:
            is_given = f"training.{key}" in explicit
            factor = self._scale if is_given else steps / training.max_steps
            found[f"training.{key}"] = max(1, round(getattr(training, key) * factor))
        if not training.warmup_steps:
            found["training.warmup_steps"] = 0
        sizes = Steps(steps, training.sequences_per_step, training.sequence_length)
        if study.rates == "scaled" and "training.warmup_steps" not in explicit:
            found["training.warmup_steps"] = sizes.warmup
        found["training.warmup_steps"] = min(found["training.warmup_steps"], steps - 1)
        values = {key: getattr(training, key) for key in _RATES}
        if study.rates == "scaled":
            rates = scaled_rates(sizes, config.hidden_size)
            scaled = dict(zip(_RATES, (rates.muon, rates.adamw, rates.weight_decay), strict=True))
            if training.optimizer != "muon":
                raise AntError(
                    "rates: scaled needs a base recipe that trains with Muon",
                    seen=training.optimizer,
                    expected="training.optimizer muon, or rates: base",
                )
            values |= {key: value for key, value in scaled.items() if f"training.{key}" not in explicit}
        for key in _RATES[:2]:
            if values[key] is not None:
                values[key] *= changes.get(_RATE, 1)
        return found | {f"training.{key}": value for key, value in values.items()}


# What `shape` decides.
_SIZES = {
    *("hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
}


def _each_once(runs: list[PlannedRun]) -> list[PlannedRun]:
    """The runs, with those marked that repeat an earlier one."""
    first: dict[str, PlannedRun] = {}
    found = []
    for run in runs:
        values = run.recipe.model_dump(exclude={"name", "output_dir", "architecture"})
        same = first.setdefault(fingerprint([values, run.architecture]), run)
        found.append(replace(run, folder=same.folder, recipe=same.recipe, is_repeat=same is not run))
    return found


def _as_file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "run"


def _check_names(study: Study, path: Path, runs: list[PlannedRun]) -> None:
    """Raise AntError for runs that share a folder, and for unknown names in `plot` and `fit`."""
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise AntError(
            f"{path}: two runs would write to the same folder",
            seen=", ".join(twice),
            hint="Give them names that differ in letters or digits.",
        )
    axes = list(dict.fromkeys(axis for run in runs for axis in run.point))
    cells = list(dict.fromkeys(run.cell for run in runs))
    facts = dict.fromkeys(name for run in runs for name in run.facts())
    changed = {key for run in runs for key in run.changes}
    rules: list[tuple[str, Sequence[str | None], list[str]]] = [
        ("plot.x", [study.plot.x], [*axes, *facts, *changed]),
        ("plot.y", [study.plot.y], study.score),
        ("plot.lines", [study.plot.lines], axes),
    ]
    if study.fit:
        rules += [("fit.held_out", study.fit.held_out, cells), ("fit.without", study.fit.without, cells)]
    for key, given, allowed in rules:
        for name in given:
            if name is not None and name not in allowed:
                raise AntError(
                    f"{path}: {key} is {name!r}",
                    expected=f"one of {', '.join(map(repr, sorted(allowed)))}" if allowed else "no such key",
                )
