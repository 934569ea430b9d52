"""The commands and the script of docs/scale-out.md name what is there, and the script packs."""

import re
import shlex
import shutil

import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT

from ant_hf.data.tokens import verify_shards
from ant_hf.recipe import load_recipe

TEXT = (ROOT / "docs" / "scale-out.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()
]
LAUNCHES = [command for command in COMMANDS if command.startswith("accelerate launch")]


@pytest.mark.parametrize("command", LAUNCHES)
def test_launches_are_understood_and_their_files_there(command):
    asked = launch_command_parser().parse_args(shlex.split(command)[2:])
    assert (ROOT / asked.training_script).is_file()
    load_recipe(ROOT / asked.training_script_args[1])
    assert asked.config_file is None or (ROOT / asked.config_file).is_file()


def test_every_launch_configuration_is_in_the_text():
    for path in (ROOT / "configs" / "accelerate").glob("*.yaml"):
        assert any(f"configs/accelerate/{path.name}" in command for command in LAUNCHES), path


def test_the_slurm_script_packs_on_the_local_executor(tmp_path, monkeypatch, shared, make_recipe, tiny_run):
    """As printed, with paths of the test and this machine in the place of Slurm."""
    recipe = make_recipe(data_dir=tmp_path / "data")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tokenizer").symlink_to(tiny_run / "tokenizer")
    (script,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    script = script.replace("configs/recipes/ant10m.yaml", str(tmp_path / "run.yaml"))
    script = script.replace("path=FILES", f"path={shared / 'corpus.jsonl'}")
    script = script.replace("datatrove.executor.slurm", "datatrove.executor")
    script = script.replace("SlurmPipelineExecutor", "LocalPipelineExecutor")
    script, replaced = re.subn(r'time="[\d:]+",\s+partition="cpu",', "workers=1,", script)
    assert replaced == 2
    script = re.sub(r'job_name="\w+",', "", script)
    exec(compile(script, "scale-out.md", "exec"), {"__name__": "__main__"})
    verify_shards(recipe.tokens_dir)
    # As after a merge that found a damaged part, which was removed: it is encoded again.
    packing = tmp_path / "data" / "packing"
    for folder in (recipe.tokens_dir, *packing.glob("parts/*"), *packing.glob("logs-*/merge")):
        shutil.rmtree(folder)
    exec(compile(script, "scale-out.md", "exec"), {"__name__": "__main__"})
    verify_shards(recipe.tokens_dir)
