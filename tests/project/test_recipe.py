import runpy

import pytest
import yaml
from conftest import ROOT, tiny_values

from ant_hf.data.sources import LocalFiles
from ant_hf.errors import AntError
from ant_hf.recipe import load_recipe


@pytest.fixture
def write(tmp_path, shared):
    def write(change) -> str:
        values = tiny_values(shared, tmp_path / "run")
        change(values)
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(values))
        return str(file)

    return write


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda v: v["training"].update(learning_rte=1),
            ["training.learning_rte", "did you mean training.learning_rate"],
        ),
        (lambda v: v.update(corpsu={}), ["corpsu is not a key", "did you mean corpus"]),
        (lambda v: v["training"].update(max_steps="many"), ["training.max_steps", "'many'", "integer"]),
        (lambda v: v["training"].update(max_steps=-3), ["training.max_steps", "-3", "greater than 0"]),
        (lambda v: v["training"].update(max_steps=True), ["training.max_steps", "True"]),
        (lambda v: v["training"].pop("max_steps"), ["training.max_steps is missing"]),
        (lambda v: v["training"].update(warmup_steps=8), ["warmup_steps", "below max_steps (8)"]),
        (lambda v: v["training"].update(per_device_batch_size=0), ["per_device_batch_size is 0", "greater"]),
        (lambda v: v["training"].update(optimizer="muon"), ["muon_learning_rate is missing"]),
        (lambda v: v["training"].update(optimizer="lion"), ["training.optimizer", "'adamw' or 'muon'"]),
        (lambda v: v["corpus"].pop("path"), ["corpus.path is missing"]),
        (
            lambda v: v["corpus"].update(validation_fraction=1.5),
            ["corpus.validation_fraction", "less than 1"],
        ),
        (lambda v: v["corpus"].update(validation_fraction=-1), ["validation_fraction is -1", "equal to 0"]),
        (lambda v: v["corpus"].update(source="embedded"), ["corpus.path is set", "set source to files"]),
        (lambda v: v["corpus"].update(path=""), ["corpus.path is ''", "must not be empty"]),
        # As it is to be typed, from another section.
        (lambda v: v.update(max_steps=3), ["max_steps is not a key", "did you mean training.max_steps"]),
        (lambda v: v["training"].update(text_column="x"), ["did you mean corpus.text_column"]),
    ],
)
def test_each_mistake_names_key_value_and_limit(write, change, words):
    with pytest.raises(AntError) as caught:
        load_recipe(write(change))
    for word in words:
        assert word in str(caught.value)


def test_three_mistakes_are_reported_together(write):
    def break_three(values):
        values["nmae"] = values.pop("name")
        values["training"]["max_steps"] = -1
        values["tokenizer"]["vocab_size"] = "big"

    with pytest.raises(AntError) as caught:
        load_recipe(write(break_three))
    text = str(caught.value)
    assert "4 problems" in text  # the misspelt key is also a missing one
    for word in ("nmae", "training.max_steps", "tokenizer.vocab_size"):
        assert word in text


def test_override_changes_one_key_and_reads_exponents_as_numbers(write):
    recipe = load_recipe(write(lambda v: None), ["training.learning_rate=4e-4", "training.seed=7"])
    assert recipe.training.learning_rate == 4e-4
    assert recipe.training.seed == 7


@pytest.mark.parametrize("override", ["training.max_steps", "name.x=1", "training.max_steps=[", "=3"])
def test_broken_override_is_refused(write, override):
    with pytest.raises(AntError, match="--set"):
        load_recipe(write(lambda v: None), [override])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "is not a recipe"),
        ("- 1\n- 2\n", "is not a recipe"),
        ("name: [", "not a readable YAML"),
        ("name: a\nname: b\n", "key given twice: name"),
        ("name: !!python/object/apply:os.system ['true']\n", "not a readable YAML"),
        ("1: a\n", "not a text"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, word):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(AntError, match=word):
        load_recipe(file)


@pytest.mark.parametrize(("typed", "value"), [("on", "on"), ("off", "off"), ("auto", "auto")])
def test_on_and_off_are_words_although_yaml_reads_them_as_true_and_false(typed, value):
    recipe = load_recipe("quickstart", [f"training.torch_compile={typed}"])
    assert recipe.training.torch_compile == value


def test_recipes_have_names_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "configs/recipes/quickstart.yaml"):
        assert load_recipe(name).name == "quickstart"
    # A file of that name is the file.
    (tmp_path / "quickstart").write_text("nothing: here")
    with pytest.raises(AntError, match="nothing is not a key"):
        load_recipe("quickstart")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("quikstart", ["Did you mean quickstart?", "ant10m-cpu, ", "you are in"]),
        ("recipes/mine.yml", ["Did you mean recipes/mine.yaml?", "quickstart"]),
        ("x" * 5000, ["quickstart"]),
    ],
)
def test_a_missing_recipe_names_those_there_are_and_the_nearest(tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("")
    with pytest.raises(AntError, match="recipe not found") as caught:
        load_recipe(given)
    for word in words:
        assert word in str(caught.value)


@pytest.fixture
def project(tmp_path, shared, monkeypatch):
    """A recipe with what it reads beside it, in a folder whose name is also a pattern; we are elsewhere."""
    folder = tmp_path / "my [v1]"
    (folder / "sets").mkdir(parents=True)
    for name in ("architecture.json", "a.txt", "b.txt"):
        (folder / name).write_text("some words")
    values = tiny_values(shared, "runs/mine")
    values |= {"architecture": "architecture.json", "data_dir": "data"}
    values["corpus"] |= {"path": "a.txt", "decontaminate": "sets"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_what_a_recipe_reads_is_found_beside_it_and_what_it_writes_goes_where_we_are(project):
    recipe = load_recipe("../my [v1]/recipe.yaml")
    assert recipe.architecture == "../my [v1]/architecture.json"
    assert recipe.corpus.path == "../my [v1]/a.txt"
    assert recipe.corpus.decontaminate == "../my [v1]/sets"
    assert (recipe.output_dir, recipe.data_dir) == ("runs/mine", "data")


def test_what_is_not_beside_the_recipe_or_is_typed_counts_from_where_we_are(project):
    (project / "architecture.json").unlink()
    recipe = load_recipe(project / "recipe.yaml", ["corpus.path=a.txt"])
    assert (recipe.architecture, recipe.corpus.path) == ("architecture.json", "a.txt")


def test_a_pattern_beside_a_recipe_matches_there_and_a_dataset_is_no_path(project):
    file = project / "recipe.yaml"
    values = yaml.safe_load(file.read_text())
    values["corpus"]["path"] = "*.txt"
    file.write_text(yaml.safe_dump(values))
    found = LocalFiles.find(load_recipe(file).corpus.path).files
    assert sorted(path.name for path in found) == ["a.txt", "b.txt"]
    values["corpus"] = {"source": "hub", "path": "sets"}
    file.write_text(yaml.safe_dump(values))
    assert load_recipe(file).corpus.path == "sets"


def test_home_is_expanded_in_every_path_of_a_recipe(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ant")
    keys = ("architecture", "output_dir", "data_dir", "corpus.path", "corpus.decontaminate")
    recipe = load_recipe(write(lambda v: v.update(architecture="~/a.json")), [f"{k}=~/x" for k in keys[1:]])
    assert recipe.architecture == "/home/ant/a.json"
    assert recipe.output_dir == recipe.data_dir == recipe.corpus.path == "/home/ant/x"
    assert recipe.corpus.decontaminate == "/home/ant/x"


def test_own_text_does_not_take_over_what_the_recipe_says_of_another():
    from ant_hf.cli.options import read_recipe

    recipe = ROOT / "configs/recipes/ant10m-cpu.yaml"
    assert load_recipe(recipe).corpus.language == "en"
    own = read_recipe(recipe, "text.txt", None, None).corpus
    assert (own.language, own.sources) == (None, [])
    assert read_recipe(recipe, "text.txt", None, ["corpus.language=ru"]).corpus.language == "ru"
    with pytest.raises(AntError, match=r"corpus\.language is 'Russian'"):
        read_recipe(recipe, "text.txt", None, ["corpus.language=Russian"])


def test_the_page_of_keys_is_made_from_the_recipe():
    tool = runpy.run_path(str(ROOT / "tools" / "recipe_reference.py"))
    assert tool["PAGE"].read_text(encoding="utf-8") == tool["reference"]()
