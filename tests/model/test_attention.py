"""Our CPU attention against PyTorch's in fp32, on the same numbers."""

from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from ant_hf.model import attention
from ant_hf.model.architecture import build_model, load_config
from ant_hf.model.attention import CAUSAL_BLOCKS, CAUSAL_SDPA, causal_blocks_forward, causal_sdpa_forward

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


@pytest.mark.parametrize("tokens", [8, 300])
def test_the_compiler_is_told_the_right_shapes_and_gradients(tokens):
    query, key, value = inputs(tokens, torch.bfloat16)
    grouped = query.reshape(4, 2, tokens, 64), key.reshape(4, tokens, 64), value.reshape(4, tokens, 64)
    leaves = [tensor.detach().requires_grad_() for tensor in grouped]
    torch.library.opcheck(torch.ops.ant_hf.causal_blocks.default, tuple(leaves))


def test_no_position_sees_a_later_one():
    query, key, value = inputs(300, torch.bfloat16)
    before, _ = causal_blocks_forward(MODULE, query, key, value, None)
    with torch.no_grad():
        for tensor in (query, key, value):
            tensor[:, :, 200:] += 1
    after, _ = causal_blocks_forward(MODULE, query, key, value, None)
    assert torch.equal(before[:, :200], after[:, :200])
    assert not torch.equal(before[:, 200:], after[:, 200:])


@pytest.mark.parametrize("name", [CAUSAL_BLOCKS, CAUSAL_SDPA])
def test_padded_batches_and_generation_give_what_sdpa_gives(name):
    config = load_config(ROOT / "configs/llama_ant10m.json")
    config.num_hidden_layers = 2
    ours = build_model(config, 0, name)
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
    for name, implementation, bf16 in [
        ("reference", "sdpa", False), ("ours", CAUSAL_BLOCKS, True), ("theirs", "sdpa", True)
    ]:  # fmt: skip
        model = build_model(config, 0, implementation)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        results[name] = loss.item(), gradient
    loss, gradient = results["reference"]
    assert results["ours"][0] == pytest.approx(loss, rel=1e-3)
    theirs = distance(results["theirs"][1], gradient)
    assert distance(results["ours"][1], gradient) < 2 * theirs


@pytest.mark.parametrize("bf16", [False, True])
def test_the_compiled_graph_is_causal_and_has_no_mask(bf16):
    """A mask of all pairs of positions would shut out flash attention."""
    config = load_config(ROOT / "configs/llama_ant10m.json")
    config.num_hidden_layers = 1
    model = build_model(config, 0, CAUSAL_SDPA)
    ids = torch.randint(0, 4096, (2, 140), generator=torch.Generator().manual_seed(0))
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        compiled = torch.compile(model, backend=keep)(input_ids=ids, labels=ids, use_cache=False).loss
        eager = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert compiled.item() == pytest.approx(eager.item(), rel=1e-3 if bf16 else 1e-6)
    assert len(graphs) == 1
    calls = [node for node in graphs[0].graph.nodes if "scaled_dot_product" in str(node.target)]
    assert [call.kwargs["is_causal"] for call in calls] == [True]
    assert calls[0].kwargs.get("attn_mask") is None
    assert len(calls[0].args) == 3


def test_several_sequences_in_one_block_stay_apart_without_compilation():
    config = load_config(ROOT / "configs/llama_ant10m.json")
    config.num_hidden_layers = 1
    ids = torch.randint(0, 4096, (1, 20), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    together = build_model(config, 0, CAUSAL_SDPA)(input_ids=ids, position_ids=positions, use_cache=False)
    alone = build_model(config, 0, "sdpa")(input_ids=ids[:, 8:], use_cache=False)
    torch.testing.assert_close(together.logits[:, 8:], alone.logits)


@pytest.mark.parametrize(("knows", "heads"), [(True, 2), (False, 4)])
def test_keys_and_values_are_repeated_where_the_kernel_takes_no_groups(knows, heads, monkeypatch):
    """Grouped heads in fp32, or on a GPU below SM 8.0, would fall to the math kernel."""
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **kwargs):
        seen.append((key.shape[1], value.shape[1], kwargs["enable_gqa"], kwargs["is_causal"]))
        return real(query, key, value, **kwargs)

    monkeypatch.setattr(attention, "_knows_grouped_heads", lambda _: knows)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    query, key, value = inputs(40, torch.float32)
    out, _ = causal_sdpa_forward(MODULE, query, key, value, None)
    assert seen == [(heads, heads, knows, True)]
    wanted = real(query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), is_causal=True)
    torch.testing.assert_close(out, wanted.transpose(1, 2))


@pytest.mark.parametrize(
    ("capability", "dtype", "grouped"),
    [((7, 5), torch.float16, False), ((8, 0), torch.bfloat16, True), ((9, 0), torch.float32, False)],
)
def test_grouped_heads_are_used_where_flash_attention_runs(capability, dtype, grouped, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    value = SimpleNamespace(device=torch.device("cuda"), dtype=dtype)
    assert attention._knows_grouped_heads(value) is grouped
