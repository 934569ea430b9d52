"""Publish again and again while the server fails at one step; what happens is written down.

`python -m hub.fault_runs RELEASE OUT.json [--quick] [--space]` in tests/. With a server of its own. The
clients are unmodified; only their waits are cut short.
"""

import hashlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from huggingface_hub import constants
from huggingface_hub.utils.tqdm import disable_progress_bars

from ant_hf.errors import AntError
from ant_hf.hub import HubClient
from ant_hf.release.publish import publish
from hub.here import at_hub
from hub.server import Hub, RunningHub

TOKEN = "hf_" + "TokenOfTheFaultRuns0" + "0123456789abcd"
TIMEOUT, DELAY = 0.4, 1.2
FOREVER = 10_000
# step: method, path, faults tried once; "always" faults never end
STEPS = {
    "who am I": ("GET", r"/api/whoami-v2"),
    "read the repository": ("GET", r"/api/(models|spaces)/[^/]+/[^/]+$"),
    "list its files": ("GET", r"/tree/"),
    "list its tags": ("GET", r"/refs$"),
    "validate the card": ("POST", r"/api/validate-yaml"),
    "create the repository": ("POST", r"/api/repos/create"),
    "ask for upload modes": ("POST", r"/preupload/"),
    "ask where weights go": ("POST", r"/objects/batch"),
    "send weights": ("PUT", r"/lfs/"),
    "verify weights": ("POST", r"/verify$"),
    "commit": ("POST", r"/commit/"),
    "read back: files": ("GET", r"/resolve/"),
    "read back: heads": ("HEAD", r"/resolve/"),
    "tag": ("POST", r"/tag/"),
}
KINDS = [
    "refused token (401)",
    "no permission (403)",
    429,
    500,
    503,
    "cut",
    "cut after",
    "slow",
    "500 always",
]
EXTRA = [("commit", "race"), ("commit", "409 always"), ("commit", 409), ("tag", 409), ("commit", "echo"),
         ("send weights", "echo"), ("send weights", "expired"), ("commit", "cut after always")]  # fmt: skip
QUICK = [
    ("who am I", "refused token (401)"), ("create the repository", "cut after"), ("send weights", "cut"),
    ("send weights", "expired"),
    ("commit", 500), ("commit", "cut after"), ("commit", "slow"), ("commit", "race"),
    ("commit", "500 always"), ("read back: files", "cut"), ("tag", "cut after"),
]  # fmt: skip


def cases(quick: bool) -> list[tuple[str, object]]:
    return QUICK if quick else [(step, kind) for step in STEPS for kind in KINDS] + EXTRA


def add_fault(hub: Hub, step: str, kind: object) -> None:
    method, pattern = STEPS[step]
    times = FOREVER if isinstance(kind, str) and kind.endswith(("always", ")")) else 1
    text = str(kind).removesuffix(" always")
    what = {"refused token (401)": 401, "no permission (403)": 403}.get(text, text)
    hub.faults.add(method, pattern, int(what) if str(what).isdecimal() else what, times, DELAY)


def digest(folder: Path) -> str:
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}
    return json.dumps(hashes, sort_keys=True)


def run_case(hub: Hub, release: Path, number: int, step: str, kind: object, what: str) -> dict:
    """One publication under a fault, then one without it if it failed."""
    repository = f"GODELEV/case-{number}"
    record = json.loads((release / "release.json").read_text())
    (release / "release.json").write_text(json.dumps(record | {"repository": repository}))
    before, puts = digest(release), hub.count("PUT", "/lfs/")
    outcome = {"step": step, "fault": str(kind), "message": None, "traceback": False}

    def attempt() -> str:
        try:
            client = HubClient(attempts=3, timeout=TIMEOUT)
            publish(release, repository, yes=True, kind=what, client=client)
        except AntError as error:
            outcome["message"] = outcome["message"] or str(error)
            return "refused"
        except Exception as error:  # a traceback for the user: what must not happen
            outcome["message"], outcome["traceback"] = repr(error), True
            return "crashed"
        return "published"

    add_fault(hub, step, kind)
    began = time.perf_counter()
    outcome["first"] = attempt()
    outcome["seconds"] = round(time.perf_counter() - began, 2)
    outcome["met"] = sum(fault.met for fault in hub.faults._faults)
    hub.faults.clear()
    remote = hub.repository(repository, f"{what}s")
    outcome["overwritten"] = kind == "race" and "theirs.txt" not in remote.files()
    outcome["then"] = outcome["first"] if outcome["first"] == "published" else attempt()
    outcome["release whole"] = digest(release) == before
    files = remote.files()
    outcome["remote whole"] = all(
        remote.content(name) == (release / name).read_bytes()
        for name in (p.relative_to(release).as_posix() for p in release.rglob("*") if p.is_file())
    )
    outcome["commits"] = sum(commit["title"].startswith("Release") for commit in remote.history())
    outcome["tags"] = sorted(remote.state["tags"])
    outcome["blobs"] = sum("lfs" in file for file in files.values())
    outcome["puts"] = hub.count("PUT", "/lfs/") - puts
    return outcome


def main(release: str, out: str, *flags: str) -> None:
    really_sleep = time.sleep
    environment = {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1"}
    short = {"HF_HUB_ETAG_TIMEOUT": 1, "HF_HUB_DOWNLOAD_TIMEOUT": 1}
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "release"
        shutil.copytree(release, copy)
        with (
            RunningHub(Hub(Path(scratch) / "hub", {TOKEN: {"name": "GODELEV", "role": "write"}})) as hub,
            at_hub(hub.endpoint, Path(scratch) / "home", **environment),
            mock.patch.multiple(constants, **short),
            mock.patch.object(time, "sleep", lambda seconds: really_sleep(min(seconds, 0.01))),
        ):
            disable_progress_bars()
            outcomes = []
            what = "space" if "--space" in flags else "model"
            for number, (step, kind) in enumerate(cases("--quick" in flags)):
                # A Space has texts only.
                if what == "model" or "weights" not in step:
                    outcomes.append(run_case(hub, copy, number, step, kind, what))
                print(json.dumps(outcomes[-1]), flush=True)
    Path(out).write_text(json.dumps(outcomes, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
