"""A look inside a model: weights, heads, embeddings, and a text in fragments with their losses.

In: one or two model folders or Hub ids, and a text. Out: a summary on the terminal, one HTML file, and
every figure as JSON. Open `examination.py` first: it takes what `measures.py` and `fragments.py` find, and
`findings.py`, `terminal.py` and `report.py` get its result whole.
"""
