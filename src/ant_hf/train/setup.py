"""What a recipe means on this machine, decided before data is touched: device, precision, batch, sizes."""

from __future__ import annotations

import copy
import gc
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import PreTrainedConfig, TrainingArguments

from ant_hf.data.survey import Survey
from ant_hf.errors import AntError
from ant_hf.model.architecture import Ledger, build_model, ledger_table, parameter_ledger
from ant_hf.model.attention import CAUSAL_BLOCKS, CAUSAL_SDPA
from ant_hf.model.base import Base, architecture_of, config_source
from ant_hf.model.loss import Compiled, return_loss_only
from ant_hf.recipe import Integration, Recipe, TrainingRecipe, share_in_words
from ant_hf.utils.console import facts_table, is_first_process, say, show
from ant_hf.utils.hardware import Gpu, cpu_flags, cpu_name, keep_freed_memory, known_gpu, threads_per_process

# In fp32 on a CPU, SDPA pays per call and wins from longer blocks on; see docs/decisions.md.
_EAGER_UP_TO_TOKENS = 256
# With AMX, PyTorch's attention is no faster than ours up to 1,024 tokens, and faster from here on.
_AMX_SDPA_FROM_TOKENS = 2048
# On a CPU 16 x 1,024 tokens at once were slower than 4 x 1,024, which stay nearer to its caches. The others
# are guesses, not measured: enough work for every kernel to fill a GPU.
_MOST_TOKENS = {"cpu": 4096, "mps": 16384, "cuda": 65536}
_LARGE_GPU_BYTES, _MOST_TOKENS_LARGE_GPU = 40e9, 131072
# On a CPU, compiling and trying whether it pays takes up to a minute. This much compute takes two cores with
# bf16 about a quarter of an hour.
_WORTH_COMPILING_FLOPS = 3e14
# Trainer, optimizer state and fragmentation come on top of the step that is tried.
_USABLE_MEMORY = 0.8
# The first process may tokenise a whole corpus while the others wait for it.
_WAIT_SECONDS = 24 * 3600
# Muennighoff et al. 2023, arXiv 2305.16264: four passes are nearly as good as new text, 16 are not.
_MANY_PASSES = 16
_PROJECT = "ant-hf"
# Keys of the recipe that are also Trainer's.
_SAME_NAME = (
    *("max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "seed", "dataloader_num_workers"),
    *("logging_steps", "eval_steps", "save_steps"),
)

_COUNTED_IN_STEPS = ("logging_steps", "eval_steps", "save_steps")


@dataclass(frozen=True)
class Execution:
    """How the recipe runs on this machine."""

    device: str
    """`cpu`, `cuda` or `mps`."""
    device_name: str
    precision: str
    """`bf16` or `fp16` (autocast over fp32 weights), or `fp32`."""
    reason: str
    """Why this precision."""
    torch_compile: bool
    attn_implementation: str
    peak_flops: float | None
    """Dense 16-bit FLOP/s of the device where its data sheet is known, for MFU."""

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)

    @property
    def compiled(self) -> Compiled | None:
        """What is compiled: on a CPU a layer, in some seconds; a whole model takes minutes and gains less."""
        if not self.torch_compile:
            return None
        return "layers" if self.device == "cpu" else "loss"


@dataclass(frozen=True)
class Plan:
    """What follows from recipe, architecture and number of processes."""

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
    """One checkpoint: fp32 weights and two moments (Muon keeps one for its matrices); their mean if asked."""


@dataclass(frozen=True)
class Setup:
    """Everything decided before data is touched."""

    recipe: Recipe
    config: PreTrainedConfig
    ledger: Ledger
    execution: Execution
    plan: Plan
    arguments: TrainingArguments
    base: Base | None = None
    """The model that the training begins with; None for random weights."""

    @property
    def tokenizer_from(self) -> Path | None:
        """Folder of the tokenizer to take, where none is trained."""
        return self.base.tokenizer if self.base else None

    @property
    def config_values(self) -> dict[str, Any]:
        """The config as a JSON file would hold it."""
        return dict(json.loads(json.dumps(self.config.to_dict())))


def set_up(recipe: Recipe, output_dir: Path) -> Setup:
    """Decide everything that needs no data; `show_plan` prints it.

    Raises:
        AntError: recipe, architecture and machine do not fit each other.
    """
    config, ledger, base = architecture_of(recipe)
    training = recipe.training
    if recipe.tokenizer and recipe.tokenizer.vocab_size not in (None, config.vocab_size):
        raise AntError(
            f"tokenizer.vocab_size is {recipe.tokenizer.vocab_size}, but {recipe.architecture} has "
            f"vocab_size {config.vocab_size}",
            hint="Let it follow the architecture: --set tokenizer.vocab_size=null",
        )
    if training.sequence_length > config.max_position_embeddings:
        raise AntError(
            f"training.sequence_length is {training.sequence_length}",
            expected=f"at most the max_position_embeddings of {recipe.architecture}, "
            f"{config.max_position_embeddings}",
        )
    execution = choose_execution(training)
    if execution.device == "cpu":
        # Even under accelerate launch, whose OMP_NUM_THREADS=1 would leave all other cores idle.
        torch.set_num_threads(training.cpu_threads or threads_per_process())
        keep_freed_memory()
    check_reporting(training.report_to)
    arguments = training_arguments(recipe, execution, output_dir)
    if arguments.n_gpu > 1:
        # Over several, Trainer (DataParallel) would multiply the recipe's batch.
        say(
            "note",
            f"one process uses only one of the {arguments.n_gpu} GPUs; to use all of them: "
            f"accelerate launch --quiet --num_processes {arguments.n_gpu} pretrain.py ...",
        )
        arguments._n_gpu = 1
    at_once = choose_micro_batch(training, config, execution, arguments.world_size)
    plan = make_plan(training, config, ledger, arguments.world_size, at_once)
    execution = _compiled_if_long(execution, training, plan)
    arguments.per_device_train_batch_size = plan.per_device_batch_size
    arguments.gradient_accumulation_steps = plan.gradient_accumulation_steps
    return Setup(recipe, config, ledger, execution, plan, arguments, base)


def fit_length(recipe: Recipe, train_tokens: int) -> Recipe:
    """The recipe for a text of so many tokens.

    Where `num_train_epochs` passes are fewer steps than it has, all that is counted in steps shrinks to them.
    """
    training = recipe.training
    if training.num_train_epochs is None:
        return recipe
    blocks = math.ceil(train_tokens / training.sequence_length) * training.num_train_epochs
    steps = max(1, math.ceil(blocks / training.sequences_per_step))
    if steps >= training.max_steps:
        return recipe
    share = steps / training.max_steps
    shrunk = {name: max(1, round(getattr(training, name) * share)) for name in _COUNTED_IN_STEPS}
    warmup = min(steps - 1, round(training.warmup_steps * share))
    changed = training.model_copy(update={**shrunk, "max_steps": steps, "warmup_steps": warmup})
    return recipe.model_copy(update={"training": changed})


def with_recipe(setup: Setup, recipe: Recipe) -> Setup:
    """The same for a recipe of another length."""
    if recipe == setup.recipe:
        return setup
    before, at_once = setup.arguments, setup.plan.per_device_batch_size
    arguments = training_arguments(recipe, setup.execution, Path(str(before.output_dir)))
    arguments._n_gpu = before._n_gpu
    arguments.per_device_train_batch_size = before.per_device_train_batch_size
    arguments.gradient_accumulation_steps = before.gradient_accumulation_steps
    plan = make_plan(recipe.training, setup.config, setup.ledger, setup.plan.num_processes, at_once)
    execution = _compiled_if_long(setup.execution, recipe.training, plan)
    return replace(setup, recipe=recipe, execution=execution, plan=plan, arguments=arguments)


def _compiled_if_long(execution: Execution, recipe: TrainingRecipe, plan: Plan) -> Execution:
    if recipe.torch_compile != "auto" or execution.device != "cpu":
        return execution
    return replace(execution, torch_compile=plan.total_flops >= _WORTH_COMPILING_FLOPS)


def fit_vocabulary(setup: Setup, entries: int) -> Setup:
    """The same with the vocabulary of the tokenizer, where the recipe leaves it open."""
    recipe = setup.recipe
    if not recipe.tokenizer or recipe.tokenizer.vocab_size is not None or entries >= setup.config.vocab_size:
        return setup
    config = copy.deepcopy(setup.config)
    config.vocab_size = entries
    ledger, before = parameter_ledger(config), setup.plan
    plan = make_plan(recipe.training, config, ledger, before.num_processes, before.per_device_batch_size)
    say("model", f"{ledger.total:,} parameters, with the tokenizer's vocabulary of {entries:,} entries")
    return replace(setup, config=config, ledger=ledger, plan=plan)


def choose_execution(recipe: TrainingRecipe) -> Execution:
    """Decide device, precision, attention and compilation.

    Raises:
        AntError: the device asked for is not there, or cannot run the precision asked for.
    """
    device = _choose_device(recipe.device)
    precision, reason = _choose_precision(device, recipe.precision)
    attention: str = recipe.attn_implementation
    if attention == "auto" and device != "cpu":
        attention = CAUSAL_SDPA
    elif attention == "auto" and precision == "bf16":
        sdpa = "amx_bf16" in cpu_flags() and recipe.sequence_length >= _AMX_SDPA_FROM_TOKENS
        attention = CAUSAL_SDPA if sdpa else CAUSAL_BLOCKS
    elif attention == "auto":
        attention = "eager" if recipe.sequence_length <= _EAGER_UP_TO_TOKENS else CAUSAL_SDPA
    name = (
        torch.cuda.get_device_name() if device == "cuda" else cpu_name() if device == "cpu" else "Apple GPU"
    )
    gpu = known_gpu(name) if device == "cuda" else None
    return Execution(
        device=device,
        device_name=name,
        precision=precision,
        reason=reason,
        torch_compile=recipe.torch_compile == "on" or (recipe.torch_compile == "auto" and device == "cuda"),
        attn_implementation=attention,
        peak_flops=gpu.peak_flops if gpu else None,
    )


def _choose_device(requested: str) -> str:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [name for name, available in there.items() if available]
    if requested == "auto":
        return found[0]
    if requested not in found:
        raise AntError(
            f"training.device is {requested!r}, and this machine does not have such a device",
            seen=", ".join(found),
            hint="Use --set training.device=auto, or install a torch build for that device.",
        )
    return requested


def _choose_precision(device: str, requested: str) -> tuple[str, str]:
    best, reason = _best_precision(device)
    if requested == "auto":
        return best, reason
    if requested == "fp16" and device != "cuda":
        raise AntError(
            f"training.precision is 'fp16' on {device}",
            expected="bf16 or fp32, because loss scaling needs CUDA",
            hint="Use --set training.precision=auto",
        )
    if requested == "bf16" and best != "bf16":
        raise AntError("training.precision is 'bf16'", seen=reason, hint="Use --set training.precision=auto")
    return requested, "asked for by the recipe"


def _best_precision(device: str) -> tuple[str, str]:
    if device == "cuda":
        # torch.cuda.is_bf16_supported() also says yes to slow emulation, so the capability decides.
        major, minor = torch.cuda.get_device_capability()
        if major >= 8:
            return "bf16", f"SM {major}.{minor} multiplies bf16 in hardware"
        return "fp16", f"SM {major}.{minor} is below 8.0, so fp16 autocast over fp32 weights"
    if device == "cpu":
        flags = cpu_flags()
        if "avx512_bf16" in flags or "amx_bf16" in flags:
            return "bf16", f"this CPU has {'AMX' if 'amx_bf16' in flags else 'AVX512-BF16'}"
        return "fp32", "this CPU multiplies neither bf16 (AVX512-BF16, AMX) nor fp16 in hardware"
    return "fp32", "16-bit autocast is not used on Apple GPUs"


def check_reporting(names: list[Integration]) -> None:
    """Find what Trainer would only find after the data is prepared.

    Raises:
        AntError: a package is missing, or wandb has no account to write to and would wait for an answer.
    """
    if not is_first_process():
        return
    for name in names:
        if find_spec(name) is None:
            raise AntError(
                f"training.report_to names {name!r}, which is not installed",
                hint=f"pip install {name} (or leave it out: --report-to none)",
            )
    if "wandb" not in names:
        return
    import wandb

    os.environ.setdefault("WANDB_PROJECT", _PROJECT)
    if wandb.setup().settings.mode != "online":
        return
    try:
        known = wandb.login(prompt=False)
    except TypeError:
        # An older wandb, as in Colab's image, without that argument.
        known = bool(wandb.api.api_key)
    if not known:
        raise AntError(
            "training.report_to names wandb, but no account is logged in",
            hint="Run: wandb login (or set WANDB_API_KEY, or WANDB_MODE=offline to keep the metrics here)",
        )


def training_arguments(recipe: Recipe, execution: Execution, output_dir: Path) -> TrainingArguments:
    """The recipe in Trainer's words; creating them also joins the other processes."""
    # The only way to tell Trainer's TensorBoard callback where to write.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(output_dir / "tensorboard")
    training = recipe.training
    if training.lr_scheduler_type == "cosine_with_min_lr":
        scheduler: dict[str, Any] = {"min_lr_rate": training.min_lr_rate}
    else:
        # The steps between warmup and decay are the stable ones.
        decay_steps = training.max_steps - training.decay_begins
        scheduler = {"num_decay_steps": decay_steps, "decay_type": "linear"}
        scheduler["min_lr_ratio"] = training.min_lr_rate
    return TrainingArguments(
        **{name: getattr(training, name) for name in _SAME_NAME},
        output_dir=str(output_dir),
        run_name=recipe.name,
        lr_scheduler_kwargs=scheduler,
        # The fused kernel skips an overflowed step by itself, unseen: accelerate would count it as
        # taken and Trainer would move the schedule on.
        optim="adamw_torch" if execution.precision == "fp16" else "adamw_torch_fused",
        bf16=execution.precision == "bf16",
        fp16=execution.precision == "fp16",
        # Else what is said to be float32, such as the score of the exported model, could be TF32.
        tf32=False,
        use_cpu=execution.device == "cpu",
        # TrainingOrder has shuffled already.
        train_sampling_strategy="sequential",
        dataloader_pin_memory=execution.device == "cuda",
        # From pinned memory, so that the copy of a batch continues beside the step before.
        accelerator_config={"non_blocking": execution.device == "cuda"},
        remove_unused_columns=False,
        logging_first_step=True,
        # The guard must see a NaN; Trainer would put the running mean in its place.
        logging_nan_inf_filter=False,
        eval_strategy="steps" if recipe.corpus.validation_fraction else "no",
        load_best_model_at_end=recipe.keeps_best,
        save_strategy="steps",
        report_to=[*training.report_to],
        project=_PROJECT,
        ddp_timeout=_WAIT_SECONDS,
        ddp_find_unused_parameters=False,
    )


def choose_micro_batch(
    recipe: TrainingRecipe, config: PreTrainedConfig, execution: Execution, num_processes: int
) -> int:
    """Blocks one process handles at once: the largest divisor of its share of a step that is allowed.

    Where the recipe says `auto`, as many as are worth it; on CUDA every candidate then runs one forward
    and backward pass, largest first, until one fits, and all processes end with the smallest that any found.

    Raises:
        AntError: the blocks of a step do not divide over the processes, or not even one fits the memory.
    """
    per_process, rest = divmod(recipe.sequences_per_step, num_processes)
    if rest:
        nearest = (per_process + 1) * num_processes
        raise AntError(
            f"training.sequences_per_step is {recipe.sequences_per_step}",
            expected=f"a multiple of the number of processes, {num_processes}",
            hint=f"Use --set training.sequences_per_step={nearest}",
        )
    candidates = _divisors(recipe, per_process, _most_tokens(execution.device))
    if recipe.per_device_batch_size != "auto" or execution.device != "cuda":
        return candidates[0]
    chosen = largest_that_fits(candidates, lambda size: _fits(recipe, config, execution, size))
    if chosen is None:
        raise AntError(
            "not even one block fits into the GPU's memory",
            seen=f"{torch.cuda.get_device_properties().total_memory / 2**30:.0f} GiB, "
            f"training.sequence_length {recipe.sequence_length}",
            hint="Lower training.sequence_length, or train a smaller model.",
        )
    if torch.distributed.is_initialized():
        smallest = torch.tensor(chosen, device="cuda")
        torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
        chosen = int(smallest)
    return chosen


def _divisors(recipe: TrainingRecipe, per_process: int, most_tokens: int) -> list[int]:
    """Numbers of blocks that one process may handle at once, the largest first."""
    asked = recipe.per_device_batch_size
    most = max(1, most_tokens // recipe.sequence_length) if asked == "auto" else asked
    return [size for size in range(min(most, per_process), 0, -1) if per_process % size == 0]


def _most_tokens(device: str, gpu_bytes: float | None = None) -> int:
    if device == "cuda":
        if gpu_bytes is None:
            gpu_bytes = torch.cuda.get_device_properties().total_memory
        return _MOST_TOKENS_LARGE_GPU if gpu_bytes > _LARGE_GPU_BYTES else _MOST_TOKENS["cuda"]
    return _MOST_TOKENS[device]


def memory_on(gpu: Gpu, setup: Setup) -> str:
    """What one process takes of the memory of a GPU that is not here, by arithmetic alone, in words.

    With as many blocks at once as `choose_micro_batch` would find room for; what CUDA itself takes and
    fragmentation come on top, for which that leaves a fifth free.
    """
    training, ledger, total = setup.recipe.training, setup.ledger, 1e9 * gpu.gigabytes
    # Weights and gradients in fp32, the weights in 16 bits, and what the optimizer keeps.
    fixed = 10 * ledger.total + setup.plan.checkpoint_bytes - 4 * ledger.total
    block = training.sequence_length * activation_bytes_per_token(setup.config)
    per_process = training.sequences_per_step // setup.plan.num_processes
    sizes = _divisors(training, per_process, _most_tokens("cuda", total))
    fitting = [size for size in sizes if fixed + size * block <= _USABLE_MEMORY * total]
    size = fitting[0] if fitting else sizes[-1]
    told = (
        f"{(fixed + size * block) / 1e9:.1f} of {gpu.gigabytes} GB, calculated: {fixed / 1e9:.2f} GB for "
        f"weights, gradients and optimizer, and {block / 1e9:.2f} GB for "
        f"{'the one block' if size == 1 else f'each of the {size} blocks'} at once"
    )
    return told if fitting else f"not enough, {told}"


def activation_bytes_per_token(config: PreTrainedConfig) -> int:
    """Bytes that a forward pass of a Llama in 16 bits keeps for the backward pass, per token; not compiled.

    Of each layer, in numbers: 4 of the width in fp32 (two norms: their input and output) and 6 in 16 bits
    (what goes into and comes out of projections), queries, keys, values, and 4 of the MLP's width. At the end
    the logits in fp32 (4 bytes), and their gradients in fp32 and 16 bits. Attention keeps no scores. Counted
    on what autograd keeps (tests/train/test_estimates.py).
    """
    width, mlp = config.hidden_size, config.intermediate_size
    queries, shared = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    layer = (4 * 4 + 6 * 2) * width + 2 * queries + 2 * 2 * shared + 4 * 2 * mlp
    return int(config.num_hidden_layers * layer + 10 * width + 10 * config.vocab_size)


def largest_that_fits(candidates: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The first candidate that fits; running out of memory means that it does not."""
    for size in candidates:
        try:
            if fits(size):
                return size
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        # Outside the handler, whose traceback would keep the tensors of the failed try alive.
        gc.collect()
        clear_device_cache()
    return None


def _fits(recipe: TrainingRecipe, config: PreTrainedConfig, execution: Execution, size: int) -> bool:
    """Run one training pass as it will be: not compiled where that fails, which `choose_compilation` says."""
    try:
        share = _memory_share(recipe, config, execution, size)
    except Exception as error:
        if not execution.torch_compile or should_reduce_batch_size(error):
            raise
        share = _memory_share(recipe, config, replace(execution, torch_compile=False), size)
    return share <= _USABLE_MEMORY


def _memory_share(recipe: TrainingRecipe, config: PreTrainedConfig, execution: Execution, size: int) -> float:
    torch.cuda.reset_peak_memory_stats()
    # Building a model seeds the generator again; the run's own seeding must find it as it was.
    with torch.random.fork_rng():
        model = build_model(config, 0, execution.attn_implementation)
    return_loss_only(model, recipe.z_loss, execution.compiled)
    model.cuda()  # type: ignore[call-arg]  # wrapped by a decorator of transformers
    ids = torch.zeros((size, recipe.sequence_length), dtype=torch.int64, device="cuda")
    with torch.autocast("cuda", dtype=execution.autocast_dtype, enabled=execution.autocast_dtype is not None):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    used = torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties().total_memory
    del model, ids, loss
    gc.collect()
    clear_device_cache()
    return used


def training_flops_per_token(config: PreTrainedConfig, ledger: Ledger, sequence_length: int) -> float:
    """Floating-point operations a trained token costs, forward and backward.

    6 for each weight that a matrix product uses (Kaplan et al. 2020, arXiv:2001.08361; a tied
    output projection counts once, the look-up not at all), plus causal attention: scores and
    values are 2 products of 2 x head_dim x heads x sequence_length / 2 a token and layer, times 3
    for forward and backward.
    """
    weights = ledger.total - ledger.norms
    if not ledger.tied:
        weights -= ledger.embeddings
    attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim * sequence_length
    return 6.0 * weights + 6.0 * attention


def make_plan(
    recipe: TrainingRecipe, config: PreTrainedConfig, ledger: Ledger, num_processes: int, at_once: int
) -> Plan:
    """The sizes of a run, with `at_once` blocks in a forward pass of a process."""
    tokens_per_step = recipe.sequences_per_step * recipe.sequence_length
    total_tokens = tokens_per_step * recipe.max_steps
    flops = training_flops_per_token(config, ledger, recipe.sequence_length)
    moments = 2 * ledger.total
    if recipe.optimizer == "muon":
        moments -= ledger.per_layer * ledger.num_hidden_layers
    mean = ledger.total if recipe.average_last else 0
    return Plan(
        num_processes=num_processes,
        per_device_batch_size=at_once,
        gradient_accumulation_steps=recipe.sequences_per_step // num_processes // at_once,
        tokens_per_step=tokens_per_step,
        total_tokens=total_tokens,
        tokens_per_parameter=total_tokens / ledger.total,
        flops_per_token=flops,
        total_flops=flops * total_tokens,
        checkpoint_bytes=4 * (ledger.total + moments + mean),
    )


def show_plan(setup: Setup, text: Survey) -> None:
    """Print the parameters and the plan for a text."""
    recipe, execution, plan = setup.recipe, setup.execution, setup.plan
    show(ledger_table(setup.ledger))
    training = recipe.training
    factors = [f"{plan.per_device_batch_size} per device"]
    if plan.num_processes > 1:
        factors.append(f"{plan.num_processes} processes")
    if plan.gradient_accumulation_steps > 1:
        factors.append(f"{plan.gradient_accumulation_steps} accumulated")
    batch = (
        f"{training.sequences_per_step} blocks of {training.sequence_length} = "
        f"{plan.tokens_per_step:,} tokens ({' x '.join(factors)})"
    )
    if training.per_device_batch_size not in ("auto", plan.per_device_batch_size):
        batch += f"; the recipe's {training.per_device_batch_size} per device do not divide it"
    # How often each training token is seen.
    passes = "not known, because the amount of text is not known"
    about = "" if text.is_whole else "about "
    if text.train_tokens:
        passes = f"{ratio(plan.total_tokens / text.train_tokens)} over {about}{text.train_tokens:,} tokens"
        if plan.total_tokens > _MANY_PASSES * text.train_tokens:
            passes += f": after {_MANY_PASSES}, a model learns little more from a text"
    count = torch.get_num_threads()
    threads = f", {count} thread{'s'[: count > 1]} per process" if execution.device == "cpu" else ""
    facts = []
    if setup.base:
        at = f" at {setup.base.revision}" if setup.base.revision else ""
        facts.append(("start", f"the weights and the tokenizer of {setup.base.name}{at}"))
    elif any(config_source(recipe, None).parent.glob("*.safetensors")):
        start = f"random weights; only the shape is taken from {recipe.architecture}"
        facts.append(("start", start))
    kept = f"{training.save_total_limit}{' and the best' if recipe.keeps_best else ''}"
    facts += [
        ("device", f"{execution.device} ({execution.device_name}){threads}"),
        ("precision", f"{execution.precision}: {execution.reason}"),
        (
            "compile, attention",
            f"{'on' if execution.torch_compile else 'off'}, {execution.attn_implementation}",
        ),
        ("a step", batch),
        ("the run", f"{training.max_steps:,} steps = {plan.total_tokens:,} tokens"),
        ("passes", passes),
        *_part_facts(recipe, plan, text, about),
        ("tokens per parameter", ratio(plan.tokens_per_parameter)),
        (
            "training compute",
            f"{plan.flops_per_token / 1e6:.1f} MFLOP per token, {plan.total_flops:.3g} FLOP",
        ),
        ("a checkpoint", f"{plan.checkpoint_bytes / 1e6:,.1f} MB, {kept} kept"),
    ]
    show(facts_table(f"Plan of {recipe.name}", facts))


def _part_facts(recipe: Recipe, plan: Plan, text: Survey, about: str) -> list[tuple[str, str]]:
    """What each part of a mix will give, and how often its text is passed over."""
    facts = []
    constant = recipe.training.decay_begins / recipe.training.max_steps
    for name, part in recipe.corpus.parts.items():
        share, there = part.weight, text.tokens_by_part.get(name)
        if part.decay_weight is not None:
            share = part.weight * constant + part.decay_weight * (1 - constant)
        tokens = share * plan.total_tokens
        passes = f"{ratio(tokens / there)} passes over {about}{there:,}" if there else "passes not known"
        shares = share_in_words(part.weight, part.decay_weight)
        facts.append((f"part {name}", f"{shares}: {tokens:,.0f} tokens, {passes}"))
    return facts


def ratio(value: float) -> str:
    """Two digits behind the point, or where they would be 0.00 two digits that are not 0."""
    return f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}"
