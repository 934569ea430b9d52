"""Scores equal plain lm-eval's on every kind of causal model, in rows longer than its windows.

The models are made here: two layers of random weights, large enough that a token too many or too few shows.
"""

import pytest
import torch
from benchmark_data import piqa, write_jsonl
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from ant_hf.errors import AntError
from ant_hf.evaluation.degeneration import generate
from ant_hf.evaluation.evaluate import evaluate
from ant_hf.evaluation.language_model import BatchedLM, LikelihoodStore
from ant_hf.inspection.measures import layers_of
from ant_hf.model.causality import check_causal
from ant_hf.model.scoring import score_text

# Longer than a short row: what a model does beyond it must not be judged by what it does within.
WINDOW = 44
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 96,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
COMPUTED = {("falcon", "head_dim")}
LOCAL = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
QUICK = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {**LOCAL, "query_pre_attn_scalar": 8},
    "gemma3_text": {**LOCAL, "query_pre_attn_scalar": 8},
    "qwen2": {"use_sliding_window": True, **LOCAL},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "bloom": {"n_head": 4, "n_layer": 2},
    "mamba": {"state_size": 4},
    "rwkv": {"attention_hidden_size": 32},
    "phi3": {
        "original_max_position_embeddings": 48,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 48,
            "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0],
        },
    },
}  # fmt: skip
SLOW = {
    "gemma": {},
    "qwen3": {},
    "mixtral": {"sliding_window": WINDOW, **EXPERTS},
    "starcoder2": {"sliding_window": WINDOW},
    "cohere2": LOCAL,
    "olmo2": {},
    "stablelm": {},
    "phi": {},
    "gpt_neox": {},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "rotary_dim": 4},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "rotary_dim": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 96},
    "falcon": {"alibi": True},
    "llama4_text": {
        "attention_chunk_size": WINDOW, "intermediate_size_mlp": 48, "no_rope_layers": [1, 0], **EXPERTS,
    },
    "gpt_oss": {**LOCAL, **EXPERTS},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "recurrent_gemma": {"attention_window_size": WINDOW, "block_types": ["recurrent", "attention"]},
    "qwen3_next": {**LINEAR, **EXPERTS},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "biogpt": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    """One token a letter."""
    letters = "<>" + "".join(map(chr, range(32, 94)))
    made = Tokenizer(models.WordLevel({letter: at for at, letter in enumerate(dict.fromkeys(letters))}, "?"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<", eos_token="<", pad_token="<", model_max_length=96
    )


def causal_model(kind, values):
    torch.manual_seed(0)
    # Some kinds have a size under another name, or computed.
    sizes = {key: value for key, value in SIZES.items() if (kind, key) not in COMPUTED}
    config = AutoConfig.for_model(kind, **{**sizes, **values})
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.2)
    return model


def requests():
    """Answers of one and of several tokens behind contexts of 8 to 85 tokens, and without a context."""
    text = "THE RIVER IS LONG AND FLOWS TO THE SEA, WHERE 7 SHIPS OF 42 MEN WAIT FOR THE WIND TO TURN AGAIN."
    answers = (" A", " IT IS SALT", " NO", " THE LONG RIVER", "B")
    pairs = [(text[:size], answer) for size in (8, 20, 45, 60, 85) for answer in answers]
    pairs += [("", text[:40]), ("", text[:30])]
    return [Instance("loglikelihood", {}, pair, 0, ("set", i, 1)) for i, pair in enumerate(pairs)]


def pages():
    texts = ("A PAGE THAT IS LONGER THAN THE CONTEXT. " * 6, "A SHORT ONE.")
    return [
        Instance("loglikelihood_rolling", {}, (text,), 0, ("pages", i, 1)) for i, text in enumerate(texts)
    ]


KINDS = [*QUICK.items(), *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW.items())]


@pytest.mark.parametrize(("kind", "values"), KINDS)
def test_scores_are_those_of_plain_lm_eval(kind, values, tokenizer, tmp_path):
    model = causal_model(kind, values)
    check_causal(model)
    plain = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1)
    ours = BatchedLM(model, tokenizer, LikelihoodStore(tmp_path / "store", {}), 2)
    expected = plain.loglikelihood(requests(), disable_tqdm=True)
    found = ours.loglikelihood(requests())
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], rel=1e-5, abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    rolling = plain.loglikelihood_rolling(pages(), disable_tqdm=True)
    assert ours.loglikelihood_rolling(pages()) == pytest.approx(rolling, rel=1e-5)


@pytest.mark.parametrize(("kind", "values"), KINDS)
def test_what_it_writes_does_not_depend_on_its_neighbours(kind, values, tokenizer):
    model = causal_model(kind, values)
    texts = ["THE RIVER", "A SHIP OF 42 MEN WAITS FOR THE WIND", "NO", "THE WAVES"]
    together = generate(model, tokenizer, texts, sample=False)
    assert sum(len(output.ids) for output in together) > 20
    for output, text in zip(together, texts, strict=True):
        (alone,) = generate(model, tokenizer, [text], sample=False)
        # As far as phi3 keeps its first frequencies, whichever prompt is the longest.
        size = min(len(alone.ids), len(output.ids), 12)
        assert (output.prompt, output.ids[:size]) == (text, alone.ids[:size])


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "bloom", "mamba"])
def test_a_long_text_has_the_same_loss(kind, tokenizer):
    """`ant-hf perplexity` scores it by another way than `evaluate`."""
    model, text = causal_model(kind, QUICK[kind]), "A TEXT THAT IS LONGER THAN ITS WINDOW. " * 2
    plain = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1)
    page = Instance("loglikelihood_rolling", {}, (text,), 0, ("pages", 0, 1))
    (expected,) = plain.loglikelihood_rolling([page], disable_tqdm=True)
    assert score_text(model, tokenizer, text, 96).nats == pytest.approx(-expected, rel=1e-5)


def test_short_rows_of_a_model_with_a_window_are_shared(tokenizer, tmp_path):
    ours = BatchedLM(causal_model(*KINDS[1]), tokenizer, LikelihoodStore(tmp_path / "store", {}), 2)
    encoded = [(None, [1] * 10, [2, 3, 4]), (None, [1] * 10, [5, 6]), (None, [1] * 60, [2, 3])]
    encoded.append((None, [1] * 60, [4, 5]))
    assert sorted(len(row.requests) for row in ours._rows(encoded, range(4))) == [1, 1, 2]


def test_a_window_that_no_config_names_is_found_by_the_rows_themselves(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("ant_hf.evaluation.language_model.unwindowed_length", lambda config: float("inf"))
    test_scores_are_those_of_plain_lm_eval(*KINDS[1], tokenizer, tmp_path)


def test_a_model_that_reads_images_too_is_measured_on_text(tokenizer, tmp_path):
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "gemma3",
        text_config={**SIZES, "query_pre_attn_scalar": 8},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_jsonl(tmp_path / "piqa.jsonl", [piqa(0) | {"goal": "GO", "sol1": "A", "sol2": "B"}])
    values, _ = evaluate(tmp_path / "model", ["piqa"], data_dir=tmp_path, device="cpu")
    assert values["model"]["vocab_size"] == SIZES["vocab_size"]
    assert values["conditions"]["context_length"] == SIZES["max_position_embeddings"]
    with pytest.raises(AntError, match="only models built like a Llama can be inspected"):
        layers_of(model)


def test_evaluate_refuses_it_in_one_line(tokenizer, tmp_path):
    model = tmp_path / "bert"
    causal_model("bert", {}).save_pretrained(model)
    tokenizer.save_pretrained(model)
    write_jsonl(tmp_path / "piqa.jsonl", [piqa(0)])
    with pytest.raises(AntError, match="BertLMHeadModel reads a text from both sides") as raised:
        evaluate(model, ["piqa"], data_dir=tmp_path, device="cpu")
    assert "\n" not in str(raised.value)
    assert not list(model.glob("*results*"))


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_a_model_that_sees_what_comes_after_is_refused(kind):
    with pytest.raises(AntError, match="not a causal language model"):
        check_causal(causal_model(kind, {}))
