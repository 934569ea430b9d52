import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ant_hf.data.tokenizer import fragmentation_report


@pytest.fixture
def tokenizer():
    """Knows ' the' as one token and every other letter on its own."""
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]
    for a, b in merges:
        vocabulary[a + b] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_report_by_hand(tokenizer):
    report = fragmentation_report(tokenizer, ["x the the", " the ox"])
    # Tokens: x, the, the | the, space, o, x. Words: x the the the ox.
    assert (report["bytes"], report["tokens"]) == (9 + 7, 3 + 4)
    assert report["bytes_per_token"] == 16 / 7
    assert report["words"] == 5
    assert report["words_kept_whole"] == 3 / 5
    assert report["tokens_per_word"] == (3 * 1 + 2 + 3) / 5
    assert report["tokens_per_word_histogram"] == {"1": 3, "2": 1, "3": 1}
    assert report["token_length_histogram"] == {"1": 4, "4": 3}
    assert report["worst_shattered_words"][0] == {"word": "ox", "tokens": 3, "count": 1}


def test_in_text_without_words_what_spaces_separate_counts(tokenizer):
    report = fragmentation_report(tokenizer, ["12 + 3 = 15"])
    assert (report["words"], report["words_kept_whole"]) == (5, 0.0)
    assert report["tokens_per_word"] == (3 + 2 + 2 + 2 + 3) / 5


def test_a_long_run_of_letters_is_measured_quickly_and_not_listed(tokenizer):
    report = fragmentation_report(tokenizer, ["acgt" * 25_000, "the ox"])
    assert report["bytes"] == 100_006
    assert [worst["word"] for worst in report["worst_shattered_words"]] == ["ox", "the"]


def test_report_and_plot_stand_beside_the_tokenizer(tiny_run):
    report = json.loads((tiny_run / "tokenizer" / "fragmentation.json").read_text())
    assert report["vocab_size"] == 384
    assert 1 < report["bytes_per_token"] < 4
    assert len(report["worst_shattered_words"]) == 10
    assert (tiny_run / "tokenizer" / "fragmentation.png").stat().st_size > 10_000
