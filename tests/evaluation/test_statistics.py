"""Floors, verdicts and perplexities, against figures worked out by hand."""

import math

import pytest
from benchmark_data import write_jsonl
from lm_eval.api.model import LM

from ant_hf.errors import AntError
from ant_hf.evaluation.benchmarks import choose_benchmarks, known_benchmarks
from ant_hf.evaluation.results import (
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
    """Two documents of 10 and 30 bytes at 1 and 3 nats a byte: residuals -15 and 15 about 2.5."""
    figures = perplexities([TextScore(10.0, 5, 10, 16), TextScore(90.0, 15, 30, 16)], [2, 6])
    assert figures["bits_per_byte_stderr"] * math.log(2) == pytest.approx(math.sqrt(2 * 15**2 * 2) / 40)


def test_figures_that_disagree_are_refused():
    figures = perplexities([TextScore(100.0, 20, 50, 64)], [10])
    harness = {name: figures[name] for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")}
    assert "= 100 nats" in check_identity(figures, harness, "wikitext")
    # The public card's pair: 3.42 nats a byte cannot go with a token perplexity of 12.57.
    with pytest.raises(AntError, match="the perplexities disagree; saw 'bytes"):
        check_identity(figures, {**harness, "byte_perplexity": 30.62}, "wikitext")


@pytest.mark.parametrize(
    ("choices", "answers", "floor", "kind"),
    [
        ([2] * 10, [0] * 6 + [1] * 4, 0.6, "majority class"),
        ([4] * 8, [0, 1, 2, 3] * 2, 0.25, "uniform guess"),
        ([4] * 8, [3] * 8, 0.25, "uniform guess"),
        ([3, 4], [0, 1], 0.5, "majority class"),
    ],
)
def test_floor(choices, answers, floor, kind):
    assert accuracy_floor(choices, answers) == (pytest.approx(floor), kind)


def test_always_no_on_boolq_is_its_floor():
    """2,033 of BoolQ's 3,270 answers are yes: always saying so scores 62.17 %."""
    assert accuracy_floor([2] * 3270, [1] * 2033 + [0] * 1237)[0] == pytest.approx(0.6217, abs=1e-4)


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
