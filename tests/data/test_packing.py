import json
import pickle
import random
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from records import pack

from ant_hf.data.corpus import Corpus
from ant_hf.data.packing import make_tokens
from ant_hf.data.packing_tasks import merge, plan_packing
from ant_hf.data.tokenizer import load_tokenizer
from ant_hf.data.tokens import TRAIN, VALIDATION, PackedTokens, read_manifest, verify_shards
from ant_hf.errors import AntError


@pytest.fixture
def recipe(make_recipe, tiny_run, tmp_path):
    """Text that has a tokenizer already."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tokenizer").symlink_to(tiny_run / "tokenizer")
    return make_recipe()


def changed(recipe, **corpus):
    return recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update=corpus)})


@pytest.fixture
def packed(recipe, monkeypatch):
    """Tokens in shards of 5,000."""
    monkeypatch.setattr("ant_hf.data.packing.SHARD_TOKENS", 5_000)
    pack(recipe)
    return recipe.tokens_dir


def test_every_document_and_token_is_there_in_order(packed, recipe):
    tokenizer = load_tokenizer(recipe.tokenizer_dir)
    tokenizer.encode_special_tokens = True
    manifest = read_manifest(packed)
    documents = list(Corpus.from_recipe(recipe.corpus))
    for split, wanted in ((TRAIN, False), (VALIDATION, True)):
        texts = [d.text for d in documents if d.is_validation is wanted]
        expected = [i for text in texts for i in [*tokenizer.encode(text).ids, 0]]
        tokens = PackedTokens(packed, split)
        assert tokens.slice(0, len(tokens)).tolist() == expected
        counts = manifest["splits"][split]
        assert counts["documents"] == len(texts)
        assert counts["tokens"] == len(expected) == sum(s["tokens"] for s in counts["shards"])
        assert counts["bytes"] == sum(len(text.encode()) for text in texts)
    counts = manifest["documents"]
    kept = sum(manifest["splits"][split]["documents"] for split in (TRAIN, VALIDATION))
    assert counts["read"] == counts["empty"] + counts["duplicate"] + counts["past_limit"] + kept


def test_slices_cross_shards(packed):
    tokens = PackedTokens(packed, TRAIN)
    whole = tokens.slice(0, len(tokens))
    assert len(read_manifest(packed)["splits"][TRAIN]["shards"]) > 2
    for start, stop in ((0, 1), (4_990, 5_010), (4_999, 15_001), (len(tokens) - 3, len(tokens) + 9)):
        assert np.array_equal(tokens.slice(start, stop), whole[start:stop])


def test_a_data_worker_gets_the_place_of_the_tokens_and_not_their_bytes(packed, monkeypatch):
    """Where workers are spawned (macOS, Windows) the dataset is pickled for each."""
    monkeypatch.chdir(packed.parent)
    tokens = PackedTokens(Path(packed.name), TRAIN)
    data = pickle.dumps(tokens)
    assert len(data) < 2_000 < 2 * len(tokens) / 10
    monkeypatch.chdir("/")
    copy = pickle.loads(data)
    assert np.array_equal(copy.slice(0, len(copy)), tokens.slice(0, len(tokens)))
    assert (len(copy), copy.split, copy.documents, copy.bytes) == (
        len(tokens),
        tokens.split,
        tokens.documents,
        tokens.bytes,
    )


@pytest.mark.parametrize("without_workers", [0, 3])
def test_number_of_processes_changes_nothing(packed, recipe, monkeypatch, without_workers):
    """All of the corpus in workers, and what follows on some chunks."""
    monkeypatch.setattr("ant_hf.data.packing.CHUNK_CHARACTERS", 10_000)
    monkeypatch.setattr("ant_hf.data.packing.CHUNKS_WITHOUT_WORKERS", without_workers)
    before = {path.name: path.read_bytes() for path in packed.iterdir()}
    shutil.rmtree(packed)
    pack(recipe)
    assert {path.name: path.read_bytes() for path in packed.iterdir()} == before


def test_a_small_corpus_starts_no_workers(packed, recipe, monkeypatch):
    pools = []
    monkeypatch.setattr("ant_hf.data.packing.worker_processes", lambda *args: pools.append(args))
    shutil.rmtree(packed)
    pack(recipe)
    assert pools == []
    assert sum(path.stat().st_size for path in packed.glob("*.bin")) > 0


def test_text_that_spells_a_special_token_stays_text(recipe, tmp_path):
    (tmp_path / "a.txt").write_text("before <|endoftext|> after")
    pack(changed(recipe, path=str(tmp_path / "a.txt"), validation_fraction=0.0))
    tokens = PackedTokens(recipe.tokens_dir, TRAIN)
    ids = tokens.slice(0, len(tokens)).tolist()
    assert ids.count(0) == 1
    assert ids[-1] == 0


def test_what_was_hardly_meant_as_text_is_counted_and_what_to_do_is_said(recipe, tmp_path, capsys):
    """Also by tasks, and only where text is packed."""
    line = "before <|endoftext|> after <|pad|>\n"
    (tmp_path / "corpus").mkdir()
    for number in range(40):
        text = f"{number} {line}" + ("\0" if number < 3 else "") + ("\ufffd" if number < 2 else "")
        (tmp_path / "corpus" / f"{number}.txt").write_text(text)
    recipe = changed(recipe, path=str(tmp_path / "corpus"), validation_fraction=0.3)
    make_tokens(recipe)
    said = capsys.readouterr().out
    warnings = [line for line in said.splitlines() if line.startswith("warning")]
    assert [int(line.partition("the text has ")[2].split()[0]) for line in warnings] == [40, 40, 3, 2]
    assert "sed 's/<|endoftext|>/\\n&\\n/g'" in warnings[0]
    assert "<|pad|>" in warnings[1]
    assert "tr -d" in warnings[2]
    assert "noticed" not in (recipe.tokens_dir / "manifest.json").read_text()
    shutil.rmtree(recipe.tokens_dir)
    packing = plan_packing(recipe)
    packing.encode()
    merge(packing)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")] == warnings


def test_separators_on_lines_of_their_own_need_no_warning(recipe, tmp_path, capsys, chapters):
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(chapters))
    make_tokens(changed(recipe, path=str(tmp_path / "a.txt")))
    assert "warning" not in capsys.readouterr().out


def test_without_a_terminal_a_line_tells_how_far_it_is(recipe, monkeypatch, capsys):
    monkeypatch.setattr("ant_hf.utils.console._LINE_SECONDS", 0)
    pack(recipe)
    line = capsys.readouterr().err.splitlines()[30]
    assert re.fullmatch(
        r"packing     [\d.]+ \w+ of [\d.]+ kB, [\d.]+ \w+ per second, about 0:00:\d\d left", line
    )


def test_a_long_run_of_letters_is_packed_in_time_and_whole(recipe, tmp_path):
    """Half a minute before; every letter is there."""
    dna = "".join(random.Random(0).choices("ACGT", k=400_000))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": dna}) + "\n")
    started = time.perf_counter()
    pack(changed(recipe, path=str(tmp_path / "a.jsonl"), validation_fraction=0.0))
    assert time.perf_counter() - started < 5
    tokens = PackedTokens(recipe.tokens_dir, TRAIN)
    ids = tokens.slice(0, len(tokens) - 1).tolist()
    assert load_tokenizer(recipe.tokenizer_dir).decode(ids) == dna


def test_limit_stops_after_the_document_that_reaches_it(recipe):
    manifest = pack(changed(recipe, max_tokens=20_000))
    train = manifest["splits"][TRAIN]
    assert 20_000 <= train["tokens"] < 30_000
    assert manifest["documents"]["past_limit"] > 0


def test_reused_when_unchanged_and_refused_when_not(packed, recipe, capsys):
    before = (packed / "train-00000.bin").stat().st_mtime_ns
    make_tokens(recipe)
    assert "reused, hashes verified" in capsys.readouterr().out
    assert (packed / "train-00000.bin").stat().st_mtime_ns == before
    with pytest.raises(AntError, match="made of other text or settings"):
        make_tokens(changed(recipe, validation_fraction=0.2))


def test_damaged_shards_and_manifests_are_refused_by_name(packed):
    shard = packed / "train-00001.bin"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(AntError, match=r"train-00001\.bin is damaged.*sha256"):
        verify_shards(packed)
    shard.write_bytes(data[:-2])
    with pytest.raises(AntError, match=r"train-00001\.bin is damaged.*9998 bytes"):
        read_manifest(packed)
    shard.unlink()
    with pytest.raises(AntError, match=r"train-00001\.bin is damaged"):
        PackedTokens(packed, TRAIN)
    for text in ("", "[]", "{}", json.dumps({"format_version": 1, "splits": {}})):
        (packed / "manifest.json").write_text(text)
        with pytest.raises(AntError, match=r"manifest\.json"):
            read_manifest(packed)


def test_an_unreadable_corpus_leaves_no_tokens(recipe, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(AntError, match="line 2"):
        pack(changed(recipe, path=str(tmp_path / "a.jsonl")))
    assert [path.name for path in recipe.tokens_dir.parent.iterdir()] == ["tokenizer"]
