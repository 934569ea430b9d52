import pytest
import yaml
from conftest import ROOT, tiny_values

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
        (lambda v: v.update(corpsu={}), ["corpsu is no key", "did you mean corpus"]),
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
        (lambda v: v["corpus"].update(validation_fraction=0), ["validation_fraction is 0", "greater than 0"]),
        (lambda v: v["corpus"].update(path=""), ["corpus.path is ''", "must not be empty"]),
        # As it is to be typed, from another section.
        (lambda v: v.update(max_steps=3), ["max_steps is no key", "did you mean training.max_steps"]),
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
        ("", "holds no recipe"),
        ("- 1\n- 2\n", "holds no recipe"),
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


def test_a_missing_file_names_the_recipes_there_are(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(AntError, match=r"configs/recipes/quickstart\.yaml"):
        load_recipe("nothing.yaml")


@pytest.mark.parametrize(("typed", "value"), [("on", "on"), ("off", "off"), ("auto", "auto")])
def test_on_and_off_are_words_although_yaml_reads_them_as_true_and_false(typed, value):
    recipe = load_recipe(ROOT / "configs/recipes/quickstart.yaml", [f"training.torch_compile={typed}"])
    assert recipe.training.torch_compile == value
