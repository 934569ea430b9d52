"""What a machine can do at most: copying memory and multiplying matrices, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

_SIZES = {"cpu": (256 * 2**20, 2048), "cuda": (2 * 2**30, 8192)}


def measure_ceilings(device: str, dtypes: tuple[torch.dtype, ...]) -> dict[str, float]:
    """Copy bandwidth in bytes/s (read and written), and dense matrix rate in FLOP/s by dtype.

    Medians of 20 repeats after 5 unmeasured ones, of copies larger than any cache and of square
    matrices.
    """
    size, side = _SIZES[device]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    figures = {"copy_bytes_per_second": 2 * size / _seconds(lambda: target.copy_(source), device)}
    for dtype in dtypes:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        name = f"{str(dtype).removeprefix('torch.')}_matrix_flops"
        figures[name] = 2 * side**3 / _seconds(lambda a=a, b=b: torch.mm(a, b), device)  # type: ignore[misc]
    return figures


def _seconds(work: Callable[[], object], device: str) -> float:
    repeats = []
    for index in range(25):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if index >= 5:
            repeats.append(time.perf_counter() - started)
    return statistics.median(repeats)
