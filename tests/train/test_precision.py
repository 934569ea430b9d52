import pytest
import torch

from ant_hf.errors import AntError
from ant_hf.train import setup
from ant_hf.train.setup import choose_execution


def pretend_cuda(monkeypatch, capability, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)


@pytest.mark.parametrize(
    ("capability", "name", "expected", "peak"),
    [
        ((7, 5), "Tesla T4", "fp16", 65e12),
        ((7, 0), "Tesla V100-SXM2-16GB", "fp16", 125e12),
        ((8, 0), "NVIDIA A100-SXM4-40GB", "bf16", 312e12),
        ((9, 0), "NVIDIA H200", "bf16", 989e12),
        ((8, 9), "NVIDIA GeForce RTX 4090", "bf16", None),
        ((9, 0), "NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ((9, 0), "NVIDIA H100 PCIe", "bf16", 756e12),
        ((8, 9), "NVIDIA L40S", "bf16", 362e12),
        ((8, 9), "NVIDIA L4", "bf16", 121e12),
        # Not the L4, A100, T4 and H100 whose names are in theirs, nor all of the A100.
        ((8, 9), "NVIDIA L40", "bf16", None),
        ((8, 6), "NVIDIA RTX A1000 Laptop GPU", "bf16", None),
        ((7, 5), "NVIDIA T400 4GB", "fp16", None),
        ((9, 0), "NVIDIA H100 NVL", "bf16", None),
        ((8, 0), "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
    ],
)
def test_gpus_by_capability(monkeypatch, make_recipe, capability, name, expected, peak):
    pretend_cuda(monkeypatch, capability, name)
    execution = choose_execution(make_recipe(precision="auto", device="auto").training)
    assert (execution.device, execution.precision, execution.peak_flops) == ("cuda", expected, peak)
    assert str(capability[0]) in execution.reason
    assert execution.torch_compile
    assert execution.attn_implementation == "causal_sdpa"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx2"}, "fp32"), ({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), (set(), "fp32")],
)
def test_cpus_by_instruction_set(monkeypatch, make_recipe, flags, expected):
    monkeypatch.setattr(setup, "cpu_flags", lambda: flags)
    execution = choose_execution(make_recipe(precision="auto").training)
    assert (execution.precision, execution.torch_compile) == (expected, False)


@pytest.mark.parametrize(
    ("flags", "sequence_length", "expected"),
    [
        ({"avx2"}, 64, "eager"),
        ({"avx2"}, 512, "causal_sdpa"),
        ({"avx512_bf16"}, 64, "causal_blocks"),
        ({"avx512_bf16"}, 4096, "causal_blocks"),
        ({"avx512_bf16", "amx_bf16"}, 1024, "causal_blocks"),
        ({"avx512_bf16", "amx_bf16"}, 2048, "causal_sdpa"),
    ],
)
def test_attention_on_a_cpu(monkeypatch, make_recipe, flags, sequence_length, expected):
    monkeypatch.setattr(setup, "cpu_flags", lambda: flags)
    shape = {"precision": "auto", "sequence_length": sequence_length}
    assert choose_execution(make_recipe(**shape).training).attn_implementation == expected
    explicit = make_recipe(**shape, attn_implementation="sdpa").training
    assert choose_execution(explicit).attn_implementation == "sdpa"


def test_what_the_machine_cannot_do_is_refused(monkeypatch, make_recipe):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(setup, "cpu_flags", lambda: {"avx2"})
    for change, words in (
        ({"device": "cuda"}, "training.device is 'cuda', and this machine does not have such a device"),
        ({"precision": "fp16"}, "'fp16' on cpu"),
        ({"precision": "bf16"}, "'bf16'.*neither bf16"),
    ):
        with pytest.raises(AntError, match=words):
            choose_execution(make_recipe(**change).training)
