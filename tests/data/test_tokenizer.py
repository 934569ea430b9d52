import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from ant_hf.data.tokenizer import (
    cut_long_runs,
    load_tokenizer,
    make_tokenizer,
    token_byte_lengths,
    train_bpe,
)
from ant_hf.errors import AntError
from ant_hf.recipe import TokenizerRecipe

AWKWARD = [
    "",
    " ",
    "  two  spaces ",
    "tab\tCRLF\r\nNUL\0end",
    "🐜🇮🇹👩‍👩‍👧",
    "é e\u0301",
    "don't 12345 <|endoftext|>x",
    "\ufeff",
]


@pytest.fixture(scope="session")
def auto_tokenizer(tiny_run):
    return AutoTokenizer.from_pretrained(tiny_run / "final")


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_round_trips(auto_tokenizer, text):
    assert auto_tokenizer.decode(auto_tokenizer(text)["input_ids"]) == text


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_round_trips(auto_tokenizer, text):
    ids = auto_tokenizer(text)["input_ids"]
    assert auto_tokenizer.decode(ids) == text


def test_saved_settings_are_portable_and_complete(auto_tokenizer, tiny_run):
    saved = json.loads((tiny_run / "final" / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert saved["clean_up_tokenization_spaces"] is False
    assert auto_tokenizer.model_max_length == 64
    assert (auto_tokenizer.eos_token, auto_tokenizer.bos_token) == ("<|endoftext|>", "<|endoftext|>")
    assert (auto_tokenizer.eos_token_id, auto_tokenizer.pad_token_id) == (0, 1)
    assert len(auto_tokenizer) == 384


def test_vocabulary_holds_every_byte_and_its_length(auto_tokenizer):
    tokenizer = auto_tokenizer.backend_tokenizer
    lengths = token_byte_lengths(tokenizer)
    assert lengths[:2] == [0, 0]
    assert sum(length == 1 for length in lengths) == 256
    text = "".join(AWKWARD[:6])
    ids = tokenizer.encode(text).ids
    assert sum(lengths[i] for i in ids) == len(text.encode())


def test_digits_are_single_tokens_unless_told_otherwise(chapters):
    texts = [*chapters[:5], " 1234" * 1000]
    split = train_bpe(texts, TokenizerRecipe(vocab_size=320))
    joined = train_bpe(texts, TokenizerRecipe(vocab_size=320, split_digits=False))
    assert split.encode("1234").tokens == ["1", "2", "3", "4"]
    assert len(joined.encode(" 1234").tokens) < 5


def test_training_again_in_another_process_is_byte_identical(tiny_run, make_recipe, tmp_path):
    recipe = make_recipe()
    script = (
        "import sys\n"
        "from ant_hf.data.tokenizer import make_tokenizer\n"
        "from ant_hf.recipe import load_recipe\n"
        "make_tokenizer(load_recipe(sys.argv[1]), 64)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run.yaml")]
    environment = os.environ | {"PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(command, check=True, env=environment)
    first = (tiny_run / "tokenizer" / "tokenizer.json").read_bytes()
    assert (recipe.tokenizer_dir / "tokenizer.json").read_bytes() == first


def test_reading_a_tokenizer_needs_no_matplotlib():
    script = "import sys, ant_hf.data.packing; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_reused_when_unchanged_and_refused_when_not(make_recipe, tmp_path, capsys):
    recipe = make_recipe(data_dir=tmp_path / "data")
    for how in ("trained", "reused"):
        make_tokenizer(recipe, 64)
        assert f"({how}, 384 entries)" in capsys.readouterr().out
    other = TokenizerRecipe(vocab_size=385)
    with pytest.raises(AntError, match="made of other text or settings"):
        make_tokenizer(recipe.model_copy(update={"tokenizer": other}), 64)
    with (recipe.tokenizer_dir / "tokenizer.json").open("a") as handle:
        handle.write(" ")
    with pytest.raises(AntError, match="was changed after it was trained"):
        load_tokenizer(recipe.tokenizer_dir)


@pytest.fixture
def few_words(make_recipe, tmp_path):
    """A function that gives a recipe for text of a few words, enough for some merges."""
    texts = [f"Text {number}: a few words, and then the same few words again." for number in range(100)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def make(vocab_size):
        recipe = make_recipe(data_dir=tmp_path / "data")
        corpus = recipe.corpus.model_copy(update={"path": str(tmp_path / "few.jsonl")})
        tokenizer = TokenizerRecipe(vocab_size=vocab_size)
        return recipe.model_copy(update={"corpus": corpus, "tokenizer": tokenizer})

    return make


def test_too_little_text_for_a_vocabulary_that_is_asked_for_is_an_error(few_words):
    recipe = few_words(384)
    with pytest.raises(AntError, match=r"too small for a vocabulary of 384.*saw '\d+ entries'.*size=null"):
        make_tokenizer(recipe, 64)
    assert [path.name for path in recipe.tokenizer_dir.parent.iterdir() if path.name[:5] != ".data"] == []


def test_a_vocabulary_left_open_is_what_the_text_gives(few_words, capsys):
    for how in ("trained", "reused"):
        tokenizer = make_tokenizer(few_words(None), 64)
        assert f"({how}, {tokenizer.get_vocab_size()} entries)" in capsys.readouterr().out
    assert tokenizer.get_vocab_size() in (258, 320)
    # And whoever then asks for all of them hears why they are not there.
    with pytest.raises(AntError, match=r"too small for a vocabulary of 384.*size=null"):
        make_tokenizer(few_words(384), 64)


def test_a_vocabulary_left_open_is_the_architectures_where_the_text_gives_it(make_recipe, tiny_run, tmp_path):
    recipe = make_recipe(data_dir=tmp_path / "data")
    make_tokenizer(recipe.model_copy(update={"tokenizer": TokenizerRecipe()}), 64)
    for name in ("tokenizer.json", "training.json"):
        made = (recipe.tokenizer_dir / name).read_bytes()
        assert made == (tiny_run / "tokenizer" / name).read_bytes(), name


def test_long_runs_are_cut_and_ordinary_text_is_not(chapters):
    text = "\n".join(chapters)
    assert cut_long_runs(text) == [text]
    for run in ("ACGT" * 10_000, " " * 40_000, "-" * 40_000, "7" * 40_000, "\u4e2d\u6587" * 20_000):
        pieces = cut_long_runs(f"before {run} after")
        assert "".join(pieces) == f"before {run} after"
        assert max(map(len, pieces)) < 20_000


def test_a_tokenizer_without_our_special_tokens_is_refused(tmp_path):
    from tokenizers import models

    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(AntError, match="endoftext"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(AntError, match="cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)
