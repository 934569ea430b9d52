"""How long a run takes on this machine, and how much disk and memory it needs, said before it begins."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from transformers import PreTrainedConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ant_hf.data.dataset import PackedDataset, TrainingOrder
from ant_hf.data.survey import Survey
from ant_hf.data.tokens import TRAIN, PackedTokens
from ant_hf.errors import AntError
from ant_hf.model.architecture import build_model
from ant_hf.model.scoring import score_tokens
from ant_hf.train.checkpoints import step_of
from ant_hf.train.run_folder import RunFolder, room_needed
from ant_hf.train.setup import Setup, memory_on
from ant_hf.train.trainer import AntTrainer, RunData
from ant_hf.utils.console import facts_table, is_first_process, say, show
from ant_hf.utils.files import check_room, free_bytes, nearest
from ant_hf.utils.hardware import Gpu, gpu_named, peak_memory_bytes

# What is tried first: a moment on any machine, whatever the model.
_FIRST_TOKENS = 256
_MOST_TIMED_STEPS = 20
# Where whole micro-batches are timed.
_GPU_STEPS = 5
# So that random tokens teach nothing, and no loss overflows.
_NO_RATE = 1e-9
# The steps after which a run says how long it will take, and the seconds that they take together at least.
_TOLD_AFTER_STEPS, _TOLD_AFTER_SECONDS = 3, 3.0
# Tokens scored in the time of one that is trained, where that was not timed: while training, and in fp32.
_SCORING_SPEED, _FINAL_SPEED = 2.5, 1.3
# Guesses, for nothing here was measured on a GPU yet: a small model does not fill one, and the hundreds of
# kernels of a step take their time to start.
ASSUMED_UTILISATION, _ASSUMED_STEP_SECONDS = 0.2, 0.03
# Three samples of 64 tokens, one after the other.
_SAMPLE_TOKENS = 192


class Batch(NamedTuple):
    """What one process handles at once."""

    blocks: int
    length: int

    @property
    def tokens(self) -> int:
        return self.blocks * self.length


class Timing(NamedTuple):
    """What was measured with one micro-batch per step."""

    batch_seconds: float
    """Its forward and backward pass."""
    optimizer_seconds: float
    start_seconds: float
    """The first step's, beyond those of the others."""
    scoring_tokens_per_second: float
    """Of all processes together."""


@dataclass(frozen=True)
class TrainingRate:
    """How fast a recipe trains and scores on this machine, all processes together."""

    step_seconds: float
    """An optimizer step of the recipe."""
    tokens_per_step: int
    scoring_tokens_per_second: float
    """While training."""
    final_tokens_per_second: float
    """Of the exported model, in fp32 on one process."""
    sample_seconds: float = 0.0
    """Of the samples at the end."""
    start_seconds: float = 0.0
    """Before the first step: compiling, and whatever else is slow only once."""
    memory_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    """Of this process, and of its GPU if there is one, at most."""
    how: str = ""
    """What was timed, in words."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.step_seconds


class _RandomTokens(PackedTokens):
    """Stands in for packed text, of which a step needs no more than the shape."""

    def __init__(self, length: int, vocab_size: int) -> None:
        self.split, self._length, self._vocab_size = TRAIN, length, vocab_size

    def __len__(self) -> int:
        return self._length

    def read_into(self, row: np.ndarray[Any, Any], start: int) -> int:
        row[:] = np.random.default_rng(start).integers(self._vocab_size, size=len(row))
        return len(row)


class _StepTimes(TrainerCallback):
    """Seconds of each step: of its pass over the batch, and of the rest."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self._mark: float | None = None

    def on_step_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        if self._mark is None:
            self._mark = _now(args)

    def on_pre_optimizer_step(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        self._passed = _now(args)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        assert self._mark is not None
        end = _now(args)
        self.steps.append((self._passed - self._mark, end - self._passed))
        self._mark = end


def _now(args: TrainingArguments) -> float:
    if args.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure_training(setup: Setup, seconds: float = 6.0) -> TrainingRate:
    """Time some real steps on random tokens, in a temporary folder, for about so many seconds and a start.

    A micro-batch that would take longer than a part of that is tried with fewer blocks, down to 256 tokens.
    Every process must call it.

    Raises:
        AntError: a step does not fit the memory.
    """
    plan = setup.plan
    whole = Batch(plan.per_device_batch_size, setup.recipe.training.sequence_length)
    batch, steps, before = whole, _GPU_STEPS, {}
    if setup.execution.device != "cuda":
        first = Batch(1, min(_FIRST_TOKENS, whole.length))
        # Another shape would be compiled for itself.
        tried = _time_steps(without_compilation(setup), first, steps=1)
        before = peak_memory_bytes()
        batch, steps = broadcast_object_list([affordable(whole, first.tokens, tried, seconds)])[0]
    if before and batch.tokens < first.tokens:
        # Steps of fewer tokens would be mostly start and end: a whole one is far faster per token.
        batch, steps = first, 1
        timing = _time_steps(setup, batch, steps) if setup.execution.torch_compile else tried
    else:
        timing = _time_steps(setup, batch, steps)
    final, samples = _time_final(setup, batch)
    memory = peak_memory_bytes()
    if before and batch.tokens > first.tokens:
        a_token = (memory["process"] - before["process"]) / (batch.tokens - first.tokens)
        memory["process"] += round(a_token * (whole.tokens - batch.tokens))
    timed = "one step" if steps == 1 else f"{steps} steps"
    return TrainingRate(
        step_seconds=step_seconds(timing, plan.gradient_accumulation_steps * whole.tokens / batch.tokens),
        tokens_per_step=plan.tokens_per_step,
        scoring_tokens_per_second=timing.scoring_tokens_per_second,
        final_tokens_per_second=final,
        sample_seconds=samples,
        start_seconds=timing.start_seconds,
        memory_bytes=memory,
        how=f"timed on {timed} of {batch.blocks} x {batch.length} tokens",
    )


def choose_compilation(setup: Setup, earlier: bool | None = None) -> Setup:
    """The setup, without `torch.compile` where that fails or is slower on this machine.

    Every process must call it. A GPU unknown to the compiler must not end a run: Triton dropped
    the matrix kernels of a T4 in version 3.3. And a computer may have no C++ compiler. Nothing is tried
    where the recipe says `on` or `off`, or for a short run on a CPU.

    Args:
        earlier: whether an earlier sitting of the run compiled. Where that works it stays so, also if the run
            has become shorter: compiled code rounds elsewhere, and the run would end with other weights.
    """
    if setup.recipe.training.torch_compile != "auto":
        return setup
    plain = without_compilation(setup)
    if not (setup.execution.torch_compile if earlier is None else earlier):
        return plain
    setup = dataclasses.replace(plain, execution=dataclasses.replace(plain.execution, torch_compile=True))
    say("compile", "trying torch.compile on a few steps")
    reason = ""
    try:
        compiled = measure_training(setup).tokens_per_second
        uncompiled = 0.0 if earlier else measure_training(plain).tokens_per_second
        if uncompiled > compiled:
            reason = f"{compiled:,.0f} tokens per second with it, {uncompiled:,.0f} without"
    except AntError:
        # Too little memory without it, which only what is compiled can do without.
        pass
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if "InvalidCxxCompiler" in reason:
            reason = "no C++ compiler was found; with one (g++ or clang) training may be faster"
    # What was tried must not hold memory that the run will need.
    gc.collect()
    clear_device_cache()
    (reason,) = broadcast_object_list([reason])
    if not reason:
        return setup
    say("note", f"torch.compile is off: {reason}")
    return plain


def without_compilation(setup: Setup) -> Setup:
    """The same without `torch.compile`."""
    return dataclasses.replace(setup, execution=dataclasses.replace(setup.execution, torch_compile=False))


def affordable(whole: Batch, tokens_tried: int, tried: Timing, seconds: float) -> tuple[Batch, int]:
    """The part of a micro-batch, and the number of steps with it, that fit into some seconds."""
    tokens_per_second = tokens_tried / tried.batch_seconds
    # One step warms up, two are timed, and the scoring takes about one more.
    tokens = max(8, int((seconds / 4 - tried.optimizer_seconds) * tokens_per_second))
    blocks = min(whole.blocks, tokens // whole.length)
    batch = Batch(blocks, whole.length) if blocks else Batch(1, tokens)
    steps = seconds / (batch.tokens / tokens_per_second + tried.optimizer_seconds) - 2
    return batch, max(2, min(_MOST_TIMED_STEPS, int(steps)))


def step_seconds(timing: Timing, batches: float) -> float:
    """An optimizer step over so many of the timed batches."""
    return batches * timing.batch_seconds + timing.optimizer_seconds


def _time_steps(setup: Setup, batch: Batch, steps: int) -> Timing:
    """Time real steps of one batch on every process, after one that warms up; then scoring."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(setup, batch, 1 + steps, scratch)
        times = _StepTimes()
        trainer.add_callback(times)
        trainer.train()
        first, *timed = times.steps
        batch_seconds = statistics.median(seconds for seconds, _ in timed)
        optimizer_seconds = statistics.median(seconds for _, seconds in timed)
        trainer.score()
        began = _now(setup.arguments)
        tokens = trainer.score().tokens
        return Timing(
            batch_seconds,
            optimizer_seconds,
            max(0.0, sum(first) - batch_seconds - optimizer_seconds),
            tokens / (_now(setup.arguments) - began),
        )


def _trainer(setup: Setup, batch: Batch, steps: int, folder: str) -> AntTrainer:
    """A trainer of one batch per step that keeps nothing and learns nothing."""
    recipe, plan, vocabulary = setup.recipe, setup.plan, setup.config.vocab_size
    blocks = batch.blocks * plan.num_processes
    changes: dict[str, Any] = {
        "sequence_length": batch.length,
        "sequences_per_step": blocks,
        "max_hours": None,
    }
    if recipe.training.muon_learning_rate:
        changes["muon_learning_rate"] = _NO_RATE
    arguments = copy.copy(setup.arguments)
    values: dict[str, Any] = {"max_steps": steps, "learning_rate": _NO_RATE, "gradient_accumulation_steps": 1}
    values |= {"per_device_train_batch_size": batch.blocks, "output_dir": folder}
    values |= {"save_strategy": "no", "eval_strategy": "no", "report_to": [], "disable_tqdm": True}
    for name, value in values.items():
        setattr(arguments, name, value)
    plan = dataclasses.replace(plan, per_device_batch_size=batch.blocks, gradient_accumulation_steps=1)
    training = recipe.training.model_copy(update=changes)
    recipe = recipe.model_copy(update={"training": training})
    tokens = _RandomTokens(blocks * batch.length, vocabulary)
    order = TrainingOrder(PackedDataset(tokens, batch.length, 0), blocks * steps, 0)
    data = RunData(order, _RandomTokens(blocks * batch.length + 1, vocabulary), [1] * vocabulary)
    small = dataclasses.replace(setup, recipe=recipe, plan=plan, arguments=arguments)
    return AntTrainer(small, data, {})


def _time_final(setup: Setup, batch: Batch) -> tuple[float, float]:
    """Tokens per second of scoring the exported model, and seconds of its samples; on the first process."""
    if not is_first_process():
        return 0.0, 0.0
    model: Any = build_model(setup.config, 0)
    model.to(setup.arguments.device)
    vocabulary = setup.config.vocab_size
    for blocks in (1, batch.blocks):
        tokens = _RandomTokens(blocks * batch.length + 1, vocabulary)
        began = _now(setup.arguments)
        score_tokens(model, tokens, [1] * vocabulary, context=batch.length, batch_size=blocks)
    scored = _now(setup.arguments)
    with torch.no_grad():
        model(input_ids=torch.ones((1, 1), dtype=torch.int64, device=model.device))
    return batch.tokens / (scored - began), _SAMPLE_TOKENS * (_now(setup.arguments) - scored)


class Phase(NamedTuple):
    """A part of a run."""

    name: str
    seconds: float | None
    """None: not known."""
    how: str
    """What it was told from, or why it cannot be told, in words."""

    def __str__(self) -> str:
        if self.seconds is None:
            return self.how
        return f"{in_words(self.seconds)}: {self.how}" if self.seconds else "done already"


def preparing_phases(text: Survey) -> list[Phase]:
    """Tokenizer and packing."""
    if text.tokenizer_seconds is None or text.packing_seconds is None:
        measured = "not known, because the amount of text is not known"
    else:
        measured = f"measured on {text.sample_bytes / 1e6:,.1f} MB of text"
    return [
        Phase("tokenizer", text.tokenizer_seconds, measured),
        Phase("packing", text.packing_seconds, measured),
    ]


def training_phases(
    setup: Setup, rate: TrainingRate, validation_tokens: int | None, done: int = 0
) -> list[Phase]:
    """Training, evaluation and the end of a run that has `done` steps behind it."""
    recipe, speed = setup.recipe.training, rate.scoring_tokens_per_second
    steps = recipe.max_steps - done
    # The last step is followed by one, due or not.
    evaluations = -(-recipe.max_steps // recipe.eval_steps) - done // recipe.eval_steps
    how = f"{steps:,} steps, {rate.tokens_per_second:,.0f} tokens per second; {rate.how}"
    phases = [Phase("training", rate.start_seconds + steps * rate.step_seconds, how)]
    if validation_tokens is None:
        how = "not known, because the amount of held-out text is not known"
        return [*phases, Phase("evaluation", None, how), Phase("at the end", None, how)]
    # The model that it begins with is measured too, to tell what was learnt.
    models = 2 if setup.base else 1
    final = models * (validation_tokens / rate.final_tokens_per_second + rate.sample_seconds)
    at_end = validation_tokens / speed + final
    if not setup.recipe.corpus.validation_fraction:
        how = "a check of the export, and three samples"
        return [*phases, Phase("at the end", at_end, how)]
    scored = min(validation_tokens, recipe.eval_max_tokens or validation_tokens)
    how = f"{evaluations:,} x {scored:,} held-out tokens, {speed:,.0f} per second"
    phases.append(Phase("evaluation", evaluations * scored / speed, how))
    how = f"all {validation_tokens:,} held-out tokens, before and after the export, and three samples"
    if setup.base:
        how += "; the same of the model that it begins with"
    return [*phases, Phase("at the end", at_end, how)]


def seconds_on(gpu: Gpu, setup: Setup) -> float:
    """Seconds of a run's training steps on a GPU that is not here, by arithmetic alone.

    Forward, backward and Muon's iterations at an assumed share of the peak in the maker's data sheet; no
    step is taken to be shorter than an assumed time.
    """
    assert gpu.peak_flops is not None
    flops = setup.plan.total_flops
    if setup.recipe.training.optimizer == "muon":
        flops += setup.recipe.training.max_steps * muon_flops(setup.config)
    steps = setup.recipe.training.max_steps
    return max(flops / (gpu.peak_flops * ASSUMED_UTILISATION), steps * _ASSUMED_STEP_SECONDS)


def muon_flops(config: PreTrainedConfig) -> int:
    """Floating-point operations of a Muon step: five Newton-Schulz iterations of each matrix.

    One is two products of (m x n) with (m x m) or its transpose and one of (m x m) with (m x m), m <= n.
    """
    width, mlp = config.hidden_size, config.intermediate_size
    inner, shared = (
        heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    matrices = 2 * [(inner, width)] + 2 * [(shared, width)] + 3 * [(mlp, width)]
    sides = [sorted(sizes) for sizes in matrices]
    return config.num_hidden_layers * sum(5 * (4 * m * m * n + 2 * m**3) for m, n in sides)


def facts_on(gpu: Gpu, name: str, setup: Setup) -> list[tuple[str, str]]:
    """Time of the training alone, and memory, on a GPU that is not here, as rows of a table."""
    told = f"{in_words(seconds_on(gpu, setup))} of training, {arithmetic(gpu)}"
    return [(f"on {name}", told), ("its memory", memory_on(gpu, setup))]


def arithmetic(gpu: Gpu) -> str:
    """Where the seconds of `seconds_on` are from, in words."""
    assert gpu.peak_flops is not None
    peak = f"{gpu.peak_flops / 1e12:g} TFLOP/s"
    return (
        f"calculated and not measured: assumes {ASSUMED_UTILISATION:.0%} of its peak ({peak}) and at least "
        f"{1000 * _ASSUMED_STEP_SECONDS:.0f} ms per step"
    )


class Room(NamedTuple):
    """What a run will write beyond what is there, on one file system."""

    folder: Path
    """One of the run's folders on it."""
    parts: dict[str, int]
    """Bytes at most, by what they hold."""


def room_for(setup: Setup, folder: RunFolder, text: Survey) -> list[Room]:
    """The room for packed tokens, checkpoints and the final model, by file system."""
    recipe, tokens = setup.recipe, (text.train_tokens or 0) + (text.validation_tokens or 0)
    final = 4 * setup.ledger.total
    rooms = [
        Room(recipe.tokens_dir.parent, {"tokens": 0 if text.packing_seconds == 0 else 2 * tokens}),
        Room(folder.path, {"checkpoints": room_needed(setup, folder) - final, "final model": final}),
    ]
    data, run = rooms
    if nearest(data.folder).stat().st_dev == nearest(run.folder).stat().st_dev:
        return [Room(run.folder, data.parts | run.parts)]
    return rooms


def check_rooms(rooms: list[Room]) -> None:
    """Refuse a run that cannot be stored.

    Raises:
        AntError: a file system has less room than the run needs there.
    """
    for room in rooms:
        what = " and the ".join(name for name, size in room.parts.items() if size)
        check_room(f"the {what}", room.folder, sum(room.parts.values()))


def _listed(room: Room) -> str:
    return ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in room.parts.items() if size)


def show_estimates(setup: Setup, folder: RunFolder, text: Survey, rate: TrainingRate | None = None) -> None:
    """Print what a run will take of time, disk and memory.

    Args:
        rate: None where the run itself will tell (see `TimeToGo`).
    """
    phases = preparing_phases(text)
    if rate:
        done = step_of(folder.checkpoint) if folder.checkpoint else 0
        phases += training_phases(setup, rate, text.validation_tokens, done)
    else:
        phases.append(Phase("training", None, "shown after the first steps"))
    rows = [("text", text.what), *((phase.name, str(phase)) for phase in phases)]
    if rate:
        rows.append(("in all", _in_all(phases, setup.recipe.training.max_hours)))
        if setup.execution.device != "cuda":
            rows += facts_on(gpu_named("T4"), "a T4", setup)
    for room in room_for(setup, folder, text):
        needed, free = sum(room.parts.values()), free_bytes(room.folder)
        rows.append(
            ("disk", f"{needed / 1e6:,.1f} MB at most ({_listed(room)}); {free / 1e9:,.1f} GB are free")
        )
    if rate:
        there = {"process": psutil.virtual_memory().total}
        if setup.execution.device == "cuda":
            there["cuda"] = torch.cuda.get_device_properties().total_memory
        for name, size in rate.memory_bytes.items():
            rows.append(
                (
                    "memory" if name == "process" else "GPU memory",
                    f"about {size / 1e9:.1f} of {there[name] / 1e9:.1f} GB",
                )
            )
    show(facts_table(f"Time, disk and memory for {setup.recipe.name}", rows))


def _in_all(phases: list[Phase], max_hours: float | None) -> str:
    seconds = sum(phase.seconds or 0.0 for phase in phases)
    told = in_words(seconds)
    if any(phase.seconds is None for phase in phases):
        told += " plus what is not known"
    if max_hours and seconds > max_hours * 3600:
        told += f", in {math.ceil(seconds / (max_hours * 3600))} sessions of training.max_hours {max_hours}"
    return told


class TimeToGo(TrainerCallback):
    """Says once, after the first steps, how long the run will take.

    Args:
        validation_tokens: of the held-out text.
    """

    def __init__(self, setup: Setup, validation_tokens: int) -> None:
        self._setup, self._validation_tokens = setup, validation_tokens
        self._is_told = False
        self._since: tuple[int, float] | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._is_told or not state.is_world_process_zero:
            return
        now = _now(args)
        # The first step is slower, and a pause for an evaluation or a save is not a step.
        if self._since is None:
            self._since = state.global_step, now
        steps, seconds = state.global_step - self._since[0], now - self._since[1]
        if steps >= _TOLD_AFTER_STEPS and seconds >= _TOLD_AFTER_SECONDS:
            self._is_told = True
            self.tell(state.global_step, seconds / steps)
        elif control.should_evaluate or control.should_save:
            self._since = None

    def tell(self, done: int, step_seconds: float) -> None:
        """Say it, at so many seconds per step."""
        tokens = self._setup.plan.tokens_per_step
        speed = tokens / step_seconds
        rate = TrainingRate(step_seconds, tokens, _SCORING_SPEED * speed, _FINAL_SPEED * speed)
        phases = training_phases(self._setup, rate, self._validation_tokens, done)
        parts = ", ".join(f"{phase.name} {in_words(phase.seconds or 0.0)}" for phase in phases)
        say("time", f"{_in_all(phases, None)} to go: {parts}")


def in_words(seconds: float) -> str:
    """A length of time as people say it: 12 s, 3 min 36 s, 5 h 12 min, 12 days 3 h."""
    if seconds < 1:
        return "under 1 s"
    if round(seconds) < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    hours, rest = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {rest} min"
    days, rest = divmod(round(seconds / 3600), 24)
    return f"{days:,} days {rest} h"
