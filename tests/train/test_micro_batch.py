import gc

import pytest
import torch
from conftest import ROOT

from ant_hf.model.architecture import load_config
from ant_hf.train.plan import choose_micro_batch, largest_that_fits
from ant_hf.train.precision import choose_execution


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
    execution = choose_execution(make_recipe().training)
    assert choose_micro_batch(config, execution, 1024, blocks) == expected
    assert choose_micro_batch(config, execution, 1 << 20, blocks) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_takes_what_fits_and_gives_the_memory_back(make_recipe):
    config = load_config(ROOT / "configs/llama_ant10m.json")
    execution = choose_execution(make_recipe(device="cuda", precision="auto").training)
    before = torch.cuda.memory_allocated()
    state = torch.cuda.get_rng_state()
    chosen = choose_micro_batch(config, execution, 1024, 1 << 12)
    gc.collect()
    assert 1 <= chosen <= 64
    assert torch.cuda.memory_allocated() == before
    assert torch.equal(torch.cuda.get_rng_state(), state)
