"""`ant-hf publish --space`: the demo as a Space of either kind, sent as carefully as the model."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import yaml
from sites import fake_export, fake_node_modules

from ant_hf.demo.site import SiteOptions
from ant_hf.demo.space import make_space, make_static_space
from hub.metadata_rules import problems
from hub.test_publishing import REPO, check_outcomes, local_files

if importlib.util.find_spec("gradio") is None:
    pytest.skip("Gradio is not installed: pip install 'ant-hf[demo]'", allow_module_level=True)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return make_space(tmp_path_factory.mktemp("run"), REPO, "apache-2.0")


@pytest.mark.parametrize("kind", ["gradio", "static"])
def test_the_model_then_the_space_in_one_commit_each(hub, session, released, tmp_path, monkeypatch, kind):
    run = tmp_path / "run"
    shutil.copytree(released, run)
    fake_export(monkeypatch, tmp_path)
    packages = fake_node_modules(tmp_path / "node_modules")
    publish = ["publish", run / "final", "--repo", REPO, "--space", kind, "--vendor", packages]
    dry, real, again = session(publish, [*publish, "--yes"], [*publish, "--yes"])
    assert dry[0] == 0, dry[1]
    assert f"spaces/{REPO}: will be created, public" in dry[1]
    assert real[0] == 0, real[1]
    assert f"/spaces/{REPO} at" in real[1]
    assert again[1].count("nothing changes") == 2
    there = hub.repository(REPO, "spaces")
    names = [name for name in there.files() if name != ".gitattributes"]
    assert {name: there.content(name) for name in names} == local_files(run / "space")
    assert [commit["title"] for commit in there.history()] == ["Release v1", "initial commit"]
    assert set(hub.repository(REPO).files()) == {".gitattributes", *local_files(run / "release")}
    assert hub.sdks == {REPO: kind}
    created = [i for i, (_, path) in enumerate(hub.requests) if path.endswith("/create")]
    tagged = next(i for i, (_, path) in enumerate(hub.requests) if f"/api/models/{REPO}/tag/" in path)
    assert created[0] < tagged < created[1]


def test_its_files_say_what_it_needs_and_hold_no_more(space):
    metadata = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert metadata["models"] == [REPO]
    assert metadata["sdk"] == "gradio"
    assert metadata["sdk_version"] == importlib.metadata.version("gradio")
    required = (space / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in required} >= {"torch", "transformers", "huggingface_hub"}
    assert all(re.fullmatch(r"[a-z0-9_.-]+==[0-9.]+", line) for line in required)
    assert len((space / "app.py").read_text().splitlines()) < 15
    modules = {path.relative_to(space).as_posix() for path in space.rglob("*.py")}
    assert {"app.py", "ant_hf/demo/page.py", "ant_hf/inspection/fragments.py"} <= modules
    assert (space / "ant_hf/demo/page.css").is_file()
    assert (space / "ant_hf/demo/page.js").is_file()
    assert not any(name.startswith(("ant_hf/train/", "ant_hf/release/", "ant_hf/cli/")) for name in modules)


def test_a_static_space_is_the_site_with_what_the_hub_asks_for(released, tmp_path, monkeypatch):
    fake_export(monkeypatch, tmp_path)
    options = SiteOptions(vendor=fake_node_modules(tmp_path / "node_modules"))
    space = make_static_space(tmp_path, str(released / "final"), REPO, "apache-2.0", options)
    text = (space / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---")[1])
    assert (metadata["sdk"], metadata["models"], metadata["license"]) == ("static", [REPO], "apache-2.0")
    assert "app_file" not in metadata
    assert problems(text, "space") == []
    (model,) = json.loads((space / "site.json").read_text())["models"]
    assert (model["name"], model["repository"]) == (REPO.split("/")[1], REPO)
    assert (space / "index.html").is_file()
    recorded = json.loads((space / "release.json").read_text())["files"]
    assert recorded.keys() == local_files(space).keys() - {"release.json"}


def test_a_space_of_no_kind_is_refused_before_anything_is_made(session, released):
    for kind in ("--yes", "docker"):
        ((code, said),) = session(["publish", released / "final", "--repo", REPO, "--space", kind])
        assert (code, said.count("\n")) == (2, 1)
        assert f"--space needs a kind of Space; saw '{kind}'; expected static or gradio" in said


@pytest.mark.slow
def test_faults_on_the_way_to_the_space(space, outcomes_of):
    check_outcomes(outcomes_of(space, "--quick", "--space"))


@pytest.mark.slow
def test_the_app_runs_from_its_files_alone(space, released, tmp_path):
    """Offline, in an empty working directory, with the package of this checkout out of reach."""
    shutil.copytree(space, tmp_path / "space")
    app = tmp_path / "space" / "app.py"
    text = app.read_text()
    assert text.count(f'["{REPO}"]') == 1
    own = f"import ant_hf; assert {str(app.parent)!r} in ant_hf.__file__, ant_hf.__file__\n"
    # There the package is files and nothing installed.
    own = (
        "import importlib.metadata as m; v = m.version; m.version = lambda n: v(n if n != 'ant-hf' else '')\n"
        + own
    )
    app.write_text(own + text.replace(f'["{REPO}"]', repr([str(released / "final")])))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "GRADIO_SERVER_NAME")
    }
    environment = kept | {"HF_HUB_OFFLINE": "1", "GRADIO_SERVER_PORT": str(port)}
    (tmp_path / "elsewhere").mkdir()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, app], cwd=tmp_path / "elsewhere", env=environment, stdout=log, stderr=log
        )
        try:
            assert "Try run/final" in _first_answer(f"http://127.0.0.1:{port}/", process)
        finally:
            process.terminate()
            process.wait(30)
    assert "Error" not in (tmp_path / "log").read_text()


def _first_answer(url, process):
    for _ in range(600):
        assert process.poll() is None
        try:
            return urllib.request.urlopen(url, timeout=5).read().decode()
        except OSError:
            time.sleep(0.2)
    raise AssertionError("no answer")
