"""Configs, weights, and what is done with a model alone: load, save, generate, score.

In: a LlamaConfig JSON, or a model folder or Hub id. Out: a stock Transformers model and its tokenizer.

Read `architecture.py` first (a checked config, a count of parameters, fresh weights), then `saving.py` and
`loading.py`, which check that what is published can be loaded. `shapes.py` finds sizes for a number of
parameters, `scoring.py` gives the loss of a text in every unit, `generation.py` continues a prompt,
`attention.py` is our causal attention for CPUs.
"""
