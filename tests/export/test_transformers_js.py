"""transformers.js in Node against Transformers: tokens of a thousand texts, greedy texts of an export."""

import json
import shutil
import subprocess

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from ant_hf.export.questions import check_texts, greedy_prompts

FOLDER = ROOT / "tests" / "node"


@pytest.fixture
def ask(tmp_path):
    """A function that asks `ask.mjs`; without Node or its packages the test is skipped."""
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    if not (FOLDER / "node_modules").is_dir():
        pytest.skip("transformers.js is not installed: make node")

    def ask(folder, **questions):
        file = tmp_path / "questions.json"
        file.write_text(json.dumps({"folder": str(folder), **questions}))
        command = [node, FOLDER / "ask.mjs", file]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


@pytest.mark.slow
def test_texts_become_the_same_tokens(ask):
    folder, texts = ROOT / "release" / "Ant-10M", check_texts()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = ask(folder, texts=texts)["ids"]
    assert len(found) == len(texts) >= 1000
    wrong = [text for text, ids in zip(texts, found, strict=True) if ids != tokenizer(text)["input_ids"]]
    assert wrong == []


@pytest.mark.slow
def test_prompts_are_continued_with_the_same_text(ask, exported_onnx):
    prompts, final = greedy_prompts(), exported_onnx / "final"
    model = AutoModelForCausalLM.from_pretrained(final, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(final)
    wanted = []
    for prompt in prompts:
        output = model.generate(**tokenizer(prompt, return_tensors="pt"), do_sample=False, max_new_tokens=24)
        wanted.append(tokenizer.decode(output[0]))
    found = ask(exported_onnx / "onnx", dtype="fp32", prompts=prompts, newTokens=24)["continued"]
    assert len(found) == 20
    assert found == wanted


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "q8"])
def test_the_smaller_types_are_found_and_run(ask, exported_onnx, dtype):
    (text,) = ask(exported_onnx / "onnx", dtype=dtype, prompts=["In the beginning"], newTokens=8)["continued"]
    assert text.startswith("In the beginning")
    assert len(text) > len("In the beginning")
