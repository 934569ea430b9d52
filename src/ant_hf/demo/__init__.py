"""A page in the browser to try a model on: here, as a Space, or on any web server without Python.

In: one or two models. Out: a Gradio page, served on this computer or written as a Space's files; or a
folder with a static page, in which the browser itself runs the models.

Gradio's: open `page.py` first; `texts.py` holds what it shows, `sampling.py` makes it, `markup.py` writes
it as HTML; `serving.py` serves the page here. The static one: `site.py` writes the folder, `vendor.py` gets
what others wrote for it, and `static/` is the page, of which `app.js` comes first. `space.py` writes either
Space.
"""
