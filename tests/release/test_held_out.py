"""The held-out text of a release is the documents that packing held out."""

import json

import pytest

from ant_hf.data.corpus import Corpus
from ant_hf.data.sources import LocalFiles
from ant_hf.data.tokenizer import load_tokenizer
from ant_hf.data.tokens import VALIDATION, PackedTokens, TokensInMemory, read_manifest
from ant_hf.release.verify import write_held_out
from ant_hf.utils.files import file_sha256


@pytest.fixture
def held_out(tiny_run, tmp_path):
    """The texts that are written for a number of tokens on which the loss was measured."""

    def write(tokens):
        folder, target = tiny_run / "tokens", tmp_path / "held_out.jsonl"
        run = {"sha256": {"tokens": file_sha256(folder / "manifest.json")}, "final": {"tokens": tokens}}
        write_held_out(run, folder, tiny_run / "tokenizer", target)
        return [json.loads(line)["text"] for line in target.read_text().splitlines()]

    return write


def test_texts_are_the_documents_until_the_tokens_are_covered(held_out, tiny_run, shared):
    folder = tiny_run / "tokens"
    fraction = read_manifest(folder)["inputs"]["corpus"]["validation_fraction"]
    corpus = Corpus(LocalFiles.find(str(shared / "corpus.jsonl")), fraction)
    texts = [document.text for document in corpus if document.is_validation]
    split = PackedTokens(folder, VALIDATION)
    assert len(texts) > 3
    assert held_out(len(split)) == texts
    ids = split.slice(0, len(split)).tolist()
    first = ids.index(0)
    assert held_out(first - 1) == texts[:1]
    assert held_out(first) == texts[:1]
    assert held_out(first + 1) == texts[:2]


def test_a_document_without_an_end_is_written_whole(held_out, tiny_run, monkeypatch):
    text = "In the beginning"
    ids = load_tokenizer(tiny_run / "tokenizer").encode(text).ids
    monkeypatch.setattr("ant_hf.release.verify.PackedTokens", lambda *_: TokensInMemory([*ids, 0, *ids]))
    assert held_out(2 * len(ids)) == [text, text]
