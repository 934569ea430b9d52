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
