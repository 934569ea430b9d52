"""The folder of a `-GGUF` repository: files of the release's very weights, a card made of their record."""

import json
import runpy
import shutil

import pytest
import yaml
from conftest import ROOT
from hub.metadata_rules import problems

from ant_hf.card.inputs import read_inputs
from ant_hf.card.markdown import read_tables
from ant_hf.card.rendering import render_card
from ant_hf.errors import AntError
from ant_hf.export import llama_cpp
from ant_hf.export.exporting import export
from ant_hf.release.build import finish
from ant_hf.release.gguf import make_gguf_release
from ant_hf.utils.files import inventory, read_sealed, write_sealed

REPO = "GODELEV/Ant-10M"


@pytest.fixture
def run(released_gguf, tmp_path):
    shutil.copytree(released_gguf, tmp_path / "run")
    return tmp_path / "run"


def make(run):
    return make_gguf_release(run / "gguf", run / "release")


def test_the_card_has_sizes_and_losses_from_the_record(run):
    folder = make(run)
    record, card = read_sealed(folder / "verified.json", "record", ""), (folder / "README.md").read_text()
    (table,) = read_tables(card)
    rows = {row[0]: row[1:] for row in table[1:]}
    assert set(rows) == {"Ant-10M-Q8_0.gguf", "Ant-10M-Q4_0.gguf"}
    for name, (size, bits, loss, prompts) in rows.items():
        figures = record["files"][name]["verified"]["llama_cpp"]
        assert size == f"{(folder / name).stat().st_size:,}"
        assert bits == f"{figures['bits_per_byte']:.4f}"
        assert loss.startswith(f"{figures['bits_per_byte_difference']:+.4f} ± ")
        assert prompts == f"{figures['prompts_with_equal_output']} of 20"
    original = figures["bits_per_byte"] - figures["bits_per_byte_difference"]
    assert f"The original needs {original:.4f} " in card
    assert "In Q4_0 the embeddings" in card
    for line in (
        f"llama-completion -hf {REPO}-GGUF:Q8_0 -no-cnv -n 64 --temp 0.7 --top-k 50 --top-p 0.9",
        f"llama-server -hf {REPO}-GGUF:Q8_0\n",
        f'ollama run hf.co/{REPO}-GGUF:Q8_0 "The basic',
    ):
        assert line in card


def test_its_metadata_is_that_of_a_quantized_model(run):
    card = (make(run) / "README.md").read_text()
    assert problems(card) == []
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["base_model"] == REPO
    assert metadata["base_model_relation"] == "quantized"
    assert metadata["pipeline_tag"] == "text-generation"
    assert (metadata["license"], metadata["language"]) == ("apache-2.0", "en")
    assert "gguf" in metadata["tags"]


def test_the_same_files_again_are_the_same_bytes(run):
    first = inventory(make(run))
    assert {"README.md", "release.json", "verified.json", "params", "template", "Modelfile"} < set(first)
    assert inventory(make(run)) == first


def test_a_chat_model_is_run_as_one(run):
    """Its template is in the files, so there is none beside them; a note of the export stands in the card."""
    record = read_sealed(run / "gguf" / "verified.json", "record", "")
    (run / "gguf" / "template").unlink()
    del record["files"]["template"]
    record["notes"] = ["llama.cpp also stops at <|im_end|>, which generation_config.json does not name"]
    write_sealed(run / "gguf" / "verified.json", {k: v for k, v in record.items() if k != "sealed"})
    card = (make(run) / "README.md").read_text()
    assert f"llama-cli -hf {REPO}-GGUF:Q8_0 " in card
    assert "llama-completion" not in card
    assert "completion model" not in card
    assert "&lt;\\|im\\_end\\|&gt;" in card


def test_files_of_other_weights_are_refused(run, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    other, _ = export(str(tiny_run / "final"), "gguf", ("f16",), tmp_path / "other", REPO)
    with pytest.raises(AntError, match=r"was made from another model\.safetensors.*Export again"):
        make_gguf_release(other, run / "release")
    half, _ = export(str(run / "final"), "gguf", ("f16",), tmp_path / "half", REPO)
    with pytest.raises(
        AntError, match=r"only after llama\.cpp has verified them; saw .not verified in llama\.cpp"
    ):
        make_gguf_release(half, run / "release")
    assert not (run / "release-gguf").exists()


def test_a_file_that_was_changed_is_refused(run):
    (run / "gguf" / "params").write_text("{}")
    with pytest.raises(AntError, match="params was changed after it was verified"):
        make(run)
    assert not (run / "release-gguf").exists()


def test_a_license_that_names_this_computer_is_refused(run):
    record = read_sealed(run / "gguf" / "verified.json", "record", "")
    record["notes"] = ["made in /home/someone/models"]
    write_sealed(run / "gguf" / "verified.json", {k: v for k, v in record.items() if k != "sealed"})
    with pytest.raises(AntError, match="an absolute path: /home/someone"):
        make(run)


def test_only_a_card_that_was_told_links_to_the_files(released):
    folder = released / "release"
    files = inventory(folder, without=("README.md", "release.json"))
    alone = render_card(read_inputs(folder, REPO, "apache-2.0", files))
    assert "GGUF" not in alone
    linked = render_card(read_inputs(folder, REPO, "apache-2.0", files, None, f"{REPO}-GGUF"))
    assert f"[{REPO}-GGUF](https://huggingface.co/{REPO}-GGUF)" in linked
    assert json.loads((folder / "release.json").read_text())["repository"] == REPO


def test_a_card_that_is_written_again_keeps_its_link(released, tmp_path):
    folder = shutil.copytree(released / "release", tmp_path / "release")
    release = json.loads((folder / "release.json").read_text())
    finish(folder, REPO, release["license"], release["made_of"], {}, f"{REPO}-GGUF")
    before = (folder / "README.md").read_text()
    assert f"{REPO}-GGUF" in before
    runpy.run_path(str(ROOT / "tools" / "render_release.py"))["render"](folder)
    assert (folder / "README.md").read_text() == before
