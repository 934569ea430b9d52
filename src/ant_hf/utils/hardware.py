"""What this machine is: cores, threads, memory, the name and the peak of its processor."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

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
    """What the user set as OMP_NUM_THREADS, else cores divided by the processes on this machine."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked == "1" and ("ACCELERATE_USE_CPU" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ):
        # accelerate and torchrun put it there where nothing was set; what they were started with tells.
        asked, launcher = "", psutil.Process().parent()
        with suppress(psutil.Error):
            asked = launcher.environ().get("OMP_NUM_THREADS", "") if launcher else ""
    if asked.isdecimal() and int(asked):
        return int(asked)
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


class Gpu(NamedTuple):
    """What the makers' data sheets say of a board."""

    peak_flops: float | None
    """Dense 16-bit FLOP/s."""
    watts: int
    """Board power."""
    gigabytes: int
    """Memory; of the smallest one where there are several."""


# By words of CUDA's name; the first match counts.
_GPUS = {
    "H200": Gpu(989e12, 700, 141),
    "H100 PCIe": Gpu(756e12, 350, 80),
    "H100": Gpu(989e12, 700, 80),
    "A100": Gpu(312e12, 400, 40),
    "L40S": Gpu(362e12, 350, 48),
    "L4": Gpu(121e12, 72, 24),
    "A10G": Gpu(70e12, 150, 24),
    "T4": Gpu(65e12, 70, 16),
    "V100": Gpu(125e12, 300, 16),
    "P100": Gpu(18.7e12, 250, 12),
    "RTX 4090": Gpu(None, 450, 24),
    "RTX 3090": Gpu(None, 350, 24),
}
# Boards, and shares of a board, that are not as their namesake.
_OTHERS = {"NVL", "MIG"}


def known_gpu(name: str) -> Gpu | None:
    """The data sheet behind CUDA's name of a GPU; None for one that is not in the table."""
    words = set(name.replace("-", " ").split())
    if words & _OTHERS:
        return None
    return next((gpu for key, gpu in _GPUS.items() if set(key.split()) <= words), None)


def gpu_named(name: str, key: str = "--device") -> Gpu:
    """The data sheet of a GPU that is not here.

    Args:
        key: the option or the key of a file that names it, for the message.

    Raises:
        AntError: it is not in the table, or its peak is not; lists those that are.
    """
    known = {words.lower(): gpu for words, gpu in _GPUS.items() if gpu.peak_flops}
    if gpu := known.get(name.strip().lower()):
        return gpu
    raise AntError(
        f"{key} is unknown",
        seen=name,
        expected=f"one of {', '.join(known)}",
        hint="Leave --device out for this machine." if key == "--device" else None,
    )


def cpu_flags() -> set[str]:
    """Instruction sets as Linux names them; empty elsewhere, which means fp32."""
    return set(_cpu_field("flags").split())


def cpu_name() -> str:
    """The processor as it names itself."""
    return _cpu_field("model name") or "CPU"


def _cpu_field(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def peak_memory_bytes() -> dict[str, int]:
    """Largest resident memory of this process so far, and of the GPU's allocator where there is one."""
    if sys.platform == "win32":
        peak = {"process": psutil.Process().memory_info().peak_wset}
    elif sys.platform == "linux":
        # Not ru_maxrss: that begins with the memory of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        peak = {"process": int(status.partition("VmHWM:")[2].split()[0]) * 1024}
    else:
        import resource

        peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}  # in bytes on macOS
    import torch

    if torch.cuda.is_available():
        peak["cuda"] = torch.cuda.max_memory_allocated()
    return peak
