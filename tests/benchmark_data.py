"""A few documents of every set, in its own fields, written here: for tests of the way, not of a model."""

import json
from pathlib import Path

WORDS = (
    "river", "mountain", "teacher", "horse", "bread", "winter",
    "garden", "letter", "window", "candle", "market", "soldier",
)  # fmt: skip
# benchmarks.yaml with one more set.
COPA = """
copa:
  definition: super_glue/copa/default.yaml
  label: COPA
  metric: acc
  documents: 100
  fields: [premise, choice1, choice2, question, label]
  answer: label
"""


def write_benchmarks(folder: Path, n: int = 6) -> Path:
    """One JSONL file per set, named and shaped as the real ones."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        "arc_easy": [arc(i) for i in range(n)],
        "arc_challenge": [arc(i + 3) for i in range(n)],
        "openbookqa": [{**arc(i), "question_stem": f"A {word(i)} is near a"} for i in range(n)],
        "piqa": [piqa(i) for i in range(n)],
        "winogrande": [winogrande(i) for i in range(n)],
        "mmlu": [mmlu(i) for i in range(n)],
        "mmlu_dev": [mmlu(i) for i in range(3)],
        "sciq": [sciq(i) for i in range(n)],
        "boolq": [boolq(i) for i in range(n)],
        "hellaswag": [hellaswag(i) for i in range(n)],
        "wikitext2": [{"page": page(i)} for i in range(3)],
        "blimp": [blimp(i) for i in range(n)],
        "lambada_openai": [
            {"text": f"The {word(i)} stood by the {word(i + 1)} and the {word(i)}"} for i in range(n)
        ],
    }
    for name, documents in rows.items():
        write_jsonl(folder / f"{name}.jsonl", documents)
    return folder


def write_jsonl(path: Path, documents: list) -> Path:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    return path


def word(i: int) -> str:
    return WORDS[i % len(WORDS)]


def arc(i: int) -> dict:
    texts = [word(i + k) + " stone" * k for k in range(3 + i % 3)]
    labels = ["A", "B", "C", "D", "E"][: len(texts)]
    return {
        "id": f"q{i}",
        "question": f"Which of these is a {word(i)}?",
        "choices": {"text": texts, "label": labels},
        "answerKey": labels[i % len(texts)],
    }


def piqa(i: int) -> dict:
    return {
        "goal": f"warm the {word(i)}",
        "sol1": "use a fire",
        "sol2": f"use the {word(i)} twice",
        "label": i % 2,
    }


def winogrande(i: int) -> dict:
    sentence = f"The {word(i)} met the {word(i + 1)} because _ was late."
    return {"sentence": sentence, "option1": word(i), "option2": word(i + 1), "answer": str(1 + i % 2)}


def mmlu(i: int) -> dict:
    subject = ("anatomy", "astronomy", "virology")[i % 3]
    choices = [word(i + k) for k in range(4)]
    return {
        "question": f"What is a {word(i)}?",
        "subject": subject,
        "choices": choices,
        "answer": (i * 3) % 4,
    }


def sciq(i: int) -> dict:
    return {
        "question": f"What grows in a {word(i)}?",
        **{f"distractor{k}": word(i + k) for k in (1, 2, 3)},
        "correct_answer": word(i),
        "support": f"In every {word(i)} there is a {word(i + 5)}." if i % 2 else "",
    }


def boolq(i: int) -> dict:
    passage = f"{word(i)} -- " + f"The {word(i)} is not a {word(i + 1)}. " * (1 + i)
    return {
        "idx": i,
        "question": f"is the {word(i)} a {word(i + 1)}",
        "passage": passage,
        "label": int(i % 3 == 0),
    }


def hellaswag(i: int) -> dict:
    context = f"A man holds a {word(i)}."
    endings = [f"throws the {word(i + k)} away{' slowly' * k}." for k in range(4)]
    return {
        "ind": i, "activity_label": "Gardening", "ctx_a": context, "ctx_b": "he", "ctx": f"{context} he",
        "endings": endings, "source_id": f"s{i}", "split": "val", "split_type": "indomain",
        "label": str(i % 4),
    }  # fmt: skip


def page(i: int) -> str:
    line = f" The {word(i)} , called the {word(i + 1)} @-@ {word(i + 2)} , was long . \n"
    return f" = The {word(i)} = \n \n" + line * (4 + 3 * i)


def blimp(i: int) -> dict:
    return {
        "sentence_good": f"Those {word(i)}s are here.",
        "sentence_bad": f"Those {word(i)} are here.",
        "UID": ("adjunct_island", "causative")[i % 2],
    }
