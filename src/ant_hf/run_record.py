"""`run.json`: what was run, on what, from what, with what outcome."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from ant_hf.precision import Execution

_PACKAGES = (
    "ant-hf",
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "datasets",
    "numpy",
    "safetensors",
)


def environment(execution: Execution, num_processes: int) -> dict[str, Any]:
    """Versions, commit and hardware, as JSON values."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "commit": source_commit(),
        "device": execution.device,
        "device_name": execution.device_name,
        "num_processes": num_processes,
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "precision": execution.precision,
        "precision_reason": execution.reason,
        "torch_compile": execution.torch_compile,
        "attn_implementation": execution.attn_implementation,
    }


def source_commit() -> str | None:
    """The commit of this package's own checkout, `-dirty` with local changes; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return f"{commit}-dirty" if _git(root, "status", "--porcelain") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603


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
    if torch.cuda.is_available():
        peak["cuda"] = torch.cuda.max_memory_allocated()
    return peak


def now() -> str:
    """UTC time, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
