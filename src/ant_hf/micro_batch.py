"""How many blocks one process handles at once, where the recipe leaves it open."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedConfig

from ant_hf.architecture import build_model
from ant_hf.errors import AntError
from ant_hf.precision import Execution

# On a CPU 16 x 1,024 tokens at once were slower than 4 x 1,024, which stay nearer to its caches. The other
# two are guesses, not measured: enough work for every kernel to fill a GPU.
_MOST_TOKENS = {"cpu": 4096, "mps": 16384, "cuda": 65536}
# Trainer, optimizer state and fragmentation come on top of the step that is tried.
_USABLE_MEMORY = 0.8


def choose_micro_batch(
    config: PreTrainedConfig, execution: Execution, sequence_length: int, blocks_per_process: int
) -> int:
    """The largest divisor of a process's share of a step that is worth it and fits the memory.

    On CUDA every candidate runs one forward and backward pass, largest first, until one fits.
    All processes end with the smallest that any of them found.

    Raises:
        AntError: not even one block fits.
    """
    most = max(1, _MOST_TOKENS[execution.device] // sequence_length)
    candidates = [
        size for size in range(min(most, blocks_per_process), 0, -1) if blocks_per_process % size == 0
    ]
    if execution.device != "cuda":
        return candidates[0]
    chosen = largest_that_fits(candidates, lambda size: _fits(config, execution, sequence_length, size))
    if chosen is None:
        raise AntError(
            "not even one block fits the GPU's memory",
            seen=f"{torch.cuda.get_device_properties().total_memory / 2**30:.0f} GiB, "
            f"training.sequence_length {sequence_length}",
            hint="Lower training.sequence_length, or train a smaller model.",
        )
    if torch.distributed.is_initialized():
        smallest = torch.tensor(chosen, device="cuda")
        torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
        chosen = int(smallest)
    return chosen


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether a smaller batch may help: every device words this in its own way."""
    return bool(should_reduce_batch_size(error))


def largest_that_fits(candidates: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The first candidate that fits; running out of memory means that it does not."""
    for size in candidates:
        try:
            if fits(size):
                return size
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
        # Outside the handler, whose traceback would keep the tensors of the failed try alive.
        gc.collect()
        clear_device_cache()
    return None


def _fits(config: PreTrainedConfig, execution: Execution, sequence_length: int, size: int) -> bool:
    """Run one training pass as it will be, but not compiled, which needs more memory rather than less."""
    torch.cuda.reset_peak_memory_stats()
    # Building a model seeds the generator anew; the run's own seeding must find it as it was.
    with torch.random.fork_rng():
        model = build_model(config, 0, execution.attn_implementation)
    model.cuda()  # type: ignore[call-arg]  # wrapped by a decorator of transformers
    ids = torch.zeros((size, sequence_length), dtype=torch.int64, device="cuda")
    with torch.autocast("cuda", dtype=execution.autocast_dtype, enabled=execution.autocast_dtype is not None):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    used = torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties().total_memory
    del model, ids, loss
    gc.collect()
    clear_device_cache()
    return used <= _USABLE_MEMORY
