"""A text of one's own, trained with one command: what is chosen for it, and what becomes of the recipe."""

import pytest
import yaml
from commands import run_here

from ant_hf.data.survey import Survey
from ant_hf.errors import AntError
from ant_hf.model.architecture import load_config
from ant_hf.recipe import load_recipe
from ant_hf.train import own_text
from ant_hf.train.estimates import TrainingRate
from ant_hf.train.own_text import own_recipe


@pytest.fixture
def speed(monkeypatch):
    """A function that says how fast every model trains, in tokens per second; a thousand at first."""

    def trains(tokens_per_second):
        def measured(setup, *_):
            step = setup.plan.tokens_per_step
            return TrainingRate(step / tokens_per_second, step, 10_000.0, 10_000.0)

        monkeypatch.setattr(own_text, "measure_training", measured)

    trains(1000)
    return trains


@pytest.fixture
def text(tmp_path, chapters, monkeypatch, speed):
    """One file of 30 kB; we are in its folder."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "My text.txt"
    file.write_text("\n\n".join(chapters)[:30_000])
    return file.name


def tiny(shared):
    """Settings for a run of a second."""
    settings = ("training.sequence_length=64", "training.max_steps=4", "training.report_to=[]")
    return [w for s in (f"architecture={shared / 'config.json'}", *settings) for w in ("--set", s)]


def test_one_command_trains_on_a_text_and_goes_on_with_its_recipe(text, shared, tmp_path, monkeypatch):
    monkeypatch.setattr("ant_hf.train.pretrain.plot_run", lambda *_: [])
    monkeypatch.setattr("ant_hf.utils.plots.plot_fragmentation", lambda *_: [])
    command = ("ant-hf", "train", "--data", text, *tiny(shared))
    result = run_here(*command, cwd=tmp_path, COLUMNS="150")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / "My-text"
    for word in (
        "Chosen for My-text",
        "vocabulary",
        "passes over the text",
        "sample ",
        "loss.png",
        "--fresh",
    ):
        assert word in result.stdout
    assert (folder / "final" / "model.safetensors").is_file()
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["training"]["max_steps"] == 4
    # The same command finds it, and nothing is left to do.
    assert "exists already" in run_here(*command, cwd=tmp_path).stdout
    # So does its recipe, from any folder.
    (tmp_path / "elsewhere").mkdir()
    again = run_here("ant-hf", "train", "--config", folder / "recipe.yaml", cwd=tmp_path / "elsewhere")
    assert "exists already" in again.stdout, again.stderr


def test_a_dry_run_shows_the_choices_and_writes_nothing(text, shared, tmp_path):
    result = run_here("ant-hf", "train", "--data", text, "--dry-run", *tiny(shared), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Chosen for My-text" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == [text]


def test_an_edited_recipe_is_never_written_over(text, capsys):
    with own_recipe([text]) as file:
        first = file.read_text()
    assert load_recipe(file).tokenizer.vocab_size is None
    with own_recipe([text], minutes=1.0) as file:
        assert file.read_text() == first
    with own_recipe([text], minutes=0.2, fresh=True) as file:
        assert file.read_text() != first
    file.write_text(edited := file.read_text().replace("  seq", "  # Mine.\n  seq", 1))
    with own_recipe([text], fresh=True) as file:
        assert file.read_text() == edited
    assert "as you edited it" in capsys.readouterr().out


def test_a_folder_of_something_else_is_left_alone(text, tmp_path):
    folder = tmp_path / "runs" / "My-text"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    with pytest.raises(AntError, match="already holds another run"), own_recipe([text]):
        pass
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.txt").write_text((tmp_path / text).read_text())
    with own_recipe([text], "runs/one"):
        pass
    with pytest.raises(AntError, match="recipe for another text"), own_recipe(["b"], "runs/one"):
        pass


@pytest.mark.parametrize(
    ("size", "rate", "wanted"),
    [
        # Of a small text the passes are the limit, of a large one the time; on a GPU neither.
        (20_000, 5_000, {"vocabulary": 1024, "width": 128, "passes": 10, "held_out": 0.1}),
        (1_000_000, 5_000, {"vocabulary": 2048, "width": 192, "passes": 9, "held_out": 0.1}),
        (20_000_000, 5_000, {"vocabulary": 4096, "width": 192, "passes": 0.5, "held_out": 0.02}),
        (1_000_000_000, 5_000, {"vocabulary": 4096, "width": 192, "passes": 0.01, "held_out": 0.01}),
        (1_000_000_000, 900_000, {"vocabulary": 4096, "width": 256, "passes": 1.8, "held_out": 0.001}),
    ],
)
def test_sizes_follow_from_the_text_and_the_machine(text, monkeypatch, speed, size, rate, wanted):
    monkeypatch.setattr("ant_hf.data.sources.LocalFiles.text_bytes", lambda _: size)
    looked = Survey("text", size, size, True, None, size * 3 // 10, size // 100, 1.0, 1.0)
    monkeypatch.setattr(own_text, "survey", lambda *_: looked)
    speed(rate)
    with own_recipe([text]) as file:
        recipe = load_recipe(file)
        config = load_config(recipe.architecture)
    training = recipe.training
    tokens = training.max_steps * training.sequences_per_step * training.sequence_length
    assert config.vocab_size == wanted["vocabulary"]
    assert config.hidden_size == wanted["width"]
    assert tokens / looked.train_tokens == pytest.approx(wanted["passes"], rel=0.2)
    assert recipe.corpus.validation_fraction == pytest.approx(wanted["held_out"], rel=0.5)
    assert tokens / rate < 600
    # Where the time is for a part of the text, only that is packed.
    assert (recipe.corpus.max_tokens is not None) == (size > 20_000_000 and wanted["passes"] < 1)
    assert 8 <= training.sequence_length <= config.max_position_embeddings


def test_no_recipe_is_left_for_a_text_that_is_too_short(text, tmp_path):
    (tmp_path / "few.csv").write_text("text\n" + "".join(f"{number}\n" for number in range(60)))
    with pytest.raises(AntError, match="train split is smaller than one block"), own_recipe(["few.csv"]):
        pass
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_is_one_message(text, tmp_path):
    assert "no text and no recipe" in run_here("ant-hf", "train").stderr
    both = run_here("ant-hf", "train", "--config", "quickstart", "--minutes", "3")
    assert "--minutes and --config" in both.stderr
    missing = run_here("ant-hf", "train", "--data", "nothing.txt", cwd=tmp_path)
    assert (missing.returncode, "corpus not found" in missing.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == [text]
    several = run_here("ant-hf", "train", text, cwd=tmp_path, WORLD_SIZE="2")
    assert "several processes" in several.stderr
    # Under the name of the script.
    assert "recipe not found" in run_here("ant-hf", "pretrain", "--config", "nothing").stderr
