import platform
import subprocess
import sys

import pytest

from ant_hf.processes import _several_were_asked_for, requested_processes, threads_per_process


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["python", "accelerate", "launch", "--cpu", "--num_processes", "2", "pretrain.py"], 2),
        (["accelerate", "launch", "--num-processes=4", "pretrain.py"], 4),
        (["accelerate", "launch", "pretrain.py", "--config", "x"], None),
        (["accelerate", "launch", "--num_processes"], None),
    ],
)
def test_number_is_read_from_the_launchers_command_line(command, expected):
    assert requested_processes(command) == expected


def test_only_the_silent_single_process_is_recognised():
    silent = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}
    assert _several_were_asked_for(silent)
    assert not _several_were_asked_for(silent | {"RANK": "1"})
    assert not _several_were_asked_for({"ACCELERATE_USE_CPU": "True"})
    assert not _several_were_asked_for({})


def test_threads_are_shared_out(monkeypatch):
    alone = threads_per_process()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert threads_per_process() == max(1, alone // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert threads_per_process() == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_buffers_are_used_again():
    script = """
import psutil, sys
from ant_hf.processes import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(50):
    buffer = b"x" * (64 * 2**20)
    del buffer
import resource
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    faults = {
        mode: int(
            subprocess.run([sys.executable, "-c", script, mode], capture_output=True, check=True).stdout
        )
        for mode in ("keep", "return")
    }
    # 64 MiB are 16,384 pages, and without it each buffer's are new.
    assert faults["return"] - faults["keep"] > 40 * 16384
