"""The committed recipes are read, planned and dry-run, so that none can rot."""

import json
import re

import pytest
from conftest import ROOT

from ant_hf.errors import AntError
from ant_hf.model.base import architecture_of
from ant_hf.recipe import load_recipe
from ant_hf.studies.study_file import load_study
from ant_hf.train.setup import choose_execution, choose_micro_batch, make_plan

RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))

STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


# Its first stage is not in the repository; the released model has the same shape.
OVERRIDES = {"ant10m-questions": ["training.init_from=release/Ant-10M"]}


def plan_of(name, num_processes=1):
    recipe = load_recipe(ROOT / "configs" / "recipes" / f"{name}.yaml", OVERRIDES.get(name, ()))
    config, ledger, _ = architecture_of(recipe)
    execution = choose_execution(recipe.training)
    at_once = choose_micro_batch(recipe.training, config, execution, num_processes)
    return recipe, make_plan(recipe.training, config, ledger, num_processes, at_once)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_consistent(path):
    recipe, plan = plan_of(path.stem)
    config, _, base = architecture_of(recipe)
    assert recipe.name == path.stem
    assert base or recipe.tokenizer.vocab_size in (None, config.vocab_size)
    assert recipe.training.sequence_length <= config.max_position_embeddings
    assert plan.total_tokens == recipe.training.max_steps * plan.tokens_per_step


def test_card_recipe_is_the_cards_run():
    recipe, plan = plan_of("ant10m-card")
    training = recipe.training
    assert (training.sequences_per_step, training.sequence_length, training.max_steps) == (2424, 1024, 1200)
    assert (training.learning_rate, training.warmup_steps) == (4e-4, 200)
    assert training.learning_rate * training.min_lr_rate == pytest.approx(4e-5)
    assert training.optimizer == "adamw"
    assert plan.tokens_per_step == 2_482_176
    assert plan.total_tokens == pytest.approx(2_979_215_382, rel=1e-3)
    assert (recipe.corpus.path, recipe.corpus.subset) == ("HuggingFaceFW/fineweb-edu", "sample-10BT")


def test_recipes_of_one_budget_have_it():
    card, best, small = (plan_of(name)[1].total_tokens for name in ("ant10m-card", "ant10m", "ant5m"))
    assert best == small == pytest.approx(card, rel=1e-3)
    assert 250_000 <= plan_of("ant10m")[1].tokens_per_step <= 500_000


def test_the_two_models_trained_on_a_cpu_differ_in_model_and_vocabulary_only():
    large, small = (plan_of(name)[0].model_dump() for name in ("ant10m-cpu", "ant5m-cpu"))
    assert large.pop("corpus") == small.pop("corpus")
    assert large.pop("training") == small.pop("training")
    assert large.pop("export_dtype") == small.pop("export_dtype")


# Four blocks per step keep two cores busy, and are for no node.
LAPTOP_RECIPES = {"ant10m-cpu", "ant5m-cpu", "ant10m-sweep"}


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem not in LAPTOP_RECIPES], ids=lambda p: p.stem)
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_every_other_recipe_fits_one_to_eight_processes(path, processes):
    recipe, plan = plan_of(path.stem, processes)
    blocks = processes * plan.per_device_batch_size * plan.gradient_accumulation_steps
    assert blocks == recipe.training.sequences_per_step
    if recipe.training.per_device_batch_size != "auto":
        assert 1 <= plan.per_device_batch_size <= recipe.training.per_device_batch_size


def test_a_step_that_does_not_divide_over_the_processes_is_refused():
    with pytest.raises(AntError, match=r"sequences_per_step is 256.*processes, 3.*sequences_per_step=258"):
        plan_of("ant10m", num_processes=3)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_can_be_planned(path):
    loaded = load_study(path)
    assert loaded.study.name == path.stem
    assert loaded.study.does_not_show
    for run in loaded.runs:
        assert run.recipe.training.sequence_length <= run.config.max_position_embeddings
    folders = {(run.recipe.data_dir, run.config.vocab_size) for run in loaded.runs}
    assert len(folders) == len({folder for folder, _ in folders})


def test_the_studies_are_as_the_guide_says():
    """Equal compute, equal parameters, and a run that is held out."""
    vocabulary = load_study("vocabulary")
    for run in vocabulary.runs:
        wanted = vocabulary.shared["flops"] * (4 if "4 x the compute" in run.cell else 1)
        assert run.flops_per_token * run.tokens == pytest.approx(wanted, rel=0.01)
        if run.cell.startswith("equal parameters"):
            assert run.ledger.total == pytest.approx(9_902_336, rel=0.005)
    scaling = load_study("scaling")
    largest = max(scaling.runs, key=lambda run: run.flops_per_token * run.tokens)
    assert [largest.cell] == scaling.study.fit.held_out
    for size in ("5M", "10M"):
        bodies = [run.facts() for run in load_study("geometry").runs if run.point.get("size") == size]
        assert {run["num_hidden_layers"] for run in bodies} == {3, 6, 12, 24}
        for body in bodies:
            wanted = 1e6 * int(size[:-1])
            assert body["non_embedding_parameters"] == pytest.approx(wanted, rel=0.01)


def test_config_files_are_json_without_comments():
    for path in (ROOT / "configs").glob("*.json"):
        assert json.loads(path.read_text())["model_type"] == "llama"


def test_quickstart_can_be_shortened_as_the_guide_says():
    readme = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    (flags,) = re.findall(r'make quickstart ARGS="--set (\S+) --output-dir \S+"', readme)
    recipe = load_recipe(ROOT / "configs" / "recipes" / "quickstart.yaml", [flags])
    assert recipe.training.max_steps == 40
