import os
import platform
import subprocess
import sys

import pytest

from ant_hf.errors import AntError
from ant_hf.train.distributed import check_launch
from ant_hf.utils.hardware import available_cores, threads_per_process


def test_a_launcher_that_starts_one_process_of_several_is_refused(monkeypatch):
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR", "RANK"):
        monkeypatch.delenv(name, raising=False)
    check_launch()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    check_launch()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--data", "my text.txt"])
    with pytest.raises(AntError, match=r"torchrun --nproc_per_node N pretrain\.py --data 'my text\.txt'"):
        check_launch()
    monkeypatch.setenv("RANK", "1")
    check_launch()


CHILD = "from ant_hf.utils.hardware import available_cores, threads_per_process; print(threads_per_process())"
# As accelerate does: 1 where nothing is set.
LAUNCHER = (
    "import os, subprocess, sys; threads = os.environ.get('OMP_NUM_THREADS', '1')\n"
    "environment = os.environ | {'ACCELERATE_USE_CPU': 'False', 'OMP_NUM_THREADS': threads}\n"
    f"subprocess.run([sys.executable, '-c', {CHILD!r}], env=environment)"
)


@pytest.mark.parametrize("script", [CHILD, LAUNCHER])
@pytest.mark.parametrize("asked", ["1", "3", None])
def test_threads_that_the_user_sets_count_and_those_of_a_launcher_do_not(script, asked):
    environment = {**os.environ, "OMP_NUM_THREADS": asked}
    if asked is None:
        del environment["OMP_NUM_THREADS"]
    output = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True)
    assert int(output) == (int(asked) if asked else available_cores())


def test_threads_are_shared_out(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    alone = threads_per_process()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert threads_per_process() == max(1, alone // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert threads_per_process() == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_buffers_are_used_again():
    script = """
import psutil, sys
from ant_hf.utils.hardware import keep_freed_memory
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
