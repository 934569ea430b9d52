"""Processes and threads on CPUs, where `accelerate launch` does less than its flags say.

accelerate 1.x starts several CPU processes only through MPI: `--cpu --num_processes 2` without it
starts one, and says nothing. It also sets OMP_NUM_THREADS=1 for a single process without `--cpu`.
Both would train the right model at half the speed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, Sequence

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
        AntError: several were asked for and the number cannot be found out.
    """
    if not _several_were_asked_for(os.environ):
        return
    parent = psutil.Process(os.getppid())
    try:
        count = requested_processes(parent.cmdline())
    except psutil.Error:
        count = None
    if count is None:
        raise AntError(
            "accelerate was asked for several CPU processes and started one",
            hint="Pass --num_processes N on its command line, or run: "
            f"torchrun --nproc_per_node N {' '.join(sys.argv)}",
        )
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    os.execv(sys.executable, [*torchrun, *sys.argv])  # noqa: S606 (no shell)


def _several_were_asked_for(environment: Mapping[str, str]) -> bool:
    """What accelerate's single-process launcher leaves behind when `num_processes` is above 1."""
    return (
        environment.get("ACCELERATE_USE_CPU") == "True"
        and "MASTER_ADDR" in environment
        and "RANK" not in environment
    )


def requested_processes(command: Sequence[str]) -> int | None:
    """The N of `--num_processes N` in a command line."""
    for index, word in enumerate(command):
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes":
            value = value or (command[index + 1] if index + 1 < len(command) else "")
            return int(value) if value.isdigit() else None
    return None
