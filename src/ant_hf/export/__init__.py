"""A model becomes GGUF or ONNX, kept only if the programs that load it give the same outputs.

In: a model folder or Hub id. Out: a folder of files with `verified.json`. Read `exporting.py` first;
`gguf.py` and `onnx.py` write and check a format, `questions.py` has what is asked of the files, and
`llama_cpp.py` asks it of llama.cpp.
"""
