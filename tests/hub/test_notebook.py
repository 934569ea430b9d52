"""The notebooks as they are committed, and run from top to bottom, one against a Hub over two sessions."""

import ast
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest
import yaml
from benchmark_data import write_benchmarks
from conftest import ROOT, TINY_CONFIG, tiny_values
from httpx2 import Request, Response
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from hub.conftest import READ_TOKEN

NOTEBOOK = ROOT / "notebooks" / "ant10m_kaggle.ipynb"
FINETUNE = ROOT / "notebooks" / "finetune.ipynb"


def cells_of(file):
    return json.loads(file.read_text(encoding="utf-8"))["cells"]


def code_of(file):
    return {cell["id"]: "".join(cell["source"]) for cell in cells_of(file) if cell["cell_type"] == "code"}


CODE = code_of(NOTEBOOK)
TEXT = "\n".join("".join(cell["source"]) for cell in cells_of(NOTEBOOK) if cell["cell_type"] == "markdown")
both = pytest.mark.parametrize("file", [NOTEBOOK, FINETUNE], ids=lambda file: file.stem)


@both
def test_it_is_a_valid_notebook_without_outputs(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    for cell in cells_of(file):
        # Names that stay when a cell is moved, not numbers.
        assert re.fullmatch(r"[a-z][a-z-]+", cell["id"])
        assert cell["metadata"] == {}
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@both
def test_every_command_is_followed_by_a_check(file):
    for source in code_of(file).values():
        lines = [line.strip() for line in source.splitlines() if line.strip()]
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            # The training has to be asked first whether it is out of time; a package that is not there to
            # be removed is not a fault.
            if line.startswith("!") and "{launch}" not in line and "uninstall" not in line:
                assert following.startswith("check("), line
    assert "check(" in CODE["train"]


@pytest.mark.parametrize("cell", ["helpers", "clone", "install"])
def test_what_both_begin_with_is_the_same(cell):
    assert code_of(FINETUNE)[cell] == CODE[cell]


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
    own = re.sub(r'model_id = ".*"', 'model_id = REPO if PUBLISHED else f"{RUN}/final"', snippet)
    assert CODE["use"].strip() == "if FINISHED:\n" + textwrap.indent(own, "    ").rstrip()


class Cells:
    """Cells without commands, run one after the other in a folder of their own."""

    def __init__(self, folder, **settings):
        self.folder, self.said = folder, ""
        self.names = {"Path": Path, "json": json, "PUSH": False, **settings}

    def run(self, *cells):
        for cell in cells:
            with contextlib.redirect_stdout(io.StringIO()) as said:
                exec(CODE[cell], self.names)
            self.said += said.getvalue()
        return self


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """A function that makes a session's folder, with the attached output of earlier ones beside it."""
    for name in list(os.environ):
        if name.startswith("ANT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ANT_INPUT", str(tmp_path / "input"))
    monkeypatch.setenv("ANT_REPO", "GODELEV/Ant-10M")
    shutil.copytree(ROOT / "configs", tmp_path / "session" / "configs")
    monkeypatch.chdir(tmp_path / "session")
    return lambda **settings: Cells(tmp_path / "session", **settings).run("settings")


def attached_run(folder, *steps):
    """What Kaggle shows of an earlier session: a run of a model, read-only, with tokens packed for it."""
    run = folder / "ant-hf" / "runs" / "ant10m-card"
    for step in steps:
        (run / f"checkpoint-{step}").mkdir(parents=True)
        (run / f"checkpoint-{step}" / "checkpoint.json").write_text("{}")
    (run / "checkpoint-99").mkdir()
    for name in ("run.json", "metrics.jsonl", ".run.lock"):
        (run / name).write_text(f"{name} of {folder.name}")
    (folder / "ant-hf" / "data" / "fineweb-edu-4096" / "tokens").mkdir(parents=True)
    for path in [*run.rglob("*"), run]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return run


def test_it_takes_all_gpus_unless_told_otherwise(cells, monkeypatch):
    for found, asked, processes in ((2, None, 2), (1, None, 1), (2, "1", 1), (0, "0", 1)):
        monkeypatch.setattr("torch.cuda.device_count", lambda found=found: found)
        if asked is not None:
            monkeypatch.setenv("ANT_GPUS", asked)
        session = cells().run("options")
        monkeypatch.delenv("ANT_GPUS", raising=False)
        assert f"--num_processes {processes} " in session.names["launch"]
        assert "--mixed_precision no" in session.names["launch"]


def test_the_run_of_an_attached_session_is_copied_to_where_it_can_be_written(cells, tmp_path):
    attached_run(tmp_path / "input" / "older", 50, 100)
    newest = attached_run(tmp_path / "input" / "newer", 450, 1000)
    session = cells().run("restore", "options")
    run = session.folder / "runs" / "ant10m-card"
    assert "the training continues from step 1000" in session.said
    assert (run / "run.json").read_text() == "run.json of newer"
    assert sorted(path.name for path in run.iterdir()) == [
        *("checkpoint-1000", "checkpoint-450", "checkpoint-99", "metrics.jsonl", "run.json")
    ]
    assert all(path.stat().st_mode & 0o200 for path in [run, *run.rglob("*")])
    data = newest.parents[1] / "data" / "fineweb-edu-4096"
    assert f"--set data_dir={tmp_path / 'input'}" in session.names["options"]
    assert data.is_dir()
    # What lies there continues; nothing is put over it.
    (run / "run.json").write_text("of this session")
    assert cells().run("restore").said == ""
    assert (run / "run.json").read_text() == "of this session"


def test_without_anything_attached_nothing_is_copied(cells):
    session = cells().run("restore", "options")
    assert session.said.count("\n") == 2
    assert "data_dir" not in session.names["options"]
    assert not (session.folder / "runs").exists()


@pytest.mark.parametrize(("on_hub", "copied"), [(-1, True), (40, True), (60, False)])
def test_with_a_token_the_later_checkpoint_is_taken(cells, tmp_path, on_hub, copied):
    attached_run(tmp_path / "input" / "earlier", 50)

    def download(repository, name):
        assert (repository, name) == ("GODELEV/Ant-10M-training", "last-checkpoint/trainer_state.json")
        if on_hub < 0:
            raise RepositoryNotFoundError("none", response=Response(404, request=Request("GET", "http://x")))
        (tmp_path / "state.json").write_text(json.dumps({"global_step": on_hub}))
        return str(tmp_path / "state.json")

    errors = {each.__name__: each for each in (EntryNotFoundError, RepositoryNotFoundError)}
    session = cells(PUSH=True, hf_hub_download=download, **errors).run("restore")
    assert (session.folder / "runs" / "ant10m-card" / "run.json").exists() == copied
    assert ("the Hub has a later one" in session.said) != copied


@pytest.mark.parametrize("on_hub", [7, 5, None])
def test_out_of_time_it_ends_with_what_to_do_and_without_an_error(cells, on_hub):
    session = cells(PUSH=on_hub is not None, out_of_time=True, training={"max_steps": 9})
    record = session.names["record"] = session.folder / "run.json"
    record.write_text(json.dumps({"status": "stopped", "stopped": {"step": 7}}))
    session.names["last_step_on_hub"] = lambda: on_hub
    session.run("finished")
    # Cells with commands are skipped by the same name.
    assert session.names["FINISHED"] is False
    assert all(CODE[name].startswith("if FINISHED:\n") for name in ("evaluate", "card", "publish", "use"))
    assert "Out of time at step 7 of 9, which is saved in" in session.said
    assert "un all cells again" in session.said
    # What did not arrive there is not said to have.
    assert ("It is in GODELEV/Ant-10M-training, too" in session.said) == (on_hub == 7)
    assert ("Save Version" in session.said) == (on_hub != 7)


@both
def test_every_name_of_the_settings_is_used(file):
    code = code_of(file)
    names = [node.targets[0].id for node in ast.parse(code["settings"]).body if isinstance(node, ast.Assign)]
    rest = "\n".join(source for name, source in code.items() if name != "settings")
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
        "INSTALL": "echo ERROR: the following dependency conflicts; python -c 'import ant_hf, lm_eval'",
        "EVALUATE_OPTIONS": f"--data-dir {write_benchmarks(tmp_path / 'benchmarks')} --limit 2 "
        "--tasks arc_easy,wikitext,degeneration",
    }

    def run(folder, until=None, token=True, file=NOTEBOOK, **changed):
        environment = client_environment | {"PATH": path}
        environment |= {f"ANT_{name}": value for name, value in (settings | changed).items()}
        if token is not True:
            environment["HF_TOKEN"] = token or ""
        (tmp_path / folder).mkdir(exist_ok=True)
        notebook = nbformat.read(file, as_version=4)
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
    # A notebook that ends in an error counts as failed.
    assert error is None, f"{said}\n{error}"
    assert "It is in GODELEV/Ant-10M-training, too. Run all cells again in your next session." in said
    assert "saved in runs/tiny/checkpoint-1" in said
    assert "Generated Output Fragments" not in said
    assert figures == 1
    # What pip says of other packages is not shown, and explained.
    assert "pip names packages of this image that want other versions (pip.log)" in said
    assert "dependency conflicts" not in said
    # The other machine knows nothing but the repository's name.
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "hf-home", ignore_errors=True)

    said, figures, error = session("second")
    assert error is None, f"{said}\n{error}"
    assert "the checkpoint of step 1 was downloaded from GODELEV/Ant-10M-training" in said
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
def test_without_a_token_the_attached_output_of_one_session_is_gone_on_from(session, tmp_path):
    said, _, error = session("first", MAX_HOURS="0.0001", token=None)
    assert error is None, f"{said}\n{error}"
    assert "It is nowhere else. On Kaggle: Save Version" in said
    (tmp_path / "input").mkdir()
    (tmp_path / "first").rename(tmp_path / "input" / "first")
    said, _, error = session("second", token=None, until="finished", INPUT=str(tmp_path / "input"))
    assert error is None, f"{said}\n{error}"
    assert "the training continues from step 1" in said
    assert "resuming    from step 1" in said


@pytest.mark.slow
def test_without_a_token_it_says_so_and_goes_on(hub, session):
    said, _, error = session("session", until="dry-run", token=None)
    assert error is None, f"{said}\n{error}"
    assert "No Hub token: nothing will be sent" in said
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


@pytest.mark.slow
def test_the_project_may_be_attached_instead_of_cloned(session, repository, tmp_path):
    uploaded = tmp_path / "input" / "ant-hf-folder" / "ant-hf"
    shutil.copytree(repository.removeprefix("file://"), uploaded, ignore=shutil.ignore_patterns(".git"))
    (uploaded / "runs").mkdir()
    for path in (uploaded, uploaded / "configs"):
        path.chmod(0o555)
    said, _, error = session("here", until="install", INPUT=str(tmp_path / "input"), SOURCE="file:///nowhere")
    assert error is None, f"{said}\n{error}"
    assert "the project is copied from" in said
    assert not (tmp_path / "here" / "ant-hf" / "runs").exists()
    (tmp_path / "here" / "ant-hf" / "own.txt").write_text("It can be written to.")


@pytest.mark.slow
def test_a_model_is_fine_tuned_and_writes_before_and_after(session, trained_run, shared):
    few_steps = ("max_steps=30", "sequence_length=64", "report_to=[]")
    said, figures, error = session(
        "tune",
        file=FINETUNE,
        token=None,
        TEXT=str(shared / "corpus.jsonl"),
        BASE=str(trained_run / "final"),
        RUN="runs/tuned",
        PROMPT="In the",
        TRAIN_OPTIONS=" ".join(f"--set training.{each}" for each in few_steps),
    )
    assert error is None, f"{said}\n{error}"
    assert "Bits per byte, before and after" in said
    assert figures == 1
    assert said.count("In the") >= 6
