"""The programs that throughput.py compares: each a process of its own that trains in rounds, when told to.

    python benchmarks/contenders.py SPECIFICATION.json

A process prints `imported` and waits for a line; then it warms up and prints `ready`. Each line `round`
on its standard input lets it take the next steps; it answers with one JSON line, and ends at the end of
its input. So several contenders take turns on one machine, each with its own compiled code, allocator and
peak memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ant_hf.data.dataset import PackedDataset, TrainingOrder
from ant_hf.data.tokens import TRAIN, VALIDATION, PackedTokens
from ant_hf.model.architecture import build_model, load_config, parameter_ledger
from ant_hf.model.loss import return_loss_only
from ant_hf.recipe import CorpusRecipe, Recipe, TokenizerRecipe, TrainingRecipe
from ant_hf.train.optimizers import muon_adamw
from ant_hf.train.setup import set_up, training_flops_per_token
from ant_hf.train.trainer import AntTrainer, RunData
from ant_hf.utils.hardware import keep_freed_memory, peak_memory_bytes, threads_per_process

WARM_UP_STEPS = 3
PROFILED_STEPS = 5
_LEARNING_RATE = 1e-3


class Pacer:
    """Holds a training loop between rounds, and times it within them.

    On a GPU the memory that a round took is given back at its end, as all contenders wait on one device.
    The first step of a round asks for it again, and is not timed.

    Args:
        steps: optimizer steps per round.
        device: whose queued work belongs to a round.
    """

    def __init__(self, steps: int, device: str) -> None:
        self.steps, self.device = steps, device
        self._left, self._untimed = WARM_UP_STEPS, 0
        self._started: float | None = None
        self._profiler: Any = None

    def step_done(self) -> bool:
        """Call after each optimizer step; False once there are no more rounds."""
        if self._untimed:
            self._untimed -= 1
            self._begin()
            return True
        self._left -= 1
        if self._left:
            return True
        self._wait()
        if self._started is None:
            answer: Any = "ready"
        else:
            answer = {"seconds": time.perf_counter() - self._started, "peak_bytes": peak_memory_bytes()}
            answer["graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            if self._profiler:
                answer |= self._profiled()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        print(json.dumps(answer), file=sys.__stdout__, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return False
        if line == "profile":
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self._left = PROFILED_STEPS if self._profiler else self.steps
        self._untimed = 1 if self.device == "cuda" else 0
        if not self._untimed:
            self._begin()
        return True

    def _begin(self) -> None:
        self._wait()
        if self._profiler:
            self._profiler.start()
        self._started = time.perf_counter()

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _profiled(self) -> dict[str, Any]:
        """What the profiler saw; measured rounds are not lost if it fails."""
        profiler, self._profiler = self._profiler, None
        try:
            profiler.stop()
            kernels = sorted(profiler.key_averages(), key=lambda each: -each.self_device_time_total)
            return {"gpu_idle_share": _idle_share(profiler), "kernels": [each.key for each in kernels[:12]]}
        except Exception as error:
            return {"profiler_error": str(error)}


def _idle_share(profiler: Any) -> float:
    """Share of the time from the first to the last kernel in which no kernel ran."""
    kernels = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type.name == "CUDA"
    )
    busy, reached = 0.0, kernels[0][0]
    for start, end in kernels:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1 - busy / (reached - kernels[0][0])


class _PacedTraining(TrainerCallback):
    def __init__(self, pacer: Pacer) -> None:
        self.pacer = pacer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.pacer.step_done():
            control.should_training_stop = True


def plain_trainer(spec: dict[str, Any], config: PreTrainedConfig, pacer: Pacer, folder: Path) -> None:
    """`Trainer` as one gets it: all arguments at their defaults but the batch and, if asked for, 16 bits."""
    blocks = PackedDataset(PackedTokens(Path(spec["tokens"]), TRAIN), spec["sequence_length"], 0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=spec["blocks"],
        max_steps=10**6,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=spec["device"] == "cpu",
        bf16=spec["precision"] == "bf16",
        fp16=spec["precision"] == "fp16",
    )
    trainer = Trainer(build_model(config, 0), arguments, train_dataset=blocks)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_PacedTraining(pacer))
    trainer.train()


def ours(spec: dict[str, Any], config: PreTrainedConfig, pacer: Pacer, folder: Path) -> None:
    """A run as `pretrain.py` sets it up, with its records and guards; no evaluation, no checkpoint."""
    setup = set_up(_recipe(spec, config, folder), folder)
    setup.arguments.save_strategy = setup.arguments.eval_strategy = "no"
    setup.arguments.disable_tqdm = True
    for name, value in spec.get("arguments", {}).items():
        setattr(setup.arguments, name, value)
    blocks = PackedDataset(PackedTokens(Path(spec["tokens"]), TRAIN), spec["sequence_length"], 0)
    length = setup.recipe.training.max_steps * spec["blocks"]
    validation = PackedTokens(Path(spec["tokens"]), VALIDATION)
    data = RunData(TrainingOrder(blocks, length, 0), validation, [1] * config.vocab_size)
    trainer = AntTrainer(setup, data, {})
    trainer.add_callback(_PacedTraining(pacer))
    trainer.train()


def bare_loop(spec: dict[str, Any], config: PreTrainedConfig, pacer: Pacer, folder: Path) -> None:
    """The same model and kernels in the shortest loop: data on the device, nothing logged or checked."""
    execution = set_up(_recipe(spec, config, folder), folder).execution
    model = build_model(config, 0, execution.attn_implementation)
    return_loss_only(model, 0.0, execution.compiled)
    loop(spec, model, pacer)


def nano_gpt(spec: dict[str, Any], config: PreTrainedConfig, pacer: Pacer, folder: Path) -> None:
    """A GPT-2-like model of the same width and depth in the same loop."""
    model = SmallGPT(config, spec["sequence_length"])
    if spec["device"] == "cuda":
        model.compile()
    loop(spec, model, pacer)


CONTENDERS = {"trainer": plain_trainer, "ours": ours, "bare": bare_loop, "nanogpt": nano_gpt}


def loop(spec: dict[str, Any], model: nn.Module, pacer: Pacer) -> None:
    """Train on the same few batches, which lie on the device, until the pacer says stop."""
    device, dtype = spec["device"], {"bf16": torch.bfloat16, "fp16": torch.float16}.get(spec["precision"])
    blocks = PackedDataset(PackedTokens(Path(spec["tokens"]), TRAIN), spec["sequence_length"], 0)
    size = spec["blocks"]
    batches = [blocks.batch(range(first, first + size))["input_ids"].to(device) for first in (0, size)]
    model.to(device)
    optimizer: torch.optim.Optimizer
    if spec.get("optimizer") == "muon":
        decayed = {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
        optimizer = muon_adamw(model, decayed, _training(spec))
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=True)
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
    step = 0
    while True:
        ids = batches[step % 2]
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            loss = model(input_ids=ids, labels=ids).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        step += 1
        if not pacer.step_done():
            return


class _Result:
    def __init__(self, loss: torch.Tensor) -> None:
        self.loss = loss


class SmallGPT(nn.Module):
    """LayerNorm, learned positions, full heads and a four times wide GELU MLP, without biases."""

    def __init__(self, config: PreTrainedConfig, sequence_length: int) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Parameter(torch.zeros(sequence_length, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm_1": nn.LayerNorm(width, bias=False),
                    "qkv": nn.Linear(width, 3 * width, bias=False),
                    "out": nn.Linear(width, width, bias=False),
                    "norm_2": nn.LayerNorm(width, bias=False),
                    "up": nn.Linear(width, 4 * width, bias=False),
                    "down": nn.Linear(4 * width, width, bias=False),
                }
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> _Result:
        x = self.tokens(input_ids) + self.positions
        for block in self.blocks:
            heads = block["qkv"](block["norm_1"](x)).unflatten(-1, (3, self.heads, -1))  # type: ignore[index]
            query, key, value = heads.permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + block["out"](mixed.transpose(1, 2).flatten(2))  # type: ignore[index]
            x = x + block["down"](nn.functional.gelu(block["up"](block["norm_2"](x))))  # type: ignore[index]
        logits = self.norm(x[:, :-1]) @ self.tokens.weight.T
        return _Result(nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten()))


def _training(spec: dict[str, Any]) -> TrainingRecipe:
    return TrainingRecipe.model_validate(
        {
            "sequence_length": spec["sequence_length"],
            "sequences_per_step": spec["blocks"],
            "per_device_batch_size": spec["blocks"],
            "max_steps": 10**6,
            "learning_rate": _LEARNING_RATE,
            "precision": spec["precision"],
            "device": spec["device"],
            "optimizer": spec.get("optimizer", "adamw"),
            "muon_learning_rate": 0.02 if spec.get("optimizer") == "muon" else None,
            **spec.get("recipe", {}),
        }
    )


def _recipe(spec: dict[str, Any], config: PreTrainedConfig, folder: Path) -> Recipe:
    return Recipe(
        name="throughput",
        architecture=str(folder / "config.json"),
        output_dir=str(folder),
        corpus=CorpusRecipe(source="embedded"),
        tokenizer=TokenizerRecipe(vocab_size=config.vocab_size),
        training=_training(spec),
    )


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps("imported"), flush=True)
    if not sys.stdin.readline():
        return
    config = load_config(spec["architecture"])
    for name, value in spec.get("config", {}).items():
        setattr(config, name, value)
    os.environ.update(spec.get("environment", {}))
    if spec["device"] == "cpu":
        torch.set_num_threads(threads_per_process())
        if spec["contender"] in ("bare", "nanogpt"):
            keep_freed_memory()
    for name in spec.get("backends_off", []):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(False)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        folder = Path(scratch)
        config.to_json_file(folder / "config.json")
        CONTENDERS[spec["contender"]](spec, config, Pacer(spec["steps"], spec["device"]), folder)


def flops_per_token(spec: dict[str, Any]) -> tuple[int, float]:
    """Parameters, and training FLOP per token, of a specification's Llama."""
    config = load_config(spec["architecture"])
    for name, value in spec.get("config", {}).items():
        setattr(config, name, value)
    ledger = parameter_ledger(config)
    return ledger.total, training_flops_per_token(config, ledger, spec["sequence_length"])


if __name__ == "__main__":
    main()
