import itertools
import json
import time
from contextlib import nullcontext

import datasets
import pytest
from conftest import tiny_values
from huggingface_hub import constants

from ant_hf.data import survey as surveying
from ant_hf.data.survey import Rates, packing_seconds, survey
from ant_hf.data.tokens import read_manifest
from ant_hf.errors import AntError
from ant_hf.recipe import Recipe


@pytest.fixture
def recipe_of(shared, tmp_path):
    """A function that makes a tiny recipe with a changed corpus, whose data are not there yet."""

    def make(**corpus) -> Recipe:
        values = tiny_values(shared, tmp_path / "new")
        values["corpus"] |= corpus
        return Recipe.model_validate(values)

    return make


def test_text_that_is_read_whole_is_counted_to_the_token(recipe_of, prepared, tmp_path):
    found = survey(recipe_of(), 64)
    splits = read_manifest(prepared / "tokens")["splits"]
    assert found.is_whole
    assert found.text_bytes == splits["train"]["bytes"] + splits["validation"]["bytes"]
    assert found.train_tokens == splits["train"]["tokens"]
    assert found.validation_tokens == splits["validation"]["tokens"]
    assert found.tokenizer_seconds > 0
    assert found.packing_seconds > 0
    assert not list(tmp_path.iterdir())


def test_what_is_packed_takes_no_time(recipe_of, prepared):
    found = survey(recipe_of().model_copy(update={"data_dir": str(prepared)}), 64)
    assert (found.tokenizer_seconds, found.packing_seconds) == (0, 0)
    assert found.train_tokens == read_manifest(prepared / "tokens")["splits"]["train"]["tokens"]


def test_a_sample_of_the_text_tells_its_tokens_and_more_text_takes_longer(recipe_of, shared, prepared):
    sampled = survey(recipe_of(), 64, sample_bytes=60_000)
    assert not sampled.is_whole
    assert 60_000 <= sampled.sample_bytes < 80_000
    expected = read_manifest(prepared / "tokens")["splits"]["train"]["tokens"]
    assert sampled.train_tokens == pytest.approx(expected, rel=0.1)
    # One document is read, and the rest known by the size of the file.
    beginning = survey(recipe_of(), 64, seconds=0)
    assert beginning.text_bytes == (shared / "corpus.jsonl").stat().st_size
    assert "the first" in beginning.what


def test_a_limit_of_tokens_is_heeded(recipe_of):
    limited = survey(recipe_of(max_tokens=10_000), 64)
    assert limited.train_tokens == pytest.approx(10_000, abs=1)


def test_a_fault_in_any_file_is_found_before_all_is_read(recipe_of, tmp_path):
    for index in range(20):
        (tmp_path / f"{index:02}.jsonl").write_text(json.dumps({"text": f"words of {index}"}) + "\n")
    (tmp_path / "19.jsonl").write_text('{"body": "words"}\n')
    with pytest.raises(AntError, match=r"19\.jsonl, line 1 has no column 'text'"):
        survey(recipe_of(path=str(tmp_path)), 64, seconds=1)


def test_a_beginning_that_will_not_do_is_no_reason_to_refuse(recipe_of, tmp_path):
    (tmp_path / "long.txt").write_text("\n<|endoftext|>\n".join(f"text {i}" for i in range(100)))
    found = survey(recipe_of(path=str(tmp_path / "long.txt")), 64, seconds=0)
    assert found.tokenizer_seconds is None
    assert "too small for a vocabulary" in found.what


def test_a_streamed_dataset_without_end_is_left_after_a_sample(recipe_of, chapters, monkeypatch):
    asked = {}

    def load_dataset(*_, **options):
        asked.update(options)
        return ({"text": f"{number} {chapters[number % 60]}"} for number in itertools.count())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(surveying, "hub_or_cache", nullcontext)
    began = time.monotonic()
    corpus = {"source": "hub", "path": "owner/endless", "streaming": False}
    found = survey(recipe_of(**corpus, max_tokens=1_000_000), 64, sample_bytes=200_000)
    assert time.monotonic() - began < 30
    assert asked["streaming"]
    assert found.train_tokens == pytest.approx(1_000_000, abs=1)
    assert found.text_bytes is None
    # Without a limit nobody knows how much there is.
    found = survey(recipe_of(**corpus), 64, sample_bytes=200_000)
    assert found.packing_seconds is None
    assert found.tokenizer_seconds > 0


def test_packing_is_alone_at_first_and_then_shared():
    rates = Rates(reading=100e6, training=1, encoding=10e6)
    assert packing_seconds(rates, 1e6, cores=4) == pytest.approx(0.01 + 0.1)
    # 8 MB alone, then four workers beside the process that reads.
    alone = (1 << 23) * (1 / 100e6 + 1 / 10e6)
    much = packing_seconds(rates, (1 << 23) + 1e9, cores=4)
    assert much == pytest.approx(alone + 1e9 * (1 / 10e6 + 1 / 400e6))
    # No worker helps a reading that is slow.
    slow = Rates(reading=1e6, training=1, encoding=1e9)
    assert packing_seconds(slow, (1 << 23) + 1e9, 64) == pytest.approx(1000 + 8.4, rel=0.01)
