"""A question is answered by a set of runs that anyone can repeat.

In: a study file (`configs/studies/NAME.yaml`): a base recipe, changes, seeds, what is scored and fitted. Out:
ordinary run folders, `study.json`, a plot, and a page in Markdown made of `study.json` alone.

Read `study.py` first: it tells the whole story. `study_file.py` turns the file into planned runs,
`planning.py` says what they take, `running.py` trains and scores one in a process of its own, `scores.py`
says what can be scored, `scaling_law.py` fits L(N, D) for `fitting.py`, `record.py` is `study.json`, and
`report.py` draws and writes it. `datatrove_steps.py` is for several GPUs and clusters.
"""
