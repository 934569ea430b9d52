"""A model becomes GGUF or ONNX, kept only if the programs that load it give the same outputs.

In: a model folder or Hub id. Out: a folder of files with `verified.json`. Read `exporting.py` first.
"""
