"""A release that carries graphs for transformers.js: its files, its card, and what the gate refuses."""

import json
import shutil

import pytest
import yaml
from hub.metadata_rules import problems

from ant_hf.card.markdown import read_tables
from ant_hf.export import exporting, onnx
from ant_hf.release import build, gate
from ant_hf.release.build import make_release
from ant_hf.release.verify import verify
from ant_hf.utils.files import file_sha256, inventory, read_sealed, write_sealed

REPO = "GODELEV/Ant-10M"
FIGURES = {
    "bits_per_byte": 1.31, "bits_per_byte_difference": 0.0014, "bits_per_byte_difference_stderr": 0.0007,
    "prompts": 20, "prompts_with_equal_output": 17,
}  # fmt: skip


def pretend_export(final, folder):
    """An export's folder as to its files and their record; what stands for a graph takes no time to trace."""
    (folder / "onnx").mkdir(parents=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(final / name, folder / name)
    (folder / "onnx" / "model_quantized.onnx").write_bytes(b"\x08\x0agraph")
    files = inventory(folder)
    files["onnx/model_quantized.onnx"] |= {"type": "q8", "verified": {"onnxruntime": FIGURES}}
    made_of = {"weights_sha256": file_sha256(final / "model.safetensors")}
    record = {"made_of": made_of, "files": files, "versions": {"onnxruntime": "1.32.0"}}
    write_sealed(folder / "verified.json", record)
    return folder


@pytest.fixture
def run(trained_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / "run")
    pretend_export(tmp_path / "run" / "final", tmp_path / "run" / "onnx")
    return tmp_path / "run"


def test_a_release_has_the_graphs_and_a_card_that_names_transformers_js(run, quick_gate, monkeypatch):
    monkeypatch.setattr(exporting, "export", lambda model, to: (run / to, {}))
    monkeypatch.setattr(build, "plot_run", lambda *_: [])
    release = make_release(run / "final", REPO, onnx=True)
    graph = release / "onnx" / "model_quantized.onnx"
    assert graph.read_bytes() == (run / "onnx/onnx/model_quantized.onnx").read_bytes()
    card = (release / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert problems(card) == []
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("transformers", "text-generation")
    assert {"onnx", "transformers.js"} <= set(metadata["tags"])
    (table,) = [table for table in read_tables(card) if table[0][:2] == ["file", "dtype"]]
    assert table[1][:3] == ["onnx/model_quantized.onnx", "q8", str(graph.stat().st_size)]
    assert table[1][3:] == ["+0.0014 ± 0.0007", "17 of 20"]
    assert f'pipeline("text-generation", "{REPO}", {{ dtype: "q8" }})' in card
    report = verify(release)
    assert report["verdict"] == "passed"
    assert [check["passed"] for check in report["checks"] if check["name"] == "ONNX"] == [True]
    # The same graphs again are the same release.
    record = (release / "release.json").read_bytes()
    assert (make_release(run / "final", REPO, onnx=True) / "release.json").read_bytes() == record


def test_without_graphs_the_card_does_not_speak_of_them(released):
    assert "transformers.js" not in (released / "release" / "README.md").read_text()


def change_graph(folder):
    (folder / "onnx/model_quantized.onnx").write_bytes(b"\x08\x0aother")


def change_weights(folder):
    (folder / "model.safetensors").write_bytes(b"other")


def change_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def add_graph(folder):
    (folder / "onnx/model.onnx").write_bytes(b"\x08\x0agraph")


def change_record(folder):
    path = folder / "onnx/verified.json"
    path.write_text(path.read_text().replace("0.0014", "0.0001"))


def remove_record(folder):
    (folder / "onnx/verified.json").unlink()


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (change_graph, "changed since they were verified: onnx/model_quantized.onnx"),
        (change_tokenizer, "changed since they were verified: tokenizer.json"),
        (change_weights, "made from other weights"),
        (add_graph, "changed since they were verified: onnx/model.onnx"),
        (change_record, "record of the ONNX export"),
        (remove_record, "record of the ONNX export"),
    ],
)
def test_the_gate_refuses_graphs_of_anything_else(trained_run, tmp_path, change, seen):
    folder = tmp_path / "release"
    shutil.copytree(trained_run / "final", folder)
    pretend_export(folder, tmp_path / "export")
    shutil.copytree(tmp_path / "export" / "onnx", folder / "onnx")
    shutil.copyfile(tmp_path / "export" / "verified.json", folder / "onnx/verified.json")

    def check():
        return gate._attempt("ONNX", lambda: [gate._onnx(folder)])[0]

    assert check().passed is True
    change(folder)
    assert check().passed is False
    assert seen in check().seen


@pytest.mark.slow
def test_true_graphs_go_through_the_whole_release(exported_onnx, tmp_path, monkeypatch):
    shutil.copytree(exported_onnx, tmp_path / "run")
    # The export is there, and is not made again.
    monkeypatch.setattr(onnx, "trace", None)
    release = make_release(tmp_path / "run" / "final", REPO, onnx=True)
    gate_report = json.loads((release / "gate.json").read_text())
    assert gate_report["verdict"] == "passed"
    record = read_sealed(release / "onnx" / "verified.json", "record", "")
    assert sum(name.endswith(".onnx") for name in record["files"]) == 3
    assert verify(release)["verdict"] == "passed"
