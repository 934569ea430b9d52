"""What `pip install` puts down works from any folder, and says which version it is."""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from commands import ROOT, in_a_process, run_here

import ant_hf

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def included():
    """Place in the repository and in the wheel of what lies outside the package."""
    _, _, section = PYPROJECT.partition("[tool.hatch.build.targets.wheel.force-include]\n")
    return re.findall(r'^"(.+)" = "(.+)"$', section.partition("\n[")[0], re.MULTILINE)


def test_a_wheel_has_recipes_and_architectures_by_name(tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(ROOT / "src", site, ignore=shutil.ignore_patterns("__pycache__"))
    for source, target in included():
        shutil.copytree(ROOT / source, site / target)
    script = (
        "from ant_hf.published import published_models; from ant_hf.recipe import load_recipe\n"
        "from ant_hf.utils.names import find_config\n"
        "print(len(published_models()), load_recipe('quickstart').name)\n"
        "print(find_config(load_recipe('ant5m').architecture, 'config', '*.json', 'llama_'))"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert result.stdout.splitlines() == ["2 quickstart", f"{site}/ant_hf/configs/llama_ant5m.json"], (
        result.stderr
    )


def test_the_wheel_that_is_built_holds_them(tmp_path):
    pytest.importorskip("hatchling")
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    assert ant_hf.__version__ in wheel
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("configs/recipes/quickstart.yaml", "configs/llama_ant10m.json", "model_card/published.yaml"):
        assert f"ant_hf/{name}" in names


def test_the_version_needs_no_installation():
    result = in_a_process("python", "-m", "ant_hf", "--version")
    assert (result.returncode, result.stdout) == (0, f"ant-hf {ant_hf.__version__}\n")
    assert run_here("ant-hf", "--version").stdout == result.stdout


def test_bash_completes_commands():
    script = "import sys; sys.argv[0] = 'ant-hf'; from ant_hf.cli.main import main; main()"
    asked = {"_ANT_HF_COMPLETE": "complete_bash", "COMP_WORDS": "ant-hf ev", "COMP_CWORD": "1"}
    result = in_a_process("python", "-c", script, env=os.environ | asked)
    assert result.stdout.split() == ["evaluate"]
