"""What we save loads in the last transformers 4 too, in an environment of its own."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from ant_hf.model.loading import load_final

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("error")
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, text = sys.argv[1], json.loads(sys.argv[2])
model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer(text)["input_ids"]
assert tokenizer.decode(ids) == text
assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0, -1]
print(json.dumps({
    "version": transformers.__version__, "ids": ids, "logits": logits.tolist(),
    "theta": model.config.rope_theta,
    "keys": [sorted(info[k]) for k in ("missing_keys", "unexpected_keys", "mismatched_keys")],
    "max_length": tokenizer.model_max_length,
}))
"""
TEXT = "In the beginning,\r\n\t12345 \0 \U0001f41c  end "


@pytest.mark.slow
def test_transformers_4_loads_the_same_model(tiny_run):
    python = os.environ.get("ANT_HF_TRANSFORMERS4")
    if not python or not Path(python).exists():
        pytest.skip("needs transformers 4.57: run `make test-slow`")
    command = [python, "-c", SCRIPT, str(tiny_run / "final"), json.dumps(TEXT)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "warn" not in result.stderr.lower(), result.stderr
    assert "not used" not in result.stderr, result.stderr
    seen = json.loads(result.stdout)
    assert seen["version"].startswith("4.57")
    assert seen["keys"] == [[], [], []]
    assert (seen["theta"], seen["max_length"]) == (10000.0, 64)
    model, tokenizer = load_final(tiny_run / "final")
    assert tokenizer(TEXT)["input_ids"] == seen["ids"]
    with torch.no_grad():
        logits = model(torch.tensor([seen["ids"]])).logits[0, -1]
    assert torch.allclose(logits, torch.tensor(seen["logits"]), atol=1e-5)
