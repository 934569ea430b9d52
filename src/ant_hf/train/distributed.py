"""Several processes and machines: how they are started, and what they must agree on."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch.distributed
from accelerate.utils import broadcast_object_list, gather_object

from ant_hf.errors import AntError
from ant_hf.utils.console import is_first_process
from ant_hf.utils.locks import owner_of


def is_first_on_another_machine() -> bool:
    """Whether this is the first process of its machine, and that is not the first machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0" and not is_first_process()


def _is_alone() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1


def check_run_folder_is_shared(folder: Path) -> None:
    """Let every process look for the lock that the first one holds on the run's folder.

    Raises:
        AntError: it is not there, so this machine's folder is another one.
    """
    if _is_alone():
        return
    seen = owner_of(folder, "run")
    (held,) = broadcast_object_list([seen if is_first_process() else None])
    if seen != held:
        raise AntError(
            f"output_dir {folder.absolute()} on {socket.gethostname()} is not the folder that the first "
            f"process writes to, on {held.get('host')}",
            hint="Several machines need a folder on a file system that they share: --output-dir FOLDER. "
            "data_dir may be on each machine's own disk.",
        )


def check_fsdp(plugin: Any) -> None:
    """Refuse an FSDP that would not be done, or not be saved as whole files.

    Args:
        plugin: accelerate's, as it took effect; None for none.

    Raises:
        AntError: FSDP was asked for and accelerate does not do it; or another kind than ours was set.
    """
    hint = "Take configs/accelerate/fsdp-8.yaml as it is, with your number of processes."
    if plugin is None:
        if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
            raise AntError("FSDP was asked for, and accelerate shards models on several GPUs only", hint=hint)
        return
    seen = f"version {plugin.fsdp_version}, {plugin.state_dict_type}"
    if plugin.fsdp_version != 2 or "FULL_STATE_DICT" not in seen:
        raise AntError(
            "FSDP is set up in another way", seen=seen, expected="version 2, FULL_STATE_DICT", hint=hint
        )


def check_equal_inputs(hashes: Mapping[str, str]) -> None:
    """Hold the config, tokenizer and tokens of all processes against each other.

    Raises:
        AntError: a machine has others; names the first that differs, and both hashes.
    """
    if _is_alone():
        return
    everyone = gather_object([(socket.gethostname(), dict(hashes))])
    first_host, first = everyone[0]
    for host, seen in everyone:
        for name, wanted in first.items():
            if seen[name] != wanted:
                raise AntError(
                    f"the {name} on {host} differ from those on {first_host}",
                    seen=f"sha256 {seen[name][:12]}",
                    expected=wanted[:12],
                    hint="Copy them from there, or let the machines share data_dir.",
                )


def start_missing_processes() -> None:
    """Replace this process by torchrun where accelerate was asked for several CPU processes and started one.

    Raises:
        AntError: several were asked for, and how many cannot be found out or divided over the machines.
    """
    if not _several_were_asked_for(os.environ):
        return
    parent = psutil.Process(os.getppid())
    try:
        launch = requested_launch(parent.cmdline())
    except psutil.Error:
        launch = None
    if launch is None:
        raise AntError(
            "accelerate was asked for several CPU processes and started one",
            hint="Pass --num_processes N on its command line, or run: "
            f"torchrun --nproc_per_node N {' '.join(sys.argv)}",
        )
    options = launch.torchrun_options()
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name)
    os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *options, *sys.argv])  # noqa: S606


def _several_were_asked_for(environment: Mapping[str, str]) -> bool:
    """What accelerate's single-process launcher leaves behind for several processes or machines."""
    return (
        environment.get("ACCELERATE_USE_CPU") == "True"
        and "MASTER_ADDR" in environment
        and "RANK" not in environment
    )


@dataclass(frozen=True)
class Launch:
    """What `accelerate launch` was asked for."""

    processes: int
    """Over all machines."""
    machines: int = 1
    machine_rank: int = 0
    address: str | None = None
    port: int | None = None

    def torchrun_options(self) -> list[str]:
        """The same in torchrun's words.

        Raises:
            AntError: the processes do not divide over the machines.
        """
        here, rest = divmod(self.processes, self.machines)
        if rest:
            raise AntError(
                f"--num_processes is {self.processes}, and counts those of all machines",
                expected=f"a multiple of the {self.machines} machines",
            )
        options = ["--nproc_per_node", str(here)]
        if self.machines == 1:
            return ["--standalone", *options]
        options += ["--nnodes", str(self.machines), "--node_rank", str(self.machine_rank)]
        return [*options, "--master_addr", str(self.address), "--master_port", str(self.port)]


def requested_launch(command: Sequence[str]) -> Launch | None:
    """What a command line asks `accelerate launch` for, its config file included; None if it is none."""
    # Costs an import of torch, on this path only; a second reading of accelerate's flags would drift.
    from accelerate.commands.config import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    words = list(command)
    starts = [index for index, word in enumerate(words) if _is_launcher(word)]
    if not starts:
        return None
    try:
        asked = launch_command_parser().parse_args(words[starts[0] + 1 :])
    except SystemExit:
        return None
    names = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")
    values = {name: getattr(asked, name) for name in names}
    if asked.config_file or (os.path.isfile(default_config_file) and not asked.cpu):  # noqa: PTH113
        config = load_config_from_file(asked.config_file)
        values = {name: getattr(config, name) if value is None else value for name, value in values.items()}
    if not values["num_processes"]:
        return None
    return Launch(
        processes=values["num_processes"],
        machines=values["num_machines"] or 1,
        machine_rank=int(values["machine_rank"] or 0),
        address=values["main_process_ip"],
        port=values["main_process_port"],
    )


def _is_launcher(word: str) -> bool:
    return word in ("launch", "accelerate.commands.launch") or word.endswith(
        ("accelerate-launch", "commands/launch.py")
    )
