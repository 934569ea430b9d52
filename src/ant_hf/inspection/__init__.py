"""A look inside a model: weights, heads, embeddings, and a text in fragments with their losses.

In: one or two model folders or Hub ids, and a text. Out: a summary on the terminal and one HTML file.
"""
