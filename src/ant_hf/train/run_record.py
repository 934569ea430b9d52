"""`run.json`: what was run, on what, from what, with what outcome."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from ant_hf.train.precision import Execution
from ant_hf.utils.provenance import package_versions, source_commit

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
        "packages": package_versions(_PACKAGES),
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
