"""Models that were not made here: every command takes them, or says in one message why not."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from commands import run_here
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer

from ant_hf.errors import AntError
from ant_hf.model.encoding import added_ids, context_length, decode, encode
from ant_hf.model.generation import encode_prompt, generate_sample
from ant_hf.model.loading import load_any, tokenizer_folder
from ant_hf.model.scoring import score_text
from ant_hf.release import gate
from ant_hf.release.verify import Job

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 400}
LLAMA = {**SIZES, "intermediate_size": 64, "max_position_embeddings": 128, "tie_word_embeddings": True}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
NO_TOKENS = dict.fromkeys(TOKENS)
TEXT = "In the beginning God created the heavens and the earth."


def save(folder, kind, values, tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def scale_norm(folder, factor):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= factor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def foreign(once, prepared):
    """A folder of models by name; read-only for tests."""

    def fill(root):
        plain = AutoTokenizer.from_pretrained(prepared / "tokenizer")
        without = AutoTokenizer.from_pretrained(prepared / "tokenizer")
        without.bos_token = without.eos_token = without.pad_token = None
        adding = AutoTokenizer.from_pretrained(prepared / "tokenizer")
        adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
        mamba = SIZES | {"state_size": 8, "num_attention_heads": None}
        save(root / "llama", "llama", LLAMA | TOKENS, plain)
        save(root / "bloom", "bloom", {**SIZES, **TOKENS, "n_layer": 2, "n_head": 4}, plain)
        save(root / "mamba", "mamba", mamba | TOKENS, plain)
        save(root / "gpt2", "gpt2", {**SIZES, **NO_TOKENS, "n_positions": 64, "n_embd": 32}, without)
        save(root / "no-bos", "llama", LLAMA | NO_TOKENS, without)
        save(root / "adds-bos", "llama", LLAMA | TOKENS, adding)
        save(root / "bytes", "llama", LLAMA | TOKENS, ByT5Tokenizer(extra_ids=0))
        save(root / "short", "llama", LLAMA | TOKENS | {"max_position_embeddings": 16}, plain)
        save(root / "bert", "bert", SIZES | {"intermediate_size": 64}, plain)

    return once("foreign", fill)


FAMILIES = ["llama", "bloom", "mamba", "gpt2", "no-bos", "adds-bos", "bytes", "short"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_command_takes_a_model_from_elsewhere(foreign, name, tmp_path):
    folder, file = foreign / name, tmp_path / "text.txt"
    file.write_text(TEXT)
    commands = {
        "generate": ["--prompt", "In", "--max-new-tokens", "4"],
        "perplexity": ["--text", str(file)],
        "params": [],
    }
    for command, options in commands.items():
        result = run_here("ant-hf", command, str(folder), *options)
        assert result.returncode == 0, (command, result.stderr)
        assert "nan" not in result.stdout
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert f" = {model.num_parameters():,}" in result.stdout


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gate_looks_at_a_model_from_elsewhere(foreign, name):
    found = {check.name: check for check in gate.run_checks(Job(folder=foreign / name))}
    assert [check.name for check in found.values() if check.passed is False] == []
    # Random weights, of which nobody says that they are English.
    assert found["plain English against a uniform guess"].passed is None
    assert "--tasks" not in found["generation"].seen


def test_english_counts_where_somebody_says_so(foreign):
    for languages, passed in (["en"], False), (["ru", "en-GB"], False), (["ru"], None), ([], None):
        job = Job(folder=foreign / "llama", languages=languages)
        english = next(check for check in gate.run_checks(job) if "English" in check.name)
        assert english.passed is passed


@pytest.mark.parametrize("factor", [math.nan, 1e38])
def test_scores_that_are_no_numbers_are_said_to_be(foreign, tmp_path, factor):
    folder = shutil.copytree(foreign / "llama", tmp_path / "broken")
    scale_norm(folder, factor)
    (tmp_path / "text.txt").write_text(TEXT)
    for options in (["generate", "--prompt", "In"], ["perplexity", "--text", str(tmp_path / "text.txt")]):
        result = run_here("ant-hf", options[0], str(folder), *options[1:])
        if factor == factor:  # finite, and too large for the loss alone
            assert "nan" not in result.stdout
        else:
            assert result.returncode == 2
            assert "not a number" in result.stderr or "not numbers" in result.stderr
    # In a language that is not checked, too.
    failed = [c for c in gate.run_checks(Job(folder=folder, languages=["ru"])) if c.passed is False]
    assert factor == factor or failed
    assert not [check for check in failed if "nan" in check.seen]


def test_a_huge_but_finite_loss_has_figures(foreign, tmp_path):
    folder = shutil.copytree(foreign / "llama", tmp_path / "huge")
    scale_norm(folder, 1e6)
    (tmp_path / "text.txt").write_text(TEXT)
    result = run_here("ant-hf", "perplexity", str(folder), "--text", str(tmp_path / "text.txt"))
    assert result.returncode == 0, result.stderr
    assert "beyond 1e304" in result.stdout
    english = next(c for c in gate.run_checks(Job(folder=folder, languages=["en"])) if "English" in c.name)
    assert english.passed is False
    assert "more than 10,000% of its nats" in english.seen
    json.dumps(english.numbers, allow_nan=False)


def test_what_the_tokenizer_puts_before_a_text_is_there_once(foreign):
    model, tokenizer = load_any(foreign / "adds-bos")
    assert added_ids(tokenizer) == [0]
    assert encode_prompt(model, tokenizer, "In the") == [0, *encode(tokenizer, "In the")]
    plain = load_any(foreign / "llama")
    assert encode_prompt(*plain, "In the") == encode(tokenizer, "In the")
    # An end-of-text token behind the prompt would tell the model that it is over.
    slow = load_any(foreign / "bytes")
    assert slow[1]("In")["input_ids"][-1] == slow[1].eos_token_id
    assert encode_prompt(*slow, "In") == encode(slow[1], "In")


@torch.no_grad()
def test_windows_of_a_text_begin_as_the_tokenizer_says(foreign):
    """By hand: with its BOS token before every window where that is its rule, else before the first alone."""
    ids = encode(load_any(foreign / "llama")[1], TEXT)
    for name in ("adds-bos", "llama", "no-bos"):
        model, tokenizer = load_any(foreign / name)
        begin = [] if name == "no-bos" else [0]
        rows = [begin + ids[:8], ids[7:15]] if name == "llama" else [begin + ids[:8], begin + ids[8:16]]
        if name == "no-bos":
            rows = [ids[:9], ids[8:17]]
        text = decode(tokenizer, ids[: 17 if name == "no-bos" else 16])
        logs = [torch.log_softmax(model(torch.tensor([row[:-1]])).logits[0], -1) for row in rows]
        nats = [-log[range(len(row) - 1), row[1:]].sum().item() for log, row in zip(logs, rows, strict=True)]
        if name == "llama":
            # Sixteen tokens after the first one, in windows of eight.
            rows = [begin + ids[:8], ids[7:16]]
            logs = [torch.log_softmax(model(torch.tensor([row[:-1]])).logits[0], -1) for row in rows]
            nats = [
                -log[range(len(row) - 1), row[1:]].sum().item() for log, row in zip(logs, rows, strict=True)
            ]
        scores = score_text(model, tokenizer, text, context=8)
        assert scores.nats == pytest.approx(sum(nats), rel=1e-5), name
        assert scores.tokens == 16
        unscored = len(decode(tokenizer, ids[:1])) if name == "no-bos" else 0
        assert scores.bytes == len(text) - unscored


def test_context_is_found_as_lm_eval_finds_it(foreign):
    from lm_eval.models.huggingface import resolve_max_length

    for name in FAMILIES:
        model, tokenizer = load_any(foreign / name)
        assert context_length(model, tokenizer) == resolve_max_length(model.config, tokenizer, default=2048)


def test_a_model_that_reads_both_ways_is_refused(foreign, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    for options in (["generate", "--prompt", "In"], ["perplexity", "--text", str(tmp_path / "text.txt")]):
        result = run_here("ant-hf", options[0], str(foreign / "bert"), *options[1:])
        assert result.returncode == 2
        assert "not a causal language model" in result.stderr
    found = {check.name: check.passed for check in gate.run_checks(Job(folder=foreign / "bert"))}
    assert found["reads from left to right"] is False


def test_keys_that_other_programs_write_are_no_obstacle(foreign, tiny_run, tmp_path):
    theirs = {
        "_model_name_or_path": "x/y", "_attn_implementation_autoset": True, "unsloth_fixed": True,
        "torch_dtype": "float32", "transformers_version": "4.51.0",
    }  # fmt: skip
    final = shutil.copytree(tiny_run / "final", tmp_path / "model")
    change(final / "config.json", **theirs)
    for words in (
        ["perplexity", final, "--tokens", tiny_run / "tokens"],
        ["generate", final, "--prompt", "In"],
        ["params", final],
        ["verify", final],
    ):
        if words[0] != "verify":
            assert run_here("ant-hf", *words).returncode == 0, words
    checks = gate.run_checks(Job(folder=final))
    assert [check.name for check in checks if check.passed is False] == []


def test_a_loader_says_what_is_missing(foreign, tiny_run, tmp_path):
    def refused(folder):
        result = run_here("ant-hf", "generate", str(folder), "--prompt", "In")
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        with pytest.raises(AntError):
            load_any(folder)
        return result.stderr

    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(tmp_path / "empty")
    assert f"Did you mean {tiny_run / 'final'}?" in refused(tiny_run)
    assert "is a file" in refused(tiny_run / "final" / "model.safetensors")
    pickled = shutil.copytree(foreign / "llama", tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "Pickles can run code" in refused(pickled)
    bare = shutil.copytree(foreign / "llama", tmp_path / "bare")
    for settings in (None, {"tokenizer_class": "LlamaTokenizer"}, {"tokenizer_class": "TokenizersBackend"}):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (bare / name).unlink(missing_ok=True)
        if settings:
            (bare / "tokenizer_config.json").write_text(json.dumps(settings))
        assert "has no tokenizer" in refused(bare)
        loading = gate.run_checks(Job(folder=bare))[0]
        assert loading.passed is False
        assert "has no tokenizer" in loading.seen
    both = shutil.copytree(foreign / "llama", tmp_path / "both")
    change(both / "config.json", is_encoder_decoder=True)
    assert "encoder-decoder" in refused(both)


def test_weights_of_a_few_bits_are_not_called_cut_short(tiny_run, tmp_path):
    model = shutil.copytree(tiny_run / "final", tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {"hidden_size": 320}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(AntError, match="is cut short, or"):
        load_any(model)
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(AntError, match=r"are quantized to less than 8 bits.*Pass the model that it was made"):
        load_any(model)


def test_a_checkpoint_has_the_tokenizer_it_was_trained_with(tiny_run, tmp_path):
    run, other = shutil.copytree(tiny_run, tmp_path / "run"), tmp_path / "data" / "tokenizer"
    shutil.copytree(run / "tokenizer", other)
    changed = (other / "tokenizer.json").read_text() + "\n"
    (other / "tokenizer.json").write_text(changed)
    # As a relative data_dir of another project would be found from there.
    record = json.loads((run / "run.json").read_text())
    record["recipe"]["data_dir"] = str(other.parent)
    (run / "run.json").write_text(json.dumps(record))
    assert tokenizer_folder(run / "checkpoint-8") == run / "tokenizer"
    (run / "tokenizer" / "tokenizer.json").write_text(changed)
    with pytest.raises(AntError, match=r"another tokenizer than .*run was trained with"):
        load_any(run / "checkpoint-8")


def test_names_that_look_like_paths_never_ask_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("ant_hf.release.verify.fetch_model", lambda *_: pytest.fail("asked the Hub"))
    monkeypatch.setattr("ant_hf.model.loading.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    (tmp_path / "release" / "Ant-10M").mkdir(parents=True)
    for name in ("release/Ant-10N", "./a/b", "../x", "/x/y", "~/nowhere/x", "a/b/c", "~/nothing", "gpt2"):
        for command in ("verify", "generate"):
            result = run_here("ant-hf", command, name, cwd=tmp_path)
            assert result.returncode == 2
            assert f"model not found: {Path(name).expanduser() if name[0] == '~' else name}" in result.stderr
            assert ("Did you mean release/Ant-10M?" in result.stderr) == (name == "release/Ant-10N")


def test_a_tokenizer_in_python_decodes_what_the_model_may_say(foreign):
    model, tokenizer = load_any(foreign / "bytes")
    assert not tokenizer.is_fast
    assert decode(tokenizer, [100, 399, 101]) == "ab"
    assert generate_sample(model, tokenizer, "\u0440\u0435\u043a\u0430", seed=3).startswith(
        "\u0440\u0435\u043a\u0430"
    )
