"""A recipe becomes a trained model: plan, data, training, checkpoints, export, check.

In: a `Recipe`. Out: a run folder with `run.json`, `metrics.jsonl`, `plots/`, checkpoints and `final/`.

Read `pretrain.py` first: it tells the whole story. `setup.py` decides everything before data is touched,
`trainer.py` is Transformers' Trainer with our counters and guards, `checkpoints.py` keeps what a run needs to
continue, `run_folder.py` says whose a folder is, `uploads.py` sends checkpoints to the Hub.
`own_text.py` makes a recipe for a text, `new.py` one for a size; `sizing.py` has what both need.
"""
