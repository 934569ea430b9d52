import json
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from ant_hf.errors import AntError
from ant_hf.model.generation import encode_prompt, generate_sample
from ant_hf.model.loading import load_any, load_final


@pytest.fixture
def copy(tiny_run, tmp_path):
    shutil.copytree(tiny_run / "final", tmp_path / "final")
    return tmp_path / "final"


def test_final_holds_what_a_stranger_needs_and_nothing_else(tiny_run):
    assert sorted(p.name for p in (tiny_run / "final").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    tensors = load_file(tiny_run / "final" / "model.safetensors")
    assert "model.embed_tokens.weight" in tensors
    assert "lm_head.weight" not in tensors
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    text = (tiny_run / "final" / "config.json").read_text()
    assert str(tiny_run.parent) not in text
    assert json.loads(text)["rope_theta"] == 10000.0


@pytest.mark.skipif(sys.platform == "win32", reason="no such rights on Windows")
def test_who_may_read_the_configuration_may_read_the_weights(tiny_run):
    assert len({path.stat().st_mode for path in (tiny_run / "final").iterdir()}) == 1


def test_auto_classes_load_it_in_a_fresh_process_without_a_word(tiny_run):
    script = (
        "import sys, warnings\nwarnings.simplefilter('error')\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()\n"
        "assert len(tokenizer) == model.config.vocab_size\n"
    )
    command = [sys.executable, "-c", script, str(tiny_run / "final")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # The loader's progress bar is all that may be seen.
    assert "warn" not in result.stderr.lower()
    assert "missing" not in result.stderr.lower()


def test_reloaded_model_is_the_trained_one(tiny_run):
    model, info = AutoModelForCausalLM.from_pretrained(tiny_run / "final", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    checkpoint = load_file(tiny_run / "checkpoint-8" / "model.safetensors")
    state = model.state_dict()
    for name, value in checkpoint.items():
        assert torch.equal(state[name], value), name


def test_sampling_is_repeatable_and_continues_the_prompt(tiny_run):
    model, tokenizer = load_final(tiny_run / "final")
    first, again, other = (generate_sample(model, tokenizer, "In the", seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.startswith("In the")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ("and so on " * 40, r"has 1\d\d tokens, and the model takes at most 63"),
        ("\udc80", "not valid Unicode"),
    ],
    ids=["empty", "long", "surrogate"],
)
def test_prompts_without_room_are_refused(tiny_run, prompt, message):
    model, tokenizer = load_final(tiny_run / "final")
    with pytest.raises(AntError, match=message):
        generate_sample(model, tokenizer, prompt)


def test_names_of_special_tokens_in_a_prompt_are_plain_text(tiny_run):
    model, tokenizer = load_final(tiny_run / "final")
    ids = encode_prompt(model, tokenizer, "a<|endoftext|>b")
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_incomplete_or_foreign_weights_are_refused(copy):
    weights = load_file(copy / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "norm" not in k}, copy / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(AntError, match="missing keys"):
        load_final(copy)
    save_file({**weights, "extra": torch.zeros(2)}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(AntError, match="unexpected keys"):
        load_final(copy)
    (copy / "model.safetensors").write_bytes(b"junk" * 10_000)
    with pytest.raises(AntError, match=r"model\.safetensors is cut short or damaged"):
        load_final(copy)


def _change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: _change(f / "config.json", num_hidden_layers=-2),
            r"config\.json: num_hidden_layers is -2",
        ),
        (
            lambda f: _change(f / "config.json", hidden_size=64),
            "the weights have mismatched keys.*embed_tokens",
        ),
        (lambda f: (f / "tokenizer.json").write_text("{"), r"tokenizer\.json cannot be read"),
        (lambda f: (f / "tokenizer.json").unlink(), r"has no tokenizer; expected tokenizer\.json"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:20_000]),
            r"model\.safetensors is cut short or damaged.*Copy or download",
        ),
    ],
    ids=["negative size", "another size", "damaged tokenizer", "no tokenizer", "cut short"],
)
def test_a_model_of_anyone_that_is_damaged_has_its_file_named(copy, spoil, message):
    spoil(copy)
    with pytest.raises(AntError, match=message):
        load_any(copy)


def test_a_tokenizer_of_another_size_is_refused(copy):
    config = json.loads((copy / "tokenizer.json").read_text())
    config["added_tokens"].append(config["added_tokens"][0] | {"id": 384, "content": "<|new|>"})
    (copy / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(AntError, match="has more entries than the model"):
        load_final(copy)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(AntError, match="is not a model folder"):
        load_final(tmp_path)


def test_loading_leaves_the_users_logging_as_it_was(tiny_run):
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_info()
    try:
        load_final(tiny_run / "final")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() == bars
    finally:
        logging.set_verbosity_warning()


def test_tokenizer_loads_without_warning(tiny_run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = AutoTokenizer.from_pretrained(tiny_run / "final")
    assert tokenizer.is_fast
