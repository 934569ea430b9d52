import hashlib
import json
import logging
import math
import os
import re
import shutil
import string
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from records import losses
from safetensors.torch import load_file
from torch._inductor.exc import InvalidCxxCompiler
from transformers import AutoModelForCausalLM, Trainer

from ant_hf.data.corpus import in_validation_split, normalised
from ant_hf.data.tokenizer import load_tokenizer
from ant_hf.errors import AntError, RunStopped
from ant_hf.model.architecture import build_model, load_config
from ant_hf.model.loss import return_loss_only
from ant_hf.recipe import TokenizerRecipe
from ant_hf.train import callbacks
from ant_hf.train import pretrain as pretraining
from ant_hf.train import setup as run_setup
from ant_hf.train.pretrain import pretrain
from ant_hf.train.run_folder import RunRecord, open_run_folder
from ant_hf.train.setup import choose_execution, training_arguments
from ant_hf.train.trainer import AntTrainer
from ant_hf.utils.files import read_sealed, write_sealed
from ant_hf.utils.metrics import read_metrics

# torch._dynamo hides its own warning where it is printed, and not where warnings are errors.
HIDDEN_BY_DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
# Of torch's own modules.
IMPORTED_TO_COMPILE = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is:DeprecationWarning")


def final_weights(folder):
    return load_file(folder / "final" / "model.safetensors")


def assert_same_weights(first, second):
    first, second = final_weights(first), final_weights(second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_metrics_hold_what_people_compare(tiny_run):
    rows = read_metrics(tiny_run / "metrics.jsonl")
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == list(range(1, 9))
    for row in training:
        for key in ("learning_rate", "grad_norm", "tokens_seen", "tokens_per_second"):
            assert math.isfinite(row[key]), key
        assert 0 < row["data_loading_share"] < 1
    assert training[-1]["tokens_seen"] <= 8 * 8 * 64
    evaluation = [row for row in rows if "eval_loss" in row]
    assert [row["step"] for row in evaluation] == [4, 8]
    last = evaluation[-1]
    assert last["eval_perplexity"] == pytest.approx(math.exp(last["eval_loss"]))
    assert last["eval_byte_perplexity"] == pytest.approx(2 ** last["eval_bits_per_byte"])
    assert training[-1]["loss"] < training[0]["loss"]


def test_a_step_that_does_not_fit_the_memory_says_what_to_lower(make_recipe, monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Trainer, "training_step", too_large)
    with pytest.raises(AntError, match=r"8 blocks at once.*Tried to allocate.*per_device_batch_size=4"):
        pretrain(make_recipe("large"))
    with pytest.raises(AntError, match=r"1 block at once.*Lower training\.sequence_length"):
        pretrain(make_recipe("one", per_device_batch_size=1))


def test_learning_rate_warms_up_and_follows_the_cosine(tiny_run):
    rates = [row["learning_rate"] for row in read_metrics(tiny_run / "metrics.jsonl") if "loss" in row]

    def cosine(step):
        share = 0.5 * (1 + math.cos(math.pi * (step - 2) / 6))
        return 0.01 * (0.1 + 0.9 * share)

    # A row shows the rate its own update used: step 1 of a 2-step warmup starts at 0.
    assert rates == pytest.approx([0.0, 0.005, *(cosine(step) for step in range(2, 8))])


def test_learning_rate_stays_up_and_then_falls_in_a_line(make_recipe):
    recipe = make_recipe(
        lr_scheduler_type="warmup_stable_decay", stable_fraction=0.5, min_lr_rate=0.0, max_steps=10
    )
    pretrain(recipe)
    rows = read_metrics(open_run_folder(recipe).path / "metrics.jsonl")
    rates = [row["learning_rate"] for row in rows if "loss" in row]
    falling = [0.01 * (1 - step / 4) for step in range(4)]
    assert rates == pytest.approx([0.0, 0.005, *[0.01] * 4, *falling])


def test_run_record_names_everything(tiny_run):
    record = json.loads((tiny_run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["recipe"]["training"]["seed"] == 42
    assert record["config"]["hidden_size"] == 32
    assert {"torch", "transformers", "accelerate", "tokenizers"} <= record["environment"]["packages"].keys()
    assert record["environment"]["precision_reason"]
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in record["sha256"].values())
    assert record["peak_memory_bytes"]["process"] > 10**8
    assert record["final"]["loss"] == pytest.approx(record["final"]["loss_in_training"], rel=1e-4)
    assert record["final"]["byte_perplexity"] < record["final"]["uniform_byte_perplexity"]


def test_plots_and_tensorboard_are_written(tiny_run):
    for name in ("loss", "learning_rate", "gradient_norm", "throughput"):
        assert (tiny_run / "plots" / f"{name}.png").stat().st_size > 10_000
    assert list((tiny_run / "tensorboard").iterdir())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulation_does_not_change_the_training(make_recipe, optimizer):
    extra = {"optimizer": optimizer, "max_steps": 4}
    if optimizer == "muon":
        extra["muon_learning_rate"] = 0.02
    curves = {}
    for size in (8, 2):
        recipe = make_recipe(f"by{size}", per_device_batch_size=size, **extra)
        pretrain(recipe)
        curves[size] = losses(open_run_folder(recipe).path)
    assert curves[8] == pytest.approx(curves[2], rel=1e-5)


def test_evaluation_changes_nothing_in_16_bit(make_recipe):
    """Scoring goes through the same model object: it must leave dtype, mode and data order alone."""
    curves = []
    for eval_steps in (2, 8):
        recipe = make_recipe(f"every{eval_steps}", eval_steps=eval_steps, precision="bf16")
        if choose_execution(make_recipe("probe", precision="auto").training).precision != "bf16":
            pytest.skip("this CPU has no bf16 instructions")
        pretrain(recipe)
        curves.append(losses(open_run_folder(recipe).path))
    assert curves[0] == curves[1]


@pytest.fixture
def steps_take(monkeypatch):
    """A function that lets a step take so many seconds by the meter's clock, which stands still otherwise."""

    def switch_on(seconds, micro_batches):
        clock = SimpleNamespace(now=0.0)
        original = AntTrainer.training_step

        def training_step(self, *arguments):
            clock.now += seconds / micro_batches
            return original(self, *arguments)

        monkeypatch.setattr(AntTrainer, "training_step", training_step)
        monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    return switch_on


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_run_ends_with_equal_weights(make_recipe, monkeypatch, steps_take, optimizer):
    """Stopped between two checkpoints and continued: same weights, same log."""
    extra = {"optimizer": optimizer, "per_device_batch_size": 4, "save_steps": 3, "save_total_limit": 1}
    if optimizer == "muon":
        extra["muon_learning_rate"] = 0.02
    # In two micro-batches.
    steps_take(0.25, micro_batches=2)
    whole, cut = make_recipe("whole", **extra), make_recipe("cut", **extra)
    pretrain(whole)

    class KilledError(Exception):
        pass

    from ant_hf.train.callbacks import ThroughputMeter

    original = ThroughputMeter.on_step_begin

    def stop_at_step_5(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KilledError
        return original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(ThroughputMeter, "on_step_begin", stop_at_step_5)
        with pytest.raises(KilledError):
            pretrain(cut)
    folder = open_run_folder(cut)
    assert folder.checkpoint.name == "checkpoint-3"
    pretrain(cut)
    assert_same_weights(folder.path, open_run_folder(whole).path)
    assert losses(folder.path) == losses(open_run_folder(whole).path)
    record = json.loads((folder.path / "run.json").read_text())
    assert record["resumed_from_steps"] == [3]
    # The time is that of all steps, and not of those since the last start.
    assert record["timed_steps"] == 8
    assert (record["training_seconds"], record["tokens_per_second"]) == (2.0, 8 * 512 / 2.0)
    speeds = [
        row["tokens_per_second"] for row in read_metrics(folder.path / "metrics.jsonl") if "loss" in row
    ]
    assert speeds == [512 / 0.25] * 8


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@HIDDEN_BY_DYNAMO
@IMPORTED_TO_COMPILE
def test_a_compiled_run_continues_to_equal_weights(make_recipe, capsys):
    whole, cut = (make_recipe(name, torch_compile="on", precision="auto") for name in ("whole", "cut"))
    pretrain(whole)
    assert "which compiled the model" in capsys.readouterr().out
    with pytest.raises(RunStopped):
        pretrain(make_recipe("cut", torch_compile="on", precision="auto", max_hours=1e-9))
    assert open_run_folder(cut).checkpoint.name == "checkpoint-1"
    pretrain(cut)
    assert_same_weights(open_run_folder(cut).path, open_run_folder(whole).path)


def test_a_run_may_be_given_another_length_while_its_learning_rate_is_constant(make_recipe):
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "save_steps": 3, "min_lr_rate": 0.0}
    whole = make_recipe("whole", max_steps=14, stable_fraction=0.5, **schedule)
    pretrain(whole)
    shorter = make_recipe("run", max_steps=10, stable_fraction=0.5, max_hours=1e-9, **schedule)
    with pytest.raises(RunStopped):
        pretrain(shorter)
    longer = make_recipe("run", max_steps=14, stable_fraction=0.5, **schedule)
    pretrain(longer)
    assert_same_weights(open_run_folder(longer).path, open_run_folder(whole).path)
    changed = json.loads((open_run_folder(longer).path / "run.json").read_text())["changes"][0]["what"]
    assert "training.max_steps was 10, is 14" in changed


def test_while_the_rate_is_constant_a_run_may_decide_to_average_its_last_checkpoints(make_recipe):
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "stable_fraction": 0.5, "save_steps": 3}
    averaged = {"max_steps": 14, "average_last": 3, **schedule}
    pretrain(make_recipe("whole", **averaged))
    with pytest.raises(RunStopped):
        pretrain(make_recipe("run", max_steps=14, max_hours=1e-9, **schedule | {"save_steps": 5}))
    pretrain(make_recipe("run", **averaged))
    folders = [open_run_folder(make_recipe(name, **averaged)).path for name in ("run", "whole")]
    assert_same_weights(*folders)
    records = [json.loads((folder / "run.json").read_text()) for folder in folders]
    assert records[0]["final"]["averaged"] == records[1]["final"]["averaged"]


def test_a_run_that_continues_has_no_warnings_of_trainer(make_recipe, monkeypatch):
    """Of its tied projection, or of intervals that are told by the run itself."""
    seen = []
    handler = logging.Handler(logging.WARNING)
    monkeypatch.setattr(handler, "emit", lambda record: seen.append(record.getMessage()))
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler])
    with pytest.raises(RunStopped):
        pretrain(make_recipe(max_steps=4, save_steps=2, max_hours=1e-9))
    pretrain(make_recipe(max_steps=4, save_steps=3))
    assert seen == []


def test_in_the_decay_the_length_stays(make_recipe):
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "stable_fraction": 0.2, "save_steps": 4}
    pretrain(make_recipe(max_steps=8, **schedule))
    with pytest.raises(AntError, match=r"training\.max_steps was 8, is 12"):
        pretrain(make_recipe(max_steps=12, **schedule))


def test_a_finished_run_keeps_its_length(make_recipe):
    """Also one whose last checkpoint lies before any decay: its final weights do not."""
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "stable_fraction": 0.9, "save_steps": 2}
    pretrain(make_recipe(max_steps=3, **schedule))
    with pytest.raises(AntError, match=r"training\.max_steps was 3, is 6"):
        pretrain(make_recipe(max_steps=6, **schedule))


def test_a_recipe_recorded_before_a_key_existed_goes_on(make_recipe):
    recipe = make_recipe(max_steps=3)
    pretrain(recipe)
    record = open_run_folder(recipe).path / "run.json"
    values = read_sealed(record, "run record", "")
    del values["recipe"]["training"]["z_loss"], values["recipe"]["export_dtype"]
    write_sealed(record, values)
    assert open_run_folder(recipe).is_finished
    with pytest.raises(AntError, match=r"training\.z_loss was 0\.0, is 0\.1"):
        open_run_folder(make_recipe(max_steps=3, z_loss=0.1))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_z_loss_is_the_formula_at_any_micro_batch(make_recipe, accumulate):
    """The first step's logged loss: cross-entropy plus coefficient x mean (log Z)^2, here about ln(384)^2."""
    at_once = {"per_device_batch_size": 8 // accumulate, "max_steps": 3, "logging_steps": 1}
    plain, with_z = (make_recipe(f"z{z}", z_loss=z, **at_once) for z in (0.0, 0.5))
    for recipe in (plain, with_z):
        pretrain(recipe)
    first = [losses(open_run_folder(recipe).path)[0] for recipe in (plain, with_z)]
    assert first[1] - first[0] == pytest.approx(0.5 * math.log(384) ** 2, rel=0.01)


@pytest.mark.parametrize("z_loss", [0.0, 1e-4])
def test_nothing_but_the_loss_leaves_a_compiled_step(shared, monkeypatch, z_loss):
    """Logits as an output of the graph would be written out in fp32, 24 KB per token of Ant-10M."""
    outputs = []

    def keep(graph, _):
        returned = next(node for node in graph.graph.nodes if node.op == "output").args[0]
        outputs.extend(tuple(node.meta["example_value"].shape) for node in returned)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    torch._dynamo.reset()
    model = build_model(load_config(shared / "config.json"), seed=0)
    ids = torch.zeros((2, 16), dtype=torch.int64)
    whole = model(ids).logits
    return_loss_only(model, z_loss, compiled="loss")
    loss = model(input_ids=ids, labels=ids).loss
    assert outputs == [()]
    assert loss.item() == pytest.approx(math.log(384), rel=0.2)
    # To score and to write, it is the model that it was.
    assert torch.equal(model(input_ids=ids).logits, whole)
    assert len(outputs) == 1


def test_what_a_run_did_before_decides_whether_it_compiles(make_recipe, monkeypatch):
    asked = []

    def choose(setup, earlier):
        asked.append(earlier)
        return replace(setup, execution=replace(setup.execution, torch_compile=False))

    monkeypatch.setattr(pretraining, "choose_compilation", choose)
    with pytest.raises(RunStopped):
        pretrain(make_recipe(max_hours=1e-9))
    pretrain(make_recipe())
    assert asked == [None, False]


@HIDDEN_BY_DYNAMO
def test_compiling_without_a_compiler_says_what_to_install(make_recipe, monkeypatch):
    def fail(graph, _):
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    torch._dynamo.reset()
    with pytest.raises(AntError, match="no C\\+\\+ compiler") as caught:
        pretrain(make_recipe(torch_compile="on"))
    assert "training.torch_compile=off" in str(caught.value)


@HIDDEN_BY_DYNAMO
@pytest.mark.parametrize(
    ("attention", "dtype", "z_loss"),
    [("causal_sdpa", None, 0.0), ("causal_blocks", torch.bfloat16, 0.0), ("causal_sdpa", None, 1e-4)],
)
def test_layers_are_compiled_once_for_all_and_only_to_train(shared, monkeypatch, attention, dtype, z_loss):
    """So a model of any depth takes seconds, and scoring, with its other shapes, none."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    torch._dynamo.reset()
    config = load_config(shared / "config.json")
    ids = torch.zeros((2, 16), dtype=torch.int64)
    found = {}
    for layers, compiled in [(1, "layers"), (3, "layers"), (3, None)]:
        config.num_hidden_layers = layers
        model = build_model(config, 0, attention)
        return_loss_only(model, z_loss, compiled)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model(input_ids=ids, labels=ids).loss
            with torch.no_grad():
                model(input_ids=ids[:1, :7])
        loss.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        found[layers, compiled] = len(graphs), loss.item(), gradient
    # A layer, and the loss.
    assert found[1, "layers"][0] == found[3, "layers"][0] == 2
    assert found[3, "layers"][1] == found[3, None][1]
    torch.testing.assert_close(found[3, "layers"][2], found[3, None][2])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@HIDDEN_BY_DYNAMO
@IMPORTED_TO_COMPILE
@pytest.mark.parametrize("z_loss", [0.0, 1e-4])
def test_compiled_with_the_layers_the_loss_keeps_no_logits_in_fp32(shared, z_loss):
    torch._dynamo.reset()
    model = build_model(load_config(shared / "config.json"), 0, "causal_sdpa")
    return_loss_only(model, z_loss, compiled="layers")
    ids, kept = torch.zeros((2, 16), dtype=torch.int64), set()

    def keep(tensor):
        kept.add((tensor.dtype, tensor.numel()))
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, labels=ids)
    logits = 2 * 16 * model.config.vocab_size
    assert (torch.bfloat16, logits) in kept
    assert (torch.float32, logits) not in kept


def test_weights_can_be_stored_in_half_the_bytes(make_recipe):
    whole = make_recipe("whole", max_steps=3)
    half = whole.model_copy(update={"export_dtype": "float16", "output_dir": whole.output_dir + "-half"})
    for recipe in (whole, half):
        pretrain(recipe)
    finals = [Path(recipe.output_dir) / "final" for recipe in (whole, half)]
    stored = [load_file(final / "model.safetensors") for final in finals]
    assert stored[0].keys() == stored[1].keys()
    assert {tensor.dtype for tensor in stored[1].values()} == {torch.float16}
    assert all(torch.equal(tensor.half(), stored[1][name]) for name, tensor in stored[0].items())
    # No dtype asked for: the one that the config names.
    assert AutoModelForCausalLM.from_pretrained(finals[1]).dtype == torch.float16


def test_three_seeds_are_shown_as_they_come(tiny_run):
    samples = json.loads((tiny_run / "run.json").read_text())["samples"]
    assert [sample["seed"] for sample in samples] == [0, 1, 2]
    assert len({sample["text"] for sample in samples}) == 3


def test_finished_run_is_not_trained_again(make_recipe, capsys):
    recipe = make_recipe(max_steps=3)
    pretrain(recipe)
    weights = open_run_folder(recipe).path / "final" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    pretrain(recipe)
    assert weights.stat().st_mtime_ns == before
    assert "exists already" in capsys.readouterr().out
    # A final model that was removed is made again, of the last checkpoint.
    whole = weights.read_bytes()
    shutil.rmtree(weights.parent)
    pretrain(recipe)
    assert "from step 3" in capsys.readouterr().out
    assert weights.read_bytes() == whole
    pretrain(recipe, fresh=True)
    assert weights.stat().st_mtime_ns != before


def test_folder_of_another_run_is_refused_and_kept(make_recipe):
    recipe = make_recipe(max_steps=3)
    pretrain(recipe)
    other = make_recipe(max_steps=4, learning_rate=0.02, logging_steps=2)
    with pytest.raises(AntError) as caught:
        pretrain(other)
    text = str(caught.value)
    assert "training.learning_rate was 0.01, is 0.02" in text
    assert "training.max_steps was 3, is 4" in text
    assert "logging_steps" not in text
    assert "--fresh" in text
    assert open_run_folder(recipe).is_finished


def test_fresh_starts_over_where_the_record_is_damaged(make_recipe, capsys):
    recipe = make_recipe(max_steps=3)
    pretrain(recipe)
    folder = open_run_folder(recipe).path
    (folder / "run.json").write_text('{"status": "fini')
    with pytest.raises(AntError, match=r"run\.json cannot be read.*--fresh"):
        pretrain(recipe)
    pretrain(recipe, fresh=True)
    assert open_run_folder(recipe).is_finished
    assert "removing the run" in capsys.readouterr().out


def test_a_text_that_is_refused_does_not_cost_the_old_run(make_recipe):
    recipe = make_recipe(max_steps=3)
    pretrain(recipe)
    corpus = recipe.corpus.model_copy(update={"validation_fraction": 0.3})
    with pytest.raises(AntError, match="made of other text or settings"):
        pretrain(recipe.model_copy(update={"corpus": corpus}), fresh=True)
    assert open_run_folder(recipe).is_finished


def test_files_that_do_not_reproduce_the_training_fail_the_run(make_recipe, monkeypatch, tmp_path):
    """The check that a release with mismatched weights would have met."""
    original = pretraining.export_final

    def export_shuffled(model, *rest):
        with torch.no_grad():
            weight = model.get_input_embeddings().weight
            weight.copy_(weight.flip(0))
        return original(model, *rest)

    monkeypatch.setattr(pretraining, "export_final", export_shuffled)
    with pytest.raises(AntError, match="does not reproduce the trained model when it is loaded"):
        pretrain(make_recipe())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"


@pytest.mark.parametrize("off", [1.02, math.nan])
def test_a_score_that_autocast_alone_put_off_is_taken_again_without_it(make_recipe, monkeypatch, off):
    plainly = AntTrainer.score
    rounded = []

    def as_with_large_activations(self, *rest):
        score = plainly(self, *rest)
        rounded.append(replace(score, nats=off * score.nats))
        return rounded[-1]

    monkeypatch.setattr(AntTrainer, "score", as_with_large_activations)
    recipe = make_recipe(max_steps=4)
    pretrain(recipe)
    final = RunRecord.read(Path(recipe.output_dir)).final
    assert final["loss_in_training"] == pytest.approx(final["loss"], rel=1e-4)
    assert not rounded[-1].loss < 1.01 * final["loss"]


def test_a_run_without_validation_text_is_refused(make_recipe, tmp_path):
    recipe = make_recipe(data_dir=tmp_path / "own")
    corpus = recipe.corpus.model_copy(update={"max_tokens": 1})
    with pytest.raises(AntError, match="no document fell into the validation split"):
        pretrain(recipe.model_copy(update={"corpus": corpus}))


def is_held_out(text, fraction=0.05):
    return in_validation_split(hashlib.sha256(normalised(text)).digest(), fraction)


def test_a_validation_split_of_one_token_is_refused_before_the_training(make_recipe, chapters, tmp_path):
    # A text of one letter that falls into the split, among chapters that do not.
    letter = next(filter(is_held_out, string.ascii_letters))
    kept = [text for text in chapters if not is_held_out(text)]
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in [letter, *kept]))
    recipe = make_recipe(data_dir=tmp_path / "own")
    corpus = recipe.corpus.model_copy(update={"path": str(file), "validation_fraction": 0.05})
    with pytest.raises(AntError, match="the one document of the validation split is too short"):
        pretrain(recipe.model_copy(update={"corpus": corpus}))
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_checkpoints_without_a_record_are_refused_before_packing(make_recipe, tmp_path, fresh):
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    recipe = make_recipe(data_dir=tmp_path / "own")
    with pytest.raises(AntError, match=r"but no run\.json"):
        pretrain(recipe, fresh)
    assert not recipe.tokens_dir.exists()


def test_vocabularies_must_agree(make_recipe, shared, tmp_path):
    config = json.loads((shared / "config.json").read_text()) | {"vocab_size": 500}
    (tmp_path / "config.json").write_text(json.dumps(config))
    recipe = make_recipe().model_copy(update={"architecture": str(tmp_path / "config.json")})
    with pytest.raises(AntError, match=r"vocab_size is 384, but .* has vocab_size 500"):
        pretrain(recipe)
    assert not (tmp_path / "run").exists()


def test_the_model_follows_a_vocabulary_that_the_text_makes_smaller(make_recipe, tmp_path):
    texts = [f"Text {number}: a few words, and then the same few words again." for number in range(200)]
    (tmp_path / "few.txt").write_text("\n\n".join(texts))
    recipe = make_recipe(data_dir=tmp_path / "own", max_steps=2, warmup_steps=0)
    corpus = recipe.corpus.model_copy(update={"path": str(tmp_path / "few.txt")})
    recipe = recipe.model_copy(update={"corpus": corpus, "tokenizer": TokenizerRecipe()})
    pretrain(recipe)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    final = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    entries = load_tokenizer(recipe.tokenizer_dir).get_vocab_size()
    assert entries < 384
    assert final["vocab_size"] == record["config"]["vocab_size"] == entries
    embeddings = record["parameters"]["by_component"]["embeddings"]
    assert embeddings == entries * final["hidden_size"]
    assert record["plan"]["total_tokens"] == 2 * 8 * 64
    # Finished: the same command finds it so.
    pretrain(recipe)


def test_a_loss_that_is_no_number_stops_the_run(make_recipe):
    # A gradient that is clipped to nothing and a rate of 1 cannot diverge in 8 steps; a huge one does.
    recipe = make_recipe(
        learning_rate=1.0,
        optimizer="muon",
        muon_learning_rate=1.0,
        max_grad_norm=0.0,
        max_steps=30,
        warmup_steps=0,
        weight_decay=1e30,
    )
    with pytest.raises(AntError, match=r"(loss|gradient norm) is (nan|inf) at step 2 \(blocks \d+"):
        pretrain(recipe)


# A dry run first: both in one start of two processes.
DRY_RUN_AND_RUN = """
import sys
from ant_hf.recipe import load_recipe
from ant_hf.train.pretrain import dry_run, pretrain
recipe = load_recipe(sys.argv[1])
dry_run(recipe)
pretrain(recipe)
"""


def test_two_processes_train_the_same_model(make_recipe, tmp_path):
    single = make_recipe("single", per_device_batch_size=4, max_steps=6)
    make_recipe("double", per_device_batch_size=4, max_steps=6)
    pretrain(single)
    (tmp_path / "script.py").write_text(DRY_RUN_AND_RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path / "double.yaml")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # Two processes, and one of them speaks.
    assert result.stdout.count("nothing was written") == 1
    assert "4 per device x 2" in result.stdout
    assert losses(tmp_path / "double") == pytest.approx(losses(tmp_path / "single"), rel=1e-5)
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("single", "double")]
    scores = [[row["eval_bits_per_byte"] for row in r if "eval_loss" in row] for r in rows]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    record = json.loads((tmp_path / "double" / "run.json").read_text())
    assert record["plan"]["num_processes"] == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Inductor may warn about a device in ways that no machine of ours has shown.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_cuda_trains_in_16_bit(make_recipe, tmp_path, precision):
    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("bf16 needs SM 8.0")
    recipe = make_recipe(device="cuda", precision=precision, torch_compile="on")
    pretrain(recipe)
    curve = losses(tmp_path / "run")
    assert curve[-1] < curve[0]


def test_one_process_keeps_to_one_gpu_and_to_the_batch_of_the_recipe(make_recipe, monkeypatch, capsys):
    def arguments_on_two_gpus(*given):
        made = training_arguments(*given)
        made._n_gpu = 2
        return made

    monkeypatch.setattr(run_setup, "training_arguments", arguments_on_two_gpus)
    recipe = make_recipe()
    setup = run_setup.set_up(recipe, Path(recipe.output_dir))
    blocks = setup.arguments.train_batch_size * setup.arguments.gradient_accumulation_steps
    assert blocks == recipe.training.sequences_per_step
    assert "uses only one of the 2 GPUs" in capsys.readouterr().out


def test_the_same_text_by_another_of_its_names_is_the_same_run(make_recipe, monkeypatch, tmp_path):
    recipe = make_recipe()
    pretrain(recipe)
    monkeypatch.chdir(tmp_path)
    near = recipe.corpus.model_copy(update={"path": os.path.relpath(recipe.corpus.path)})
    folder = open_run_folder(recipe.model_copy(update={"corpus": near}))
    assert folder.is_finished
    assert folder.changes == ()
    # What the sets hold is in the tokens, whose hash is compared.
    sets = recipe.corpus.model_copy(update={"decontaminate": "sets"})
    assert open_run_folder(recipe.model_copy(update={"corpus": sets})).is_finished
    other = recipe.corpus.model_copy(update={"path": "other.jsonl"})
    with pytest.raises(AntError, match=r"another run.*\n  - corpus\.path was"):
        open_run_folder(recipe.model_copy(update={"corpus": other}))
