"""From a trained run to a stranger's machine that knows nothing but the repository's name."""

import json
import re
import shlex
import shutil

import pytest
from conftest import ROOT
from huggingface_hub import HfApi

REPO = "GODELEV/Ant-10M"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROMPT = "The basic principles of small language models require"


def snippets(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
def test_published_model_runs_the_readme_and_the_card_with_nothing_left_here(
    hub, client, client_here, released, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(released, run)
    (command,) = re.findall(r"^ant-hf publish [^#\n]*", README, re.MULTILINE)
    assert "--repo YOU/my-ant" in command
    command = command.replace("YOU/my-ant", REPO).replace("runs/quickstart", str(run))
    client_here(*shlex.split(command), "--yes")
    card = hub.repository(REPO).content("README.md").decode()
    shutil.rmtree(run)
    shutil.rmtree(tmp_path / "hf-home", ignore_errors=True)

    (snippet,) = [text for text in snippets(README) if "model_id" in text]
    code, replaced = re.subn(r'model_id = ".*"', f'model_id = "{REPO}"', snippet)
    assert replaced == 1
    # An empty cache, no token, an empty working directory: whatever runs comes from the repository.
    (tmp_path / "elsewhere").mkdir()
    result = client(code, cwd=tmp_path / "elsewhere", HF_TOKEN=None)
    assert f"Generated Output Fragments:\n{PROMPT}" in result.stdout
    assert "warn" not in result.stderr.lower()
    (of_card,) = snippets(card)
    assert of_card == code


@pytest.mark.parametrize("name", ["README.md", "release.json", "gate.json", "plots/loss.png"])
def test_a_release_has_what_the_card_shows(released, name):
    assert (released / "release" / name).is_file()


def test_params_counts_a_model_of_the_hub_without_its_weights(hub, client_here, trained_run, tmp_path):
    api = HfApi()
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=trained_run / "final")
    said = client_here("ant-hf", "params", REPO).stdout
    parameters = json.loads((trained_run / "run.json").read_text())["parameters"]["total"]
    assert f"{parameters:,}" in said
    assert [path.name for path in (tmp_path / "hf-home/hub").glob("*/snapshots/*/*")] == ["config.json"]
    missing = client_here("ant-hf", "params", "GODELEV/missing", check=False)
    assert missing.returncode == 2
    assert "GODELEV/missing is not a folder here" in missing.stderr
