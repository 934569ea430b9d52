"""What a run will be, derived before anything is done, and shown before anything is spent."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedConfig

from ant_hf.data.tokens import TRAIN, read_manifest
from ant_hf.errors import AntError
from ant_hf.model.architecture import Ledger, build_model, ledger_table, training_flops_per_token
from ant_hf.published import published_counterpart
from ant_hf.recipe import Recipe
from ant_hf.train.precision import Execution
from ant_hf.utils.console import facts_table, show
from ant_hf.utils.names import MANIFEST

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


@dataclass(frozen=True)
class Plan:
    """What follows from recipe, architecture and number of processes, before anything is done."""

    num_processes: int
    per_device_batch_size: int
    """The largest that divides a process's share of a step and is not above the recipe's."""
    gradient_accumulation_steps: int
    tokens_per_step: int
    total_tokens: int
    tokens_per_parameter: float
    flops_per_token: float
    total_flops: float
    checkpoint_bytes: int
    """One checkpoint: fp32 weights and two moments (Muon keeps one for its matrices)."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        config: PreTrainedConfig,
        ledger: Ledger,
        num_processes: int,
        micro_batch: Callable[[int], int],
    ) -> Plan:
        """Derive the plan.

        Args:
            micro_batch: blocks at once for a number of blocks a process, where the recipe says `auto`.

        Raises:
            AntError: the batch does not divide over the processes.
        """
        training = recipe.training
        per_process, rest = divmod(training.sequences_per_step, num_processes)
        if rest:
            nearest = (per_process + 1) * num_processes
            raise AntError(
                f"training.sequences_per_step is {training.sequences_per_step}",
                expected=f"a multiple of the {num_processes} processes",
                hint=f"Use --set training.sequences_per_step={nearest}",
            )
        at_most = training.per_device_batch_size
        most = micro_batch(per_process) if at_most == "auto" else min(at_most, per_process)
        at_once = next(size for size in range(most, 0, -1) if per_process % size == 0)
        tokens_per_step = training.sequences_per_step * training.sequence_length
        total_tokens = tokens_per_step * training.max_steps
        flops = training_flops_per_token(config, training.sequence_length)
        moments = 2 * ledger.total
        if training.optimizer == "muon":
            moments -= ledger.per_layer * ledger.num_hidden_layers
        return cls(
            num_processes=num_processes,
            per_device_batch_size=at_once,
            gradient_accumulation_steps=per_process // at_once,
            tokens_per_step=tokens_per_step,
            total_tokens=total_tokens,
            tokens_per_parameter=total_tokens / ledger.total,
            flops_per_token=flops,
            total_flops=flops * total_tokens,
            checkpoint_bytes=4 * (ledger.total + moments),
        )


def show_plan(
    recipe: Recipe, ledger: Ledger, execution: Execution, plan: Plan, config: PreTrainedConfig
) -> None:
    show(ledger_table(list(ledger.rows), ledger.total, ledger.equation(), published_counterpart(config)))
    training = recipe.training
    batch = (
        f"{training.sequences_per_step} blocks of {training.sequence_length} = "
        f"{plan.tokens_per_step:,} tokens ({plan.per_device_batch_size} a device x "
        f"{plan.num_processes} processes x {plan.gradient_accumulation_steps} accumulated)"
    )
    if training.per_device_batch_size not in ("auto", plan.per_device_batch_size):
        batch += f"; the recipe's {training.per_device_batch_size} a device do not divide it"
    threads = f", {torch.get_num_threads()} threads a process" if execution.device == "cpu" else ""
    facts = [
        ("device", f"{execution.device} ({execution.device_name}){threads}"),
        ("precision", f"{execution.precision}: {execution.reason}"),
        (
            "compile, attention",
            f"{'on' if execution.torch_compile else 'off'}, {execution.attn_implementation}",
        ),
        ("a step", batch),
        ("the run", f"{training.max_steps:,} steps = {plan.total_tokens:,} tokens"),
        ("passes", _passes(recipe, plan)),
        ("tokens a parameter", f"{plan.tokens_per_parameter:.2f}"),
        ("training compute", f"{plan.flops_per_token / 1e6:.1f} MFLOP a token, {plan.total_flops:.3g} FLOP"),
        ("a checkpoint", f"{plan.checkpoint_bytes / 1e6:,.1f} MB, {training.save_total_limit} kept"),
    ]
    show(facts_table(f"Plan of {recipe.name}", facts))


def _passes(recipe: Recipe, plan: Plan) -> str:
    """How often each training token is seen, as far as the amount of text is known yet."""
    if (recipe.tokens_dir / MANIFEST).is_file():
        tokens = read_manifest(recipe.tokens_dir)["splits"][TRAIN]["tokens"]
        return f"{plan.total_tokens / tokens:.2f} over {tokens:,} packed tokens"
    if recipe.corpus.max_tokens:
        return f"{plan.total_tokens / recipe.corpus.max_tokens:.2f} if the corpus has max_tokens"
    return "known once the text is packed"
