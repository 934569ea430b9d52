"""The Hub of these tests and a way to run clients against it as a user does: in processes of their own."""

import json
import os
import subprocess
import sys

import pytest

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
        "NO_COLOR": "1",
        "COLUMNS": "200",
        "TERM": "dumb",
    }


@pytest.fixture
def client(client_environment):
    """A function that runs a Python snippet or a command line in a fresh process against the Hub."""

    def run(*command, check=True, cwd=None, **environment):
        words = [sys.executable, "-c", command[0]] if len(command) == 1 else list(map(str, command))
        if words[0] == "ant-hf":
            words = [sys.executable, "-c", "from ant_hf.cli.main import main; main()", *words[1:]]
        values = {k: v for k, v in (client_environment | environment).items() if v is not None}
        result = subprocess.run(words, env=values, capture_output=True, text=True, cwd=cwd, timeout=300)
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    return run


@pytest.fixture
def session(client):
    """A function that runs several `ant-hf` command lines in one fresh process, which saves its start.

    Returns for each: exit code, and what was said on both streams together.
    """

    def run(*lines, **environment):
        script = f"""
import contextlib, io, json, sys
import ant_hf.utils.console
from ant_hf.cli import main as cli
results = []
for words in {[list(map(str, line)) for line in lines]!r}:
    said, sys.argv = io.StringIO(), ["ant-hf", *words]
    ant_hf.utils.console._console.file = said
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
    results.append([code, said.getvalue()])
print("RESULTS" + json.dumps(results))
"""
        return json.loads(client(script, **environment).stdout.partition("RESULTS")[2])

    return run
