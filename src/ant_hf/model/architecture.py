"""Config JSON to model, only through `AutoConfig` and `AutoModelForCausalLM`, and what it weighs.

`LlamaConfig` swallows unknown keys and negative layer counts without a word, and the run that
follows trains something else than its author meant. So the file is checked here before
Transformers sees it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.published import PublishedModel
from ant_hf.utils.files import read_json
from ant_hf.utils.names import config_file

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


def load_architecture(path: str | Path) -> tuple[PreTrainedConfig, Ledger]:
    """A checked config, and its count of parameters.

    Raises:
        AntError: missing or broken file, unknown keys (with the nearest valid name), values
            that no model can have. All violations are listed at once.
    """
    file = config_file(path)
    values = read_json(file, "model config", "Pass a LlamaConfig JSON.")
    problems = _problems(values)
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise AntError(f"{file} has {len(problems)} problem{'s'[: len(problems) > 1]}:\n{listing}")
    try:
        # The file may have any name, so AutoConfig gets the values and not the path.
        config = AutoConfig.for_model(**values)
        return config, parameter_ledger(config)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        raise AntError(f"{file} is refused by transformers: {reason}") from None


def _problems(values: dict[str, Any]) -> list[str]:
    model_type = values.get("model_type")
    if model_type != "llama":
        return [f"model_type is {model_type!r}; must be 'llama', the only architecture this package trains"]
    known = set(AutoConfig.for_model("llama").to_dict()) | _ALSO_KNOWN
    problems = []
    for key in values.keys() - known:
        near = difflib.get_close_matches(key, known, n=1)
        problems.append(f"{key} is no key of LlamaConfig" + (f"; did you mean {near[0]}?" if near else ""))
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
    per_layer: int
    num_hidden_layers: int
    tied: bool

    @property
    def total(self) -> int:
        return sum(count for _, count in self.rows)

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
        parts = [f"{self.embeddings:,} embeddings", f"{self.num_hidden_layers} x {self.per_layer:,}"]
        parts += [f"{count:,} {name}" for name, count in self.rows if name in ("final norm", "lm_head")]
        return f"{' + '.join(parts)} = {self.total:,}"


def parameter_ledger(config: PreTrainedConfig) -> Ledger:
    """Count parameters by component on the meta device: no memory is allocated."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counts: dict[str, int] = {}
    per_layer = 0
    for name, parameter in model.named_parameters():
        component = _component(name)
        counts[component] = counts.get(component, 0) + parameter.numel()
        if ".layers.0." in name:
            per_layer += parameter.numel()
    return Ledger(
        rows=tuple(counts.items()),
        per_layer=per_layer,
        num_hidden_layers=config.num_hidden_layers,
        tied=bool(config.tie_word_embeddings),
    )


def _component(name: str) -> str:
    if "embed_tokens" in name:
        return "embeddings"
    if "lm_head" in name:
        return "lm_head"
    if "norm" in name:
        return "layer norms" if ".layers." in name else "final norm"
    if "self_attn" in name:
        return f"attention {name.split('.')[-2]}"
    return f"mlp {name.split('.')[-2]}"


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
