import copy

import pytest
import torch

from ant_hf.model.architecture import build_model, load_config
from ant_hf.train import optimizers
from ant_hf.train.optimizers import muon_adamw


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(optimizer="muon", muon_learning_rate=0.02, learning_rate=0.01).training


@pytest.fixture
def model(shared):
    return build_model(load_config(shared / "config.json"), seed=0)


def names(model):
    return {name for name, p in model.named_parameters() if p.ndim == 2}


def train(model, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids = torch.randint(0, 384, (2, 16), generator=generator)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_equals_the_two_optimizers_of_torch_side_by_side(model, recipe):
    twin = copy.deepcopy(model)
    train(model, muon_adamw(model, names(model), recipe), 3, seed=1)
    matrices = [p for n, p in twin.named_parameters() if p.ndim == 2 and ".layers." in n]
    decayed = [twin.get_input_embeddings().weight]
    norms = [p for _, p in twin.named_parameters() if p.ndim == 1]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1)
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), fused=True)

    class Both:
        def step(self):
            muon.step()
            adamw.step()

        def zero_grad(self):
            muon.zero_grad()
            adamw.zero_grad()

    train(twin, Both(), 3, seed=1)
    for name, value in weights(model).items():
        assert torch.equal(value, weights(twin)[name]), name


def test_updates_have_the_strides_of_their_matrices(model, recipe, monkeypatch):
    """Others make torch's foreach kernels fall back to one launch for each matrix."""
    strides = []
    real = torch._foreach_add_

    def spy(parameters, updates, **kwargs):
        if "alpha" in kwargs:  # Muon's own call; AdamW counts its steps with this function
            strides.extend((p.stride(), u.stride()) for p, u in zip(parameters, updates, strict=True))
        return real(parameters, updates, **kwargs)

    monkeypatch.setattr(torch, "_foreach_add_", spy)
    train(model, muon_adamw(model, names(model), recipe), 1, seed=1)
    assert len(strides) >= 7 * model.config.num_hidden_layers
    assert all(ours == theirs for ours, theirs in strides)


@pytest.mark.parametrize(
    ("device", "capability", "dtype"),
    [
        ("cpu", (0, 0), torch.bfloat16),
        ("cuda", (9, 0), torch.bfloat16),
        ("cuda", (7, 5), torch.float16),
    ],
)
def test_muon_iterates_in_16_bits_that_the_device_multiplies(device, capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert optimizers._iteration_dtype(torch.device(device)) is dtype


def test_fp16_iterations_are_as_close_to_orthogonal_as_those_in_bf16(monkeypatch):
    matrices = torch.randn(3, 96, 32, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.bfloat16, torch.float16):
        monkeypatch.setattr(optimizers, "_iteration_dtype", lambda _, dtype=dtype: dtype)
        update = optimizers._orthogonalise(matrices, (3.4445, -4.775, 2.0315), 5, 1e-7).float()
        singular = torch.linalg.svdvals(update)
        assert singular.min() > 0.6, dtype
        assert singular.max() < 1.3, dtype


def test_every_parameter_is_in_exactly_one_group(model, recipe):
    optimizer = muon_adamw(model, names(model), recipe)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_state_survives_saving_and_loading_exactly(model, recipe, tmp_path):
    optimizer = muon_adamw(model, names(model), recipe)
    train(model, optimizer, 3, seed=1)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    twin = copy.deepcopy(model)
    restored = muon_adamw(twin, names(twin), recipe)
    restored.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    train(model, optimizer, 3, seed=2)
    train(twin, restored, 3, seed=2)
    for name, value in weights(model).items():
        assert torch.equal(value, weights(twin)[name]), name


def test_schedulers_scale_both_parts(model, recipe):
    optimizer = muon_adamw(model, names(model), recipe)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01, 0.005}
    before = weights(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 1, seed=1)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert scheduler.get_last_lr()


def test_gradient_scaling_works_and_skips_infinite_steps(model, recipe):
    """What fp16 training does around the optimizer, here on the CPU with an exact scale."""
    twin = copy.deepcopy(model)
    train(twin, muon_adamw(twin, names(twin), recipe), 1, seed=1)
    optimizer = muon_adamw(model, names(model), recipe)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    ids = torch.randint(0, 384, (2, 16), generator=torch.Generator().manual_seed(1))
    scaler.scale(model(input_ids=ids, labels=ids).loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    for name, value in weights(model).items():
        torch.testing.assert_close(value, weights(twin)[name], rtol=1e-5, atol=1e-7)
    before = weights(model)
    model.get_input_embeddings().weight.grad.fill_(torch.inf)
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert scaler.get_scale() == 2.0**7
