"""A model is measured on public benchmarks, perplexities and degeneration, by lm-eval.

In: a model folder or Hub id, and documents from the Hub or from JSONL files. Out: `results.json`, the
harness's own `lm_eval_results.json`, and `samples.jsonl` with every answer. Two of these: which is better.

Read `evaluate.py` first. `benchmarks.yaml` names the sets and `benchmarks.py` finds their documents;
`tasks.py` gives them to lm-eval; `language_model.py` scores its requests in shared contexts, to the same
numbers; `results.py` writes what came out; `degeneration.py` counts loops in generated text.

`comparison.py` tells two models apart: `entries.py` reads their results, `pairing.py` lines them up by
document and gives the verdicts, `statistics.py` says how sure they are, and `comparison_report.py` draws and
writes them.
"""
