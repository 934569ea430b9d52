"""What `ant-hf generate` and `perplexity` do with options, prompts, checkpoints, and output of any kind."""

import io
import os
import subprocess
import sys

import pytest
from commands import in_a_process, run_here
from rich.table import Table
from transformers import GenerationConfig

from ant_hf.data.tokenizer import load_tokenizer
from ant_hf.model.generation import generate_sample, sampling
from ant_hf.model.loading import load_any
from ant_hf.utils import console

RUSSIAN = "\u0440\u0435\u043a\u0430"


@pytest.fixture(scope="module")
def loaded(tiny_run):
    return load_any(tiny_run / "final")


def generate(folder, *options):
    result = run_here("ant-hf", "generate", str(folder), *options)
    assert result.returncode == 0, result.stderr
    return result


def test_settings_are_the_cards_the_models_or_those_given(loaded, tiny_run):
    model, _ = loaded
    settings, line = sampling(model, False, {})
    assert settings == {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.5}
    assert "the public card's" in line
    own = model.generation_config
    model.generation_config = GenerationConfig(temperature=0.6, top_k=20, eos_token_id=[0, 5])
    settings, line = sampling(model, False, {"top_p": 0.5})
    assert settings == {"temperature": 0.6, "top_p": 0.5, "top_k": 20, "repetition_penalty": 1.0}
    assert "the model's own" in line
    model.generation_config = own
    options = ["--prompt", "And", "--temperature", "0.3", "--top-p", "0.5", "--top-k", "9"]
    said = generate(tiny_run / "final", *options, "--repetition-penalty", "1.1", "--max-new-tokens", "5")
    assert said.stderr == "sampling    temperature 0.3, top p 0.5, top k 9, repetition penalty 1.1\n"


def test_the_command_says_what_the_function_returns(loaded, tiny_run):
    text = generate_sample(*loaded, "And God", seed=4, max_new_tokens=20)
    pieces = []
    assert generate_sample(*loaded, "And God", seed=4, max_new_tokens=20, show=pieces.append) == text
    assert len(pieces) > 3
    assert "".join(pieces) == text
    said = generate(tiny_run / "final", "--prompt", "And God", "--seed", "4", "--max-new-tokens", "20")
    assert said.stdout == f"{text}\n"


def test_greedy_needs_no_seed_and_samples_have_seeds_of_their_own(loaded, tiny_run):
    greedy = [generate_sample(*loaded, "And", seed, greedy=True, max_new_tokens=9) for seed in (0, 1)]
    assert greedy[0] == greedy[1]
    options = ["--prompt", "And", "--max-new-tokens", "9"]
    assert generate(tiny_run / "final", *options, "--temperature", "0").stdout == f"{greedy[0]}\n"
    said = generate(tiny_run / "final", *options, "--num-samples", "2", "--seed", "7").stdout
    texts = [generate_sample(*loaded, "And", seed, max_new_tokens=9) for seed in (7, 8)]
    assert said == f"[seed 7]\n{texts[0]}\n[seed 8]\n{texts[1]}\n"


@pytest.mark.parametrize("seed", [-1, 2**64, 10**40])
def test_seeds_of_any_size(tiny_run, seed):
    said = generate(tiny_run / "final", "--prompt", "And", "--seed", str(seed), "--max-new-tokens", "3")
    assert said.stdout.startswith("And")


def test_prompts_are_read_line_by_line(tiny_run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("And\n\nBut God\n"))
    lines = generate(tiny_run / "final", "--max-new-tokens", "1", "--greedy").stdout
    assert lines.startswith("And")
    assert "\nBut God" in lines
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    result = run_here("ant-hf", "generate", str(tiny_run / "final"))
    assert result.returncode == 2
    assert "there is no prompt" in result.stderr


def test_a_checkpoint_has_the_tokenizer_of_its_run(tiny_run):
    checkpoint = tiny_run / "checkpoint-4"
    assert not (checkpoint / "tokenizer.json").exists()
    assert generate(checkpoint, "--prompt", "And").stdout.startswith("And")
    result = run_here("ant-hf", "perplexity", str(checkpoint), "--tokens", str(tiny_run / "tokens"))
    assert "byte perplexity" in result.stdout, result.stderr


def test_perplexity_of_any_text_counts_all_of_its_bytes(tiny_run, tmp_path, chapters):
    file = tmp_path / "text.txt"
    file.write_text(chapters[0] + RUSSIAN, encoding="utf-8-sig")
    command = ("ant-hf", "perplexity", str(tiny_run / "final"))
    said = run_here(*command, "--text", str(file)).stdout
    tokens = len(load_tokenizer(tiny_run / "tokenizer").encode(chapters[0] + RUSSIAN).ids)
    size = len((chapters[0] + RUSSIAN).encode())
    assert said.startswith(f"{tokens:,} tokens, {size:,} bytes, context 64 tokens")
    assert "<|endoftext|> before the first token" in said
    file.write_bytes(b"caf\xe9")
    for options, words in (
        (["--text", str(file)], "is not UTF-8"),
        (["--text", str(tmp_path / "none")], "text file not found"),
        ([], "Pass --text FILE, or --tokens"),
        (["--text", str(file), "--tokens", str(tmp_path)], "Pass --text FILE, or --tokens"),
    ):
        result = run_here(*command, *options)
        assert result.returncode == 2
        assert words in result.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_output_that_cannot_be_encoded_is_escaped(tiny_run, monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", out)
    console.show_anything()
    console.say(RUSSIAN)
    console.write(f"{RUSSIAN}\n")
    table = Table(RUSSIAN)
    table.add_row("x")
    console.show(table)
    out.flush()
    assert out.buffer.getvalue().decode(encoding).count("\\u0440\\u0435\\u043a\\u0430") == 3


@pytest.mark.slow
def test_generate_in_a_process_of_another_encoding_with_a_reader_that_leaves(tiny_run):
    command = ["generate", str(tiny_run / "final"), "--prompt", RUSSIAN, "--max-new-tokens", "3"]
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}
    result = in_a_process("ant-hf", *command, env=environment)
    assert result.returncode == 0, result.stderr
    assert "\\u0440\\u0435\\u043a\\u0430" in result.stdout
    read, write = os.pipe()
    os.close(read)
    result = in_a_process("ant-hf", *command, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert "Traceback" not in result.stderr
    assert "Broken" not in result.stderr


def test_a_run_goes_on_when_nobody_reads_its_output(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        with console.lasting_output():
            for _ in range(3):
                console.say("a line")
            print("another", flush=True)
        assert sys.stdout is out
