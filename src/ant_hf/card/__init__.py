"""The model card, made of records alone, and the arithmetic that checks a card's figures against each other.

In: the records of a release folder (`run.json`, `results.json`, `gate.json`, ...). Out: `README.md`.

Read `rendering.py` first. `claims.py` takes the figures of any card, ours or a published one, and `audit.py`
recomputes what can be recomputed. `eval_results.py` writes what the Hub's leaderboards take.
"""
