"""Figures of an inspection against what can be computed by hand, and against planted faults."""

import gzip
import math

import numpy as np
import pytest
import torch
from conftest import TINY_CONFIG
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from ant_hf.data.tokens import TRAIN, VALIDATION, PackedTokens
from ant_hf.errors import AntError
from ant_hf.inspection.examination import (
    MAX_CHARACTERS,
    Text,
    choose_text,
    count_tokens,
    held_out_text,
    inspect_model,
    run_tokens,
)
from ant_hf.inspection.fragments import next_tokens, read_text, readable, vocabulary
from ant_hf.inspection.measures import (
    Embeddings,
    effective_rank,
    embedding_norms,
    layers_of,
    read_activations,
    read_heads,
    read_matrices,
)
from ant_hf.model.architecture import build_model
from ant_hf.model.encoding import first_ids
from ant_hf.model.loading import Subject, check_weights, load_any
from ant_hf.model.scoring import score_tokens

EMOJI = "He said \u201cgo\u201d \U0001f600\n\tto caf\u00e9 12."


class InMemory(PackedTokens):
    """Token ids read like a split of packed tokens."""

    def __init__(self, ids):
        self.ids = np.array(ids)

    def __len__(self):
        return len(self.ids)

    def slice(self, start, stop):
        return self.ids[start:stop]


@pytest.fixture(scope="module")
def loaded(tiny_run):
    return load_any(tiny_run / "final")


@pytest.fixture
def model():
    return build_model(AutoConfig.for_model(**TINY_CONFIG), seed=0)


def read_fragments(model, tokenizer, text):
    return read_text(model, tokenizer, text, top=0).fragments


def test_losses_are_the_models_own(loaded):
    model, tokenizer = loaded
    fragments = read_fragments(model, tokenizer, EMOJI)
    ids = torch.tensor([[tokenizer.bos_token_id] + [fragment.token_id for fragment in fragments]])
    assert ids.shape[1] <= model.config.max_position_embeddings
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss.item()
    assert np.mean([fragment.nats for fragment in fragments]) == pytest.approx(expected, rel=1e-5)


def test_long_texts_score_as_perplexity_does(loaded, chapters):
    model, tokenizer = loaded
    reading = read_text(model, tokenizer, chapters[0][:1500], top=1)
    ids = [tokenizer.bos_token_id] + [fragment.token_id for fragment in reading.fragments]
    context = model.config.max_position_embeddings
    assert len(ids) > 2 * context
    scores = score_tokens(model, InMemory(ids), [0] * len(tokenizer), context=context, batch_size=2)
    assert sum(reading.losses) == pytest.approx(scores.nats, rel=1e-5)
    assert len(reading.losses) == scores.tokens
    size = len(chapters[0][:1500].encode())
    assert reading.bits_per_byte == pytest.approx(scores.nats / math.log(2) / size, rel=1e-5)


def test_fragments_tile_the_bytes_of_the_text(loaded):
    fragments = read_fragments(*loaded, EMOJI)
    assert b"".join(fragment.raw for fragment in fragments) == EMOJI.encode()
    for fragment in fragments:
        assert EMOJI.encode()[fragment.start : fragment.end] == fragment.raw
    # A vocabulary of 384 has no emoji: it comes as four bytes.
    assert "<F0> <9F> <98> <80> \u21b5 \u21e5" in " ".join(fragment.text for fragment in fragments)


def test_names_of_special_tokens_in_a_text_are_text(loaded):
    fragments = read_fragments(*loaded, "a<|endoftext|>b")
    assert 0 not in [fragment.token_id for fragment in fragments]
    assert fragments[-1].end == len("a<|endoftext|>b")


def test_without_a_prefix_token_the_first_fragment_has_no_loss(loaded, tiny_run):
    model, _ = loaded
    _, tokenizer = load_any(tiny_run / "final")
    tokenizer.bos_token = tokenizer.eos_token = None
    reading = read_text(model, tokenizer, "In the beginning")
    assert reading.fragments[0].nats is None
    assert reading.expected[0] is None
    assert all(fragment.nats is not None for fragment in reading.fragments[1:])
    subject = Subject("run", tiny_run / "final", model, tokenizer, {})
    with pytest.raises(AntError, match="nothing comes before"):
        inspect_model(subject, Text("In the beginning", "a text"), None, position=0)


@pytest.mark.parametrize("text", ["", "\ud800"])
def test_what_is_no_text_is_refused(loaded, text):
    with pytest.raises(AntError, match=r"the text is empty|not valid Unicode"):
        read_fragments(*loaded, text)


def test_next_tokens_are_the_softmax(loaded):
    model, tokenizer = loaded
    ids = tokenizer.encode("In the beginning", add_special_tokens=False)
    found = next_tokens(model, tokenizer, ids, top=20)
    with torch.no_grad():
        p = model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    assert found.candidates[0].token_id == int(p.argmax())
    assert [c.probability for c in found.candidates] == pytest.approx(
        p.sort().values.flip(0)[:20].tolist(), rel=1e-4
    )
    assert found.entropy_bits == pytest.approx(-float((p * p.log2()).sum()), rel=1e-4)


def test_invalid_utf8_is_what_python_cannot_decode(loaded):
    """Inside an unfinished character nearly everything is invalid; the mask must say the same."""
    model, tokenizer = loaded
    entries = vocabulary(tokenizer)
    before = tokenizer.encode("a \U0001f600", add_special_tokens=False, split_special_tokens=True)[:-2]
    pending = entries.pending(before)
    assert pending == b"\xf0\x9f"
    with torch.no_grad():
        p = model(input_ids=torch.tensor([before])).logits[0, -1].softmax(-1)
    # Followed by every possible ending, a valid start decodes with at least one of them.
    endings = [b"", *(bytes([b]) * n for b in (0x80, 0x90, 0x9F, 0xA0, 0xBF) for n in (1, 2, 3))]

    def follows(raw):
        for ending in endings:
            try:
                (pending + raw + ending).decode()
            except UnicodeDecodeError:
                continue
            return True
        return False

    invalid = [index for index in range(len(p)) if index in entries.special or not follows(entries.of(index))]
    assert 200 < len(invalid) < len(p)
    found = next_tokens(model, tokenizer, before)
    assert found.invalid_utf8_share == pytest.approx(float(p[invalid].sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b" the", "\u00b7the"),
        (b"\xe2\x80", "<E2><80>"),
        (b"\xf0\x9f\x98\x80\x80", "\U0001f600<80>"),
        (b"a\n\t", "a\u21b5\u21e5"),
        ("\u200b\u202e\x07".encode(), "<U+200B><U+202E><U+0007>"),
    ],
)
def test_readable_forms(raw, text):
    assert readable(raw) == text


def test_surrogates_and_overlong_forms_cannot_follow(loaded):
    entries = vocabulary(loaded[1])
    mask = entries.invalid_after(b"\xed", 384)
    by_byte = {entries.of(index): bool(mask[index]) for index in range(384)}
    assert not by_byte[b"\x9f"]
    assert by_byte[b"\xa0"]
    assert by_byte[b" "]


def test_sentencepiece_entries_are_bytes_too(tmp_path):
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    entries = {
        "<s>": 0,
        **{f"<0x{b:02X}>": b + 1 for b in range(256)},
        "\u2581": 257,
        "\u2581a": 258,
        "b": 259,
    }
    backend = Tokenizer(models.BPE(vocab=entries, merges=[], byte_fallback=True, unk_token="<s>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    model = build_model(AutoConfig.for_model(**TINY_CONFIG), seed=0)
    fragments = read_fragments(model, tokenizer, "b \u00e9")
    assert b"".join(fragment.raw for fragment in fragments) == "b \u00e9".encode()
    assert (fragments[0].start, fragments[-1].end) == (0, 4)


def test_predictability_is_the_mean_over_a_tokens_places(loaded):
    reading = read_text(*loaded, "In the man and the man and the man and then")
    fragments, ordered = reading.fragments, reading.by_predictability
    most, least = reading.extremes(1000)
    assert len(most) == len(least) == len(ordered) // 2
    assert (most[0], least[0]) == (ordered[0], ordered[-1])
    assert not {token.token_id for token in most} & {token.token_id for token in least}
    assert [len(side) for side in reading.extremes(1)] == [1, 1]
    assert [token.nats for token in ordered] == sorted(token.nats for token in ordered)
    losses = {
        token.token_id: [f.nats for f in fragments if f.token_id == token.token_id] for token in ordered
    }
    assert len(losses) >= 3
    for token in ordered:
        assert token.count == len(losses[token.token_id]) >= 3
        assert token.nats == pytest.approx(np.mean(losses[token.token_id]))


def test_effective_rank_of_known_spectra():
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert effective_rank(np.array([3.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(np.zeros(3)) == 0
    # Entropy of 1/2, 1/4, 1/4 is 1.5 bits.
    assert effective_rank(np.array([2.0, 1, 1])) == pytest.approx(2**1.5)


def test_matrices_are_numpys(model):
    matrices = read_matrices(model)
    assert [(m.layer, m.name) for m in matrices[:8]] == [
        *(
            (0, name)
            for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        ),
        (1, "q_proj"),
    ]
    found = next(m for m in matrices if (m.layer, m.name) == (1, "down_proj"))
    weight = model.model.layers[1].mlp.down_proj.weight.detach().double().numpy()
    assert found.singular_values == pytest.approx(np.linalg.svd(weight, compute_uv=False), rel=1e-9)
    assert found.frobenius_norm == pytest.approx(np.linalg.norm(weight))
    assert found.rms == pytest.approx(np.sqrt((weight**2).mean()))


def test_planted_outlier_is_found(model):
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[5, 7] = 1.0
    worst = max(read_matrices(model), key=lambda matrix: matrix.largest_deviation)
    assert (worst.layer, worst.name, worst.largest_at, worst.outliers) == (0, "up_proj", (5, 7), 1)
    assert worst.largest_deviation > 20


def test_planted_dead_and_duplicated_heads_are_found(model):
    size = TINY_CONFIG["head_dim"]
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight[:, 2 * size : 3 * size] = 0
        copied = model.model.layers[1].self_attn
        # Heads 0 and 1 share their key-value head.
        copied.q_proj.weight[size : 2 * size] = 2 * copied.q_proj.weight[:size]
        copied.o_proj.weight[:, size : 2 * size] = copied.o_proj.weight[:, :size]
    heads = read_heads(model)
    assert [(head.layer, head.head) for head in heads if head.dead] == [(0, 2)]
    assert [(head.layer, head.head, head.duplicates) for head in heads if head.duplicates is not None] == [
        (1, 0, 1),
        (1, 1, 0),
    ]


def test_head_norms_are_those_of_the_products(model):
    attention, size = model.model.layers[0].self_attn, TINY_CONFIG["head_dim"]
    o, v = attention.o_proj.weight.detach(), attention.v_proj.weight.detach()
    for head in read_heads(model)[:4]:
        columns, group = slice(head.head * size, (head.head + 1) * size), head.head // 2
        product = o[:, columns] @ v[group * size : (group + 1) * size]
        assert head.write_norm == pytest.approx(float(product.norm()), rel=1e-5)


def test_counts_and_never_trained_tokens(loaded, tiny_run):
    model, tokenizer = loaded
    tokens = run_tokens(tiny_run / "final")
    counts = count_tokens(tokens, 384)
    split = PackedTokens(tokens, TRAIN)
    assert counts.sum() == len(split)
    assert counts.tolist() == np.bincount(split.slice(0, len(split)), minlength=384).tolist()
    embeddings = Embeddings(embedding_norms(model), counts, "training", from_training=True)
    assert tokenizer.pad_token_id in embeddings.unseen
    assert vocabulary(tokenizer).text(tokenizer.pad_token_id) == "<|pad|>"
    weight = model.get_input_embeddings().weight.detach().numpy()
    assert embeddings.norms[5] == pytest.approx(np.linalg.norm(weight[5]), rel=1e-5)
    assert (
        tokenizer.encode(held_out_text(tokens, tokenizer, 50))[:20]
        == PackedTokens(tokens, VALIDATION).slice(0, 20).tolist()
    )


def test_activations_against_transformers_own_outputs(loaded, chapters):
    model, tokenizer = loaded
    ids = first_ids(tokenizer) + tokenizer.encode(chapters[0])[:63]
    before, hooks = model.config._attn_implementation, len(model.model.layers[0]._forward_hooks)
    found = read_activations(model, ids)
    assert len(model.model.layers[0]._forward_hooks) == hooks
    assert model.config._attn_implementation == before
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation(before)
    for layer, attention in enumerate(output.attentions):
        p = attention[0].double().numpy()
        for head in range(p.shape[0]):
            share = [
                -sum(x * math.log(x) for x in p[head, t, : t + 1] if x > 0) / math.log(t + 1)
                for t in range(1, len(ids))
            ]
            assert found.entropy[layer, head] == pytest.approx(np.mean(share), abs=1e-4)
    states = output.hidden_states[1][0].double().numpy()
    values = np.linalg.svd(states - states.mean(0), compute_uv=False)
    assert found.hidden_rank[1] == pytest.approx(effective_rank(values), rel=1e-4)
    assert len(found.hidden_rank) == 3
    logits = output.logits[0].numpy()
    assert found.logit_std == pytest.approx(logits.std(-1, ddof=1).mean(), rel=1e-4)


@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "olmo2", "mistral"])
def test_relatives_of_llama_are_measured(model_type):
    """Norms of queries, soft caps, windows, norms behind the blocks, an output of its own."""
    values = TINY_CONFIG | {"model_type": model_type, "tie_word_embeddings": False}
    del values["rope_parameters"]
    model = build_model(AutoConfig.for_model(**values), seed=0, attn_implementation="eager")
    check_weights(model)
    assert len(read_matrices(model)) == 2 * 7
    assert not [head for head in read_heads(model) if head.dead or head.duplicates is not None]
    seen = read_activations(model, list(range(2, 40)))
    assert seen.entropy.shape == (2, 4)
    assert (seen.entropy >= 0).all()
    assert (seen.entropy <= 1.0001).all()


def test_other_architectures_and_broken_weights_are_refused(model):
    with pytest.raises(AntError, match=r"only models built like a Llama.*GPT2LMHeadModel"):
        layers_of(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8)))
    experts = AutoConfig.for_model(**TINY_CONFIG | {"model_type": "mixtral", "num_local_experts": 2})
    with pytest.raises(AntError, match=r"MixtralForCausalLM.*dense layers"):
        layers_of(build_model(experts, seed=0))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, :3] = math.nan
    with pytest.raises(AntError, match=r"layers\.1\.mlp\.up_proj\.weight contains NaN.*3 of 2,048"):
        check_weights(model)


def test_text_from_everywhere(tmp_path, loaded):
    tokenizer = loaded[1]
    file = tmp_path / "a.txt"
    file.write_text("x " * MAX_CHARACTERS, encoding="utf-8")
    assert choose_text("In the", None, tokenizer).content == "In the"
    long = choose_text(str(file), None, tokenizer)
    assert len(long.content) == MAX_CHARACTERS
    assert "a.txt" in long.source
    assert "plain English" in choose_text(None, None, tokenizer).source
    # As `ant-hf perplexity --text` reads them: packed, and without the mark of an encoding.
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbfIn the"))
    assert choose_text(str(packed), None, tokenizer).content == "In the"
    file.write_bytes(b"\xff\xfe")
    for given, problem in ((str(file), "UTF-8"), ("none.txt", "not found"), (" \n", "is empty")):
        with pytest.raises(AntError, match=problem):
            choose_text(given, None, tokenizer)
