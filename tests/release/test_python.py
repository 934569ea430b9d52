"""The script that the package's docstring shows, from a finished run on, by someone who types Python."""

import re
import shutil

import pytest
import yaml
from benchmark_data import write_benchmarks
from conftest import ROOT, tiny_values
from hub.conftest import client, client_environment, client_here, here, hub  # noqa: F401 (fixtures)

import ant_hf

REPO = "GODELEV/Ant-10M"


def shown(run):
    """The lines of the docstring that need no training, about this run."""
    lines = [line.strip() for line in ant_hf.__doc__.splitlines() if "ant_hf." in line]
    start = next(i for i, line in enumerate(lines) if "ant_hf.verify" in line)
    return "\n".join(lines[start:]).replace("runs/quickstart", str(run)).replace("OWNER/NAME", REPO)


@pytest.mark.slow
def test_the_script_of_the_docstring_verifies_releases_and_publishes(hub, client, released, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    shutil.copytree(released, run)
    dry = f"""
from pathlib import Path
import ant_hf
assert ant_hf.make_release(Path({str(run / "final")!r}), {REPO!r}) == Path({str(run / "release")!r})
assert ant_hf.publish({str(run / "release")!r}, {REPO!r}) is None
"""
    assert "nothing was sent; add --yes" in client(dry).stdout
    assert not hub.repository(REPO).exists
    script = f"import ant_hf\n{shown(run)}\nassert report['verdict'] == 'passed'"
    assert script.count("ant_hf.") == 3
    said = client(script).stdout
    assert f"published   {hub.endpoint}/{REPO} at" in said
    assert hub.repository(REPO).state["tags"] == {"v1": hub.repository(REPO).resolve("main")}
    # The report on a repository that anyone may read, without a token.
    theirs = f"import ant_hf\nprint(ant_hf.verify({REPO!r}, revision='v1')['verdict'])"
    assert "passed" in client(theirs, HF_TOKEN=None).stdout.split()


def test_the_scripts_of_the_documentation_run(client_here, quick_gate, trained_run, shared, tmp_path):  # noqa: F811
    """From the recipe to the plan of a publication; the run is finished already, which training says."""
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    (run / "final" / "results.json").unlink()
    other = shutil.copytree(run, tmp_path / "other")
    longer = {"max_steps": 60, "eval_steps": 20, "save_steps": 60, "logging_steps": 5, "learning_rate": 0.02}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_values(shared, run, **longer)))
    write_benchmarks(tmp_path / "sets")
    text = (ROOT / "docs" / "python.md").read_text()
    replaced = {
        '"quickstart"': f'"{tmp_path}/recipe.yaml"',
        "runs/quickstart": str(run),
        "runs/other": str(other),
        "my-sets": str(tmp_path / "sets"),
        "OWNER/NAME": REPO,
    }
    for place, ours in replaced.items():
        assert place in text
        text = text.replace(place, ours)
    for script in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        said = client_here(script).stdout
        assert said
        if "publish" in script:
            assert "nothing was sent; add --yes" in said
    assert (run / "release" / "README.md").is_file()
