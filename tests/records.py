"""A results.json for a tiny model, consistent in itself, in place of an hour of benchmarks."""

import json
import math
from pathlib import Path

from ant_hf.data.corpus import Corpus
from ant_hf.data.packing import encoded, packing_inputs, write_tokens
from ant_hf.utils.files import file_sha256, write_sealed
from ant_hf.utils.metrics import read_metrics

TASKS = {
    # label, metric, items, right answers, floor
    "arc_challenge": ("ARC-Challenge", "acc_norm", 1172, 281, 0.25),
    "piqa": ("PIQA", "acc_norm", 1838, 990, 0.5),
    "boolq": ("BoolQ", "acc", 3270, 1237, 0.6217),
    "lambada_openai": ("LAMBADA", "acc", 5153, 310, 0.0),
    "arithmark_2.0": ("Arithmark-2.0", "acc", 2500, 640, 0.25),
}
SLICES = {"1 operator": (1250, 330), "2 operators": (750, 205), "3 operators": (500, 105)}


def accuracy(right: int, items: int) -> dict:
    value = right / items
    return {"value": value, "stderr": math.sqrt(value * (1 - value) / (items - 1)), "n": items}


def task(label: str, metric: str, items: int, right: int, floor: float) -> dict:
    values = accuracy(right, items)
    distance = values["value"] - floor
    verdict = "above" if distance > 0 else "below"
    if abs(distance) <= 2 * values["stderr"]:
        verdict = "indistinguishable"
    return {
        "label": label, "version": 1.0, "metric": metric, **values, "floor": floor,
        "floor_kind": "uniform guess", "verdict": verdict,
        "expected_n": items, "complete": True, "data_sha256": "0" * 64, "wall_time_seconds": 1.0,
        "metrics": {metric: values},
    }  # fmt: skip


def wikitext(vocab_size: int) -> dict:
    words, size, tokens = 241_335, 1_290_527, 700_000
    nats = 1.4 * size
    return {
        "label": "WikiText-2", "version": 2.0, "nats": nats, "tokens": tokens, "bytes": size, "words": words,
        "nats_per_token": nats / tokens, "token_perplexity": math.exp(nats / tokens), "tokenizer": "x",
        "bits_per_byte": nats / size / math.log(2), "byte_perplexity": math.exp(nats / size),
        "word_perplexity": math.exp(nats / words), "bytes_per_token": size / tokens,
        "uniform_guess_byte_perplexity": vocab_size ** (tokens / size), "broken": False, "n": 62,
        "expected_n": 62, "complete": True, "data_sha256": "0" * 64,
    }  # fmt: skip


def results_for(final: Path) -> dict:
    config = json.loads((final / "config.json").read_text())
    tasks = {name: task(*values) for name, values in TASKS.items()}
    # An exact continuation has no floor.
    tasks["lambada_openai"] |= {"floor": None, "floor_kind": None, "verdict": None}
    tasks["arithmark_2.0"]["slice_title"] = "number of operators"
    tasks["arithmark_2.0"]["slices"] = {
        key: accuracy(right, n) | {"floor": 0.25, "verdict": "indistinguishable"}
        for key, (n, right) in SLICES.items()
    }
    loops = {
        "loop_rate": 0.9, "stderr": 0.02, "distinct_1": 0.1, "distinct_2": 0.3, "distinct_3": 0.5,
        "longest_repeated_span": 64, "looped_words": [["the", 12]], "invalid_utf8_share": 0.0,
    }  # fmt: skip
    return {
        "schema": 2,
        "model": {
            "name": "final",
            "weights_sha256": file_sha256(final / "model.safetensors"),
            "tokenizer_sha256": file_sha256(final / "tokenizer.json"),
            "config_sha256": file_sha256(final / "config.json"),
            "parameters": 1,
            "vocab_size": config["vocab_size"],
        },
        "conditions": {
            "dtype": "float32", "device": "CPU", "context_length": config["max_position_embeddings"],
            "bos_policy": "<|endoftext|> before the first token of a text", "batch_tokens": 8192,
            "limit": None, "data": "local files", "wall_time_seconds": 1.0,
            "versions": {"lm-eval": "0.4.13", "transformers": "5", "torch": "2", "ant-hf": "0"},
            "finished": "2026-01-01T00:00:00Z",
        },
        "tasks": tasks,
        "perplexity": {"wikitext": wikitext(config["vocab_size"])},
        "degeneration": {
            "prompts": 200, "max_new_tokens": 128, "greedy": loops, "sampled": {**loops, "settings": {}},
        },
    }  # fmt: skip


def write_results(final: Path) -> None:
    (final / "results.json").write_text(json.dumps(results_for(final)))


def losses(folder: Path) -> list[float]:
    """The training losses that a run has logged."""
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


def pack(recipe) -> dict:
    """Write a recipe's tokens, whatever lies there; the manifest."""
    corpus = Corpus.from_recipe(recipe.corpus)
    stream = encoded(corpus, recipe.tokenizer_dir / "tokenizer.json")
    return write_tokens(recipe, packing_inputs(recipe, corpus), stream, corpus.source.text_bytes())


def table_rows(text: str) -> list[list[str]]:
    """The cells of all rows of all tables in a Markdown text."""
    lines = (line.strip() for line in text.splitlines())
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("|")]


def measured(folder: Path, sets: dict, *, text=(), loops=(), samples: bool = True, **conditions) -> Path:
    """A folder of results as `ant-hf evaluate` writes it, of answers that are given.

    Args:
        sets: 0 and 1 for each document, by set; or a dictionary of them by task.
        text: nats of each document of WikiText-2, all of 1,000 bytes.
        loops: whether each greedy output loops; none of the sampled ones does.
    """
    lines, tasks, perplexity = [], {}, {}
    for name, answers in sets.items():
        groups = answers if isinstance(answers, dict) else {name: answers}
        right = [answer for group in groups.values() for answer in group]
        tasks[name] = task(name.upper(), "acc", len(right), sum(right), 0.25) | {"metric": "acc"}
        for group, of_group in groups.items():
            lines += [
                {
                    "set": name, "task": group, "doc_id": index, "doc_hash": f"{group} {index}",
                    "prompt": f"question {index}", "choices": ["yes", "no"], "target": "0",
                    "acc": float(answer),
                }
                for index, answer in enumerate(of_group)
            ]  # fmt: skip
    if len(text):
        size = 1000 * len(text)
        bits = float(sum(text)) / size / math.log(2)
        perplexity["wikitext"] = wikitext(384) | {
            "n": len(text), "bits_per_byte": bits, "bits_per_byte_stderr": 0.1 * (len(text) > 1),
            "wall_time_seconds": 1.0,
        }  # fmt: skip
        lines += [
            {
                "set": "wikitext", "task": "wikitext", "doc_id": index, "doc_hash": f"page {index}",
                "target": None, "byte_perplexity": [-float(nats), 1000],
            }
            for index, nats in enumerate(text)
        ]  # fmt: skip
    degeneration = {}
    if len(loops):
        rates = {"greedy": loops, "sampled": [False] * len(loops)}
        degeneration = {"prompts": len(loops), "max_new_tokens": 128, "loop": "a rule"} | {
            way: {
                "outputs": len(of_way), "loop_rate": sum(of_way) / len(of_way),
                "stderr": accuracy(sum(of_way), len(of_way))["stderr"],
            }
            for way, of_way in rates.items()
        }  # fmt: skip
        lines += [
            {
                "set": "degeneration", "task": "degeneration", "generation": way, "prompt": f"prompt {index}",
                "output": "", "loops": bool(each),
            }
            for way, of_way in rates.items()
            for index, each in enumerate(of_way)
        ]  # fmt: skip
    folder.mkdir(parents=True)
    if samples:
        text_of = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "samples.jsonl").write_text(text_of)
    values = {
        "schema": 1,
        "model": {"name": "m", "weights_sha256": str(folder), "parameters": 1000, "vocab_size": 384},
        "conditions": {
            "dtype": "float32", "device": "CPU", "context_length": 64, "bos_policy": "none", "limit": None,
            "versions": {"lm-eval": "0.4.13"}, **conditions,
        },
        "tasks": tasks,
        "perplexity": perplexity,
        "degeneration": degeneration,
        "files": {"samples.jsonl": file_sha256(folder / "samples.jsonl")} if samples else {},
    }  # fmt: skip
    write_sealed(folder / "results.json", values)
    return folder
