import itertools
import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from ant_hf.data.corpus import CorpusCounts
from ant_hf.data.packing import EncodedChunk, EncodedDocument, make_data, write_tokens
from ant_hf.data.repacking import DecayMix, Paragraphs, RepackedBlocks, RepackedOrder, training_order
from ant_hf.data.tokens import TRAIN, PackedTokens, TokensInMemory
from ant_hf.errors import AntError
from ant_hf.recipe import load_recipe


class Text(TokensInMemory):
    """Documents of one token again and again, each with its number, ended by a zero."""

    split, end_of_text = TRAIN, 0

    def __init__(self, lengths, first=1):
        documents = [[first + number] * (length - 1) + [0] for number, length in enumerate(lengths)]
        super().__init__([token for document in documents for token in document])
        self.document_ends = np.cumsum(lengths)

    def read_into(self, row, start):
        row[:] = self.slice(start, start + len(row))
        return len(row)


def lengths(count, mean, seed=0):
    return np.random.default_rng(seed).integers(2, 2 * mean, count)


def read(order):
    return order.__getitems__(range(len(order)))["input_ids"].numpy()


def stream(blocks, count):
    """The first blocks as they were cut, before they were shuffled."""
    return blocks.batch(range(count))["input_ids"].numpy().ravel()


@pytest.mark.parametrize("round_tokens", [100, 1 << 26])
def test_each_pass_has_every_document_once_in_an_order_of_its_own(monkeypatch, round_tokens):
    monkeypatch.setattr("ant_hf.data.repacking.ROUND_TOKENS", round_tokens)
    text = Text(lengths(60, 20))
    blocks = RepackedBlocks([text], [1.0], 16, seed=3)
    tokens = stream(blocks, 3 * len(text) // 16 + 1)
    passes = [tokens[number * len(text) : (number + 1) * len(text)] for number in range(3)]
    orders = []
    for one in passes:
        assert Counter(one.tolist()) == Counter(text.slice(0, len(text)).tolist())
        found = [
            document[0] for document in np.split(one, np.flatnonzero(one == 0) + 1)[:-1] if len(document)
        ]
        assert sorted(found) == list(range(1, 61))
        orders.append(found)
    assert orders[0] != orders[1] != orders[2] != sorted(orders[2])


def test_documents_may_begin_with_the_token_that_ends_them(make_recipe, tmp_path):
    recipe = make_recipe(data_dir=tmp_path / "data")
    documents = [
        EncodedDocument(np.array([0, *text, 0], "<u2").tobytes(), 9, 9, split)
        for split, text in ((TRAIN, [5, 6]), (TRAIN, [7]), ("validation", [8]))
    ]
    inputs = {"tokenizer_sha256": ""}
    write_tokens(recipe, inputs, [EncodedChunk(documents, CorpusCounts({}, read=3, train=2, validation=1))])
    assert PackedTokens(recipe.tokens_dir, TRAIN).document_ends.tolist() == [4, 7]


def test_a_run_reads_every_block_of_a_round_once_and_from_anywhere():
    text = Text(lengths(300, 20))
    blocks = RepackedBlocks([text], [1.0], 16, seed=3)
    order = RepackedOrder(blocks, 2 * len(blocks) + 5, seed=3)
    whole = read(order)
    indices = [order.block_index(position) for position in range(len(order))]
    assert sorted(indices[: len(blocks)]) == list(range(len(blocks))) != indices[: len(blocks)]
    assert sorted(indices[: 2 * len(blocks)]) == list(range(2 * len(blocks)))
    # As after a resume, and as the second of two processes, or a data worker, would.
    again = RepackedOrder(RepackedBlocks([text], [1.0], 16, seed=3), len(order), seed=3)
    for position in (len(order) - 1, 3, len(blocks), 0, len(blocks) - 1):
        assert np.array_equal(again[position]["input_ids"], whole[position])
        assert torch.equal(again[position]["labels"], again[position]["input_ids"])
    other = RepackedOrder(RepackedBlocks([text], [1.0], 16, seed=4), len(order), seed=4)
    assert not np.array_equal(read(other), whole)
    assert order.tokens_before(7) == 7 * 16
    with pytest.raises(IndexError):
        order[len(order)]


def test_a_long_document_does_not_fill_a_step():
    text = Text([2000, *lengths(400, 20)])
    blocks = RepackedBlocks([text], [1.0], 16, seed=0)
    found = (read(RepackedOrder(blocks, len(blocks), seed=0)) == 1).mean(1)
    assert (found == 1).sum() > 100
    assert max(np.convolve(found == 1, np.ones(8), "valid")) < 8


@pytest.mark.parametrize("round_tokens", [200, 1 << 26])
def test_shares_come_out_everywhere_and_a_small_part_comes_again(monkeypatch, round_tokens):
    monkeypatch.setattr("ant_hf.data.repacking.ROUND_TOKENS", round_tokens)
    small, large, third = Text(lengths(10, 8)), Text(lengths(900, 20), 1000), Text(lengths(50, 12), 5000)
    shares = [0.3, 0.5, 0.2]
    blocks = RepackedBlocks([small, large, third], shares, 32, seed=1)
    tokens = stream(blocks, 600)
    # A document's end belongs to what stands before it.
    names = np.array(
        [np.nan if token == 0 else np.searchsorted([1000, 5000], token, "right") for token in tokens]
    )
    for window in np.split(names, 6):
        counts = np.array([(window == part).sum() for part in range(3)])
        assert np.abs(counts / counts.sum() - shares).max() < 0.05
    # No part's documents come again before all of them have come.
    for part, text in enumerate((small, large, third)):
        starts = np.flatnonzero((names == part) & (np.append(0, tokens[:-1]) == 0))
        found = tokens[starts].tolist()
        documents = len(text.document_ends)
        whole = [found[i : i + documents] for i in range(0, len(found) - documents, documents)]
        assert all(len(set(one)) == documents for one in whole)
        assert len(whole) > 20 or part


def test_what_each_part_gives_is_counted():
    parts = [Text(lengths(40, 8)), Text(lengths(200, 20), 1000)]
    blocks = RepackedBlocks(parts, [0.4, 0.6], 32, seed=1)
    for length in (3, len(blocks), 2 * len(blocks) + 7):
        order = RepackedOrder(blocks, length, seed=1)
        given = order.tokens_by_part()
        counted = Counter(
            part for position in range(length)
            for part, _, size, _ in blocks.pieces(order.block_index(position))
            for _ in range(size)
        )  # fmt: skip
        assert given == [counted[0], counted[1]]
        assert sum(given) == length * 32
    assert abs(given[0] / sum(given) - 0.4) < 0.02


def test_in_the_decay_the_shares_are_others_and_no_document_comes_again(monkeypatch):
    monkeypatch.setattr("ant_hf.data.repacking.ROUND_TOKENS", 40 * 32)
    parts = [Text(lengths(400, 20)), Text(lengths(400, 20), 1000), Text(lengths(400, 20), 5000)]
    blocks = RepackedBlocks(parts, [0.5, 0.5, 0.0], 32, seed=1, decay=DecayMix(90, [0.2, 0.0, 0.8]))
    order = RepackedOrder(blocks, 200, seed=1)
    plain = RepackedOrder(RepackedBlocks(parts, [0.5, 0.5, 0.0], 32, seed=1), 200, seed=1)
    whole = read(order)
    assert np.array_equal(whole[:90], read(plain)[:90])
    for rows, shares in ((whole[:80], [0.5, 0.5, 0]), (whole[90:170], [0.2, 0, 0.8])):
        tokens = rows[rows > 0]
        counts = np.bincount(np.searchsorted([1000, 5000], tokens, "right"), minlength=3)
        assert np.abs(counts / counts.sum() - shares).max() < 0.05
    # A document may be cut where a round ends, but none is read twice.
    for document, count in Counter(whole[whole > 0].tolist()).items():
        part = int(np.searchsorted([1000, 5000], document, "right"))
        number = document - (1, 1000, 5000)[part]
        assert count < np.diff(parts[part].document_ends, prepend=0)[number]
    again = RepackedOrder(blocks, 200, seed=1)
    assert all(np.array_equal(again[position]["input_ids"], whole[position]) for position in (150, 89, 90, 0))
    counted = Counter(
        part for position in range(200) for part, _, size, _ in blocks.pieces(order.block_index(position))
        for _ in range(size)
    )  # fmt: skip
    assert order.tokens_by_part() == [counted[0], counted[1], counted[2]]


def test_documents_end_where_the_packed_tokens_say(tiny_run):
    tokens = PackedTokens(tiny_run / "tokens", TRAIN)
    ids = tokens.slice(0, len(tokens))
    assert np.array_equal(tokens.document_ends, np.flatnonzero(ids == 0) + 1)
    assert len(tokens.document_ends) == tokens.documents
    # A data worker gets none of it.
    assert len(pickle.dumps(tokens)) < 2000


def test_less_than_a_block_is_refused():
    with pytest.raises(AntError, match="smaller than one block"):
        RepackedBlocks([Text([5, 6])], [1.0], 16, seed=0)


NEWLINE = 1


class Paragraphed(TokensInMemory):
    """Documents of three paragraphs, the second under a heading, all of other tokens."""

    split, end_of_text = TRAIN, 0

    def __init__(self, documents):
        tokens, ends = [], []
        for number in range(documents):
            first, heading, second, third = (
                [10 + 4 * number + at] * size for at, size in enumerate((9, 3, 12, 8))
            )
            blank = [NEWLINE, NEWLINE]
            tokens += [*first, *blank, *heading, *blank, *second, NEWLINE, *second, *blank, NEWLINE]
            tokens += [*third, 0]
            ends.append(len(tokens))
        super().__init__(tokens)
        self.document_ends = np.array(ends)

    read_into = Text.read_into


def paragraphs(share):
    newlines = np.zeros(2000, dtype=np.uint8)
    newlines[NEWLINE] = 1
    return Paragraphs(share, newlines)


def documents_of(tokens):
    return [document.tolist() for document in np.split(tokens, np.flatnonzero(tokens == 0) + 1)[:-1]]


def test_paragraphs_are_read_as_documents_and_shuffled():
    text = Paragraphed(100)
    blocks = RepackedBlocks([text], [1.0], 16, seed=3, paragraphs=paragraphs(1.0))
    whole = 100 * (10 + 31 + 9)
    assert blocks.tokens == whole
    found = documents_of(stream(blocks, -(-whole // 16))[:whole])
    expected = []
    for number in range(100):
        first, heading, second, third = range(10 + 4 * number, 14 + 4 * number)
        expected.append([first] * 9 + [0])
        expected.append([heading] * 3 + [NEWLINE] * 2 + [second] * 12 + [NEWLINE] + [second] * 12 + [0])
        expected.append([third] * 8 + [0])
    assert sorted(found) == sorted(expected)
    apart = [abs(one[0] - two[0]) for one, two in itertools.pairwise(found)]
    assert np.median(apart) > 50


def test_other_documents_stay_whole():
    text = Paragraphed(400)
    blocks = RepackedBlocks([text], [1.0], 16, seed=3, paragraphs=paragraphs(0.25))
    found = documents_of(stream(blocks, -(-blocks.tokens // 16))[: blocks.tokens])
    whole = [document for document in found if document[0] % 4 == 2 and document[-2] % 4 == 1]
    assert 0.75 - 0.1 < len(whole) / 400 < 0.75 + 0.1
    assert len(found) == len(whole) + 3 * (400 - len(whole))
    plain = RepackedBlocks([text], [1.0], 16, seed=3)
    nothing = RepackedBlocks([text], [1.0], 16, seed=3, paragraphs=paragraphs(0.0))
    assert np.array_equal(stream(plain, 200), stream(nothing, 200))


def test_a_run_reads_real_paragraphs(make_recipe, tmp_path, chapters):
    pages = ("\n\n".join([chapter[:300], "Yes.", chapter[300:600]]) for chapter in chapters)
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"text": page}) + "\n" for page in pages))
    orders = []
    for share in (0.0, 1.0):
        make_recipe("run", tmp_path / "own", repack_each_pass=True, split_paragraphs=share)
        recipe = load_recipe(tmp_path / "run.yaml", changes={"corpus.path": str(tmp_path / "pages.jsonl")})
        make_data(recipe, 64)
        orders.append(training_order(recipe, 1))
    tokenizer = Tokenizer.from_file(str(recipe.tokenizer_dir / "tokenizer.json"))
    whole, cut = (
        [tokenizer.decode(ids) for ids in documents_of(stream(order.blocks, len(order.blocks) - 1))]
        for order in orders
    )
    assert len(cut) > 1.8 * len(whole) > 80
    assert sum("\n\nYes.\n\n" in page for page in whole) > 40
    # The short one is the beginning of what follows it.
    assert not any("\n\nYes." in paragraph for paragraph in cut)
    assert sum(paragraph.startswith("Yes.\n\n") for paragraph in cut) > 40


def test_paragraphs_need_blocks_that_are_cut_again(make_recipe):
    with pytest.raises(AntError, match=r"split_paragraphs is set.*repack_each_pass"):
        make_recipe(split_paragraphs=0.5)


def test_a_tokenizer_that_puts_a_token_before_every_text_is_refused(tiny_run):
    tokenizer = Tokenizer.from_file(str(tiny_run / "final" / "tokenizer.json"))
    Paragraphs.of(0.5, tokenizer)
    end = tokenizer.id_to_token(0)
    tokenizer.post_processor = TemplateProcessing(f"{end} $A", special_tokens=[(end, 0)])
    with pytest.raises(AntError, match="split_paragraphs needs a tokenizer"):
        Paragraphs.of(0.5, tokenizer)
