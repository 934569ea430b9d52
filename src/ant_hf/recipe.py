"""A run, described once: typed recipe from YAML plus ``--set key=value``.

Everything that decides the trained weights lives here, and nothing else does: entry files have
few flags because each knob is a key of the recipe. Pydantic checks types and ranges and collects
every violation, so three mistakes cost the user one look and not three.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ant_hf.errors import AntError
from ant_hf.utils.names import expand_home, find_config


class RecipeLoader(yaml.SafeLoader):
    """Safe YAML that reads 4e-4 as a number, and refuses aliases and a key given twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            # Nine nested aliases can stand for a billion values, in the first message that shows them.
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not used in recipes", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not a text", node.start_mark
                )
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"key given twice: {', '.join(sorted(twice))}", node.start_mark
            )
        return super().construct_mapping(node, deep)


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    # YAML 1.1 wants a dot in every float, so that 4e-4 would arrive as a text.
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


# Those of Trainer's whose name is also that of their package, so that a missing one can be named.
Integration = Literal[
    "clearml", "codecarbon", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]


def _as_list(value: Any) -> Any:
    """Transformers' shorter forms: a name alone, and `none`."""
    names = [value] if isinstance(value, str) else value
    return [] if names == ["none"] else names


ReportTo = Annotated[list[Integration], BeforeValidator(_as_list)]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
# All bytes and two special tokens.
SMALLEST_VOCABULARY = 258
Count = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Rate = Annotated[float, Field(gt=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
# A path that no file system refuses outright, with `~` as the shell takes it.
_PATH = r"^[^\x00-\x1f\x7f]+$"
PathText = Annotated[str, Field(pattern=_PATH), AfterValidator(expand_home)]


def _on_or_off(value: object) -> object:
    """YAML reads `on` and `off` as true and false."""
    return ("on" if value else "off") if isinstance(value, bool) else value


def _blocks(value: object) -> object:
    if value != "auto" and (type(value) is not int or value < 1):
        raise ValueError(f"training.per_device_batch_size is {value!r}; must be greater than 0, or auto")
    return value


def _paths(value: object) -> object:
    for path in value if isinstance(value, list) and value else [value]:
        if path is not None and not (isinstance(path, str) and re.match(_PATH, path)):
            raise ValueError(
                f"is {path!r}; must be text, and must not be empty or contain control characters"
            )
    if isinstance(value, list):
        return [expand_home(path) for path in value]
    return expand_home(value) if isinstance(value, str) else value


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
    except (LookupError, UnicodeError):
        raise ValueError(f"is {name!r}, which Python does not know; try latin-1, cp1252 or utf-16") from None
    return name


# Also a word of the keys that --set takes.
PartName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class TextSource(Section):
    """A part of the corpus as the card names it."""

    name: str
    """What the text is, with its authors where the licence asks for them."""
    license: str
    """For example CC BY-SA 3.0."""
    url: str | None = None
    """Where it is from."""


# Of the parts that a text and its replay are.
OWN_TEXT, REPLAY = "text", "replay"


class TextPlace(Section):
    """A text, and how it is read."""

    source: Literal["hub", "files", "embedded"] = "hub"
    """`hub`: a dataset of the Hugging Face Hub; `files`: local files; `embedded`: the World English Bible."""
    path: Annotated[str | list[str] | None, BeforeValidator(_paths)] = None
    """Dataset id (hub), or a file, folder or glob, or several (files)."""
    subset: str | None = None
    """Configuration name of the Hub dataset."""
    split: str = "train"
    """Split of the Hub dataset."""
    revision: str | None = None
    """Commit, tag or branch of the Hub dataset."""
    streaming: bool = True
    """Read the Hub dataset as it downloads instead of storing all of it first."""
    text_column: str = "text"
    """Column of jsonl, json, csv, tsv, parquet or Hub rows that holds the text."""
    encoding: Annotated[str, AfterValidator(_known_encoding)] = "utf-8"
    """Of txt, md, csv and tsv files: a name that Python knows, such as latin-1, cp1251 or utf-16."""

    @model_validator(mode="after")
    def _path_where_needed(self) -> TextPlace:
        if self.source != "embedded" and not self.path and not getattr(self, "mix", None):
            raise ValueError(f"path is missing; source {self.source!r} needs it")
        if self.source == "embedded" and self.path:
            raise ValueError("path is set, but source 'embedded' has its own text; set source to files")
        if self.source == "hub" and isinstance(self.path, list):
            raise ValueError("path is a list; source 'hub' needs one dataset id")
        return self


class _NamedText(TextPlace):
    source: Literal["hub", "files", "embedded"] = "files"
    """As of the corpus; `files` if left out."""
    name: str | None = None
    """What the text is, for the card; if left out, the name of the part."""
    license: str | None = None
    """For the card, for example CC BY-SA 3.0."""
    url: str | None = None
    """Where the text is from, for the card."""


class MixPart(_NamedText):
    """A part of a mix."""

    weight: Annotated[float, Field(ge=0.0)]
    """Its share of the training tokens, beside the weights of the other parts; they need not add up to 1."""
    decay_weight: Annotated[float, Field(ge=0.0)] | None = None
    """The same while the learning rate decays, with warmup_stable_decay. Default: weight."""


def named_texts(corpus: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The texts that a recorded `corpus` names, with licence and address: sources, and parts of its mix."""
    parts = {**(corpus.get("mix") or {}), **({REPLAY: corpus["replay"]} if corpus.get("replay") else {})}
    named = [
        {
            "name": part.get("name") or key,
            "license": part.get("license") or "not recorded",
            "url": part.get("url"),
        }
        for key, part in parts.items()
    ]
    return [*(corpus.get("sources") or []), *named]


def share_in_words(share: float, decay_share: float | None) -> str:
    """A part's share of the training, and the other one that it has in the decay."""
    return f"{share:.1%}" + ("" if decay_share is None else f", in the decay {decay_share:.1%}")


class Replay(_NamedText):
    """General text that a training continues to see beside its own."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Its share of the training tokens."""


class CorpusRecipe(TextPlace):
    """Where the text comes from and how it is split."""

    mix: Annotated[dict[PartName, MixPart], Field(min_length=2)] | None = None
    """Several texts instead of one, by name and weight: {fiction: {path: books/, weight: 0.4}, wiki: ...}"""
    replay: Replay | None = None
    """Another text mixed into the training: {path: general.jsonl, share: 0.1}"""
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] | None = None
    """ISO 639 code of the text's language, for the card and for checks in that language; for example en."""
    validation_fraction: Fraction = 0.001
    """Share of documents held out, chosen by content hash. With 0, nothing tells how good the model is."""
    decontaminate: PathText | None = None
    """Folder of evaluation sets as JSONL, packed or not. Documents that share 13 words in a row with one are
    left out."""
    general: PathText | None = None
    """With training.init_from: file or folder of other text, to measure what the model forgets. Default: the
    World English Bible, if it is installed."""
    sources: list[TextSource] = []
    """What the text is and its licences, for the card."""
    max_tokens: Count | None = None
    """Stop packing once the training split holds this many tokens."""

    @model_validator(mode="after")
    def _one_text_or_a_mix(self) -> CorpusRecipe:
        for key, field in TextPlace.model_fields.items() if self.mix else ():
            if getattr(self, key) != field.default:
                raise ValueError(
                    f"corpus.{key} and corpus.mix are both set; set it for a part: corpus.mix.NAME.{key}"
                )
        if self.mix and self.replay:
            raise ValueError("corpus.replay and corpus.mix are both set; make it a part of the mix")
        for name, part in (self.mix or {}).items():
            if not part.weight and not part.decay_weight:
                raise ValueError(f"corpus.mix.{name}.weight is 0; must be above 0, or its decay_weight must")
        if self.mix and not all(map(sum, self._weights)):
            raise ValueError(
                "corpus.mix: all weights are 0 before the decay, or all are 0 in it; set one above 0"
            )
        if self.changes_in_decay and self.max_tokens:
            raise ValueError("corpus.max_tokens and a decay_weight are both set; leave max_tokens out")
        return self

    @property
    def changes_in_decay(self) -> bool:
        """Whether a mix has other shares while the learning rate decays."""
        return any(part.decay_weight is not None for part in (self.mix or {}).values())

    @property
    def _weights(self) -> tuple[list[float], list[float]]:
        parts = [*(self.mix or {}).values()]
        decays = [part.weight if part.decay_weight is None else part.decay_weight for part in parts]
        return [part.weight for part in parts], decays

    @property
    def texts(self) -> list[TextPlace]:
        """All texts that are read."""
        return [*self.parts.values()] or [self]

    @property
    def parts(self) -> dict[str, MixPart]:
        """The parts of a mix, or a text and its replay; none of a text alone. Weights add up to 1, and so do
        decay weights, which all parts have or none.
        """
        if self.replay:
            share = self.replay.share
            own, again = dict(self), dict(self.replay)
            return {
                OWN_TEXT: MixPart(**{key: own[key] for key in TextPlace.model_fields}, weight=1 - share),
                REPLAY: MixPart(**{key: again[key] for key in _NamedText.model_fields}, weight=share),
            }
        constant, decay = ([weight / sum(weights) for weight in weights] for weights in self._weights)
        return {
            name: part.model_copy(
                update={"weight": one, "decay_weight": other if self.changes_in_decay else None}
            )
            for (name, part), one, other in zip((self.mix or {}).items(), constant, decay, strict=True)
        }


class TokenizerRecipe(Section):
    """Byte-level BPE settings."""

    vocab_size: Annotated[int, Field(ge=SMALLEST_VOCABULARY, le=65536)] | None = None
    """Entries, special tokens and the 256 bytes included: the architecture's. Left out (null), it is that or,
    for a small text, what the text gives, and the model follows."""
    split_digits: bool = True
    """Every decimal digit is a token of its own."""
    max_bytes: Count = 200_000_000
    """Train on at most this much text: it bounds the memory, which holds every distinct word."""


class TrainingRecipe(Section):
    """Optimisation and hardware."""

    init_from: PathText | None = None
    """Folder or OWNER/NAME of a Llama to continue from, with its weights, architecture and tokenizer."""
    sequence_length: Annotated[int, Field(ge=8)] = 1024
    """Tokens per block."""
    sequences_per_step: Count
    """Blocks per optimizer step, over all processes and accumulation."""
    max_steps: Count
    """Optimizer steps."""
    num_train_epochs: Annotated[float, Field(gt=0.0)] | None = None
    """At most so many passes over the training text: for a small text, `max_steps` and all that is counted in
    steps shrink in proportion."""
    per_device_batch_size: Annotated[int | Literal["auto"], BeforeValidator(_blocks)] = "auto"
    """Blocks one process handles at once, at most; the accumulation follows. `auto` tries what fits a GPU."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: torch.optim.Muon for matrices, AdamW for embeddings and norms."""
    learning_rate: Rate
    """Peak of AdamW (all parameters, or embeddings and norms beside Muon)."""
    muon_learning_rate: Rate | None = None
    """Peak of Muon."""
    lr_scheduler_type: Literal["cosine_with_min_lr", "warmup_stable_decay"] = "cosine_with_min_lr"
    """Transformers' schedulers: warmup then cosine, or warmup, constant, linear decay."""
    min_lr_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Where the decay ends, as a share of the peak."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warmup."""
    stable_fraction: Fraction = 0.0
    """Share of the steps after the warmup spent at the peak, for warmup_stable_decay."""
    weight_decay: NonNegative = 0.1
    """Decoupled decay of matrices; norms have none."""
    adam_beta1: Fraction = 0.9
    """First moment."""
    adam_beta2: Fraction = 0.95
    """Second moment."""
    z_loss: NonNegative = 0.0
    """Weight of (log Z)^2 beside the cross-entropy; 1e-4 where logits drift. Logged losses hold it."""
    max_grad_norm: NonNegative = 1.0
    """Gradient clipping; 0 measures the norm without clipping."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast type over fp32 weights; `auto` decides by the device and says why."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto` takes the fastest device there is."""
    cpu_threads: Count | None = None
    """Threads of one process when training on a CPU; default: OMP_NUM_THREADS, or cores over processes."""
    torch_compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = "auto"
    """`auto` keeps it where it is faster: tried on CUDA, and on a CPU for runs of at least 3e14 FLOP."""
    attn_implementation: Literal["auto", "causal_sdpa", "causal_blocks", "sdpa", "eager"] = "auto"
    """`auto` takes causal_sdpa, with two exceptions on a CPU. In fp32, blocks of at most 256 tokens take
    eager. In bf16, blocks take causal_blocks; with AMX only those below 2,048 tokens."""
    repack_each_pass: bool = False
    """Shuffle the documents and cut new blocks in each pass over the text, instead of the same blocks in
    another order. A mix is always read so."""
    split_paragraphs: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the documents whose paragraphs are read as documents of their own, so that the model learns
    how a short text begins. With repack_each_pass, or a mix. Held-out documents stay whole."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Initialisation and data order."""
    logging_steps: Count = 10
    """Steps between two lines of metrics.jsonl."""
    eval_steps: Count = 100
    """Steps between two evaluations on the validation split."""
    eval_max_tokens: Count | None = 2_000_000
    """Score at most this many validation tokens, spread evenly, while training; the end scores all."""
    save_steps: Count = 200
    """Steps between two checkpoints."""
    save_total_limit: Count = 2
    """Checkpoints kept; the oldest goes when the new one is complete."""
    average_last: Annotated[int, Field(ge=2)] | None = None
    """Export the mean of the weights of so many last checkpoints, at any save_total_limit; null: the last."""
    load_best_model_at_end: bool = False
    """The final model is the checkpoint with the lowest held-out loss; that checkpoint is always kept."""
    early_stopping_patience: Count | None = None
    """End the run after so many evaluations in a row that are not better than the best; null for never."""
    max_hours: Annotated[float, Field(gt=0.0)] | None = None
    """Save and leave before the process is this old, with room for a save; for sessions of limited length."""
    max_skipped_steps: Count = 20
    """fp16 steps skipped in a row that end the run; each halves the loss scale."""
    spike_deviations: Annotated[float, Field(gt=0.0)] | None = 6.0
    """Report a loss this many deviations above the mean of the 128 steps before it; null for never."""
    dataloader_num_workers: Annotated[int, Field(ge=0)] = 0
    """Worker processes of the data loader; the memory map needs none."""
    report_to: ReportTo = ["tensorboard"]
    """Trainer integrations that get the metrics too; `none` or an empty list for none."""
    push_to_hub: bool = False
    """Send checkpoints to the Hub as they are saved, and continue from there on another machine."""
    hub_model_id: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """Repository for push_to_hub, as owner/name."""
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = "checkpoint"
    """What is sent, in Trainer's words: `checkpoint` adds last-checkpoint/, to continue from elsewhere."""
    hub_private_repo: bool = True
    """Whether the repository is created as private."""
    hub_always_push: bool = False
    """Send every checkpoint; otherwise one that still waits gives way to the next."""

    @property
    def decay_begins(self) -> int:
        """Last step at the peak learning rate; the end of the warmup where there is no stable phase."""
        return self.warmup_steps + round((self.max_steps - self.warmup_steps) * self.stable_fraction)

    @model_validator(mode="after")
    def _consistent(self) -> TrainingRecipe:
        muon, rate = self.optimizer == "muon", self.muon_learning_rate
        saves = -(-self.max_steps // self.save_steps)
        rules = {
            f"training.warmup_steps is {self.warmup_steps}; must be below max_steps ({self.max_steps})": (
                self.warmup_steps < self.max_steps
            ),
            "training.stable_fraction is set; only warmup_stable_decay has a stable phase": (
                not self.stable_fraction or self.lr_scheduler_type == "warmup_stable_decay"
            ),
            "training.muon_learning_rate is missing; optimizer muon needs it (0.02 is usual)": (
                not muon or rate is not None
            ),
            "training.muon_learning_rate is set; optimizer adamw does not use it": muon or rate is None,
            f"training.average_last is {self.average_last}; the run saves {saves} checkpoints, one every "
            f"{self.save_steps} steps (save_steps)": (self.average_last or 0) <= saves,
            f"training.save_steps is {self.save_steps} and eval_steps {self.eval_steps}; with "
            "load_best_model_at_end they must be equal": (
                not self.load_best_model_at_end or self.save_steps == self.eval_steps
            ),
            "training.average_last and load_best_model_at_end are both set; leave one out": (
                not (self.average_last and self.load_best_model_at_end)
            ),
            "training.early_stopping_patience is set; it needs load_best_model_at_end": (
                self.early_stopping_patience is None or self.load_best_model_at_end
            ),
            "training.hub_model_id is missing; push_to_hub needs it, as owner/name": (
                not self.push_to_hub or self.hub_model_id is not None
            ),
        }
        if problems := [problem for problem, holds in rules.items() if not holds]:
            raise ValueError("\n".join(problems))
        return self


class Recipe(Section):
    """One run from text to checkpoint."""

    name: Annotated[str, Field(pattern=NAME)]
    """Short name, used in reports and cards."""
    architecture: PathText | None = None
    """LlamaConfig JSON, a model folder for its shape alone, or the name of one of configs/: ant10m, ant5m."""
    output_dir: PathText
    """Folder of this run: checkpoints, metrics, plots, final model."""
    data_dir: PathText | None = None
    """Folder of tokenizer/ and tokens/, for runs that share them; default: output_dir."""
    sample_prompt: str = "The basic principles of small language models require"
    """Continued at the end with three seeds, so that a person sees what was trained."""
    export_dtype: Literal["float32", "float16"] = "float32"
    """Type of the weights in final/; float16 halves the download."""
    corpus: CorpusRecipe
    """The text."""
    tokenizer: TokenizerRecipe | None = None
    """How the text is cut into tokens; left out where `training.init_from` brings a tokenizer."""
    training: TrainingRecipe
    """How the model is trained."""

    @property
    def keeps_best(self) -> bool:
        """Whether the checkpoint with the lowest held-out loss becomes the final model."""
        return self.training.load_best_model_at_end and self.corpus.validation_fraction > 0

    @property
    def tokenizer_dir(self) -> Path:
        return Path(self.data_dir or self.output_dir) / "tokenizer"

    @property
    def tokens_dir(self) -> Path:
        return Path(self.data_dir or self.output_dir) / "tokens"

    @model_validator(mode="after")
    def _one_beginning(self) -> Recipe:
        given = {name: getattr(self, name) is not None for name in ("architecture", "tokenizer")}
        if not self.training.init_from:
            problems = [f"{name} is missing" for name, is_given in given.items() if not is_given]
        else:
            problems = [
                f"{name} and training.init_from are both set, and that model brings its own; leave one out"
                for name, is_given in given.items()
                if is_given
            ]
        constant = self.training.lr_scheduler_type == "warmup_stable_decay" and self.training.stable_fraction
        if self.corpus.changes_in_decay and not constant:
            problems.append(
                "corpus.mix has a decay_weight; set training.lr_scheduler_type to "
                "warmup_stable_decay and training.stable_fraction above 0, or leave it out"
            )
        if self.training.split_paragraphs and not (self.training.repack_each_pass or self.corpus.parts):
            problems.append(
                "training.split_paragraphs is set, but the blocks are fixed; set training.repack_each_pass "
                "to true, or leave it out"
            )
        if self.corpus.general and not self.training.init_from:
            problems.append("corpus.general is set; only a run with training.init_from measures it")
        if problems:
            raise ValueError("\n".join(problems))
        return self


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe, change it, and check all of it.

    What a recipe reads (architecture, local text, evaluation sets) is looked for beside its file, then in
    the working folder; what it writes (output_dir, data_dir) and what is given here counts from the latter.

    Args:
        path: a file, or the name of a recipe that comes with the package: `quickstart`.
        overrides: ``key=value`` texts as ``--set`` takes them; a value is YAML.
        changes: values by dotted key, taken as they are; they have the last word.

    Raises:
        AntError: the file is missing or not YAML, or the recipe has violations (all are listed).
    """
    path = find_config(path, "recipe", "recipes/*.yaml")
    values = read_yaml(path, "recipe")
    _find_beside(path.parent, values)
    for key, value in [*map(parsed_override, overrides), *(changes or {}).items()]:
        _set(values, key, value)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        what = f"{path} with the options of this command" if overrides or changes else str(path)
        raise violations(error, what) from None


def other_text(data: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Values of ``--set`` to begin with, and changes, for the text of ``--data`` in a recipe."""
    # What the recipe says of its own text is not true of this one; --set may say it again.
    forgotten = ["corpus.language=null", "corpus.sources=[]", "corpus.mix=null"]
    return forgotten, {"corpus.source": "files", "corpus.path": data[0] if len(data) == 1 else data}


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file of ours.

    Raises:
        AntError: the file is not readable YAML, or holds no mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), RecipeLoader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        detail = " ".join(str(error).split())
        raise AntError(f"{path} is not a readable YAML file: {detail}") from None
    if not isinstance(values, dict):
        raise AntError(f"{path} is not a {what}", seen=values, expected="a mapping of keys")
    return values


def violations(error: ValidationError, where: str, root: type[BaseModel] | None = None) -> AntError:
    """All that is wrong with a file of keys, in its own words.

    Args:
        where: the file, for the message.
        root: what the file is read as; None: a recipe.
    """
    problems = "\n".join(_explained(item, root or Recipe) for item in error.errors()).splitlines()
    listing = "\n".join(f"  - {line}" for line in problems)
    return AntError(f"{where} has {len(problems)} problem{'s'[: len(problems) > 1]}:\n{listing}")


def _find_beside(folder: Path, values: dict[str, Any]) -> None:
    """Name what lies beside a recipe's file by its place there; the values are not checked yet."""
    corpus = values.get("corpus")
    places = [(values, "architecture")]
    if isinstance(corpus, dict):
        # The path of another source is not a file's.
        places += [(corpus, "path")] if corpus.get("source") == "files" else []
        places += [(corpus, "decontaminate"), (corpus, "general")]
        mix = corpus.get("mix")
        parts = [*(mix.values() if isinstance(mix, dict) else ()), corpus.get("replay")]
        places += [
            (part, "path")
            for part in parts
            if isinstance(part, dict) and part.get("source", "files") == "files"
        ]
    if isinstance(values.get("training"), dict):
        places.append((values["training"], "init_from"))
    for section, key in places:
        if isinstance(section.get(key), list):
            section[key] = [_beside(folder, path) for path in section[key]]
        elif key in section:
            section[key] = _beside(folder, section[key])


def _beside(folder: Path, given: Any) -> Any:
    """A path or pattern with the folder before it, if something of that name is there."""
    if not isinstance(given, str) or not given or Path(expand_home(given)).is_absolute():
        return given
    # Not pathlib's, which raises for a name that is too long.
    is_there = os.path.exists(folder / given) or glob.glob(given, root_dir=folder)  # noqa: PTH110, PTH207
    return str(folder / given) if is_there else given


def parsed_override(override: str) -> tuple[str, Any]:
    """Key and value of a ``--set``.

    Raises:
        AntError: it has another form, or the value is not YAML.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise AntError(
            "--set needs key=value", seen=override, hint="For example --set training.max_steps=100"
        )
    try:
        return key, yaml.load(text, RecipeLoader)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError):
        raise AntError(
            f"--set {key}: the value is not YAML",
            seen=text,
            hint="Put a text with special characters in quotes.",
        ) from None


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise AntError(
                f"--set {key}: {section!r} is not a section of the recipe",
                hint="For example --set training.max_steps=100",
            )
    values[last] = value


def _explained(item: Any, root: type[BaseModel]) -> str:
    """One violation as pydantic gives it, in the words of a recipe."""
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = _nearest_key(item["loc"], root)
        return f"{location} is not a key of a {root.__name__.lower()}" + (
            f"; did you mean {near}?" if near else ""
        )
    if item["type"] == "missing":
        return f"{location} is missing"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        # Of keys and sections that stand in several places.
        begins = message.partition(" ")[0]
        return {"path": f"{location}.{message}", "is": f"{location} {message}"}.get(begins, message)
    if item["type"] == "string_pattern_mismatch" and not (item["input"] and item["input"].isprintable()):
        message = "must not be empty or contain control characters"
    message = re.sub("^(Input|String) should", "must", message)
    return f"{location} is {item['input']!r}; {message[0].lower()}{message[1:]}"


def _nearest_key(location: tuple[Any, ...], root: type[BaseModel]) -> str | None:
    """The key that was meant, as it is typed: this name in another section, or one like it, nearby first."""
    name, section = str(location[-1]), location[:-1]
    here = [".".join(map(str, (*section, key))) for key in _keys_at(section, root)]
    top = _keys_at((), root)
    everywhere = [f"{each}.{key}" for each in top for key in _keys_at((each,), root)] + top
    for keys, likeness in ((everywhere, 1.0), (here, 0.6), (everywhere, 0.6)):
        by_name = {key.rpartition(".")[2]: key for key in keys}
        if near := difflib.get_close_matches(name, by_name, n=1, cutoff=likeness):
            return by_name[near[0]]
    return None


def _keys_at(location: tuple[Any, ...], root: type[BaseModel]) -> list[str]:
    section = root
    for name in location:
        field = section.model_fields.get(name)
        if field is None:
            # The name of a part.
            continue
        candidates = [field.annotation]
        for candidate in candidates:
            candidates += get_args(candidate)
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not models:
            return []
        section = models[0]
    return list(section.model_fields)
