"""A wish becomes a recipe that loads and whose dry run passes, or one clear refusal."""

import re
from types import SimpleNamespace

import pytest
from commands import run_here

from ant_hf.errors import AntError
from ant_hf.model.architecture import load_architecture
from ant_hf.recipe import load_recipe
from ant_hf.train import new
from ant_hf.train.estimates import TrainingRate, seconds_on
from ant_hf.train.new import Wish, new_recipe
from ant_hf.train.setup import set_up
from ant_hf.utils.hardware import gpu_named


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, where no machine is timed: a thousand tokens per second."""
    monkeypatch.chdir(tmp_path)

    def measured(setup, *_):
        step = setup.plan.tokens_per_step
        return TrainingRate(step / 1000, step, 9000.0, 9000.0, memory_bytes={"process": 10**9})

    monkeypatch.setattr(new, "measure_training", measured)
    monkeypatch.setattr("ant_hf.train.pretrain.measure_training", measured)
    return tmp_path


@pytest.fixture
def unlooked(here, monkeypatch):
    """The same, and no dry run is done; recipes that would have had one."""
    seen = []
    monkeypatch.setattr(new, "dry_run", seen.append)
    return seen


@pytest.fixture
def text(here, chapters):
    file = here / "my text.txt"
    file.write_text("\n\n".join(chapters)[:60_000])
    return file.name


def planned(file):
    recipe = load_recipe(file)
    return recipe, set_up(recipe, file.parent).plan


def test_from_a_wish_to_a_recipe_that_a_dry_run_passes(text, here):
    command = ("ant-hf", "new", "mine", "-p", "0.1M", "--vocab", "300", "--context", "64", "--tokens", "0.1M")
    result = run_here(*command, "--data", text, cwd=here, COLUMNS="200")
    assert result.returncode == 0, result.stderr
    told = (
        "Shapes of about 100,000",
        "Chosen for mine",
        "Parameters",
        "Plan of mine",
        "tokenizer",
        "packing",
    )
    for word in (*told, "training", "evaluation", "on a T4", "not measured", "disk", "memory"):
        assert word in result.stdout
    file = here / "configs" / "recipes" / "mine.yaml"
    assert f"--config {file.relative_to(here)}" in result.stdout
    recipe, plan = planned(file)
    config, ledger = load_architecture(recipe.architecture)
    assert ledger.total == pytest.approx(100_000, rel=0.03)
    assert (config.vocab_size, recipe.tokenizer.vocab_size, config.max_position_embeddings) == (300, 300, 64)
    assert plan.total_tokens == pytest.approx(100_000, rel=0.01)
    assert recipe.corpus.path == str(here / text)
    assert recipe.sample_prompt == "In the beginning God"
    assert sorted(path.name for path in here.iterdir()) == ["configs", text]


def test_the_recipe_is_found_from_anywhere_and_says_what_its_values_are(unlooked, here, monkeypatch):
    file = new_recipe(Wish("mine", 1_000_000, 16_384, 512)).absolute()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    recipe, plan = planned(file)
    assert load_architecture(recipe.architecture)[1].total == pytest.approx(1_000_000, rel=0.03)
    # Twenty for each parameter, where nothing else is wished for.
    assert plan.tokens_per_parameter == pytest.approx(20, rel=0.02)
    # The embedded text has fewer than 16,384 entries in it.
    assert (recipe.corpus.source, recipe.tokenizer.vocab_size) == ("embedded", None)
    comment = file.read_text().partition("\nname:")[0]
    for word in ("not measured", "ant10m-cpu", "tokens^-0.32", "--data FILE"):
        assert word in comment
    assert [recipe.name for recipe in unlooked] == ["mine"]


def test_hours_on_a_gpu_become_tokens_by_arithmetic(unlooked, capsys):
    file = new_recipe(Wish("mine", 20_000_000, 8192, 512, hours=9, device="T4"))
    recipe = load_recipe(file)
    seconds = seconds_on(gpu_named("t4"), set_up(recipe, file.parent))
    assert seconds == pytest.approx(0.9 * 9 * 3600, rel=0.1)
    said = capsys.readouterr().out
    assert "on one T4" in said
    assert re.search(r"its memory +│ \d+\.\d of 16 GB, calculated: 0\.29 GB for weights", said), said
    assert "calculated" in file.read_text()


def test_hours_here_become_tokens_at_the_measured_speed(unlooked):
    _, plan = planned(new_recipe(Wish("mine", 1_000_000, hours=0.5)))
    assert plan.total_tokens == pytest.approx(0.9 * 1800 * 1000, rel=0.01)


def test_another_width_of_the_table_can_be_chosen(unlooked, capsys):
    first = load_recipe(new_recipe(Wish("first", 5_000_000)))
    deep = load_recipe(new_recipe(Wish("deep", 5_000_000, width=128)))
    configs = [load_architecture(recipe.architecture) for recipe in (first, deep)]
    assert configs[0][0].hidden_size > configs[1][0].hidden_size == 128
    assert configs[0][0].num_hidden_layers < configs[1][0].num_hidden_layers
    assert configs[1][1].total == pytest.approx(5_000_000, rel=0.03)
    assert first.training.learning_rate < deep.training.learning_rate
    assert capsys.readouterr().out.count("* 128") == 1


def test_files_are_written_over_only_when_that_is_said(unlooked, here):
    file = new_recipe(Wish("mine", 1_000_000))
    before = file.read_text()
    with pytest.raises(AntError, match=r"llama_mine\.json exists already.*--overwrite"):
        new_recipe(Wish("mine", 2_000_000))
    (here / "configs" / "llama_mine.json").unlink()
    with pytest.raises(AntError, match=r"mine\.yaml exists already"):
        new_recipe(Wish("mine", 2_000_000))
    assert file.read_text() == before
    # The same command, interrupted and run again.
    new_recipe(Wish("mine", 1_000_000))
    assert file.read_text() == before
    new_recipe(Wish("mine", 2_000_000), overwrite=True)
    assert file.read_text() != before


def test_a_model_too_large_for_this_machine_is_planned_and_not_timed(unlooked, monkeypatch, capsys):
    memory = SimpleNamespace(available=10**9, total=10**9)
    monkeypatch.setattr(new.psutil, "virtual_memory", lambda: memory)
    assert new_recipe(Wish("large", 500_000_000)).is_file()
    said = capsys.readouterr().out
    for word in ("not timed on this machine: it needs at least 8.0 GB", "on one T4", "a checkpoint"):
        assert word in said
    assert unlooked == []
    with pytest.raises(AntError, match=r"hours cannot be turned into tokens on this machine.*--device t4"):
        new_recipe(Wish("larger", 500_000_000, hours=3))


REFUSED = {
    "a name with a slash": ({"name": "a/b"}, "name of the recipe is not valid; saw 'a/b'"),
    "a name of the package": ({"name": "quickstart"}, "comes with the package"),
    "too many embeddings": ({"vocabulary": 65_536}, "in its embeddings alone"),
    "too large": ({"parameters": 10**10}, "too many"),
    "tokens and hours": ({"tokens": 10**6, "hours": 1.0}, "--tokens and --hours"),
    "an unknown device": ({"hours": 1.0, "device": "t5"}, "saw 't5'; expected one of .*t4"),
    "no such width": ({"width": 1000}, "width 1000.*one of 32, "),
    "few tokens": ({"tokens": 100}, "at least 20 steps"),
    "no time": ({"hours": 0.0001, "context": 1024}, "time for 324 tokens"),
    "no such text": ({"data": ["nothing.txt"]}, "corpus not found"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_and_nothing_is_written(unlooked, here, case):
    change, words = REFUSED[case]
    wish = {"name": "mine", "parameters": 1_000_000} | change
    with pytest.raises(AntError, match=words):
        new_recipe(Wish(**wish))
    assert list(here.iterdir()) == []
