"""Processes and threads on CPUs, where `accelerate launch` does less than its flags say.

accelerate 1.x starts several CPU processes only through MPI: `--cpu --num_processes 2` without it
starts one, and says nothing; so does each machine under `--num_machines`. It also sets
OMP_NUM_THREADS=1 for a single process without `--cpu`. All would train at a fraction of the speed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from ant_hf.errors import AntError

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_UP_TO_BYTES = 2**31 - 1


def available_cores() -> int:
    """Cores this process may use, which a container can make fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_per_process() -> int:
    """Cores divided by the processes on this machine, at least one."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def keep_freed_memory() -> None:
    """Let glibc reuse large buffers instead of returning them to the system after each use.

    A training step asks for the same gigabyte again and again, and every page that comes from the
    system is cleared first. Worth a tenth of a step at 4 x 1,024 tokens; costs that the process
    keeps its peak memory. Does nothing where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP_UP_TO_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_UP_TO_BYTES)


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
