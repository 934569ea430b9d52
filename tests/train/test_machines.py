"""Two machines, acted out on loopback: two launchers, two folders where they have disks of their own."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from conftest import ROOT
from records import losses

from ant_hf.data.tokens import read_manifest
from ant_hf.train.pretrain import pretrain
from ant_hf.utils.files import write_sealed
from ant_hf.utils.metrics import read_metrics


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(machine_rank, port, arguments, machines=2, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(machines)]
    command += ["--node_rank", str(machine_rank), "--nproc_per_node", str(processes // machines)]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    return subprocess.Popen(
        [*command, "pretrain.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_on_two_machines(first, second):
    """Exit codes and outputs of the machines."""
    port = free_port()
    machines = [start(rank, port, arguments) for rank, arguments in enumerate((first, second))]
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    return [machine.returncode for machine in machines], outputs


@pytest.mark.slow
def test_two_machines_train_what_one_trains(make_recipe, tmp_path):
    """A shared run folder and data on each machine's own disk; stopped on two, finished on one."""
    keys = {"per_device_batch_size": 4, "max_steps": 6, "save_steps": 3}
    single = make_recipe("single", **keys)
    pretrain(single)
    double = make_recipe("double", data_dir=tmp_path / "disk-0", **keys)
    commands = [
        ["--config", str(tmp_path / "double.yaml"), "--set", f"data_dir={tmp_path}/disk-{rank}"]
        for rank in (0, 1)
    ]
    codes, outputs = run_on_two_machines(*commands)
    assert codes == [0, 0], outputs
    assert losses(tmp_path / "double") == pytest.approx(losses(tmp_path / "single"), rel=1e-5)
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("single", "double")]
    scores = [[row["eval_bits_per_byte"] for row in r if "eval_loss" in row] for r in rows]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    record = json.loads((tmp_path / "double" / "run.json").read_text())
    assert (record["status"], record["plan"]["num_processes"]) == ("finished", 2)
    # The first machine alone speaks and writes; each has packed the same tokens.
    assert "final  " in outputs[0]
    assert "final  " not in outputs[1]
    manifests = [tmp_path / f"disk-{rank}" / "tokens" / "manifest.json" for rank in (0, 1)]
    assert manifests[0].read_bytes() == manifests[1].read_bytes()
    # One machine continues from a checkpoint of two.
    record |= {"status": "running"}
    write_sealed(tmp_path / "double" / "run.json", {k: v for k, v in record.items() if k != "values_sha256"})
    shutil.rmtree(tmp_path / "double" / "checkpoint-6")
    pretrain(double)
    assert losses(tmp_path / "double") == pytest.approx(losses(tmp_path / "single"), rel=1e-5)
    assert json.loads((tmp_path / "double" / "run.json").read_text())["resumed_from_steps"] == [3]


def refusals(first, second):
    """Exit codes and messages of two processes that stand for two machines, without a launcher."""
    processes = []
    port = free_port()
    for rank, arguments in enumerate((first, second)):
        joined = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        joined |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "True"}
        command = [sys.executable, "pretrain.py", *arguments]
        environment = os.environ | joined
        processes.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        )
    messages = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], messages


@pytest.mark.slow
def test_machines_that_write_to_different_folders_are_refused(make_recipe, tiny_run, tmp_path):
    make_recipe("run", data_dir=tiny_run)
    command = ["--config", str(tmp_path / "run.yaml")]
    codes, messages = refusals(command, [*command, "--output-dir", str(tmp_path / "elsewhere")])
    assert 0 not in codes
    assert codes[1] == 2
    assert f"error (process 1): output_dir {tmp_path / 'elsewhere'} on" in messages[1]
    assert "--output-dir" in messages[1]
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_machines_that_would_read_different_tokens_are_refused(make_recipe, tiny_run, tmp_path):
    other = tmp_path / "disk-1"
    shutil.copytree(tiny_run, other)
    manifest = read_manifest(other / "tokens")
    manifest["inputs"]["max_tokens"] = 5
    write_sealed(other / "tokens" / "manifest.json", manifest)
    make_recipe("run", data_dir=tiny_run)
    command = ["--config", str(tmp_path / "run.yaml")]
    codes, messages = refusals(command, [*command, "--set", f"data_dir={other}"])
    assert codes == [2, 2], messages
    for message in messages:
        assert f"the tokens on {socket.gethostname()} differ from those on {socket.gethostname()}" in message
        assert "share data_dir" in message
    assert not (tmp_path / "run" / "run.json").exists()
