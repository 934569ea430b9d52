"""`ant-hf publish` over a real protocol: nothing without --yes, one commit, nothing lost, nothing told."""

import json
import shutil
import subprocess
import sys
import time

import pytest
from commands import ANT_HF

from hub.conftest import READ_TOKEN, WRITE_TOKEN

REPO = "GODELEV/Ant-10M"


@pytest.fixture
def run(released, tmp_path):
    shutil.copytree(released, tmp_path / "run")
    return tmp_path / "run"


def local_files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_from_dry_run_to_a_repository_that_verifies(hub, session, run):
    publish = ["publish", run / "final", "--repo", REPO]
    dry, real, verified, generated, scored, again, other = session(
        publish,
        [*publish, "--yes"],
        ["verify", REPO],
        ["generate", REPO, "--prompt", "And"],
        ["perplexity", REPO, "--tokens", run / "tokens"],
        [*publish, "--yes"],
        [*publish, "--yes", "--tag", "v1"],
    )
    assert dry[0] == 0, dry[1]
    assert "nothing was sent; add --yes" in dry[1]
    assert "will be created, public" in dry[1]
    assert real[0] == 0, real[1]
    assert "read back   17 files, all with the hashes" in real[1]
    assert verified[0] == 0, verified[1]
    assert "hashes" in verified[1]
    assert generated[0] == 0, generated[1]
    assert generated[1].splitlines()[-1].startswith("And")
    assert scored[0] == 0, scored[1]
    assert "byte perplexity" in scored[1]
    assert again[0] == 0, again[1]
    assert "nothing to change" in again[1]
    assert other[0] == 2
    assert "the tag v1 exists already" in other[1]

    repository, release = hub.repository(REPO), local_files(run / "release")
    assert {
        name: repository.content(name) for name in repository.files() if name != ".gitattributes"
    } == release
    titles = [commit["title"] for commit in repository.history()]
    assert titles == ["Release v1", "initial commit"]
    assert repository.state["tags"] == {"v1": repository.resolve("main")}
    # The dry run read and validated; the first thing that changed anything came with --yes.
    first_change = next(i for i, (m, p) in enumerate(hub.requests) if m == "PUT" or p.endswith("/create"))
    assert sum(path == "/api/whoami-v2" for _, path in hub.requests[:first_change]) == 2
    assert hub.count("PUT", "/lfs/") == sum(name.endswith((".safetensors", ".png")) for name in release)


def test_a_mistyped_folder_is_told_from_a_silent_hub(hub, session, client_here, monkeypatch):
    missing, path, odd = session(
        ["verify", "release/Ant-11M"], ["verify", "runs/quickstart/finl"], ["verify", "release/Ant 10M"]
    )
    assert "release/Ant-11M is no folder here; asking the Hub" in missing[1]
    assert "neither a folder nor a repository that can be read: release/Ant-11M" in missing[1]
    assert "model not found: runs/quickstart/finl. Pass a model folder" in path[1]
    assert "name is not valid; saw 'release/Ant 10M'" in odd[1]
    assert [each[0] for each in (missing, path, odd)] == [2, 2, 2]
    script = """
from ant_hf.cli.main import run
import typer
from ant_hf.hub import HubClient
from ant_hf.release.publish import fetch_model
app = typer.Typer()
app.command()(lambda: fetch_model(HubClient(attempts=1, anonymous=True), "release/Ant-11M"))
run(app)
"""
    # A port nobody listens on.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    silent = client_here(script, check=False)
    assert silent.returncode == 2
    assert "release/Ant-11M is no folder here and cannot be had from the Hub. Check the name" in silent.stderr


def test_what_is_wrong_is_said_before_the_first_byte(hub, session, run):
    publish = ["publish", run / "final", "--yes", "--repo"]
    hub.repository("GODELEV/training").create(private=False)
    hub.repository("GODELEV/training").commit(
        "main", "Step 8", {"last-checkpoint/optimizer.pt": b"x", "notes.md": b"y"}
    )
    nowhere, elsewhere, odd, both, unsafe, pruned, private = session(
        ["publish", "nowhere", "--repo", REPO],
        [*publish, "someone/Ant-10M"],
        [*publish, "Ant 10M"],
        [*publish, REPO, "--dry-run"],
        [*publish, "GODELEV/training"],
        [*publish, "GODELEV/training", "--prune"],
        [*publish, "GODELEV/training", "--private"],
    )
    assert "model folder not found: nowhere/config.json" in nowhere[1]
    assert "GODELEV may not write under someone" in elsewhere[1]
    assert "repository's name is not valid" in odd[1]
    assert "--yes and --dry-run" in both[1]
    assert "last-checkpoint/optimizer.pt" in unsafe[1]
    assert "--prune" in unsafe[1]
    assert "is public and --private was given" in private[1]
    assert {result[0] for result in (elsewhere, odd, both, unsafe, private)} == {2}
    assert pruned[0] == 0, pruned[1]
    assert set(hub.repository("GODELEV/training").files()) == {
        ".gitattributes",
        *local_files(run / "release"),
    }


@pytest.mark.parametrize(
    ("token", "message"),
    [(None, "no Hub token found"), (READ_TOKEN, "may only read"), ("hf_wrong", "the Hub answered 401")],
    ids=["none", "read", "wrong"],
)
def test_a_token_that_will_not_do_is_explained(hub, session, run, token, message):
    ((code, said),) = session(["publish", run / "final", "--repo", REPO, "--yes"], HF_TOKEN=token)
    assert code == 2
    assert message in said
    assert "https://huggingface.co/settings/tokens" in said
    assert not hub.repository(REPO).exists
    assert hub.count("PUT", ".") == 0


def test_a_card_whose_metadata_the_hub_refuses_is_not_sent(hub, session, run):
    ((code, said),) = session(["publish", run / "final", "--repo", REPO, "--license", "my-own", "--yes"])
    assert code == 2
    assert "refuses the card's metadata" in said
    assert not hub.repository(REPO).exists


def test_the_token_is_in_nothing_that_is_written(hub, session, run, tmp_path):
    """Everything said and every file, also when the server repeats the token in its errors."""
    hub.faults.add("POST", "/commit/", "echo")
    hub.faults.add("POST", "/tag/", "echo", times=99)
    results = session(["publish", run / "final", "--repo", REPO, "--yes", "--attempts", "2"])
    assert results[0][0] == 2
    assert "hf_***" in results[0][1]
    secret = WRITE_TOKEN.encode()
    assert secret not in json.dumps(results).encode()
    searched = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(searched) > 50
    assert [path for path in searched if secret in path.read_bytes()] == []


@pytest.mark.slow
def test_gguf_files_go_with_the_release_when_asked(hub, client, run):
    pytest.importorskip("xllamacpp")
    command = ("ant-hf", "publish", run / "final", "--repo", REPO, "--yes")
    client(*command, "--with-gguf")
    repository = hub.repository(REPO)
    card = repository.content("README.md").decode()
    for kind in ("F32", "F16", "Q8_0"):
        assert repository.content(f"Ant-10M-{kind}.gguf")[:4] == b"GGUF"
        assert f"`Ant-10M-{kind}.gguf`" in card
    assert "FROM ./Ant-10M-Q8_0.gguf" in repository.content("Modelfile").decode()
    # Without the flag the next release has none; what the repository has stays unless pruned.
    client(*command)
    assert "GGUF" not in repository.content("README.md").decode()


@pytest.mark.slow
def test_a_killed_upload_continues_without_sending_the_weights_again(hub, session, client_environment, run):
    """Killed while the commit is on its way: the blobs are there, nothing else is."""
    publish = ["publish", str(run / "final"), "--repo", REPO, "--yes"]
    hub.faults.add("POST", "/commit/", "slow", delay=30)
    command = [sys.executable, "-c", ANT_HF, *publish]
    process = subprocess.Popen(
        command, env=client_environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not hub.count("POST", "/commit/"):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    sent = hub.count("PUT", "/lfs/")
    assert sent
    ((code, said),) = session(publish)
    assert code == 0, said
    assert hub.count("PUT", "/lfs/") == sent
    assert [commit["title"] for commit in hub.repository(REPO).history()] == ["Release v1", "initial commit"]


def check_outcomes(outcomes):
    for outcome in outcomes:
        assert outcome["met"] or outcome["step"] == "verify weights", outcome
        assert not outcome["traceback"], outcome
        assert outcome["then"] == "published", outcome
        assert outcome["release whole"], outcome
        assert outcome["remote whole"], outcome
        assert not outcome["overwritten"], outcome
        assert outcome["commits"] == 1, outcome
        assert outcome["tags"] == ["v1"], outcome
        assert (outcome["message"] is None) == (outcome["first"] == "published")
        assert "\n" not in (outcome["message"] or ""), outcome
        if outcome["step"] not in ("send weights", "verify weights"):
            # Weights go over the line once, however often the rest is repeated.
            assert outcome["puts"] == outcome["blobs"], outcome


def test_faults_end_in_success_or_one_line_with_nothing_lost(released, outcomes_of):
    check_outcomes(outcomes_of(released / "release", "--quick"))


@pytest.mark.slow
def test_every_fault_at_every_step(released, outcomes_of):
    check_outcomes(outcomes_of(released / "release"))
