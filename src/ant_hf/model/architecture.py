"""Config JSON to model, only through `AutoConfig` and `AutoModelForCausalLM`, and what it weighs.

`LlamaConfig` silently accepts unknown keys and negative layer counts, and the run that
follows trains something other than its author meant. So the file is checked here before
Transformers sees it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.published import PublishedModel
from ant_hf.utils.console import say_once
from ant_hf.utils.files import read_json
from ant_hf.utils.names import CONFIG, config_file

_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_REQUIRED = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
# Written by transformers 4 or by save_pretrained, but no field of today's LlamaConfig.
_ALSO_KNOWN = {"rope_theta", "rope_scaling", "torch_dtype", "dtype", "transformers_version", "architectures"}
# Written by save_pretrained and by tools around it; none of them shapes the model.
_WRITTEN_BY_TOOLS = re.compile(r"_(?!name_or_path$)|unsloth_|(quantization_config|tokenizer_class)$")
# uint16 shards cannot hold larger ids.
MAX_VOCAB_SIZE = 65536
# Far above what this package is for; a config from elsewhere must not ask for the machine's whole memory.
MAX_PARAMETERS = 2_000_000_000
_MAX_LAYERS = 1024


def load_config(path: str | Path) -> PreTrainedConfig:
    """Read a Llama config JSON (or a folder with a config.json), refusing what Transformers would swallow.

    Raises:
        AntError: as `load_architecture`.
    """
    return load_architecture(path)[0]


def load_architecture(path: str | Path, is_foreign: bool = False) -> tuple[PreTrainedConfig, Ledger]:
    """A checked config, and its count of parameters.

    Args:
        is_foreign: of a model that others made: unknown keys are left out, as Transformers ignores them.

    Raises:
        AntError: missing or broken file, unknown keys (with the nearest valid name), values
            that no model can have. All violations are listed at once.
    """
    file = config_file(path)
    values = read_json(file, "model config", "Pass a LlamaConfig JSON.")
    for key in sorted(filter(_WRITTEN_BY_TOOLS.match, values)):
        # It would travel on into the config of what is trained.
        values.pop(key)
        say_once("config", f"{key} in {file} describes how another model was made, and is ignored")
    if is_foreign:
        known = set(AutoConfig.for_model("llama").to_dict()) | _ALSO_KNOWN
        values = {key: value for key, value in values.items() if key in known and value is not None}
    return checked_architecture(values, file)


def checked_architecture(values: dict[str, Any], name: str | Path) -> tuple[PreTrainedConfig, Ledger]:
    """The config that values of a JSON give, and its count of parameters.

    Args:
        name: where the values are from, for messages.

    Raises:
        AntError: as `load_architecture`.
    """
    problems = _problems(values)
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise AntError(f"{name} has {len(problems)} problem{'s'[: len(problems) > 1]}:\n{listing}")
    # The file may have any name, so AutoConfig gets the values and not the path.
    return _counted(name, lambda: AutoConfig.for_model(**values))


def model_architecture(folder: Path) -> tuple[PreTrainedConfig, Ledger]:
    """The config of anyone's model, of any architecture, and its count of parameters.

    Raises:
        AntError: the file is missing or broken, has sizes that no model can have, or is refused.
    """
    file = folder / CONFIG
    values = read_json(file, "model config", "Pass a model folder.")
    problems = size_problems(values)
    if not problems and (layers := values.get("num_hidden_layers") or 0) > _MAX_LAYERS:
        problems = [f"num_hidden_layers is {layers:,}; must be at most {_MAX_LAYERS:,}"]
    if problems:
        raise AntError(f"{file}: {'; '.join(problems)}")
    return _counted(
        file, lambda: AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    )


def _counted(file: str | Path, config: Callable[[], PreTrainedConfig]) -> tuple[PreTrainedConfig, Ledger]:
    try:
        made = config()
        return made, parameter_ledger(made)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        raise AntError(f"transformers does not accept {file}: {reason}") from None


def _problems(values: dict[str, Any]) -> list[str]:
    model_type = values.get("model_type")
    if model_type != "llama":
        return [f"model_type is {model_type!r}; must be 'llama', the only architecture this package trains"]
    known = set(AutoConfig.for_model("llama").to_dict()) | _ALSO_KNOWN
    problems = []
    for key in values.keys() - known:
        near = difflib.get_close_matches(key, known, n=1)
        problems.append(f"{key} is not a key of LlamaConfig" + (f"; did you mean {near[0]}?" if near else ""))
    problems += [f"{key} is missing" for key in _REQUIRED if key not in values]
    # Transformers fills a null in some of these; here it is written out.
    problems += size_problems(values, null=False)
    return sorted(problems) or _shape_problems(values)


def size_problems(values: dict[str, Any], null: bool = True) -> list[str]:
    """Sizes in a config that no model can have, whoever made it; `null`: whether some may be left open."""
    found = {key: values.get(key, 1) for key in _POSITIVE}
    return [
        f"{key} is {value!r}; must be a whole number above 0"
        for key, value in found.items()
        if not (null and value is None) and (type(value) is not int or value < 1)
    ]


def _shape_problems(values: dict[str, Any]) -> list[str]:
    """Relations between values, each known to be a positive whole number."""
    vocabulary, hidden, heads = (values[key] for key in ("vocab_size", "hidden_size", "num_attention_heads"))
    groups, head_dim = values.get("num_key_value_heads", heads), values.get("head_dim", hidden // heads)
    layers, width = values["num_hidden_layers"], values.get("intermediate_size", 11008)
    total = vocabulary * hidden + layers * hidden * (2 * (heads + groups) * head_dim + 3 * width)
    size = f"{total:,} parameters in {layers:,} layers; must be at most {MAX_PARAMETERS:,} in {_MAX_LAYERS:,}"
    rules = {
        f"vocab_size is {vocabulary}; must be at most {MAX_VOCAB_SIZE} (uint16 tokens)": (
            vocabulary <= MAX_VOCAB_SIZE
        ),
        f"num_attention_heads is {heads}; must divide hidden_size ({hidden})": hidden % heads == 0,
        f"num_key_value_heads is {groups}; must divide num_attention_heads ({heads})": heads % groups == 0,
        f"head_dim is {head_dim}; must be even (rotary embeddings pair its dimensions)": head_dim % 2 == 0,
        f"the model would have about {size}": total <= MAX_PARAMETERS and layers <= _MAX_LAYERS,
    }
    return [problem for problem, holds in rules.items() if not holds]


def build_model(config: PreTrainedConfig, seed: int, attn_implementation: str = "sdpa") -> PreTrainedModel:
    """A randomly initialised model in fp32; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attn_implementation
    )


@dataclass(frozen=True)
class Ledger:
    """Parameters by component, counted on the model itself; tied tensors count once."""

    rows: tuple[tuple[str, int], ...]
    """(component, parameters) in the order of the forward pass."""
    layers: tuple[int, ...]
    """Parameters of each layer."""
    outside: tuple[str, ...]
    """Components that are in no layer."""
    tied: bool

    @property
    def total(self) -> int:
        return sum(count for _, count in self.rows)

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)

    @property
    def per_layer(self) -> int:
        return self.layers[0]

    @property
    def embeddings(self) -> int:
        return dict(self.rows)["embeddings"]

    @property
    def norms(self) -> int:
        return sum(count for name, count in self.rows if "norm" in name)

    @property
    def embedding_share(self) -> float:
        return self.embeddings / self.total

    def equation(self) -> str:
        """The sum as a person checks it: embeddings + layers x per layer + final norm."""
        equal = len(set(self.layers)) == 1
        layers = (
            f"{len(self.layers)} x {self.per_layer:,}"
            if equal
            else " + ".join(map("{:,}".format, self.layers))
        )
        first, *rest = (f"{dict(self.rows)[name]:,} {name}" for name in self.outside)
        return f"{' + '.join([first, layers, *rest])} = {self.total:,}"


def parameter_ledger(config: PreTrainedConfig) -> Ledger:
    """Count parameters by component on the meta device: no memory is allocated."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counts: dict[str, int] = {}
    layers: dict[str, int] = {}
    outside: dict[str, None] = {}
    embeddings = model.get_input_embeddings().weight
    for name, parameter in model.named_parameters():
        layer = re.search(r"\.\d+\.", name)
        component = "embeddings" if parameter is embeddings else _component(name, model.base_model_prefix)
        counts[component] = counts.get(component, 0) + parameter.numel()
        if layer:
            layers[layer[0]] = layers.get(layer[0], 0) + parameter.numel()
        else:
            outside[component] = None
    return Ledger(
        tuple(counts.items()), tuple(layers.values()), tuple(outside), bool(config.tie_word_embeddings)
    )


def _component(name: str, prefix: str) -> str:
    """What a parameter belongs to, in all layers: in the words for a Llama, else the name of its module."""
    module = name.removeprefix(f"{prefix}.").rpartition(".")[0]
    match re.sub(r"\.\d+\b", "", module).split("."):
        case ["layers", "self_attn", part]:
            return f"attention {part}"
        case ["layers", "mlp", part]:
            return f"mlp {part}"
        case ["layers", "input_layernorm" | "post_attention_layernorm"]:
            return "layer norms"
        case ["norm"]:
            return "final norm"
        case parts:
            return " ".join(parts)


def ledger_table(ledger: Ledger, published: PublishedModel | None = None) -> Table:
    """Parameters by component, with the published figure for the architecture, if one is given, below."""
    table = Table(title="Parameters", title_justify="left", caption=ledger.equation(), caption_justify="left")
    table.add_column("component")
    table.add_column("parameters", justify="right")
    table.add_column("share", justify="right")
    for name, count in ledger.rows:
        table.add_row(name, f"{count:,}", f"{count / ledger.total:.1%}")
    table.add_section()
    table.add_row("total (computed from the model)", f"{ledger.total:,}", "100.0%", style="bold")
    if published:
        rounded = ", rounded there" if published.parameters_rounded else ""
        table.add_row(f"published for {published.name}{rounded}", f"{published.parameters:,}", "")
        table.add_row("published - computed", f"{published.parameters - ledger.total:+,}", "")
    return table
