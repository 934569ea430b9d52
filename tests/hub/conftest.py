"""The Hub of these tests, and ways to run clients against it: here, or as a user in a process of its own."""

import json
import os

import pytest
from commands import PLAIN, in_a_process, run_here

from hub import fault_runs
from hub.here import at_hub
from hub.server import Hub, RunningHub

# Shaped like real ones, so that whatever looks for tokens finds them.
WRITE_TOKEN = "hf_" + "WriteTokenOfTheTests" + "0123456789abcd"
READ_TOKEN = "hf_" + "ReadTokenOfTheTests0" + "0123456789abcd"
USER = "GODELEV"


@pytest.fixture
def hub(tmp_path):
    tokens = {
        WRITE_TOKEN: {"name": USER, "role": "write", "orgs": ["tiny-models"]},
        READ_TOKEN: {"name": USER, "role": "read"},
    }
    with RunningHub(Hub(tmp_path / "hub-server", tokens)) as running:
        yield running


@pytest.fixture
def client_environment(hub, tmp_path):
    """Environment of a client process: this Hub, a cache of its own, a token that may write."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return kept | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_TOKEN": WRITE_TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_OFFLINE": "1",
        **PLAIN,
        "COLUMNS": "200",
    }


@pytest.fixture
def client(client_environment):
    """A function that runs a Python snippet or a command line in a fresh process against the Hub."""

    def run(*command, check=True, cwd=None, **environment):
        words = ["python", "-c", command[0]] if len(command) == 1 else command
        values = {k: v for k, v in (client_environment | environment).items() if v is not None}
        result = in_a_process(*words, cwd=cwd, env=values, timeout=300)
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    return run


@pytest.fixture
def here(hub, tmp_path):
    """This process against the Hub, with a token that may write."""
    with at_hub(hub.endpoint, tmp_path / "hf-home", HF_TOKEN=WRITE_TOKEN):
        yield


@pytest.fixture
def client_here(here):
    """A function that does as `client` in this process, which saves the seconds of a start."""

    def run(*command, check=True, **environment):
        words = ["python", "-c", command[0]] if len(command) == 1 else command
        result = run_here(*words, COLUMNS="200", **environment)
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    return run


@pytest.fixture
def session(here):
    """A function that runs several `ant-hf` command lines, one after the other, in this process.

    Returns for each: exit code, and what was said on both streams together.
    """

    def run(*lines, **environment):
        results = [run_here("ant-hf", *line, joined=True, COLUMNS="200", **environment) for line in lines]
        return [(result.returncode, result.stdout) for result in results]

    return run


@pytest.fixture
def outcomes_of(tmp_path, capfd):
    """A function that publishes a folder under faults; returns what happened at each."""

    def run(folder, *flags):
        fault_runs.main(str(folder), str(tmp_path / "out.json"), *flags)
        said = capfd.readouterr()
        assert fault_runs.TOKEN[:8] not in said.out + said.err
        return json.loads((tmp_path / "out.json").read_text())

    return run
