"""Numbers that go wrong: what would spoil the weights stops the run, and names its blocks."""

import dataclasses
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from faultlog import tried
from records import write_results

from ant_hf.errors import AntError
from ant_hf.release.build import make_release
from ant_hf.train.callbacks import MetricsFile, StepGuard, StopRequest
from ant_hf.train.checkpoints import newest_checkpoint
from ant_hf.train.pretrain import pretrain
from ant_hf.train.run_folder import open_run_folder
from ant_hf.train.setup import choose_execution, training_arguments
from ant_hf.train.trainer import AntTrainer
from ant_hf.utils.metrics import read_metrics


def spoil_loss(monkeypatch, at_step, value):
    """From step `at_step` on the loss comes out as `value`, and its gradient with it."""
    original = AntTrainer.compute_loss

    def compute_loss(self, model, inputs, **kwargs):
        loss = original(self, model, inputs, **kwargs)
        return loss * value if self.state.global_step + 1 >= at_step else loss

    monkeypatch.setattr(AntTrainer, "compute_loss", compute_loss)


@pytest.fixture(params=[False, True], ids=["at once", "one step late"])
def reading(request, monkeypatch):
    """The guard's two ways: as on a CPU, and as on a GPU, where it reads a step after the next is queued."""
    original = AntTrainer.__init__

    def init(self, *arguments):
        original(self, *arguments)
        self.guard._late = request.param

    monkeypatch.setattr(AntTrainer, "__init__", init)


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize(("value", "save_steps"), [(math.nan, 1), (math.inf, 1), (math.nan, 3)])
def test_a_loss_that_is_no_number_stops_before_it_is_saved(make_recipe, monkeypatch, value, save_steps):
    # At step 4, which is one that saves and one that does not.
    recipe = make_recipe(save_steps=save_steps, save_total_limit=8, logging_steps=save_steps)
    spoil_loss(monkeypatch, 4, value)
    with tried("loss that is not a number") as trial:
        with pytest.raises(
            AntError, match=rf"the loss is {value} at step 4 \(blocks \d+(, \d+){{7}}\)"
        ) as stopped:
            pretrain(recipe)
        trial.message = stopped.value
        folder = open_run_folder(recipe).path
        assert newest_checkpoint(folder).name == "checkpoint-3"
        row = read_metrics(folder / "metrics.jsonl")[-1]
        assert row["stopped_by_loss"] == str(value)
        named = [int(block) for block in re.search(r"blocks ([\d, ]+)", str(stopped.value))[1].split(",")]
        assert row["blocks"] == named
        monkeypatch.undo()
        pretrain(recipe)  # repaired, it continues
        assert open_run_folder(recipe).is_finished


@pytest.mark.usefixtures("reading")
def test_a_gradient_that_is_no_number_is_never_saved(make_recipe, monkeypatch):
    recipe = make_recipe(save_steps=1)
    original = AntTrainer.training_step

    def training_step(self, model, *arguments):
        loss = original(self, model, *arguments)
        if self.state.global_step == 2:
            next(model.parameters()).grad[0, 0] = math.inf
        return loss

    monkeypatch.setattr(AntTrainer, "training_step", training_step)
    with tried("gradient that is not a number") as trial:
        with pytest.raises(AntError, match=r"the gradient norm is (inf|nan) at step 3 \(blocks ") as stopped:
            pretrain(recipe)
        trial.message = stopped.value
        assert newest_checkpoint(open_run_folder(recipe).path).name == "checkpoint-2"


@pytest.fixture
def loss_scaling(monkeypatch):
    """fp16's scaler on a CPU: gradients stay fp32, scaling, overflow and skipping are the real ones."""

    def switch_on(overflow_at=(), growth_interval=2000):
        original = AntTrainer.__init__

        def with_scaler(self, *arguments, **keywords):
            original(self, *arguments, **keywords)
            self.accelerator.scaler = torch.amp.GradScaler(
                "cpu", init_scale=2.0**10, growth_interval=growth_interval
            )
            self.accelerator.native_amp = True
            self.args.optim = "adamw_torch"
            self.accelerator.state._mixed_precision = "fp16"

        step = AntTrainer.training_step

        def training_step(self, model, *arguments):
            loss = step(self, model, *arguments)
            if self.state.global_step + 1 in overflow_at:
                next(model.parameters()).grad[0, 0] = math.inf
            return loss

        monkeypatch.setattr(AntTrainer, "__init__", with_scaler)
        monkeypatch.setattr(AntTrainer, "training_step", training_step)
        # An fp16 autocast would change what is computed; only the scaling is wanted here.
        monkeypatch.setattr("accelerate.Accelerator.prepare_model", lambda self, model, **_: model)

    return switch_on


def test_fp16_takes_the_optimizer_whose_skips_are_seen(make_recipe, tmp_path):
    recipe = make_recipe()
    for precision, name in (("fp32", "adamw_torch_fused"), ("fp16", "adamw_torch")):
        execution = dataclasses.replace(choose_execution(recipe.training), precision=precision)
        assert training_arguments(recipe, execution, tmp_path).optim == name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_skipped_steps_are_counted_and_the_schedule_waits_for_them(make_recipe, loss_scaling, optimizer):
    loss_scaling(overflow_at=(3, 4))
    extra = {"muon_learning_rate": 0.01} if optimizer == "muon" else {}
    recipe = make_recipe(optimizer=optimizer, **extra)
    pretrain(recipe)
    folder = open_run_folder(recipe).path
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 2, 2, 2, 2, 2]
    rates = [row["learning_rate"] for row in rows]
    # Two steps of warmup, then the peak, which is used only when an update is made.
    assert rates[:2] == pytest.approx([0.0, 0.005])
    assert rates[2:5] == pytest.approx([0.01, 0.01, 0.01])
    assert rates[5] < 0.01
    assert json.loads((folder / "run.json").read_text())["skipped_steps"] == 2


def test_a_run_that_skipped_steps_gets_its_card(make_recipe, loss_scaling, quick_gate):
    loss_scaling(overflow_at=(1,))
    recipe = make_recipe(max_steps=60, eval_steps=20, save_steps=60, logging_steps=1, learning_rate=0.02)
    pretrain(recipe)
    folder = open_run_folder(recipe).path
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    write_results(folder / "final")
    card = make_release(folder / "final", "GODELEV/Ant-10M") / "README.md"
    assert "| Skipped steps | 1 |" in card.read_text()


def test_scale_and_count_survive_a_stop(make_recipe, loss_scaling, tmp_path):
    loss_scaling(overflow_at=(2, 4), growth_interval=2)
    # Left after step 3, between the two overflows, when the scale has been lowered once.
    whole, cut = (make_recipe(name, max_steps=5, save_steps=3) for name in ("whole", "cut"))
    pretrain(whole)
    original = AntTrainer._save_checkpoint

    def save_and_go(self, model, trial):
        original(self, model, trial)
        raise KeyboardInterrupt

    AntTrainer._save_checkpoint = save_and_go
    try:
        with pytest.raises(KeyboardInterrupt):
            pretrain(cut)
    finally:
        AntTrainer._save_checkpoint = original
    pretrain(cut)
    rows = [
        [
            (row["step"], row["loss"], row["grad_norm"], row["skipped_steps"])
            for row in read_metrics(file)
            if "loss" in row
        ]
        for file in (tmp_path / "whole" / "metrics.jsonl", tmp_path / "cut" / "metrics.jsonl")
    ]
    assert repr(rows[0]) == repr(rows[1])
    assert rows[0][-1][-1] == 2
    scalers = [torch.load(tmp_path / name / "checkpoint-5" / "scaler.pt") for name in ("whole", "cut")]
    assert scalers[0] == scalers[1]


def test_a_run_that_only_skips_stops(make_recipe, loss_scaling):
    loss_scaling(overflow_at=range(3, 100))
    recipe = make_recipe(save_steps=1, max_skipped_steps=3)
    with tried("fp16 overflow in N steps in a row") as trial:
        with pytest.raises(
            AntError, match=r"overflowed in 3 steps in a row, up to step 5 \(blocks \d+"
        ) as stopped:
            pretrain(recipe)
        trial.message = stopped.value
        assert damaged_weights(newest_checkpoint(open_run_folder(recipe).path)) == 0


def damaged_weights(checkpoint):
    from safetensors.torch import load_file

    return sum(
        int((~value.isfinite()).sum()) for value in load_file(checkpoint / "model.safetensors").values()
    )


def guard(tmp_path, recipe, losses):
    """A guard that has seen `losses`, one a step, and the rows it wrote."""
    order = SimpleNamespace(block_index=lambda position: position)
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    watching = StepGuard(recipe, order, metrics, StopRequest(None, 0), torch.clone, num_processes=1)
    watching.gradient_norm = torch.tensor(1.0)
    state = SimpleNamespace(global_step=0, max_steps=10_000, is_world_process_zero=True)
    control = SimpleNamespace(should_log=False, should_evaluate=False, should_save=False)
    for loss in losses:
        watching.add_micro_batch(torch.tensor(loss))
        watching.on_pre_optimizer_step(None, state, None)
        state.global_step += 1
        watching.on_step_end(None, state, control)
    return watching, read_metrics(metrics.path)


def test_a_spike_is_written_down_with_its_blocks(make_recipe, tmp_path, capsys):
    recipe = make_recipe().training
    noise = [3.0 + 0.01 * (-1) ** step for step in range(100)]
    with tried("loss spike (reported, not stopped)") as trial:
        _, rows = guard(tmp_path, recipe, [*noise, 3.5, *noise[:5]])
        assert [row["step"] for row in rows] == [101]
        assert rows[0]["spike_loss"] == 3.5
        assert rows[0]["recent_mean"] == pytest.approx(3.0)
        assert rows[0]["blocks"] == list(range(800, 808))
        trial.message = " ".join(capsys.readouterr().out.split())
        assert "at step 101 is 50.0 standard deviations above its recent mean 3.000" in trial.message


def test_no_spike_in_a_falling_loss_or_before_there_is_a_mean(make_recipe, tmp_path):
    recipe = make_recipe().training
    assert guard(tmp_path, recipe, [8.0 / (1 + step) for step in range(200)])[1] == []
    assert guard(tmp_path, recipe, [3.0, 3.1] * 15 + [9.0])[1] == []
    off = recipe.model_copy(update={"spike_deviations": None})
    assert guard(tmp_path, off, [3.0, 3.1] * 50 + [9.0])[1] == []


def test_a_step_is_read_while_the_next_one_runs_and_at_once_where_it_must_be(make_recipe, tmp_path):
    """The device never waits for Python in between, and no row, evaluation, save or end goes ahead of it."""
    order = SimpleNamespace(block_index=lambda position: position)
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    late = StepGuard(make_recipe().training, order, metrics, StopRequest(None, 0), torch.clone, 1, True)
    late.gradient_norm = torch.tensor(1.0)
    state = SimpleNamespace(global_step=0, max_steps=10, is_world_process_zero=True)
    seen = []
    for flag in ("", "", "should_log", "", "should_save", "", "should_evaluate", "", "", ""):
        names = ("should_log", "should_save", "should_evaluate")
        control = SimpleNamespace(**{name: name == flag for name in names})
        late.add_micro_batch(torch.tensor(3.0))
        late.on_pre_optimizer_step(None, state, None)
        state.global_step += 1
        late.on_step_end(None, state, control)
        seen.append(len(late.state()["recent_losses"]))
    assert seen == [0, 1, 3, 3, 5, 5, 7, 7, 8, 10]


def test_a_step_with_many_blocks_is_named_short_and_logged_whole(make_recipe, tmp_path):
    recipe = make_recipe(sequences_per_step=64).training
    with pytest.raises(AntError, match=r"14, 15 and 48 more, all in metrics\.jsonl\)"):
        guard(tmp_path, recipe, [math.nan])
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["blocks"] == list(range(64))
