"""The arithmetic of estimates: rates are given, and no clock but a false one is looked at."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_recipe

from ant_hf.data.survey import Survey
from ant_hf.errors import AntError
from ant_hf.model.architecture import build_model, load_config
from ant_hf.model.attention import CAUSAL_SDPA
from ant_hf.model.loss import return_loss_only
from ant_hf.train import estimates
from ant_hf.train.estimates import (
    Batch,
    Room,
    TimeToGo,
    Timing,
    TrainingRate,
    affordable,
    arithmetic,
    check_rooms,
    choose_compilation,
    in_words,
    measure_training,
    muon_flops,
    room_for,
    seconds_on,
    show_estimates,
    step_seconds,
    training_phases,
)
from ant_hf.train.run_folder import RunFolder
from ant_hf.train.setup import activation_bytes_per_token, memory_on, ratio, set_up, with_recipe
from ant_hf.utils.hardware import Gpu


@pytest.fixture
def setup_of(shared, tmp_path):
    def make(**training):
        return set_up(tiny_recipe(shared, tmp_path / "run", **training), tmp_path / "run")

    return make


RATE = TrainingRate(
    step_seconds=2.0, tokens_per_step=512, scoring_tokens_per_second=1000.0, final_tokens_per_second=500.0
)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "under 1 s"),
        (12.4, "12 s"),
        (216, "3 min 36 s"),
        (3599.7, "60 min 0 s"),
        (5 * 3600 + 12 * 60, "5 h 12 min"),
        (7199.9, "2 h 0 min"),
        (12 * 86400 + 3 * 3600, "12 days 3 h"),
    ],
)
def test_times_are_told_as_people_say_them(seconds, words):
    assert in_words(seconds) == words


def test_a_small_ratio_is_not_nothing():
    assert [ratio(value) for value in (0.0083, 0.083, 0.5, 300.7)] == ["0.0083", "0.083", "0.50", "300.70"]


def test_a_step_is_its_batches_and_one_move_of_the_optimizer():
    timing = Timing(0.5, 0.2, 3.0, 1000.0)
    assert step_seconds(timing, 1) == pytest.approx(0.7)
    # Eight accumulated micro-batches, of each of which a quarter was timed.
    assert step_seconds(timing, 8 * 4) == pytest.approx(16.2)


@pytest.mark.parametrize(
    ("batch_seconds", "batch", "steps"),
    [
        # 256 tokens were tried. Fast: whole micro-batches, as many as there may be.
        (0.001, Batch(24, 1024), 20),
        # Slower: whole ones, or as many blocks as a quarter of the time allows.
        (0.05, Batch(7, 1024), 2),
        (0.2, Batch(1, 1024), 5),
        # Not even a block.
        (10.0, Batch(1, 38), 2),
        (1e6, Batch(1, 8), 2),
    ],
)
def test_what_is_timed_fits_the_time(batch_seconds, batch, steps):
    whole = Batch(24, 1024)
    found = affordable(whole, 256, Timing(batch_seconds, 0.0, 0.0, 1.0), seconds=6.0)
    assert found == (batch, steps)
    # A slow optimizer takes from the same time.
    slow = affordable(whole, 256, Timing(batch_seconds, 1.4, 0.0, 1.0), seconds=6.0)
    assert slow[0].tokens <= batch.tokens


@pytest.mark.parametrize(
    ("training", "done", "evaluations"),
    [
        ({"max_steps": 8, "eval_steps": 4}, 0, 2),
        # The last step is followed by one, due or not.
        ({"max_steps": 9, "eval_steps": 4}, 0, 3),
        ({"max_steps": 9, "eval_steps": 400}, 0, 1),
        ({"max_steps": 100, "eval_steps": 10}, 55, 5),
    ],
)
def test_every_evaluation_is_counted(setup_of, training, done, evaluations):
    learning, evaluation, end = training_phases(setup_of(**training), RATE, 10_000, done)
    assert learning.seconds == 2.0 * (training["max_steps"] - done)
    assert evaluation.seconds == evaluations * 2000 / 1000.0
    assert end.seconds == 10_000 / 1000.0 + 10_000 / 500.0


def test_without_held_out_text_no_evaluation_is_told(setup_of):
    setup = setup_of()
    corpus = setup.recipe.corpus.model_copy(update={"validation_fraction": 0.0})
    setup = dataclasses.replace(setup, recipe=setup.recipe.model_copy(update={"corpus": corpus}))
    assert [phase.name for phase in training_phases(setup, RATE, 0)] == ["training", "at the end"]


def test_at_the_end_of_a_fine_tuning_two_models_are_measured(setup_of):
    rate = dataclasses.replace(RATE, sample_seconds=3.0)
    setup = dataclasses.replace(setup_of(), base=SimpleNamespace())
    assert training_phases(setup, rate, 10_000)[-1].seconds == 10.0 + 2 * (20.0 + 3.0)


def test_what_is_not_known_is_not_told(setup_of, tmp_path, capsys):
    setup = setup_of(max_hours=0.001)
    show_estimates(setup, RunFolder(tmp_path), Survey("some rows"), RATE)
    said = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "evaluation not known" in said
    assert "packing not known" in said
    assert "in all 16 s plus what is not known, in 5 sessions" in said


def test_room_is_for_what_is_not_there_yet(setup_of, tmp_path):
    text = Survey("text", train_tokens=1000, validation_tokens=24, packing_seconds=1.0)
    setup = setup_of(save_steps=1, save_total_limit=2)
    one, final = setup.plan.checkpoint_bytes, 4 * setup.ledger.total
    (room,) = room_for(setup, RunFolder(tmp_path), text)
    # Those that are kept, and the one that is being written.
    assert room.parts == {"tokens": 2048, "checkpoints": 3 * one, "final model": final}
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "checkpoint.json").touch()
    (room,) = room_for(setup, RunFolder(tmp_path), Survey("text", packing_seconds=0.0))
    assert room.parts == {"tokens": 0, "checkpoints": 2 * one, "final model": final}
    # The best one is kept beside them.
    best = setup_of(save_steps=1, eval_steps=1, load_best_model_at_end=True)
    (room,) = room_for(best, RunFolder(tmp_path / "other"), text)
    assert room.parts["checkpoints"] == 4 * one
    # A run that saves once holds one.
    (room,) = room_for(setup_of(save_steps=100), RunFolder(tmp_path / "other"), text)
    assert room.parts["checkpoints"] == one


def test_a_run_without_room_is_refused_with_what_it_needs(tmp_path):
    check_rooms([Room(tmp_path, {"tokens": 1})])
    with pytest.raises(AntError, match=r"no room for the tokens and the checkpoints in .* bytes free"):
        check_rooms([Room(tmp_path, {"tokens": 10**18, "checkpoints": 1, "final model": 0})])


def test_a_run_tells_its_time_once_after_some_steps(setup_of, monkeypatch, capsys):
    clock = iter([10.0, 12.0, 14.0, 16.0, 18.0])
    monkeypatch.setattr(estimates, "_now", lambda _: next(clock))
    told = TimeToGo(setup_of(max_steps=103, eval_steps=1000), 0)
    control = SimpleNamespace(should_evaluate=False, should_save=False)
    for step in range(1, 6):
        told.on_step_end(None, SimpleNamespace(is_world_process_zero=True, global_step=step), control)
    said = capsys.readouterr().out
    # Steps 2 to 4 took 2 s each, and 99 are left.
    assert said.count("to go") == 1
    assert "3 min 18 s to go: training 3 min 18 s" in said


def test_a_step_is_timed_on_a_part_of_it(setup_of, tmp_path):
    setup = setup_of(sequences_per_step=64, per_device_batch_size=8, optimizer="muon", muon_learning_rate=0.1)
    rate = measure_training(setup, seconds=0.2)
    assert rate.tokens_per_second == setup.plan.tokens_per_step / rate.step_seconds
    assert rate.step_seconds > 0
    assert rate.scoring_tokens_per_second > 0
    assert rate.final_tokens_per_second > 0
    assert rate.memory_bytes["process"] > 0
    assert setup.arguments.max_steps == 8
    assert not (tmp_path / "run").exists()


def test_what_is_timed_is_never_a_few_tokens(setup_of, monkeypatch):
    setup = setup_of(sequences_per_step=8, per_device_batch_size=8)
    # Nothing fits into so little time.
    rate = measure_training(setup, seconds=0.0)
    length = min(256, setup.recipe.training.sequence_length)
    assert rate.how.endswith(f"one step of 1 x {length} tokens")


@pytest.mark.parametrize(
    ("compiled", "plain", "stays", "words"),
    [
        (200.0, 100.0, True, ""),
        (90.0, 100.0, False, "90 tokens per second with it, 100 without"),
        (
            RuntimeError("PassManager::run failed\nand more"),
            100.0,
            False,
            "RuntimeError: PassManager::run failed",
        ),
        (
            RuntimeError("InvalidCxxCompiler: No working C++ compiler found"),
            100.0,
            False,
            "no C++ compiler was found",
        ),
        (200.0, AntError("a step does not fit the memory"), True, ""),
    ],
)
def test_compilation_is_kept_where_it_works_and_pays(
    setup_of, monkeypatch, capsys, compiled, plain, stays, words
):
    """A GPU that the compiler no longer knows, as Triton a T4, must not end the first run on it."""

    def measure(setup):
        found = compiled if setup.execution.torch_compile else plain
        if isinstance(found, Exception):
            raise found
        return dataclasses.replace(RATE, step_seconds=512 / found)

    monkeypatch.setattr(estimates, "measure_training", measure)
    setup = setup_of()
    setup = dataclasses.replace(setup, execution=dataclasses.replace(setup.execution, torch_compile=True))
    assert choose_compilation(setup).execution.torch_compile is stays
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(("earlier", "stays"), [(True, True), (False, False)])
def test_a_run_that_continues_compiles_if_it_did_before(setup_of, monkeypatch, earlier, stays):
    """Compiled code rounds elsewhere: the run would end with other weights."""
    compiled_is_slower = {True: 90.0, False: 100.0}

    def measure(setup):
        return dataclasses.replace(RATE, step_seconds=512 / compiled_is_slower[setup.execution.torch_compile])

    monkeypatch.setattr(estimates, "measure_training", measure)
    for setup in (setup_of(max_steps=10**9), setup_of()):
        assert choose_compilation(setup, earlier).execution.torch_compile is stays


def test_only_a_long_run_on_a_cpu_is_compiled(setup_of):
    assert not setup_of().execution.torch_compile
    long = setup_of(max_steps=10**9)
    assert long.execution.compiled == "layers"
    assert not with_recipe(long, setup_of().recipe).execution.torch_compile
    assert not setup_of(max_steps=10**9, torch_compile="off").execution.torch_compile


def test_what_the_recipe_says_of_compilation_is_not_tried(setup_of, monkeypatch):
    monkeypatch.setattr(estimates, "measure_training", pytest.fail)
    on, off = setup_of(torch_compile="on"), setup_of(torch_compile="off")
    assert choose_compilation(on) is on
    assert choose_compilation(off) is off


def test_a_gpu_that_is_not_here_is_told_by_arithmetic(setup_of):
    gpu = Gpu(peak_flops=1e9, watts=1, gigabytes=16)
    setup, with_muon = (
        setup_of(max_steps=100),
        setup_of(max_steps=100, optimizer="muon", muon_learning_rate=0.02),
    )
    # A fifth of the peak.
    assert seconds_on(gpu, setup) == pytest.approx(setup.plan.total_flops / 0.2e9)
    muon = 100 * muon_flops(setup.config)
    assert seconds_on(gpu, with_muon) == pytest.approx((setup.plan.total_flops + muon) / 0.2e9)
    # A GPU that is never the limit still starts kernels.
    assert seconds_on(Gpu(peak_flops=1e30, watts=1, gigabytes=16), setup) == pytest.approx(100 * 0.03)
    assert "1 TFLOP/s" in arithmetic(Gpu(1e12, 1, 16))


def kept_for_backward(model, blocks):
    """Bytes of the tensors that autograd keeps of a forward pass in 16 bits, each storage once."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    held, ids = [], torch.zeros((blocks, 64), dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu"):
        model(input_ids=ids, labels=ids)
    return sum(kept.values())


def test_activations_are_what_autograd_keeps(shared):
    config = load_config(shared / "config.json")
    for name, value in {"hidden_size": 64, "head_dim": 16, "num_hidden_layers": 6, "vocab_size": 300}.items():
        setattr(config, name, value)
    model = build_model(config, 0, CAUSAL_SDPA)
    return_loss_only(model, 0.0)
    counted = (kept_for_backward(model, 3) - kept_for_backward(model, 1)) / (2 * 64)
    # The gradients of the logits come after what is counted here.
    assert activation_bytes_per_token(config) - 6 * 300 == pytest.approx(counted, rel=0.05)


def test_memory_of_a_gpu_that_is_not_here_is_told_for_the_blocks_that_fit(setup_of):
    setup = setup_of(per_device_batch_size="auto")
    parameters, block = setup.ledger.total, 64 * activation_bytes_per_token(setup.config)
    # 18 bytes per parameter with AdamW, and all 8 blocks of a step at once.
    fixed = 18 * parameters / 1e9
    whole = memory_on(Gpu(1e12, 1, 16), setup)
    assert whole.startswith(f"{fixed + 8 * block / 1e9:.1f} of 16 GB, calculated: {fixed:.2f} GB for")
    assert "of the 8 blocks at once" in whole
    nothing = Gpu(1e12, 1, 0)
    assert memory_on(nothing, setup).startswith("not enough, ")
    wide = dataclasses.replace(setup, config=load_config(ROOT / "configs/llama_ant10m.json"))
    wide.config.vocab_size = 10**8
    # 64 GB for each block.
    assert "GB for each of the 2 blocks at once" in memory_on(Gpu(1e12, 1, 300), wide)


def test_muons_arithmetic_is_that_of_its_iterations():
    # Of the squares of 256, 6 x 256^3 an iteration; docs/performance.md has 54 GFLOP for Ant-10M.
    assert muon_flops(load_config("ant10m")) == pytest.approx(54e9, rel=0.01)
