"""A study file and the runs that follow from it, planned without a text."""

import pytest

from ant_hf.errors import AntError
from ant_hf.studies.study import run_study
from ant_hf.studies.study_file import Options, load_study

STEP = 8 * 64
TOKENS = 8 * STEP


def test_a_run_for_every_combination_and_seed(write_study, tmp_path):
    file = write_study(
        grid={
            "training.learning_rate": [0.01, 0.02],
            "width": {"narrow": {"architecture.hidden_size": 16}, "wide": {"architecture.hidden_size": 64}},
        },
        runs={"longer": {"tokens": 4 * TOKENS, "seeds": [7]}},
        seeds=[1, 2],
    )
    loaded = load_study(file, Options(output_dir=str(tmp_path / "out")))
    assert [run.name for run in loaded.runs][::2] == [
        "learning-rate-0.01-narrow-s1",
        "learning-rate-0.01-wide-s1",
        "learning-rate-0.02-narrow-s1",
        "learning-rate-0.02-wide-s1",
        "longer-s7",
    ]
    first, last = loaded.runs[0], loaded.runs[-1]
    assert first.point == {"training.learning_rate": "0.01", "width": "narrow"}
    assert first.recipe.training.learning_rate == 0.01
    assert first.config.hidden_size == first.architecture["hidden_size"] == 16
    assert first.recipe.training.seed == 1
    assert (last.recipe.training.seed, last.tokens) == (7, 4 * TOKENS)
    assert first.folder == tmp_path / "out" / first.name


def test_what_is_counted_in_steps_goes_with_the_tokens(write_study):
    file = write_study(runs={"own": {"tokens": 2 * TOKENS, "training.save_steps": 5}, "base": {}})
    own, base = load_study(file).runs
    training = own.recipe.training
    assert (training.max_steps, training.warmup_steps, training.eval_steps) == (16, 4, 8)
    assert training.save_steps == 5
    assert base.recipe.training.max_steps == 8
    scaled = load_study(file, Options(scale=10))
    training = scaled.runs[0].recipe.training
    assert (training.max_steps, training.warmup_steps, training.save_steps) == (160, 40, 50)
    assert scaled.folder.name == "small-x10"


def test_the_command_line_changes_all_runs_but_not_what_the_grid_does(write_study):
    file = write_study(
        changes={"training.weight_decay": 0.2, "training.z_loss": 0.0},
        grid={"training.learning_rate": [0.01, 0.02]},
    )
    options = Options(["training.weight_decay=0.3", "training.learning_rate=0.5"], ["my.txt"])
    loaded = load_study(file, options)
    assert [run.recipe.training.learning_rate for run in loaded.runs] == [0.01, 0.02]
    assert {run.recipe.training.weight_decay for run in loaded.runs} == {0.3}
    assert {run.recipe.corpus.path for run in loaded.runs} == {"my.txt"}
    assert loaded.shared["training.weight_decay"] == 0.3


def test_half_the_batch_takes_twice_the_steps(write_study):
    file = write_study(runs={"half": {"training.sequences_per_step": 4, "tokens": TOKENS}})
    (run,) = load_study(file).runs
    assert (run.recipe.training.max_steps, run.recipe.training.warmup_steps) == (16, 4)


def test_equal_compute_and_equal_parameters(write_study):
    file = write_study(
        changes={"flops": 3e10, "architecture.hidden_size": 64},
        grid={
            "architecture.vocab_size": [300, 1000],
            "model": {"same layers": {}, "same size": {"parameters": 200_000}},
        },
    )
    runs = {run.cell: run for run in load_study(file).runs}
    for run in runs.values():
        assert run.flops_per_token * run.tokens == pytest.approx(3e10, rel=0.02)
        assert run.recipe.tokenizer.vocab_size == run.config.vocab_size
    small, large = (runs[f"vocab size {size}, same size"].ledger.total for size in (300, 1000))
    assert small == pytest.approx(200_000, rel=0.03)
    assert large == pytest.approx(200_000, rel=0.03)
    folders = {cell.split(",")[0]: run.recipe.data_dir for cell, run in runs.items()}
    assert len({run.recipe.data_dir for run in runs.values()}) == len(set(folders.values())) == 2


def test_one_model_by_two_names_is_one_training(write_study):
    file = write_study(
        grid={"layers": {"as it is": {}, "three": {"architecture.num_hidden_layers": 3}}},
        runs={"again": {"architecture.num_hidden_layers": 3}, "faster": {"rate": 2}},
        seeds=[1, 2],
    )
    loaded = load_study(file)
    folders = [run.folder.name for run in loaded.runs]
    assert folders == [
        f"{name}-s{seed}" for name in ("as-it-is", "three", "three", "faster") for seed in (1, 2)
    ]
    assert [run.cell for run in loaded.trainings] == ["as it is"] * 2 + ["three"] * 2 + ["faster"] * 2


def test_rates_follow_the_rule_and_are_multiplied(write_study):
    runs = {"whole": {}, "half": {"rate": 0.5}, "longer": {"tokens": 64 * TOKENS}}
    muon = {"optimizer": "muon", "muon_learning_rate": 0.02}
    file = write_study(muon, runs=runs, rates="scaled")
    whole, half, longer = (run.recipe.training for run in load_study(file).runs)
    assert half.muon_learning_rate == pytest.approx(whole.muon_learning_rate / 2)
    assert half.learning_rate == pytest.approx(whole.learning_rate / 2)
    # Bjorck et al. 2024: tokens to the power -0.32.
    assert longer.muon_learning_rate == pytest.approx(whole.muon_learning_rate * 64**-0.32, rel=0.05)


def test_a_shape_has_the_proportions_of_the_house(write_study):
    file = write_study(runs={"shape": {"shape": [128, 3]}, "mlp": {"shape": [128, 3, 200]}})
    usual, own = (run.config for run in load_study(file).runs)
    assert (usual.hidden_size, usual.num_hidden_layers, usual.intermediate_size) == (128, 3, 352)
    assert (usual.num_attention_heads, usual.num_key_value_heads, usual.head_dim) == (4, 2, 32)
    assert own.intermediate_size == 200


WRONG = {
    "a key of the recipe": (
        {"changes": {"training.lerning_rate": 1}},
        "lerning_rate.*training.learning_rate",
    ),
    "a key of the model": ({"changes": {"architecture.hiden_size": 8}}, "hiden_size.*hidden_size"),
    "a key of the study": ({"grids": {}}, "grids is not a key of a study; did you mean grid"),
    "a missing key": ({"question": None}, "question"),
    "a value": (
        {"grid": {"training.max_grad_norm": [-1]}},
        r"max grad norm -1.*training.max_grad_norm is -1",
    ),
    "heads": ({"changes": {"architecture.num_key_value_heads": 3}}, "num_key_value_heads is 3; must divide"),
    "a score": ({"score": ["bits_per_bite"]}, "bits_per_bite.*bits_per_byte"),
    "a cell": ({"fit": {"held_out": ["huge"]}}, "fit.held_out is 'huge'.*'base'"),
    "an empty axis": ({"grid": {"training.z_loss": []}}, "grid.training.z_loss is \\[\\]"),
    "an axis": ({"plot": {"lines": "depth"}}, "plot.lines is 'depth'"),
    "tokens": ({"changes": {"tokens": -5}}, "tokens is -5"),
    "two lengths": ({"changes": {"tokens": 9999, "flops": 1e9}}, "tokens and flops are both set"),
    "one folder": (
        {"runs": {"a b": {}, "a-b": {}}},
        "two runs would write to the same folder; saw 'a-b-s42'",
    ),
    "seeds": ({"runs": {"a": {"seeds": 3}}}, "seeds of 'a' is 3"),
    "a shape": ({"changes": {"shape": "wide"}}, "shape is 'wide'"),
    "a base": ({"base": "nowhere"}, "recipe not found: nowhere"),
}


IMPOSSIBLE_FITS = {
    "few runs": ({}, 3, "6 runs of 2 sizes and 3 numbers of tokens"),
    "a point without a size": ({"predict": {"mine": {"tokens": 5}}}, 4, "fit.predict.mine lacks a size"),
    "no such run": ({"predict": {"mine": {"run": "nowhere"}}}, 4, "nowhere"),
    "no such GPU": ({"budgets": {"gpu": "t5", "hours": [1]}}, 4, "fit.budgets.gpu is unknown; saw 't5'"),
}


@pytest.fixture
def no_runs(monkeypatch):
    def refused(*_):
        raise AssertionError("a run began")

    monkeypatch.setattr("ant_hf.studies.study.in_a_process", refused)


def test_missing_documents_are_said_before_the_training(write_study, no_runs, tmp_path):
    loaded = load_study(write_study(score=["arc_easy"]), Options(output_dir=str(tmp_path / "out")))
    with pytest.raises(AntError, match="arc_easy has no documents"):
        run_study(loaded, data_dir=tmp_path)


@pytest.mark.parametrize(("keys", "sizes", "message"), IMPOSSIBLE_FITS.values(), ids=IMPOSSIBLE_FITS)
def test_a_fit_that_cannot_be_is_refused_before_the_training(write_study, no_runs, keys, sizes, message):
    grid = {
        "architecture.hidden_size": [16, 32, 64, 128][:sizes],
        "tokens": [TOKENS, 2 * TOKENS, 4 * TOKENS],
    }
    held_out = [f"hidden size 64, tokens {n * TOKENS}" for n in (1, 2, 4)]
    file = write_study(grid=grid, fit={"held_out": held_out, **keys})
    with pytest.raises(AntError, match=message):
        run_study(load_study(file))


@pytest.mark.parametrize(("keys", "message"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_named(write_study, keys, message):
    with pytest.raises(AntError, match=f"(?s){message}"):
        load_study(write_study(**keys))


def test_a_study_that_is_not_there(tmp_path):
    with pytest.raises(AntError, match=r"study not found: vocabluary.*Did you mean vocabulary"):
        load_study("vocabluary")
    with pytest.raises(AntError, match="--scale is too small"):
        load_study("first", Options(scale=0))
