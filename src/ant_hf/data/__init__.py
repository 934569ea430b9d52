"""Text becomes packed tokens.

In: the recipe's `corpus` and `tokenizer` sections. Out: `tokenizer/` and `tokens/` in the data folder, each
with a record of what it was made from, so that the same inputs reuse it and other inputs are refused.

Read `make_data` in `packing.py` first. `sources.py` gives texts (`finding.py` says from which files,
`readers.py` reads one), `corpus.py` decides what becomes of each (no duplicates, a fixed side of the split; a
text alone is cut by `cutting.py`), `tokenizer.py` is trained on them, `packing.py` encodes and writes shards,
`tokens.py` and `dataset.py` read them back, `repacking.py` in new blocks each pass and the shares of a mix.
`packing_tasks.py` packs many files in parallel: the same bytes.
"""
