"""`ant-hf publish --onnx`: the graphs lie beside the weights, in the model's own repository."""

import shutil

import pytest
import yaml
from release.test_onnx import pretend_export
from sites import fake_node_modules

from ant_hf.export import exporting
from hub.test_publishing import REPO, local_files


@pytest.fixture
def run(trained_run, tmp_path, monkeypatch):
    shutil.copytree(trained_run, tmp_path / "run")
    folder = pretend_export(tmp_path / "run" / "final", tmp_path / "run" / "onnx")
    monkeypatch.setattr(exporting, "export", lambda model, to: (folder, {}))
    return tmp_path / "run"


def test_the_graphs_are_published_beside_the_weights_and_a_page_takes_them_from_there(
    hub, session, run, quick_gate, tmp_path
):
    packages, site = fake_node_modules(tmp_path / "node_modules"), tmp_path / "site"
    publish = ["publish", run / "final", "--repo", REPO, "--onnx", "--yes"]
    (code, said), (page_code, page_said) = session(
        publish, ["demo", "--static", REPO, "-o", site, "--dtype", "q8", "--vendor", packages]
    )
    assert code == 0, said
    repository = hub.repository(REPO)
    files = {name: repository.content(name) for name in repository.files() if name != ".gitattributes"}
    assert files == local_files(run / "release")
    assert {"onnx/model_quantized.onnx", "onnx/verified.json", "config.json"} < set(files)
    tags = yaml.safe_load(files["README.md"].decode().split("---")[1])["tags"]
    assert {"onnx", "transformers.js"} <= set(tags)
    assert page_code == 0, page_said
    (graph,) = site.rglob("model_quantized.onnx")
    assert graph.read_bytes() == files["onnx/model_quantized.onnx"]
