"""The notebook as it is committed, and run from top to bottom against a Hub, over two sessions."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from benchmark_data import write_benchmarks
from conftest import ROOT, TINY_CONFIG, tiny_values

from hub.conftest import READ_TOKEN

NOTEBOOK = ROOT / "notebooks" / "ant10m_kaggle.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = {cell["id"]: "".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"}
TEXT = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")


def test_it_is_a_valid_notebook_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    for cell in CELLS:
        # Names that stay when a cell is moved, not numbers.
        assert re.fullmatch(r"[a-z][a-z-]+", cell["id"])
        assert cell["metadata"] == {}
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def test_every_command_is_followed_by_a_check():
    for name, source in CODE.items():
        lines = [line.strip() for line in source.splitlines() if line.strip()]
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            # The training has to be asked first whether it is out of time; a package that is not there to
            # be removed is no fault.
            if line.startswith("!") and name != "train" and "uninstall" not in line:
                assert following.startswith("check("), line
    assert "check(" in CODE["train"]


def test_its_figures_are_those_of_recipe_package_and_readme():
    training = yaml.safe_load((ROOT / "configs/recipes/ant10m-card.yaml").read_text())["training"]
    tokens = training["max_steps"] * training["sequences_per_step"] * training["sequence_length"]
    assert f"= {tokens:,} tokens" in TEXT
    assert f"{tokens / 82_000 / 3600:.1f} hours" in TEXT
    assert f"every {training['save_steps']} steps" in TEXT
    assert f"every {training['eval_steps']} steps" in TEXT
    project = (ROOT / "pyproject.toml").read_text()
    assert '"torch>=2.9,<2.14"' in project
    assert "(2, 9) <=" in CODE["install"]
    assert "< (2, 14)" in CODE["install"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (snippet,) = (
        text for text in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "model_id" in text
    )
    assert (
        CODE["use"].strip()
        == re.sub(r'model_id = ".*"', 'model_id = REPO if PUBLISHED else f"{RUN}/final"', snippet).strip()
    )


def test_every_name_of_the_settings_is_used():
    names = [node.targets[0].id for node in ast.parse(CODE["settings"]).body if isinstance(node, ast.Assign)]
    rest = "\n".join(source for name, source in CODE.items() if name != "settings")
    assert [name for name in names if not re.search(rf"\b{name}\b", rest)] == []


@pytest.fixture
def repository(tmp_path, chapters):
    """A repository to clone, with a recipe of a few seconds."""
    folder = tmp_path / "repository"
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copy(ROOT / "pretrain.py", folder)
    # Room for the snippet's prompt and its continuation.
    config = TINY_CONFIG | {"max_position_embeddings": 128}
    (folder / "configs" / "tiny.json").write_text(json.dumps(config))
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in chapters))
    values = tiny_values(Path(), Path("runs/tiny"), max_steps=60, eval_steps=20, save_steps=20)
    values["architecture"] = "configs/tiny.json"
    values["training"] |= {"learning_rate": 0.02, "logging_steps": 5}
    (folder / "configs" / "recipes" / "tiny.yaml").write_text(yaml.safe_dump(values))
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-C", str(folder)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    return f"file://{folder}"


@pytest.fixture
def session(client_environment, repository, tmp_path, monkeypatch):
    """A function that runs the notebook in a folder of its own; returns what was shown and the last error."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    # As activating the environment does.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {
        "RECIPE": "configs/recipes/tiny.yaml",
        "RUN": "runs/tiny",
        "GPUS": "0",
        "SOURCE": repository,
        # Everything is there already, and there is no network.
        "INSTALL": "python -c 'import ant_hf, lm_eval'",
        "EVALUATE_OPTIONS": f"--data-dir {write_benchmarks(tmp_path / 'benchmarks')} --limit 2 "
        "--tasks arc_easy,wikitext,degeneration",
    }

    def run(folder, until=None, token=True, **changed):
        environment = client_environment | {"PATH": path}
        environment |= {f"ANT_{name}": value for name, value in (settings | changed).items()}
        if token is not True:
            environment["HF_TOKEN"] = token or ""
        (tmp_path / folder).mkdir(exist_ok=True)
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        if until:
            ids = [cell.id for cell in notebook.cells]
            notebook.cells = notebook.cells[: ids.index(until) + 1]
        resources = {"metadata": {"path": str(tmp_path / folder)}}
        error = None
        try:
            NotebookClient(notebook, timeout=300, resources=resources).execute(env=environment)
        except CellExecutionError as raised:
            error = raised
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        said = "".join(output.get("text", "") for output in outputs)
        figures = sum("image/png" in output.get("data", {}) for output in outputs)
        return said, figures, error

    return run


@pytest.mark.slow
def test_two_sessions_end_in_a_published_model(hub, session, tmp_path):
    said, figures, error = session("first", MAX_HOURS="0.0001")
    assert error is not None, said
    assert error.ename == "Stop", said
    assert error.evalue.endswith("Run all cells again in your next session."), said
    assert "saved in runs/tiny/checkpoint-1" in said
    assert figures == 1
    # The other machine knows nothing but the repository's name.
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "hf-home", ignore_errors=True)

    said, figures, error = session("second")
    assert error is None, f"{said}\n{error}"
    assert "step 1 was fetched from GODELEV/Ant-10M-training" in said
    assert "resuming    from step 1" in said
    assert figures == 1
    assert "Generated Output Fragments:\nThe basic principles of small language models require" in said
    published = hub.repository("GODELEV/Ant-10M")
    assert published.state["private"]
    assert list(published.state["tags"]) == ["v1"]
    assert {"README.md", "model.safetensors", "results.json", "gate.json"} <= set(published.files())
    run = json.loads(published.content("run.json"))
    assert run["resumed_from_steps"] == [1]
    training = json.loads(hub.repository("GODELEV/Ant-10M-training").content("run.json"))
    assert training["status"] == "finished"


@pytest.mark.slow
def test_without_a_token_it_says_so_and_goes_on(hub, session):
    said, _, error = session("session", until="dry-run", token=None)
    assert error is None, f"{said}\n{error}"
    assert "No Hub token, so nothing will be sent" in said
    assert "nothing was written" in said
    assert "push_to_hub" not in said
    assert hub.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"token": "hf_" + "NoTokenOfAnybody0123456789"}, "The Hub did not take the token"),
        ({"token": READ_TOKEN, "until": "train"}, "exit code"),
        ({"TRAIN_OPTIONS": "--set training.max_stepps=3"}, "exit code"),
        ({"SOURCE": "file:///nowhere"}, "Is the internet switched on"),
        ({"INSTALL": "false"}, "exit code 1"),
    ],
)
def test_what_fails_stops_it_with_a_sentence(session, changed, words):
    said, _, error = session("session", **({"until": "dry-run"} | changed))
    assert error is not None, said
    assert error.ename == "Stop"
    assert words in error.evalue
    assert "Generated Output" not in said
