"""Train, check and publish tiny Llama models with stock Transformers."""

from importlib.metadata import version

__version__ = version("ant-hf")
