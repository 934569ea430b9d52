"""A tiny real run, made once a session: chapters of real text, 384 tokens, a model 32 wide."""

import gc
import json
import os
import shutil
from collections.abc import Callable
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
from commands import ROOT as ROOT
from filelock import FileLock
from records import write_results

from ant_hf.data.packing import make_data
from ant_hf.data.sources import EmbeddedBible
from ant_hf.export.exporting import export
from ant_hf.recipe import Recipe, load_recipe
from ant_hf.release import gate
from ant_hf.release.build import make_release
from ant_hf.train.pretrain import pretrain

torch.set_num_threads(1)

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


def pytest_collection_finish():
    # What is imported by now stays: Trainer's collections of garbage need not walk through it each time.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_list_of_packages():
    # lm-eval asks pip for it after each evaluation, which takes most of the time of a small one.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.collect_env.get_pip_packages", lambda *_: ("pip", ""))
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A function that gives the folder which `fill` makes: one for all test processes, made by the first."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder_of(name: str, fill: Callable[[Path], object]) -> Path:
        folder, made = root / "once" / name, root / "once" / f"{name}.made"
        folder.parent.mkdir(exist_ok=True)
        with FileLock(root / "once" / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                made.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def chapters() -> list[str]:
    """Sixty chapters of the embedded text."""
    return list(EmbeddedBible().documents())[:60]


@pytest.fixture(scope="session")
def shared(once, chapters) -> Path:
    """A folder with `corpus.jsonl` and `config.json`, read-only for tests."""

    def fill(folder: Path) -> None:
        rows = (json.dumps({"text": chapter}) + "\n" for chapter in chapters)
        (folder / "corpus.jsonl").write_text("".join(rows), encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(TINY_CONFIG))

    return once("shared", fill)


def tiny_values(shared: Path, output_dir: Path, **training) -> dict:
    """A recipe of eight short steps, as YAML values."""
    return {
        "name": "tiny",
        "architecture": str(shared / "config.json"),
        "output_dir": str(output_dir),
        "sample_prompt": "In the beginning",
        "corpus": {
            "source": "files",
            "path": str(shared / "corpus.jsonl"),
            "language": "en",
            "validation_fraction": 0.15,
        },
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


def tiny_recipe(shared: Path, output_dir: Path, **training) -> Recipe:
    return Recipe.model_validate(tiny_values(shared, output_dir, **training))


@pytest.fixture(scope="session")
def prepared(once, shared) -> Path:
    """Tokenizer and packed tokens of the tiny recipe; to be copied."""
    length = TINY_CONFIG["max_position_embeddings"]
    return once("prepared", lambda folder: make_data(tiny_recipe(shared, folder), length))


@pytest.fixture
def make_recipe(shared, prepared, tmp_path, monkeypatch):
    """A function that writes a tiny recipe with changed training keys and loads it.

    The data are a copy of `prepared`; a `data_dir` that is given is taken as it is. Figures are not drawn,
    which would be a third of such a run's time: `tiny_run` has them.
    """
    monkeypatch.setattr("ant_hf.train.pretrain.plot_run", lambda *_: [])

    def make(name: str = "run", data_dir: Path | None = None, **training) -> Recipe:
        if data_dir is None:
            data_dir = tmp_path / "data"
            if not data_dir.exists():
                shutil.copytree(prepared, data_dir)
        values = tiny_values(shared, tmp_path / name, **training) | {"data_dir": str(data_dir)}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values))
        return load_recipe(file)

    return make


@pytest.fixture
def write_study(make_recipe, tmp_path):
    """A function that writes a study of the tiny recipe, `tiny.yaml`, with other keys, and gives its file."""

    def write(training=None, **keys):
        make_recipe("tiny", **(training or {}))
        values = {"name": "small", "question": "Does it work?", "base": "tiny.yaml", "seeds": [42]}
        file = tmp_path / "small.yaml"
        file.write_text(yaml.safe_dump(values | keys, sort_keys=False))
        return file

    return write


@pytest.fixture(scope="session")
def tiny_run(once, shared, prepared) -> Path:
    """The output folder of a finished tiny run; read-only for tests."""

    def fill(folder: Path) -> None:
        run = shutil.copytree(prepared, folder / "run")
        pretrain(tiny_recipe(shared, run, report_to=["tensorboard"]))

    return once("tiny", fill) / "run"


@pytest.fixture(scope="session")
def trained_run(once, shared, prepared) -> Path:
    """A run of a few seconds that learns enough to be released, with measured-looking results; read-only."""

    def fill(folder: Path) -> None:
        run = shutil.copytree(prepared, folder / "run")
        longer = {"max_steps": 60, "eval_steps": 20, "save_steps": 60, "logging_steps": 5}
        pretrain(tiny_recipe(shared, run, learning_rate=0.02, **longer))
        write_results(run / "final")

    return once("trained", fill) / "run"


@pytest.fixture
def quick_gate(monkeypatch):
    """The gate in this process: the same checks without the seconds a fresh one takes to start."""

    def run_here(job, scratch):
        (scratch / "job.json").write_text(job.model_dump_json())
        gate.main(scratch / "job.json")
        return json.loads((scratch / "gate.json").read_text())

    monkeypatch.setattr("ant_hf.release.verify.run_gate", run_here)


@pytest.fixture(scope="session")
def released(once, trained_run) -> Path:
    """A run with its release folder, for GODELEV/Ant-10M; read-only."""

    def fill(folder: Path) -> None:
        run = shutil.copytree(trained_run, folder / "run")
        make_release(run / "final", "GODELEV/Ant-10M")

    return once("released", fill) / "run"


GGUF_TYPES = ("q8_0", "q4_0")


@pytest.fixture(scope="session")
def released_gguf(once, released) -> Path:
    """The released run with its GGUF files in `gguf/`, as `publish --gguf` makes them; read-only."""
    pytest.importorskip("xllamacpp")

    def fill(folder: Path) -> None:
        run = shutil.copytree(released, folder / "run")
        export(str(run / "final"), "gguf", GGUF_TYPES, None, "GODELEV/Ant-10M", "apache-2.0")

    return once("released_gguf", fill) / "run"


@pytest.fixture(scope="session")
def exported_onnx(once, trained_run) -> Path:
    """The trained run with its three graphs in `onnx/`, traced and verified: half a minute; read-only."""
    pytest.importorskip("onnxscript")

    def fill(folder: Path) -> None:
        run = shutil.copytree(trained_run, folder / "run")
        export(str(run / "final"), "onnx")

    return once("exported_onnx", fill) / "run"


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium, which finds no computer but this one; its tests skip where it is missing."""
    # Only where it is installed.
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    # Chromium's own sandbox needs rights that a container's root does not have.
    cut = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=cut)
        yield running
        running.close()
