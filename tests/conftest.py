"""A tiny real run, made once a session: chapters of real text, 384 tokens, a model 32 wide."""

import json
import os
import shutil
from pathlib import Path

# Read at import by the libraries below: no test may reach the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Several test processes share the cores; spinning threads would starve each other.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import pytest
import torch
import yaml
from records import write_results

from ant_hf.data.sources import EmbeddedBible
from ant_hf.recipe import Recipe, load_recipe
from ant_hf.release import gate
from ant_hf.release.build import make_release
from ant_hf.train.pretrain import pretrain

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
TINY_VOCABULARY = 384
TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": TINY_VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


@pytest.fixture(scope="session")
def chapters() -> list[str]:
    """Sixty chapters of the embedded text."""
    return list(EmbeddedBible().documents())[:60]


@pytest.fixture(scope="session")
def shared(tmp_path_factory, chapters) -> Path:
    """A folder with `corpus.jsonl` and `config.json`, read-only for tests."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"text": chapter}) + "\n" for chapter in chapters), encoding="utf-8"
    )
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG))
    return folder


def tiny_values(shared: Path, output_dir: Path, **training) -> dict:
    """A recipe of eight short steps, as YAML values."""
    return {
        "name": "tiny",
        "architecture": str(shared / "config.json"),
        "output_dir": str(output_dir),
        "sample_prompt": "In the beginning",
        "corpus": {"source": "files", "path": str(shared / "corpus.jsonl"), "validation_fraction": 0.15},
        "tokenizer": {"vocab_size": TINY_VOCABULARY},
        "training": {
            "sequence_length": 64,
            "sequences_per_step": 8,
            "per_device_batch_size": 8,
            "max_steps": 8,
            "learning_rate": 0.01,
            "warmup_steps": 2,
            "logging_steps": 1,
            "eval_steps": 4,
            "eval_max_tokens": 2000,
            "save_steps": 4,
            "precision": "fp32",
            "device": "cpu",
            "report_to": [],
            **training,
        },
    }


@pytest.fixture
def make_recipe(shared, tmp_path):
    """A function that writes a tiny recipe with changed training keys and loads it."""

    def make(name: str = "run", data_dir: Path | None = None, **training) -> Recipe:
        values = tiny_values(shared, tmp_path / name, **training)
        values["data_dir"] = str(data_dir or tmp_path / "data")
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values))
        return load_recipe(file)

    return make


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, shared) -> Path:
    """The output folder of a finished tiny run; read-only for tests."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    file = folder.parent / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_values(shared, folder, report_to=["tensorboard"])))
    pretrain(load_recipe(file))
    return folder


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, shared) -> Path:
    """A run of a few seconds that learns enough to be released, with measured-looking results; read-only."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    file = folder.parent / "trained.yaml"
    longer = {"max_steps": 60, "eval_steps": 20, "save_steps": 60, "logging_steps": 5, "learning_rate": 0.02}
    file.write_text(yaml.safe_dump(tiny_values(shared, folder, **longer)))
    pretrain(load_recipe(file))
    write_results(folder / "final")
    return folder


@pytest.fixture
def quick_gate(monkeypatch):
    """The gate in this process: the same checks without the seconds a fresh one takes to start."""

    def run_here(job, scratch):
        (scratch / "job.json").write_text(job.model_dump_json())
        gate.main(scratch / "job.json")
        return json.loads((scratch / "gate.json").read_text())

    monkeypatch.setattr("ant_hf.release.verify.run_gate", run_here)


@pytest.fixture(scope="session")
def released(trained_run, tmp_path_factory) -> Path:
    """A run with its release folder, for GODELEV/Ant-10M; read-only."""
    folder = tmp_path_factory.mktemp("released") / "run"
    shutil.copytree(trained_run, folder)
    make_release(folder / "final", "GODELEV/Ant-10M")
    return folder
