"""The unmodified clients work against the server, so that what passes here says something."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from hub.conftest import READ_TOKEN

CLI = str(Path(sys.executable).parent / "hf")


def test_hub_client_creates_commits_lists_and_downloads(hub, client, tmp_path):
    script = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
api = HfApi()
assert api.whoami()["name"] == "GODELEV"
api.create_repo("GODELEV/x"); api.create_repo("GODELEV/x", exist_ok=True)
open("w.safetensors", "wb").write(b"1" * 100_000); open("notes.txt", "w").write("first")
head = api.model_info("GODELEV/x").sha
wanted = ["w.*", "n*"]
info = api.upload_folder(
    repo_id="GODELEV/x", folder_path=".", allow_patterns=wanted, parent_commit=head
)
api.create_tag("GODELEV/x", tag="v1", revision=info.oid)
open("notes.txt", "w").write("second")
api.upload_file(repo_id="GODELEV/x", path_or_fileobj="notes.txt", path_in_repo="deep/er/notes.txt")
assert open(hf_hub_download("GODELEV/x", "w.safetensors")).read() == "1" * 100_000
assert open(hf_hub_download("GODELEV/x", "deep/er/notes.txt")).read() == "second"
folder = snapshot_download("GODELEV/x", revision="v1")
import os
print(json.dumps([sorted(os.listdir(folder)), [t.name for t in api.list_repo_refs("GODELEV/x").tags],
    sorted(f.path for f in api.list_repo_tree("GODELEV/x", recursive=True)),
    [c.title for c in api.list_repo_commits("GODELEV/x")],
    [f.path for f in api.get_paths_info("GODELEV/x", ["notes.txt", "absent"])]]))
"""
    folder, tags, tree, titles, infos = json.loads(client(script, cwd=tmp_path).stdout)
    assert folder == [".gitattributes", "notes.txt", "w.safetensors"]
    assert tags == ["v1"]
    assert tree == [".gitattributes", "deep", "deep/er", "deep/er/notes.txt", "notes.txt", "w.safetensors"]
    assert len(titles) == 3
    assert infos == ["notes.txt"]
    assert hub.count("PUT", "/lfs/") == 1


def test_transformers_pushes_and_loads_by_repository_name(hub, client_here, tiny_run):
    script = f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(tiny_run / "final")!r})
model.push_to_hub("GODELEV/pushed", private=True)
AutoTokenizer.from_pretrained({str(tiny_run / "final")!r}).push_to_hub("GODELEV/pushed")
again = AutoModelForCausalLM.from_pretrained("GODELEV/pushed")
assert len(AutoTokenizer.from_pretrained("GODELEV/pushed")) == again.config.vocab_size
"""
    client_here(script)
    assert hub.repository("GODELEV/pushed").state["private"]


def test_command_line_uploads_and_downloads(hub, client, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"abc")
    client(CLI, "upload", "GODELEV/y", tmp_path / "a.safetensors", "a.safetensors")
    client(CLI, "download", "GODELEV/y", "a.safetensors", "--local-dir", tmp_path / "down")
    assert (tmp_path / "down" / "a.safetensors").read_bytes() == b"abc"
    shutil.rmtree(tmp_path / "down")
    private = client(CLI, "download", "GODELEV/none", "--local-dir", tmp_path / "down", check=False)
    assert private.returncode != 0


@pytest.mark.parametrize(
    ("token", "code"),
    [(READ_TOKEN, "403"), ("hf_wrong", "401")],
    ids=["read only", "wrong"],
)
def test_server_refuses_those_who_may_not_write(client_here, token, code):
    result = client_here(
        "import huggingface_hub as h; h.create_repo('GODELEV/z')", check=False, HF_TOKEN=token
    )
    assert result.returncode != 0
    assert code in result.stderr


def test_moved_head_is_a_conflict_and_cut_connections_are_errors(hub, client_here):
    script = """
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("GODELEV/x", exist_ok=True)
head = api.model_info("GODELEV/x").sha
api.upload_file(repo_id="GODELEV/x", path_or_fileobj=b"1", path_in_repo="a", parent_commit=head)
"""
    hub.faults.add("POST", "/commit/", "race")
    result = client_here(script, check=False)
    assert "412" in result.stderr
    assert set(hub.repository("GODELEV/x").files()) == {".gitattributes", "theirs.txt"}
    hub.faults.add("POST", "/commit/", "cut")
    assert client_here(script, check=False).returncode != 0
    assert "a" not in hub.repository("GODELEV/x").files()
    hub.faults.add("POST", "/commit/", "cut after")
    assert client_here(script, check=False).returncode != 0
    assert "a" in hub.repository("GODELEV/x").files()


def test_metadata_is_checked_strictly(client_here):
    script = """
from huggingface_hub import ModelCard
good = "---\\nlicense: mit\\n---\\n# x"
ModelCard(good).validate()
for bad in (good.replace("license", "licence"), good.replace("mit", "none-such")):
    try:
        ModelCard(bad).validate()
    except ValueError as error:
        print(error)
"""
    shown = client_here(script).stdout
    assert "licence" in shown
    assert "is not allowed" in shown
    assert "must be one of" in shown
