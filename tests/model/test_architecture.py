import json

import pytest
import torch
from conftest import ROOT, TINY_CONFIG
from transformers import AutoConfig, LlamaForCausalLM

from ant_hf.errors import AntError
from ant_hf.model.architecture import build_model, load_architecture, load_config, parameter_ledger
from ant_hf.published import published_counterpart
from ant_hf.train.setup import training_flops_per_token

ANT_10M = ROOT / "configs" / "llama_ant10m.json"
ANT_5M = ROOT / "configs" / "llama_ant5m.json"


def test_ant10m_has_the_parameters_of_its_equation():
    config = load_config(ANT_10M)
    ledger = parameter_ledger(config)
    assert ledger.equation() == "1,048,576 embeddings + 12 x 737,792 + 256 final norm = 9,902,336"
    assert sum(count for _, count in ledger.rows) == 9_902_336
    assert published_counterpart(config).parameters - ledger.total == 128


def test_ant5m_reconstruction_matches_the_published_size_and_share():
    config = load_config(ANT_5M)
    ledger = parameter_ledger(config)
    assert ledger.total == 4_735_872
    assert round(ledger.embedding_share, 3) == 0.443
    assert published_counterpart(config).name == "Ant-5M"


def test_configs_are_plain_llama_configs(tmp_path):
    for path in (ANT_10M, ANT_5M):
        (tmp_path / "config.json").write_bytes(path.read_bytes())
        loaded = AutoConfig.from_pretrained(tmp_path).to_dict()
        assert loaded | {"_name_or_path": ""} == load_config(path).to_dict()


def test_model_is_stock_llama_tied_and_seeded(shared):
    config = load_config(shared / "config.json")
    first, again, other = (build_model(config, seed) for seed in (1, 1, 2))
    assert type(first) is LlamaForCausalLM
    assert first.get_output_embeddings().weight.data_ptr() == first.get_input_embeddings().weight.data_ptr()
    weights = [m.get_input_embeddings().weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert parameter_ledger(config).total == sum(p.numel() for p in first.parameters())


def test_training_flops_of_ant10m():
    # 6 x (embeddings + 12 x (737,792 - 512 norms)) and 6 x 12 layers x 256 x 1,024 for causal attention.
    expected = 6 * (1_048_576 + 12 * 737_280) + 6 * 12 * 256 * 1024
    assert training_flops_per_token(*load_architecture(ANT_10M), 1024) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hiden_size": 256}, ["hiden_size is not a key", "did you mean hidden_size"]),
        ({"num_hidden_layers": -1}, ["num_hidden_layers is -1", "above 0"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers is True"]),
        ({"hidden_size": "256"}, ["hidden_size is '256'"]),
        ({"num_attention_heads": 5}, ["num_attention_heads is 5", "divide hidden_size (32)"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads is 3", "divide num_attention_heads (4)"]),
        ({"head_dim": 7}, ["head_dim is 7", "even"]),
        ({"vocab_size": 100_000}, ["vocab_size is 100000", "uint16"]),
        ({"model_type": "gpt2"}, ["model_type is 'gpt2'"]),
        ({"auto_map": {"AutoConfig": "evil.Config"}}, ["auto_map is not a key"]),
        ({"rms_norm_eps": "tiny"}, ["does not accept"]),
        ({"hiden_size": 1, "num_hidden_layers": 0}, ["2 problems", "hiden_size", "num_hidden_layers is 0"]),
    ],
)
def test_impossible_configs_are_refused(tmp_path, change, words):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TINY_CONFIG | change))
    with pytest.raises(AntError) as caught:
        load_config(file)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(AntError, match=r"config\.json"):
        load_config(file)
    with pytest.raises(AntError, match="not found"):
        load_config(tmp_path / "other.json")
