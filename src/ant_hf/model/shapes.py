"""Sizes of a Llama: how wide, how deep, and which of them give a number of parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ant_hf.errors import AntError
from ant_hf.model.architecture import MAX_PARAMETERS
from ant_hf.recipe import SMALLEST_VOCABULARY
from ant_hf.utils.files import read_json
from ant_hf.utils.names import shipped_file

# How far a shape may be from the parameters that were asked for.
TOLERANCE = 0.03
# Multiples of 64 and 128 fill a matrix unit's tiles; the narrow ones are for small budgets.
_WIDTHS = (32, 48, 64, 96, 128, 192, *range(256, 4097, 128))
_MOST_LAYERS = 64
# Ant-10M has 12 layers at 256 wide. Deep and thin is better below a billion parameters (Liu et al. 2024,
# MobileLLM, arXiv 2402.14905). SmolLM2 has 30 layers at 135M, 576 wide, and only 32 at 360M, 960 wide.
_WIDTH_PER_LAYER, _USUAL_MOST_LAYERS = 256 / 12, 32
# The MLP's width in widths of the model: Ant-10M's, and how far it is bent to meet a number of parameters.
_USUAL_MLP, _LEAST_MLP, _MOST_MLP = 11 / 4, 2, 4


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes but for the vocabulary; embeddings are tied, two heads share keys and values."""

    width: int
    layers: int
    mlp: int
    """The MLP's width."""

    @property
    def head_dim(self) -> int:
        """64 where that leaves four heads."""
        return 64 if self.width >= 256 else 32 if self.width >= 128 else 16

    @property
    def heads(self) -> int:
        return self.width // self.head_dim

    @property
    def key_value_heads(self) -> int:
        return max(1, self.heads // 2)

    @property
    def matrices(self) -> int:
        """Weights of the layers without their norms."""
        attention = 2 * self.width + 2 * self.key_value_heads * self.head_dim
        return self.layers * self.width * (attention + 3 * self.mlp)

    def parameters(self, vocabulary: int) -> int:
        """As `parameter_ledger` counts them on the model."""
        return vocabulary * self.width + self.matrices + (2 * self.layers + 1) * self.width

    def architecture(self, vocabulary: int, context: int) -> dict[str, Any]:
        """As a LlamaConfig JSON holds it: Ant-10M's but for the sizes."""
        return read_json(shipped_file("configs/llama_ant10m.json"), "model config", "") | {
            "vocab_size": vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": context,
        }

    @property
    def disproportion(self) -> float:
        """How far depth and MLP are from what is usual for the width, as a sum of logarithms; 0 is best."""
        usual = min(self.width / _WIDTH_PER_LAYER, _USUAL_MOST_LAYERS)
        return abs(math.log(self.layers / usual)) + abs(math.log(self.mlp / (_USUAL_MLP * self.width)))


def usual_shape(width: int, layers: int) -> Shape:
    """With an MLP as Ant-10M's, 2.75 times as wide."""
    return Shape(width, layers, int(_USUAL_MLP * width))


def shape_of_width(width: int, parameters: int, vocabulary: int) -> Shape:
    """The shape of a width with so many parameters, and its MLP in proportion as far as possible.

    Raises:
        AntError: the embeddings alone have as many, or no number of layers fits.
    """
    shapes = []
    for layers in range(1, _MOST_LAYERS + 1):
        left = parameters - Shape(width, layers, 0).parameters(vocabulary)
        mlp = 8 * round(left / (3 * width * layers * 8))
        if _LEAST_MLP * width <= mlp <= _MOST_MLP * width:
            shapes.append(Shape(width, layers, mlp))
    if not shapes:
        raise AntError(
            f"a model with hidden_size {width} and a vocabulary of {vocabulary:,} cannot have {parameters:,} "
            "parameters",
            seen=f"{vocabulary * width:,} in its embeddings alone",
        )
    return min(shapes, key=lambda shape: abs(math.log(shape.mlp / (_USUAL_MLP * width))))


def shapes_for(parameters: int, vocabulary: int) -> list[Shape]:
    """The best shape of each width within 3 % of a number of parameters; best in proportion first.

    Raises:
        AntError: there is none; names the nearest, and the vocabulary that would fit.
    """
    if parameters > MAX_PARAMETERS:
        raise AntError(
            f"{parameters:,} parameters are too many",
            expected=f"at most {MAX_PARAMETERS:,}",
            hint="--parameters 2B",
        )

    def distance(shape: Shape) -> float:
        return abs(shape.parameters(vocabulary) / parameters - 1)

    shapes = [
        _nearest(width, layers, parameters, vocabulary)
        for width in _WIDTHS
        for layers in range(1, _MOST_LAYERS + 1)
    ]
    fitting = [shape for shape in shapes if distance(shape) <= TOLERANCE]
    if not fitting:
        raise _impossible(parameters, vocabulary, min(shapes, key=distance))

    def fault(shape: Shape) -> float:
        # A percent of the parameters weighs as much as ten of the proportions.
        return shape.disproportion + 10 * distance(shape)

    best: dict[int, Shape] = {}
    for shape in sorted(fitting, key=fault):
        best.setdefault(shape.width, shape)
    return list(best.values())


def _nearest(width: int, layers: int, parameters: int, vocabulary: int) -> Shape:
    """The shape whose MLP brings it nearest to the parameters."""
    grain = 64 if width >= 256 else 16
    left = parameters - Shape(width, layers, 0).parameters(vocabulary)
    mlp = grain * round(left / (3 * width * layers * grain))
    return Shape(width, layers, min(_MOST_MLP * width, max(_LEAST_MLP * width, mlp)))


def _impossible(parameters: int, vocabulary: int, nearest: Shape) -> AntError:
    count, narrowest = nearest.parameters(vocabulary), _WIDTHS[0]
    hint = f"Possible: --parameters {count}"
    fitting = vocabulary - (count - parameters) // narrowest
    if SMALLEST_VOCABULARY <= fitting < vocabulary:
        hint += f", or --vocab {fitting}"
    return AntError(
        f"a model with a vocabulary of {vocabulary:,} cannot have about {parameters:,} parameters",
        seen=f"{vocabulary * narrowest:,} in its embeddings alone, at hidden_size {narrowest}",
        hint=hint,
    )
