import dataclasses
import gc
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from ant_hf.model.architecture import load_config
from ant_hf.train import setup
from ant_hf.train.setup import choose_execution, choose_micro_batch, largest_that_fits


def test_running_out_of_memory_leads_to_the_next_smaller_size():
    tried = []

    def fits(size):
        tried.append(size)
        if size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return size != 8  # fitted, with too little left over

    assert largest_that_fits([32, 16, 8, 4, 2, 1], fits) == 4
    assert tried == [32, 16, 8, 4]
    assert largest_that_fits([32, 16], fits) is None


def test_another_error_is_not_taken_for_a_lack_of_memory():
    def fits(_):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits([2, 1], fits)


@pytest.mark.parametrize(("blocks", "expected"), [(8, 4), (6, 3), (5, 1), (1, 1)])
def test_a_cpu_takes_four_blocks_of_1024_at_once(make_recipe, blocks, expected):
    config = load_config(ROOT / "configs/llama_ant10m.json")
    for length, at_once in ((1024, expected), (1 << 20, 1)):
        shape = {"sequence_length": length, "sequences_per_step": blocks, "per_device_batch_size": "auto"}
        training = make_recipe(**shape).training
        assert choose_micro_batch(training, config, choose_execution(training), 1) == at_once


def test_a_large_gpu_takes_the_blocks_of_the_card_recipe_in_fewer_parts(make_recipe, monkeypatch):
    """2,424 blocks of 1,024 have no divisor from 25 to 64; 101 at once need 131,072 tokens of room."""
    config = load_config(ROOT / "configs/llama_ant10m.json")
    shape = {"sequence_length": 1024, "sequences_per_step": 2424, "per_device_batch_size": "auto"}
    training = make_recipe(**shape).training
    execution = dataclasses.replace(choose_execution(training), device="cuda")
    monkeypatch.setattr(setup, "_fits", lambda *_: True)
    for gibibytes, expected in ((80, 101), (16, 24)):
        properties = SimpleNamespace(total_memory=gibibytes * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda properties=properties: properties)
        assert choose_micro_batch(training, config, execution, 1) == expected


def test_a_gpu_that_the_compiler_does_not_know_is_tried_without_it(make_recipe, monkeypatch):
    """Its error is not a lack of memory, and must not end the run before `choose_compilation` has looked."""
    config = load_config(ROOT / "configs/llama_ant10m.json")
    shape = {"sequence_length": 1024, "sequences_per_step": 64, "per_device_batch_size": "auto"}
    training = make_recipe(**shape).training
    execution = dataclasses.replace(choose_execution(training), device="cuda", torch_compile=True)
    properties = SimpleNamespace(total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)

    def share(recipe, config, execution, size):
        if execution.torch_compile:
            raise RuntimeError("PassManager::run failed")
        return size / 40

    monkeypatch.setattr(setup, "_memory_share", share)
    assert choose_micro_batch(training, config, execution, 1) == 32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Inductor and cuBLAS may warn about a device in ways that no machine of ours has shown.
@pytest.mark.filterwarnings("default")
def test_a_gpu_takes_what_fits_and_gives_the_memory_back(make_recipe):
    config = load_config(ROOT / "configs/llama_ant10m.json")
    shape = {"sequence_length": 1024, "sequences_per_step": 1 << 12, "per_device_batch_size": "auto"}
    training = make_recipe(device="cuda", precision="auto", **shape).training
    execution = choose_execution(training)
    # cuBLAS keeps a workspace from its first product on.
    torch.mm(*torch.ones(2, 8, 8, device="cuda"))
    before = torch.cuda.memory_allocated()
    state = torch.cuda.get_rng_state()
    chosen = choose_micro_batch(training, config, execution, 1)
    gc.collect()
    assert 1 <= chosen <= 128
    assert torch.cuda.memory_allocated() <= before + 64 * 2**20  # workspaces of further products
    assert torch.equal(torch.cuda.get_rng_state(), state)
