"""`ant-hf publish` over a real protocol: nothing without --yes, one commit, nothing lost, nothing told."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time

import pytest
import yaml
from commands import ANT_HF, stop_command
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.errors import HfHubHTTPError

from ant_hf.card.eval_results import eval_result_problems, listed_benchmarks
from ant_hf.errors import AntError
from ant_hf.hub import HubClient, httpx, is_transient
from ant_hf.release.publish import fetch_model
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
    dry, real, verified, generated, scored, again = session(
        publish,
        [*publish, "--yes"],
        ["verify", REPO],
        ["generate", REPO, "--prompt", "And"],
        ["perplexity", REPO, "--tokens", run / "tokens"],
        [*publish, "--yes"],
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
    assert "nothing changes" in again[1]
    assert "already holds this release, tagged v1" in again[1]

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


EVAL_YAML = """
name: ARC
evaluation_framework: inspect-ai
tasks:
  - {id: easy, config: ARC-Easy, split: test}
  - {id: challenge, config: ARC-Challenge, split: test}
"""


def test_results_of_sets_that_the_hub_lists_go_to_its_leaderboards(hub, session, run, quick_gate, capsys):
    """ARC's data set is listed with two tasks, of which one was measured; PIQA's is not listed."""
    hub.benchmarks = ["cais/hle", "allenai/ai2_arc"]
    data = hub.repository("allenai/ai2_arc", "datasets")
    data.create(private=False)
    data.commit("main", "as it is", {"eval.yaml": EVAL_YAML.encode()})
    publish = ["publish", run / "final", "--repo", REPO, "--yes"]
    first, verified, audited = session(publish, ["verify", run / "release"], ["audit", run / "release"])
    assert first[0] == 0, first[1]
    repository = hub.repository(REPO)
    (name,) = (path for path in repository.files() if path.startswith(".eval_results/"))
    (entry,) = parse_eval_result_entries(yaml.safe_load(repository.content(name)))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("allenai/ai2_arc", "challenge", 23.98)
    assert (entry.source_url, "acc_norm" in entry.notes) == (f"https://huggingface.co/{REPO}", True)
    card = ModelCard(repository.content("README.md").decode())
    shown = {result.dataset_name for result in card.data.eval_results}
    assert ("PIQA" in shown, "ARC-Challenge" in shown) == (True, False)
    assert "1 in .eval_results, as in results.json" in verified[1]
    assert re.search(r"ARC-Challenge 23\.98 %.*0\.2398 in the card's table.*agrees", audited[1])

    path = run / "release" / name
    path.write_text(path.read_text().replace("23.98", "32.98"))
    (wrong,) = session(["audit", run / "release"])
    assert (wrong[0], "DISAGREES" in wrong[1]) == (2, True)
    results = json.loads((run / "release" / "results.json").read_text())
    assert "32.98, and results.json has 23.98" in eval_result_problems(run / "release", results)[0]
    path.write_text("- dataset: {id: allenai/ai2_arc}\n")
    assert "the Hub's client cannot read" in eval_result_problems(run / "release", results)[0]

    # A Hub that does not say which sets it lists: the dated list counts, which has none of ours.
    hub.faults.add("GET", r"/api/datasets$", 403, 1)
    assert listed_benchmarks(HubClient()) == {}
    assert re.search(r"the Hub does not say .*the list of 2026-\d\d-\d\d is used", capsys.readouterr().out)
    assert set(listed_benchmarks(HubClient())) == {"arc_easy", "arc_challenge"}


def test_a_tag_is_made_or_there_already_or_refused(hub, session, run):
    publish = ["publish", run / "final", "--repo", REPO, "--yes"]
    (first,) = session([*publish, "--tag", "v1"])
    assert first[0] == 0, first[1]
    there, made, again, odd, branch = session(
        [*publish, "--tag", "v1"],
        [*publish, "--tag", "stable"],
        [*publish, "--tag", "stable"],
        [*publish, "--tag", "my tag"],
        [*publish, "--tag", "main"],
    )
    repository = hub.repository(REPO)
    head = repository.resolve("main")
    changed = repository.commit("main", "by someone else", {"run.json": b"{}"})
    (moved,) = session([*publish, "--tag", "stable"])
    assert repository.state["tags"] == {"v1": head, "stable": head}
    assert [each[0] for each in (there, made, again)] == [0, 0, 0]
    assert "the tag v1 is there already" in there[1]
    assert "tagged stable" in made[1]
    assert "the tag stable is there already" in again[1]
    assert [each[0] for each in (moved, odd, branch)] == [2, 2, 2]
    assert f"exists already, at another commit; saw '{head[:12]}'" in moved[1]
    assert "--tag NAME" in moved[1]
    assert "saw 'my tag'" in odd[1]
    assert "is already a branch" in branch[1]
    assert repository.resolve("main") == changed


def test_the_plan_needs_no_token(hub, session, run, monkeypatch):
    publish = ["publish", run / "final", "--repo", REPO]
    new, refused = session([*publish], [*publish, "--yes"], HF_TOKEN=None)
    hub.repository(REPO).create(private=False)
    files = {"run.json": (run / "release" / "run.json").read_bytes(), "[/odd]\x1b[2J.md": b"x"}
    hub.repository(REPO).commit("main", "earlier", files)
    (known,) = session([*publish, "--dry-run"], HF_TOKEN=None)
    reading = ("GET", "HEAD")
    sent = [request for request in hub.requests if request[0] not in reading and "validate" not in request[1]]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    (silent,) = session([*publish, "--attempts", "1"], HF_TOKEN=None)
    assert [each[0] for each in (new, refused, known, silent)] == [0, 2, 0, 0]
    size = f"{(run / 'release' / 'model.safetensors').stat().st_size:,}"
    for _, said in (new, refused, known, silent):
        assert re.search(rf"model\.safetensors +│ +{size} ", said), said
        assert "https://huggingface.co/settings/tokens" in said
        assert "hf auth login" in said
    assert re.search(r"run\.json +│ +[\d,]+ │ is there already", known[1]), known[1]
    assert "[/odd].md" in known[1]
    assert "cannot be seen without a token" in new[1]
    assert "what it holds is not known" in silent[1]
    assert "nothing changes" not in silent[1]
    assert sent == []


def test_a_mistyped_folder_is_told_from_a_silent_hub(hub, session, client_here, monkeypatch):
    missing, path, odd = session(
        ["verify", "someone/Ant-11M"], ["verify", "runs/no-such-run/finl"], ["verify", "someone/Ant 10M"]
    )
    assert "someone/Ant-11M is not a folder here; asking the Hub" in missing[1]
    assert "someone/Ant-11M is neither a folder here nor a repository" in missing[1]
    assert "does not exist, or it is private and the Hub token found here may not read it" in missing[1]
    assert "model not found: runs/no-such-run/finl. Pass a model folder" in path[1]
    assert "name is not valid; saw 'someone/Ant 10M'" in odd[1]
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
    assert (
        "release/Ant-11M is not a folder here and cannot be fetched from the Hub. Check the name"
        in silent.stderr
    )


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
    assert "is public, but --private was given" in private[1]
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


@pytest.mark.parametrize(
    ("scope", "says"),
    [
        ({"type": "model", "name": REPO}, None),
        ({"type": "user", "name": "GODELEV"}, None),
        ({"type": "model", "name": "GODELEV/other"}, "repo.write for GODELEV/other"),
        ({"type": "space", "name": REPO}, "repo.write for GODELEV/Ant-10M"),
    ],
    ids=["this repository", "all of the owner", "another repository", "the space of this name"],
)
def test_a_fine_grained_token_must_be_for_this_repository(hub, session, run, scope, says):
    scoped = [
        {"entity": scope, "permissions": ["repo.content.read", "repo.write"]},
        {"entity": {"type": "user", "name": "GODELEV"}, "permissions": ["repo.content.read"]},
    ]
    access = {"displayName": "laptop", "role": "fineGrained", "fineGrained": {"global": [], "scoped": scoped}}
    hub.tokens["hf_" + "FineGrained0123456789"] = {"name": "GODELEV", "role": "write", "access": access}
    hub.repository(REPO).create(private=False)
    publish = ["publish", run / "final", "--repo", REPO, "--yes"]
    ((code, said),) = session(publish, HF_TOKEN="hf_" + "FineGrained0123456789")
    assert (code == 0) == (says is None), said
    if says:
        assert f"'laptop' of GODELEV lacks the right to write (repo.write) to the model {REPO}" in said
        assert says in said
        assert "https://huggingface.co/settings/tokens" in said
        # Before the gate, too.
        assert {path for _, path in hub.requests} == {"/api/whoami-v2"}


ADVICE = "Delete old files at https://huggingface.co/settings/storage, or take a larger plan"


@pytest.mark.parametrize(
    ("method", "pattern", "kind"), [("POST", "/objects/batch", "full"), ("POST", "/commit/", 403)]
)
def test_what_a_full_account_is_told_comes_through_whole(hub, session, run, method, pattern, kind):
    text = f"Private storage quota of 100 GB exceeded.{' It counts all versions of all files.' * 5} {ADVICE}."
    fault = hub.faults.add(method, pattern, kind, times=99, message=text)
    ((code, said),) = session(["publish", run / "final", "--repo", REPO, "--yes"])
    assert code == 2
    assert fault.met == 1
    assert ADVICE in said
    assert "may not do this" not in said


def test_codes_of_a_terminal_in_what_a_server_says_are_not_printed(hub, session, run):
    text = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J and plain"
    hub.faults.add("GET", "/api/models/", 503, message=text)
    hub.faults.add("POST", "/api/repos/create", 400, message=text)
    ((code, said),) = session(["publish", run / "final", "--repo", REPO, "--yes"])
    assert code == 2
    assert len(re.findall(r"answered \d+ red +and plain", said)) == 2, said
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said)


@pytest.mark.parametrize("command", ["generate", "verify"])
def test_a_repository_that_may_not_be_read_is_told_from_a_wrong_name(hub, session, released, command):
    files = {name: (released / "release" / name).read_bytes() for name in ("config.json", "tokenizer.json")}
    for name in ("private", "gated"):
        hub.repository(f"other/{name}").create(private=name == "private", gated=name == "gated")
        hub.repository(f"other/{name}").commit("main", "x", files)
    lines = [[command, "other/private"], [command, "other/gated"], [command, "other/none"]]
    for token, seen in (
        (None, "no Hub token was found"),
        (WRITE_TOKEN, "the Hub token found here may not read"),
    ):
        private, gated, none = session(*lines, HF_TOKEN=token)
        assert [each[0] for each in (private, gated, none)] == [2, 2, 2]
        for _, said in (private, none):
            assert f"does not exist, or it is private and {seen}" in said
        assert "ask for access" in gated[1]
        for _, said in (private, gated, none):
            assert "hf auth login" in said
    ((_, said),) = session(lines[2], HF_TOKEN="hf_" + "NobodysToken0123456789")
    assert "The token from the variable HF_TOKEN was refused" in said


def test_names_of_dangerous_files_are_names_and_no_patterns(hub, here, tmp_path):
    hub.repository("other/odd").create(private=False)
    hub.repository("other/odd").commit("main", "x", {"[ab].py": b"x", "a.json": b"{}", "config.json": b"{}"})
    folder, left_out = fetch_model(HubClient(anonymous=True), "other/odd")
    assert left_out == ["[ab].py"]
    assert sorted(path.name for path in folder.iterdir()) == [".gitattributes", "a.json", "config.json"]


def test_the_files_of_a_revision_are_those_that_are_read_and_left_out(hub, here):
    repository = hub.repository("other/older")
    repository.create(private=False)
    first = repository.commit("main", "x", {"old.pkl": b"x", "config.json": b"{}"})
    repository.commit("main", "y", {"new.pkl": b"y"}, deleted=("old.pkl",))
    folder, left_out = fetch_model(HubClient(anonymous=True), "other/older", first)
    assert left_out == ["old.pkl"]
    assert sorted(path.name for path in folder.iterdir()) == [".gitattributes", "config.json"]
    assert fetch_model(HubClient(anonymous=True), "other/older")[1] == ["new.pkl"]
    with pytest.raises(AntError, match="no commit, tag or branch of this name"):
        fetch_model(HubClient(attempts=1, anonymous=True), "other/older", "v9")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "90"}, 90),
        ({"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, 56),
        ({"Retry-After": "3600"}, 300),
    ],
)
def test_a_wait_that_the_hub_asks_for_is_obeyed(headers, seconds, here, monkeypatch):
    waited = []
    monkeypatch.setattr("ant_hf.hub.time.sleep", waited.append)
    request = httpx.Request("GET", "https://huggingface.co/api/models/x/y")
    response = httpx.Response(429, headers=headers, request=request)

    def refused():
        raise HfHubHTTPError("429", response=response)

    with pytest.raises(AntError, match=r"2 attempts.*answered 429"):
        HubClient(token="hf_x", attempts=2).step("asking", refused)
    assert waited == [seconds]


@pytest.mark.parametrize(
    ("text", "transient"),
    [
        ("Network error: Request middleware error: error sending request for url (https://x/y)", True),
        ("Server error: HTTP status server error (503 Service Unavailable), domain: https://x/y", True),
        ("Network error: HTTP status client error (403 Forbidden), domain: https://s3/y?X-Amz=1", True),
        ("HTTP status client error (403 Forbidden), domain: https://x/api/m/xet-write-token/main", False),
    ],
)
def test_a_broken_line_of_the_other_protocol_is_one_too(text, transient):
    """hf_xet, which the tests' Hub does not speak, raises what Python raises for any line."""
    assert is_transient(ConnectionError(text)) is transient


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


def test_ctrl_c_while_files_are_on_their_way_leaves_at_once(hub, session, client_environment, run):
    """huggingface_hub's threads send them, and are waited for whenever its own code is left."""
    publish = ["publish", str(run / "final"), "--repo", REPO, "--yes"]
    hub.faults.add("PUT", "/lfs/", "slow", times=99, delay=30)
    at = lambda: hub.count("PUT", "/lfs/")  # noqa: E731
    stopped = stop_command("ant-hf", *publish, at=at, env=client_environment)
    assert stopped.faults("while sending", "Run the same command again; what has arrived") == []
    hub.faults.clear()
    assert session(publish)[0][0] == 0
    assert set(hub.repository(REPO).state["tags"]) == {"v1"}


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


@pytest.mark.slow
def test_faults_end_in_success_or_one_line_with_nothing_lost(released, outcomes_of):
    outcomes = outcomes_of(released / "release", "--quick")
    check_outcomes(outcomes)
    # An upload address that has run out is not a refusal.
    assert [each["first"] for each in outcomes if each["fault"] == "expired"] == ["published"]


@pytest.mark.slow
def test_every_fault_at_every_step(released, outcomes_of):
    check_outcomes(outcomes_of(released / "release"))


def test_both_generations_of_the_hubs_client_are_understood(monkeypatch):
    """huggingface_hub 1 raises httpx's errors, 2 raises httpx2's; a GPU image may have the first."""
    import httpx

    monkeypatch.setattr("huggingface_hub.__version__", "1.33.0")
    spec = importlib.util.find_spec("ant_hf.hub")
    earlier = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(earlier)
    assert earlier.is_transient(httpx.ConnectError("no route"))
    assert not is_transient(httpx.ConnectError("no route"))
