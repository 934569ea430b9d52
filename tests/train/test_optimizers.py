import copy

import pytest
import torch

from ant_hf.model.architecture import build_model, load_config
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
