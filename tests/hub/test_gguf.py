"""`ant-hf publish --gguf`: the model, then OWNER/NAME-GGUF; and a CI job that publishes without a token."""

import shutil

import pytest
from conftest import GGUF_TYPES

from ant_hf.export import gguf
from hub.test_publishing import REPO, local_files

GGUF_REPO = f"{REPO}-GGUF"


@pytest.fixture
def run(released_gguf, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "DEFAULT_TYPES", GGUF_TYPES)
    shutil.copytree(released_gguf, tmp_path / "run")
    return tmp_path / "run"


def there(hub, name):
    repository = hub.repository(name)
    files = {file: repository.content(file) for file in repository.files() if file != ".gitattributes"}
    return files, repository.state["tags"]


def test_the_model_and_then_its_gguf_files(hub, session, run, quick_gate):
    publish = ["publish", run / "final", "--repo", REPO, "--gguf"]
    dry, real, again = session(publish, [*publish, "--yes", "--tag", "v1.0"], [*publish, "--yes"])
    assert [each[0] for each in (dry, real, again)] == [0, 0, 0], (dry, real, again)
    assert f"{GGUF_REPO}: will be created, public" in dry[1]
    assert again[1].count("nothing changes") == 2
    files, tags = there(hub, REPO)
    assert files == local_files(run / "release")
    assert f"https://huggingface.co/{GGUF_REPO}" in files["README.md"].decode()
    assert not any(name.endswith(".gguf") for name in files)
    assert list(tags) == ["v1.0"]
    files, tags = there(hub, GGUF_REPO)
    assert files == local_files(run / "release-gguf")
    assert files["Ant-10M-Q8_0.gguf"][:4] == b"GGUF"
    assert f"base_model: {REPO}\n" in files["README.md"].decode()
    assert list(tags) == ["v1.0"]
    created = [path for method, path in hub.requests if path.endswith("/create")]
    assert len(created) == 2


def test_a_name_that_gets_too_long_is_refused_before_anything_is_made(hub, session, run):
    ((code, said),) = session(["publish", run / "final", "--repo", f"GODELEV/{'a' * 94}", "--gguf"])
    assert code == 2
    assert "name is not valid" in said
    assert "-GGUF'" in said
    assert hub.requests == []


def test_without_llama_cpp_nothing_is_begun(hub, session, run, monkeypatch):
    monkeypatch.setattr("ant_hf.export.llama_cpp.is_installed", lambda: False)
    ((code, said),) = session(["publish", run / "final", "--repo", REPO, "--gguf", "--yes"])
    assert code == 2
    assert "only files that llama.cpp has verified" in said
    assert hub.requests == []


JOB = "a-signed-statement-of-the-job"


def test_a_trusted_publisher_needs_no_token(hub, session, run, quick_gate):
    """Each repository gets a token of its own, whoami is not asked, and nothing is told of them."""
    for name in (REPO, GGUF_REPO):
        hub.repository(name).create(private=False)
        hub.publishers[name] = JOB
    environment = {"HF_TOKEN": None, "HF_OIDC_RESOURCE": REPO, "HF_OIDC_ID_TOKEN": JOB}
    publish = ["publish", run / "final", "--repo", REPO, "--gguf", "--yes"]
    hub.faults.add("POST", "/commit/", "echo")
    hub.faults.add("POST", "/oauth/token", 503)
    ((code, said),) = session(publish, **environment)
    assert code == 0, said
    assert f"the Trusted Publisher of {GGUF_REPO}, may write" in said
    assert "hf_***" in said
    assert "hf_jwt_" not in said
    assert there(hub, REPO)[0] == local_files(run / "release")
    assert there(hub, GGUF_REPO)[0] == local_files(run / "release-gguf")
    assert hub.count("GET", "whoami") == 0


@pytest.mark.parametrize("trusted", [(), (REPO,)], ids=["none", "only the model's"])
def test_a_job_that_is_not_trusted_is_told_what_to_set(hub, session, run, trusted):
    for name in trusted:
        hub.publishers[name] = JOB
    environment = {"HF_TOKEN": None, "HF_OIDC_RESOURCE": REPO, "HF_OIDC_ID_TOKEN": JOB}
    ((code, said),) = session(["publish", run / "final", "--repo", REPO, "--gguf", "--yes"], **environment)
    missing = GGUF_REPO if trusted else REPO
    assert code == 2
    assert f"the Hub did not give this CI job a token for {missing}: " in said
    assert f"https://huggingface.co/{missing}/settings" in said
    assert "id-token: write" in said
    assert JOB not in said
    # Before the gate and the export.
    assert {path for _, path in hub.requests} == {"/oauth/token"}


def test_outside_of_a_ci_job_the_variable_is_explained(hub, session, run, monkeypatch):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    ((code, said),) = session(
        ["publish", run / "final", "--repo", REPO, "--yes"], HF_TOKEN=None, HF_OIDC_RESOURCE=REPO
    )
    assert code == 2
    assert "no OIDC id token is available" in said
    assert hub.requests == []
