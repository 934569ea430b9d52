import platform
import subprocess
import sys

import pytest

from ant_hf.errors import AntError
from ant_hf.train.distributed import Launch, _several_were_asked_for, requested_launch
from ant_hf.utils.hardware import threads_per_process

TWO_MACHINES = ["--num_machines", "2", "--main_process_ip", "10.0.0.1", "--main_process_port", "29500"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python accelerate launch --cpu --num_processes 2 pretrain.py --config x", Launch(2)),
        ("/bin/accelerate-launch --cpu --num-processes=4 pretrain.py", Launch(4)),
        ("python -m accelerate.commands.launch --cpu --num_processes 2 p.py --num_processes 9", Launch(2)),
        ("accelerate launch --cpu pretrain.py --config x", None),
        ("accelerate launch --num_processes", None),
        ("python pretrain.py --num_processes 2", None),
    ],
)
def test_processes_are_read_from_the_launchers_command_line(command, expected):
    assert requested_launch(command.split()) == expected


def test_machines_are_read_from_command_line_and_config_file(tmp_path):
    file = tmp_path / "accelerate.yaml"
    file.write_text(
        "distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 4\nnum_machines: 2\n"
        "main_process_ip: 10.0.0.1\nmain_process_port: 29500\n"
    )
    launch = ["accelerate", "launch", "--machine_rank", "1"]
    wanted = Launch(4, machines=2, machine_rank=1, address="10.0.0.1", port=29500)
    assert requested_launch([*launch, "--config_file", str(file), "pretrain.py"]) == wanted
    flags = ["--cpu", "--num_processes", "4", *TWO_MACHINES]
    assert requested_launch([*launch, *flags, "pretrain.py"]) == wanted
    options = " ".join(wanted.torchrun_options())
    assert options == "--nproc_per_node 2 --nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 29500"
    with pytest.raises(AntError, match=r"--num_processes is 3.*multiple of the 2 machines"):
        Launch(3, machines=2).torchrun_options()


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
