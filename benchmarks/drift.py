"""Whether a fast path learns what fp32 learns: one batch compared, then 200 steps on real text.

    python benchmarks/drift.py --output docs/performance

Every path trains the real Ant-10M from the same weights on the same blocks. On the first batch the
loss and the whole gradient are held against the fp32 reference; over the steps, the loss. A second
fp32 run that only sums in another order shows how far two equally exact runs part by themselves.
Not a measurement of speed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rounds import ROOT, packed_text

from ant_hf.data.dataset import PackedDataset, TrainingOrder
from ant_hf.data.tokens import TRAIN, PackedTokens
from ant_hf.model.architecture import build_model, load_config
from ant_hf.model.attention import CAUSAL_BLOCKS
from ant_hf.model.loss import Compiled, return_loss_only
from ant_hf.utils.console import progress_bar, say
from ant_hf.utils.plots import STYLE

_LEARNING_RATE, _WARM_UP_STEPS = 1e-3, 20


@dataclass(frozen=True)
class Path16:
    """How a path computes."""

    attention: str
    dtype: torch.dtype | None
    compiled: Compiled | None = None


_CPU = {
    "fp32": Path16("sdpa", None),
    "fp32, eager attention": Path16("eager", None),
    "bf16, SDPA": Path16("sdpa", torch.bfloat16),
    "bf16, causal blocks": Path16(CAUSAL_BLOCKS, torch.bfloat16),
    "bf16, causal blocks, compiled": Path16(CAUSAL_BLOCKS, torch.bfloat16, "layers"),
}
_CUDA = {
    "fp32": Path16("sdpa", None),
    "fp32, eager attention": Path16("eager", None),
    "bf16": Path16("sdpa", torch.bfloat16),
    "bf16, compiled": Path16("sdpa", torch.bfloat16, "loss"),
    "fp16, compiled": Path16("sdpa", torch.float16, "loss"),
}


def train(path: Path16, order: TrainingOrder, size: int, steps: int, seen: Callable[[], None]) -> Any:
    """Losses of all steps, and the gradient of the first, flattened, on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(load_config(ROOT / "configs/llama_ant10m.json"), 0, path.attention)
    model.to(device)  # type: ignore[arg-type]  # wrapped by a decorator of transformers
    return_loss_only(model, 0.0, path.compiled)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler(device, enabled=path.dtype is torch.float16)
    losses, first_gradient = [], None
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * min(1.0, (step + 1) / _WARM_UP_STEPS)
        ids = order.__getitems__(range(step * size, (step + 1) * size))["input_ids"].to(device)
        with torch.autocast(device, dtype=path.dtype, enabled=path.dtype is not None):
            loss = model(input_ids=ids, labels=ids).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if first_gradient is None:
            first_gradient = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters()])  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
        seen()
    return losses, first_gradient


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of drift.json and drift.png")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--blocks", type=int, default=4, help="blocks of 256 tokens per step (default 4)")
    parser.add_argument("--plots-only", action="store_true", help="draw again from drift.json")
    options = parser.parse_args()
    if options.plots_only:
        plot(json.loads((options.output / "drift.json").read_text(encoding="utf-8")), options.output)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    paths = _CUDA if torch.cuda.is_available() else _CPU
    runs: dict[str, Any] = {}
    with packed_text() as tokens, progress_bar("steps") as bar:
        order = TrainingOrder(PackedDataset(PackedTokens(tokens, TRAIN), 256, 0), 10**9, 0)
        total = options.steps * len(paths)
        for name, path in paths.items():
            runs[name] = train(path, order, options.blocks, options.steps, lambda: bar(1, total))
    report(runs, options.output)


def report(runs: dict[str, Any], folder: Path) -> None:
    """Print and write the differences from fp32, and draw the curves."""
    reference, gradient = runs["fp32"]
    results = {}
    for name, (losses, own_gradient) in runs.items():
        apart = [abs(own - other) for own, other in zip(losses, reference, strict=True)]
        results[name] = {
            "first_loss": losses[0],
            "first_loss_relative_difference": abs(losses[0] / reference[0] - 1),
            "gradient_relative_difference": float((own_gradient - gradient).norm() / gradient.norm()),
            "mean_loss_of_last_quarter": sum(losses[-len(losses) // 4 :]) / len(losses[-len(losses) // 4 :]),
            "mean_absolute_difference_of_losses": sum(apart) / len(apart),
            "losses": losses,
        }
        shown = ", ".join(f"{key} {value:.3g}" for key, value in results[name].items() if key != "losses")
        say(f"{name}: {shown}")
    (folder / "drift.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot(results, folder)


def plot(results: dict[str, Any], folder: Path) -> None:
    """Draw how far each path's losses are from those of fp32; the losses themselves would coincide."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
        for (name, values), style in zip(results.items(), ("-", "--", ":", "-.", (0, (1, 3))), strict=False):
            apart = [
                own - other for own, other in zip(values["losses"], results["fp32"]["losses"], strict=True)
            ]
            axes.plot(apart, linestyle=style, label=name)
        axes.set(
            title="Same start, same blocks, other precision", xlabel="step",
            ylabel="loss minus that of fp32\n(nats per token)",
        )  # fmt: skip
        axes.legend(fontsize="small")
        figure.savefig(folder / "drift.png", dpi=110)
        plt.close(figure)


if __name__ == "__main__":
    main()
