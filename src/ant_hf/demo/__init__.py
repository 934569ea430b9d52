"""A page in the browser to try a model on, here or as a Space.

In: one or two models. Out: a Gradio page, served on this computer or written as a Space's files. Open
`page.py` first; `texts.py` holds what it shows, `sampling.py` makes it, `markup.py` writes it as HTML;
`serving.py` serves the page here, `space.py` writes the Space.
"""
