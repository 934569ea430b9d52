"""Which device, which number format, whether to compile: decided once, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ant_hf.errors import AntError
from ant_hf.model.attention import CAUSAL_BLOCKS
from ant_hf.recipe import TrainingRecipe
from ant_hf.utils.hardware import cpu_flags, cpu_name, known_gpu

# In fp32 on a CPU, SDPA pays per call and wins from longer blocks on; see docs/decisions.md.
_EAGER_UP_TO_TOKENS = 256


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


def choose_execution(recipe: TrainingRecipe) -> Execution:
    """Decide device, precision, attention and compilation.

    Raises:
        AntError: the device asked for is not there, or cannot run the precision asked for.
    """
    device = _choose_device(recipe.device)
    precision, reason = _choose_precision(device, recipe.precision)
    attention: str = recipe.attn_implementation
    if attention == "auto":
        attention = _best_attention(device, precision, recipe.sequence_length)
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


def _best_attention(device: str, precision: str, sequence_length: int) -> str:
    if device != "cpu":
        return "sdpa"
    if precision == "bf16":
        return CAUSAL_BLOCKS
    return "eager" if sequence_length <= _EAGER_UP_TO_TOKENS else "sdpa"


def _choose_device(requested: str) -> str:
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if requested == "auto":
        return next(name for name, available in there.items() if available)
    if not there[requested]:
        found = ", ".join(name for name, available in there.items() if available)
        raise AntError(
            f"training.device is {requested!r} and no such device is there",
            seen=found,
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
            expected="bf16 or fp32 there: loss scaling needs CUDA",
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
