"""What counts as a loop, and the other figures, on texts whose figures are plain to see."""

import pytest

from ant_hf.evaluation.degeneration import (
    Continuation,
    distinct,
    generate,
    invalid_utf8_share,
    longest_repeated_span,
    loop_period,
    measure,
    prompts,
)
from ant_hf.model.loading import load_final


def test_two_hundred_different_prompts():
    assert len(set(prompts())) == 200


@pytest.mark.parametrize(
    ("ids", "period"),
    [
        ([1, 2, 3, *[9] * 16], 1),
        ([1, 2, 3, *[9] * 15], None),
        ([5, *[1, 2, 3] * 6], 3),
        ([5, *[1, 2, 3] * 6, 1, 2], 3),
        ([*[1, 2, 3] * 6, 7], None),
        ([*range(20), *range(20)], None),
        ([*range(20)] * 3, 20),
        ([], None),
    ],
)
def test_loop_period(ids, period):
    assert loop_period(ids) == period


@pytest.mark.parametrize(
    ("ids", "longest"),
    [([], 0), ([1, 2, 3], 0), ([1, 2, 3, 9, 1, 2, 3], 3), ([7, 7, 7, 7], 2), ([7, 7, 7], 1)],
)
def test_longest_repeated_span(ids, longest):
    assert longest_repeated_span(ids) == longest


def test_distinct():
    assert distinct(["a b a b", "a c"], 1) == 3 / 6
    assert distinct(["a b a b", "a c"], 2) == 3 / 4
    assert distinct(["a"], 2) == 0.0


def test_invalid_utf8_share():
    assert invalid_utf8_share(["ab\ufffdd", "abcd\ufffd"]) == 1 / 8
    assert invalid_utf8_share([""]) == 0.0


def test_looped_words_are_counted_once_an_output():
    outputs = [
        Continuation("p", [1] * 20, "Sciences" * 20),
        Continuation("p", [1] * 20, "Sciences" * 20),
        Continuation("p", list(range(20)), "all different"),
        Continuation("p", [], ""),
    ]
    values = measure(outputs, lambda ids: "Sciences" if ids == [1] else "?")
    assert (values["loop_rate"], values["outputs"], values["empty_outputs"]) == (0.5, 4, 1)
    assert values["stderr"] == pytest.approx(0.25)
    assert values["looped_words"] == [["Sciences", 2]]
    assert values["longest_repeated_span"] == 10


def test_batches_do_not_change_a_greedy_output(tiny_run):
    model, tokenizer = load_final(tiny_run / "final")
    texts = ["In the", "And God said to the people of the land that", "Now"]
    one = generate(model, tokenizer, texts, sample=False, batch_size=1)
    all_ = generate(model, tokenizer, texts, sample=False, batch_size=3)
    # Room: the longest prompt of a batch sets how many tokens fit the context of 64.
    for a, b in zip(one, all_, strict=True):
        size = min(len(a.ids), len(b.ids))
        assert size > 10
        assert a.ids[:size] == b.ids[:size]


def test_sampling_is_repeatable(tiny_run):
    model, tokenizer = load_final(tiny_run / "final")
    assert generate(model, tokenizer, ["In the"], True) == generate(model, tokenizer, ["In the"], True)
    assert tokenizer.padding_side == "right"
