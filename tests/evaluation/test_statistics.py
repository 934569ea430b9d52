"""Floors, verdicts and perplexities, against figures worked out by hand."""

import collections
import math

import pytest
from benchmark_data import arc, blimp, boolq, hellaswag, mmlu, piqa, winogrande, write_jsonl
from lm_eval.api.model import LM

from ant_hf.errors import AntError
from ant_hf.evaluation.benchmarks import choose_benchmarks, known_benchmarks
from ant_hf.evaluation.results import (
    Choices,
    accuracy_floor,
    accuracy_record,
    against_floor,
    check_identity,
    interval,
    perplexities,
    perplexity_record,
)
from ant_hf.evaluation.tasks import load_tasks, run_benchmark, write_definitions
from ant_hf.utils.metrics import TextScore


class Oracle(LM):
    """A model whose log-likelihoods are known: so many nats a continuation, two nats a character."""

    def __init__(self, nats):
        super().__init__()
        self.nats = nats

    def loglikelihood(self, requests):
        return [(self.nats[request.args[1].strip()], False) for request in requests]

    def loglikelihood_rolling(self, requests):
        return [-2.0 * len(request.args[0]) for request in requests]

    def generate_until(self, requests):
        raise AssertionError


def measure(name, documents, nats, tmp_path):
    table = known_benchmarks()
    tmp_path.mkdir(exist_ok=True)
    write_jsonl(tmp_path / table[name].file, documents)
    (benchmark,), _ = choose_benchmarks([name], table, tmp_path)
    write_definitions([benchmark], tmp_path / "definitions")
    loaded = load_tasks([benchmark], tmp_path / "definitions")
    return run_benchmark(benchmark, loaded[name], Oracle(nats), None)


def test_accuracies_of_known_likelihoods(tmp_path):
    """acc takes the likeliest choice, acc_norm the likeliest a character."""
    choices = {"text": ["yes", "perhaps", "no way", "never"], "label": ["A", "B", "C", "D"]}
    documents = [{"id": k, "question": f"{k}?", "choices": choices, "answerKey": k} for k in "ABBD"]
    # Likeliest: yes. A character: yes -1.0, perhaps -0.5, no way -1.0, never -1.0: perhaps.
    nats = {"yes": -3.0, "perhaps": -3.5, "no way": -6.0, "never": -5.0}
    values = accuracy_record(measure("arc_easy", documents, nats, tmp_path))
    assert values["metrics"]["acc"]["value"] == 0.25
    assert (values["metric"], values["value"]) == ("acc_norm", 0.5)
    # Sample standard deviation of (0, 1, 1, 0) over the root of 4.
    assert values["stderr"] == pytest.approx(math.sqrt(1 / 3) / 2)
    assert (values["floor"], values["floor_kind"]) == (0.5, "majority class")
    # Of documents with texts of their own the position of the answer is no help.
    documents[0]["choices"] = {**choices, "text": ["never", "no way", "yes", "perhaps"]}
    values = accuracy_record(measure("arc_easy", documents, nats, tmp_path / "other"))
    assert (values["floor"], values["floor_kind"]) == (0.25, "uniform guess")
    assert (values["verdict"], values["n"], values["expected_n"]) == ("indistinguishable", 4, 2376)
    assert values["complete"] is False


def test_perplexities_of_known_likelihoods(tmp_path):
    """Words split at spaces of the original page, its bytes, and the tokens of the text that was scored."""
    documents = [{"page": "a bird sang"}, {"page": "b\u00e4ren am Fluss lebten"}]
    measured = measure("wikitext", documents, {}, tmp_path)
    values = perplexity_record(measured, lambda text: list(range(len(text) // 2)), 100, "two characters each")
    characters, size, words, tokens = 11 + 21, 11 + 22, 3 + 4, 5 + 10
    assert (values["bytes"], values["words"], values["tokens"]) == (size, words, tokens)
    assert values["nats"] == 2 * characters
    assert values["byte_perplexity"] == pytest.approx(math.exp(64 / 33))
    assert values["bits_per_byte"] == pytest.approx(64 / 33 / math.log(2))
    assert values["word_perplexity"] == pytest.approx(math.exp(64 / 7))
    assert values["token_perplexity"] == pytest.approx(math.exp(64 / 15))
    assert values["uniform_guess_byte_perplexity"] == pytest.approx(100 ** (15 / 33))
    assert values["broken"] is False


def test_a_model_no_better_than_a_uniform_guess_is_broken():
    tokens, size = 50, 150
    at_guess = perplexities([TextScore(tokens * math.log(4096), tokens, size, 4096)], [30])
    assert at_guess["broken"]
    assert at_guess["byte_perplexity"] == pytest.approx(16.0)
    below = perplexities([TextScore(tokens * 8.0, tokens, size, 4096)], [30])
    assert not below["broken"]


def test_standard_error_of_a_ratio():
    """Two documents of 10 and 30 bytes at 1 and 3 nats per byte: residuals -15 and 15 about 2.5."""
    figures = perplexities([TextScore(10.0, 5, 10, 16), TextScore(90.0, 15, 30, 16)], [2, 6])
    assert figures["bits_per_byte_stderr"] * math.log(2) == pytest.approx(math.sqrt(2 * 15**2 * 2) / 40)


def test_figures_that_disagree_are_refused():
    figures = perplexities([TextScore(100.0, 20, 50, 64)], [10])
    harness = {name: figures[name] for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")}
    assert "= 100 nats" in check_identity(figures, harness, "wikitext")
    # The public card's pair: 3.42 nats per byte cannot go with a token perplexity of 12.57.
    with pytest.raises(AntError, match="the perplexities disagree; saw 'bytes"):
        check_identity(figures, {**harness, "byte_perplexity": 30.62}, "wikitext")


YES_NO, LETTERS = ("no", "yes"), ("A", "B", "C", "D")


def asked(texts, answers):
    """Documents that have the same choices, or none of their choices in common where `texts` is a number."""
    return [
        Choices(tuple(f"{n}-{k}" for k in range(texts)) if isinstance(texts, int) else texts, answer)
        for n, answer in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("documents", "floor", "kind"),
    [
        # 2,033 of BoolQ's 3,270 answers are yes.
        (asked(YES_NO, [1] * 2033 + [0] * 1237), 2033 / 3270, "majority class"),
        (asked(LETTERS, [3] * 5 + [0, 1, 2]), 0.625, "majority class"),
        (asked(LETTERS, [0, 1, 2, 3] * 2), 0.25, "uniform guess"),
        # Nobody sees where the right one stands when its text is another one each time.
        (asked(4, [3] * 5 + [0, 1, 2]), 0.25, "uniform guess"),
        (asked(2, [0] * 60 + [1] * 40), 0.5, "uniform guess"),
        (asked(3, [0, 1]) + asked(4, [0]), (1 / 3 + 1 / 3 + 1 / 4) / 3, "uniform guess"),
        # One answer in all documents says nothing of other documents.
        (asked(YES_NO, [1] * 8), 0.5, "uniform guess"),
    ],
)
def test_floor(documents, floor, kind):
    assert accuracy_floor(documents) == (pytest.approx(floor), kind)


# By set: how its documents are asked for here, and the floor of twelve of which seven have one answer.
@pytest.mark.parametrize(
    ("name", "document", "floor"),
    [
        ("boolq", lambda i: boolq(i) | {"label": int(i < 7)}, 7 / 12),
        ("mmlu", lambda i: mmlu(i) | {"answer": max(0, i - 6) % 4}, 8 / 12),
        ("arc_easy", lambda i: arc(3 * i) | {"answerKey": "ABC"[max(0, i - 6) % 3]}, 1 / 3),
        ("piqa", lambda i: piqa(i) | {"label": int(i < 7)}, 1 / 2),
        ("winogrande", lambda i: winogrande(i) | {"answer": "1" if i < 7 else "2"}, 1 / 2),
        ("hellaswag", lambda i: hellaswag(i) | {"label": str(max(0, i - 6) % 4)}, 1 / 4),
        ("blimp", blimp, 1 / 2),
    ],
)
def test_the_floor_of_a_set_follows_from_its_documents(name, document, floor, tmp_path):
    if name == "mmlu":
        write_jsonl(tmp_path / "mmlu_dev.jsonl", [mmlu(i) for i in range(3)])
    measured = measure(name, [document(i) for i in range(12)], collections.defaultdict(float), tmp_path)
    assert accuracy_record(measured)["floor"] == pytest.approx(floor)


def test_a_set_is_scored_in_the_parts_that_its_documents_name(tmp_path):
    """Four paradigms of three phenomena; s-selection is argument structure to the authors."""
    terms = {
        "adjunct_island": "island_effects", "causative": "argument_structure",
        "animate_subject_trans": "s-selection", "npi_present_1": "npi_licensing",
    }  # fmt: skip
    documents, nats = [], {}
    for paradigm, right in zip(terms, (4, 3, 1, 0), strict=True):
        for k in range(4):
            good, bad = f"{paradigm} {k}", f"{paradigm} not {k}"
            documents.append(
                {"sentence_good": good, "sentence_bad": bad, "UID": paradigm}
                | {"linguistics_term": terms[paradigm]}
            )
            nats |= {good: -1.0 if k < right else -3.0, bad: -2.0}
    values = accuracy_record(measure("blimp", documents, nats, tmp_path))
    assert (values["value"], values["n"], values["slice_title"]) == (0.5, 16, "phenomenon")
    parts = values["slices"]
    assert {name: (part["value"], part["n"]) for name, part in parts.items()} == {
        "NPI licensing": (0.0, 4), "argument structure": (0.5, 8), "island effects": (1.0, 4),
    }  # fmt: skip
    assert sum(part["value"] * part["n"] for part in parts.values()) == values["value"] * values["n"]
    assert parts["argument structure"]["stderr"] == pytest.approx(math.sqrt(0.25 / 7))
    assert parts["NPI licensing"]["interval"] == pytest.approx([0.0, 1 - 0.025**0.25])
    assert {part["floor"] for part in parts.values()} == {0.5}
    # Documents that do not say it are one whole.
    for document in documents:
        del document["linguistics_term"]
    assert "slices" not in accuracy_record(measure("blimp", documents, nats, tmp_path / "bare"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.26, "indistinguishable"), (0.271, "above"), (0.229, "below"), (0.25, "indistinguishable")],
)
def test_two_standard_errors_decide(value, expected):
    assert against_floor(interval(value, 0.01, 1000), 0.25) == expected


@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_none_or_all_right_gets_the_exact_interval(n):
    """Its end is the share of which so many would all be wrong one time in forty."""
    low, high = interval(0.0, 0.0, n)
    assert (low, (1 - high) ** n) == (0.0, pytest.approx(0.025))
    assert interval(1.0, None, n) == pytest.approx([1 - high, 1.0])


@pytest.mark.parametrize(
    ("n", "verdict"), [(1, "indistinguishable"), (5, "indistinguishable"), (6, "below"), (3000, "below")]
)
def test_a_few_wrong_answers_are_not_below_half(n, verdict):
    assert against_floor(interval(0.0, 0.0, n), 0.5) == verdict


def test_no_verdict_without_an_error():
    assert interval(0.4, None, 50) is None
    assert against_floor(None, 0.25) is None
    assert against_floor([0.1, 0.2], None) is None


@pytest.mark.parametrize("right", [0, 1])
def test_one_document_says_nothing(tmp_path, right):
    document = {"question": "is it", "passage": "It is.", "label": right}
    values = accuracy_record(measure("boolq", [document], {"yes": -1.0, "no": -2.0}, tmp_path))
    assert (values["value"], values["stderr"], values["verdict"]) == (right, None, "indistinguishable")
    assert values["interval"] == pytest.approx([0.025, 1.0] if right else [0.0, 0.975])


def test_a_perplexity_beyond_all_numbers_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(Oracle, "loglikelihood_rolling", lambda self, requests: [-1e6 for _ in requests])
    with pytest.raises(AntError, match=r"WikiText-2: the perplexity is too large for a number.*--tasks"):
        measure("wikitext", [{"page": "a bird sang"}], {}, tmp_path)
