"""Our CPU attention against PyTorch's in fp32, on the same numbers."""

import pytest
import torch
from conftest import ROOT

from ant_hf.model.architecture import build_model, load_config
from ant_hf.model.attention import CAUSAL_BLOCKS, causal_blocks_forward

MODULE = torch.nn.Module()
MODULE.num_key_value_groups, MODULE.is_causal = 2, True


def inputs(tokens, dtype, batch=2, heads=4, groups=2, head_dim=64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, heads, tokens, head_dim)] + 2 * [(batch, groups, tokens, head_dim)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def distance(ours, reference):
    return float((ours.detach().float() - reference.detach()).norm() / reference.detach().norm())


# One block, several, and a last block that is not full.
@pytest.mark.parametrize("tokens", [8, 128, 129, 500])
def test_output_and_gradients_equal_fp32_within_the_rounding_of_bf16(tokens):
    ours = inputs(tokens, torch.bfloat16)
    reference = [tensor.detach().float().requires_grad_() for tensor in ours]
    out, weights = causal_blocks_forward(MODULE, *ours, None)
    assert weights is None
    query, key, value = reference
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), is_causal=True
    ).transpose(1, 2)
    assert out.shape == wanted.shape
    assert distance(out, wanted) < 0.01
    gradient = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    out.backward(gradient.bfloat16())
    wanted.backward(gradient)
    for tensor, other in zip(ours, reference, strict=True):
        assert distance(tensor.grad, other.grad) < 0.01


def test_no_position_sees_a_later_one():
    query, key, value = inputs(300, torch.bfloat16)
    before, _ = causal_blocks_forward(MODULE, query, key, value, None)
    with torch.no_grad():
        for tensor in (query, key, value):
            tensor[:, :, 200:] += 1
    after, _ = causal_blocks_forward(MODULE, query, key, value, None)
    assert torch.equal(before[:, :200], after[:, :200])
    assert not torch.equal(before[:, 200:], after[:, 200:])


def test_padded_batches_and_generation_give_what_sdpa_gives():
    config = load_config(ROOT / "configs/llama_ant10m.json")
    config.num_hidden_layers = 2
    ours = build_model(config, 0, CAUSAL_BLOCKS)
    reference = build_model(config, 0, "sdpa")
    ids = torch.randint(0, 4096, (2, 140), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :30] = 0
    shapes = {"input_ids": ids, "attention_mask": mask}
    assert torch.equal(ours(**shapes).logits, reference(**shapes).logits)
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(**shapes, **settings), reference.generate(**shapes, **settings))


def test_the_model_of_the_recipe_learns_the_same_in_bf16_as_in_fp32():
    """The loss to 1e-3 and the gradients as close as those of PyTorch's own bf16 attention, twice allowed."""
    config = load_config(ROOT / "configs/llama_ant10m.json")
    ids = torch.randint(0, 4096, (1, 256), generator=torch.Generator().manual_seed(0))
    results = {}
    for name, attention, bf16 in [
        ("reference", "sdpa", False), ("ours", CAUSAL_BLOCKS, True), ("theirs", "sdpa", True)
    ]:  # fmt: skip
        model = build_model(config, 0, attention)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        results[name] = loss.item(), gradient
    loss, gradient = results["reference"]
    assert results["ours"][0] == pytest.approx(loss, rel=1e-3)
    theirs = distance(results["theirs"][1], gradient)
    assert distance(results["ours"][1], gradient) < 2 * theirs
