import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ant_hf.data.tokenizer import load_tokenizer, token_byte_lengths
from ant_hf.data.tokens import VALIDATION, PackedTokens, read_manifest
from ant_hf.errors import AntError
from ant_hf.model.loading import load_final
from ant_hf.model.scoring import score_folder, score_tokens
from ant_hf.utils.files import file_sha256, write_sealed
from ant_hf.utils.names import MANIFEST

# Of the four tokens of KnownModel.
BYTES = [0, 1, 1, 4]


class FixedTokens:
    def __init__(self, ids):
        self.ids = np.array(ids, dtype=np.uint16)

    def __len__(self):
        return len(self.ids)

    def slice(self, start, stop):
        return self.ids[start:stop]


class KnownModel:
    """Gives token 3 probability 1/2 wherever it stands, and shares the rest among the other three."""

    device = torch.device("cpu")
    training = False

    def eval(self):
        return self

    def train(self, mode=True):
        return self

    def __call__(self, input_ids, use_cache):
        logits = torch.log(torch.tensor([1 / 6, 1 / 6, 1 / 6, 1 / 2])).expand(*input_ids.shape, 4)
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("sequence_length", [2, 3, 100])
def test_scores_by_hand(batch_size, sequence_length):
    # Targets are all but the first: 3, 0, 3, 1, 3. Token 0 is special and stands for no bytes.
    tokens = FixedTokens([1, 3, 0, 3, 1, 3])
    scores = score_tokens(KnownModel(), tokens, BYTES, context=sequence_length, batch_size=batch_size)
    nats = 3 * math.log(2) + 2 * math.log(6)
    assert scores.tokens == 5
    assert scores.bytes == 3 * 4 + 0 + 1
    assert scores.nats == pytest.approx(nats, rel=1e-6)
    assert scores.loss == pytest.approx(nats / 5)
    assert scores.perplexity == pytest.approx(math.exp(nats / 5))
    assert scores.bits_per_byte == pytest.approx(nats / math.log(2) / 13)
    assert scores.byte_perplexity == pytest.approx(2**scores.bits_per_byte)
    assert scores.uniform_byte_perplexity == pytest.approx(4 ** (5 / 13))


def test_limit_and_shares_of_processes_add_up():
    tokens = FixedTokens([1, 3, 0, 3, 1, 3, 2, 2])
    whole = score_tokens(KnownModel(), tokens, BYTES, context=2, batch_size=1)
    parts = [score_tokens(KnownModel(), tokens, BYTES, context=2, batch_size=1, share=(i, 2)) for i in (0, 1)]
    assert sum(p.nats for p in parts) == pytest.approx(whole.nats)
    assert (sum(p.tokens for p in parts), sum(p.bytes for p in parts)) == (whole.tokens, whole.bytes)


def test_a_limit_takes_whole_windows_from_all_over_the_text():
    # Eight tokens of one source, then eight of another: a limit must hear both.
    tokens = FixedTokens([1] * 9 + [3] * 8)
    half = score_tokens(KnownModel(), tokens, BYTES, context=2, batch_size=4, max_tokens=8)
    assert (half.tokens, half.bytes) == (8, 4 * 1 + 4 * 4)
    for limit in (3, 1):
        scores = score_tokens(KnownModel(), tokens, BYTES, context=2, batch_size=4, max_tokens=limit)
        assert scores.tokens == 2


def test_batch_size_does_not_change_a_real_models_score(tiny_run):
    model, _ = load_final(tiny_run / "final")
    tokens = PackedTokens(tiny_run / "tokens", VALIDATION)
    lengths = token_byte_lengths(load_tokenizer(tiny_run / "tokenizer"))
    one, many = (
        score_tokens(model, tokens, lengths, context=64, batch_size=size, max_tokens=1000) for size in (1, 16)
    )
    assert one.nats == pytest.approx(many.nats, rel=1e-6)
    assert (one.tokens, one.bytes) == (many.tokens, many.bytes) == (1000 // 64 * 64, one.bytes)


def test_all_validation_bytes_are_counted(tiny_run):
    tokens = PackedTokens(tiny_run / "tokens", VALIDATION)
    scores, context = score_folder(tiny_run / "final", tiny_run / "tokens")
    first = token_byte_lengths(load_tokenizer(tiny_run / "tokenizer"))[int(tokens.slice(0, 1)[0])]
    assert scores.tokens == len(tokens) - 1
    assert scores.bytes == tokens.bytes - first
    assert context == 64
    assert 1 < scores.byte_perplexity < scores.uniform_byte_perplexity


def test_tokens_of_another_tokenizer_are_refused(tiny_run, tmp_path, shared):
    shutil.copytree(tiny_run / "final", tmp_path / "final")
    path = tmp_path / "final" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(AntError, match="another tokenizer"):
        score_folder(tmp_path / "final", tiny_run / "tokens")


@pytest.mark.parametrize("context", [-5, 0, 65, 100_000])
def test_a_context_the_model_does_not_take_is_refused(tiny_run, context):
    with pytest.raises(AntError, match=rf"--context .* saw {context}; expected 1 to 64 tokens"):
        score_folder(tiny_run / "final", tiny_run / "tokens", context)


def test_a_context_of_one_token_is_the_shortest(tiny_run):
    scores, context = score_folder(tiny_run / "final", tiny_run / "tokens", 1, batch_size=4096)
    assert context == 1
    assert 1 < scores.byte_perplexity < scores.uniform_byte_perplexity


def test_the_logits_of_a_batch_fit_the_memory(tiny_run, monkeypatch):
    sizes = []

    def counted(*args, **given):
        sizes.append(given["batch_size"])
        return score_tokens(*args, **given)

    monkeypatch.setattr("ant_hf.model.scoring.score_tokens", counted)
    for room in (2**28, 64 * 384 * 3):
        monkeypatch.setattr("ant_hf.model.scoring._LOGITS_AT_ONCE", room)
        score_folder(tiny_run / "final", tiny_run / "tokens")
    assert sizes == [8, 3]


def test_held_out_text_without_a_byte_to_score_is_refused(tiny_run, tmp_path):
    # One token and the end of the text: the first is not scored, the other counts no bytes.
    tokens = shutil.copytree(tiny_run / "tokens", tmp_path / "tokens")
    first = PackedTokens(tokens, VALIDATION).slice(0, 1)[0]
    shard = tokens / "validation-00000.bin"
    shard.write_bytes(np.array([first, 0], dtype="<u2").tobytes())
    manifest = read_manifest(tiny_run / "tokens")
    shards = [{"file": shard.name, "tokens": 2, "sha256": file_sha256(shard)}]
    manifest["splits"][VALIDATION] = {"documents": 1, "tokens": 2, "bytes": 1, "shards": shards}
    write_sealed(tokens / MANIFEST, manifest)
    with pytest.raises(AntError, match="is too short to be scored; saw '2 tokens"):
        score_folder(tiny_run / "final", tokens)
