"""A page in the browser to try a model on, here or as a Space.

In: one or two models. Out: a Gradio page, served on this computer or written as a Space's files. Open
`page.py` first; `sampling.py` makes its texts, `serving.py` serves it here, `space.py` writes the Space.
"""
