"""Documents that quote an evaluation set are found, counted by set and left out, however they are packed."""

import gzip
import json

import pytest

from ant_hf.data.corpus import Intake
from ant_hf.data.decontamination import EvaluationSets
from ant_hf.data.packing import make_data, make_tokens
from ant_hf.data.packing_tasks import pack_with_workers
from ant_hf.errors import AntError

QUESTION = "Which gas do plants take in from the air when they make sugar by the light of the sun?"
PAGE = (
    " = Sun = \n The Sun is the star @-@ like body , about 4 @.@ 6 billion years old , at the centre of all ."
)


@pytest.fixture
def folder(tmp_path):
    """Two sets: questions with choices, and a page in WikiText-2's spelling."""
    sets = tmp_path / "eval"
    sets.mkdir()
    rows = [{"question": QUESTION, "choices": {"text": ["carbon dioxide", "neon"]}, "answer": 0}]
    (sets / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (sets / "pages.jsonl").write_text(json.dumps({"page": PAGE}) + "\n")
    return sets


def shared_with(folder, text):
    """The sets by whose name a document with this text is counted."""
    sets = EvaluationSets.find(folder)
    intake = Intake(0.5, sets.files)
    assert (intake.split_of(b"digest", sets.sharing(text)) is None) is bool(sets.sharing(text))
    return [name for name, count in intake.counts.contaminated_by_set.items() if count]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Quiz. " + QUESTION.upper().replace(" ", "\n") + " Answer below.", ["questions"]),
        ("The Sun is the star-like body, about 4.6 billion years old, at the centre of all.", ["pages"]),
        ("The Sun is the star\u2013like body \u2014 about 4.6 billion years old, at the centre.", ["pages"]),
        ("\ufeff\u00ab" + QUESTION.replace(" ", "\u00a0") + "\u00bb", ["questions"]),
        (QUESTION.replace("gas", "\uff47\uff41\uff53").replace(" in ", "\u3000in\u3000"), ["questions"]),
        # Twelve words of it, and the thirteenth another.
        ("gas do plants take in from the air when they make bread", []),
        ("carbon dioxide", []),
        ("", []),
    ],
    ids=[
        "case and lines",
        "markup",
        "dashes",
        "quotes and spaces",
        "wide letters",
        "twelve words",
        "short",
        "empty",
    ],
)
def test_a_run_of_thirteen_words_is_found_in_any_spelling(folder, text, names):
    assert shared_with(folder, text) == names


def test_one_document_counts_for_every_set_it_quotes(folder):
    assert shared_with(folder, f"{PAGE} {QUESTION}") == ["pages", "questions"]


@pytest.mark.parametrize(("name", "pack"), [("pages.jsonl.gz", gzip.compress), ("PAGES.JSONL", bytes)])
def test_a_set_is_read_packed_and_by_a_name_in_capitals(folder, name, pack):
    pages = (folder / "pages.jsonl").read_bytes()
    (folder / "pages.jsonl").unlink()
    (folder / name).write_bytes(pack(pages))
    assert [each.lower() for each in shared_with(folder, f"{PAGE} {QUESTION}")] == ["pages", "questions"]


@pytest.fixture
def recipe(make_recipe, folder, chapters, tmp_path):
    """Chapters with two that quote a set, one of them twice in the corpus."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    quoting = [f"{chapters[0]} {QUESTION}", f"{chapters[1]} {PAGE}"]
    texts = [*chapters[:20], quoting[0], *chapters[20:30]]
    (corpus / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    texts = [quoting[1], *chapters[30:40], quoting[0]]
    (corpus / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe = make_recipe(data_dir=tmp_path / "data")
    changes = {"path": str(corpus), "decontaminate": str(folder)}
    return recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update=changes)})


def test_packing_leaves_them_out_and_says_so(recipe, capsys):
    make_data(recipe, 64)
    assert "2 left out, because they share text with pages 1, questions 1" in capsys.readouterr().out
    manifest = json.loads((recipe.tokens_dir / "manifest.json").read_text())
    counts = manifest["documents"]
    assert counts["contaminated_by_set"] == {"pages": 1, "questions": 1}
    assert (counts["read"], counts["contaminated"], counts["duplicate"]) == (43, 2, 1)
    assert sum(split["documents"] for split in manifest["splits"].values()) == 40
    assert manifest["inputs"]["corpus"]["decontaminate"]["ngram_words"] == 13


def test_packing_by_tasks_leaves_out_the_same(recipe, tmp_path):
    make_data(recipe, 64)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tokenizer").symlink_to(recipe.tokenizer_dir)
    other = recipe.model_copy(update={"data_dir": str(elsewhere)})
    pack_with_workers(other, 2)
    for path in recipe.tokens_dir.iterdir():
        assert path.read_bytes() == (other.tokens_dir / path.name).read_bytes(), path.name


def test_tokens_made_before_a_set_was_added_are_refused(recipe, folder):
    make_data(recipe, 64)
    (folder / "more.jsonl").write_text(json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(AntError, match="more"):
        make_tokens(recipe)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [path.unlink() for path in folder.iterdir()], "has 0 JSONL files"),
        (lambda folder: (folder / "pages.jsonl").write_text("{}\n{"), r"pages\.jsonl, line 2, is not a JSON"),
        (
            lambda folder: (folder / "pages.jsonl").write_text(""),
            r"pages\.jsonl does not contain any documents",
        ),
        (lambda folder: [path.unlink() for path in folder.iterdir()] and folder.rmdir(), "not found"),
    ],
    ids=["empty folder", "broken line", "empty file", "no folder"],
)
def test_a_folder_that_cannot_be_read_is_named(recipe, folder, make, message):
    make(folder)
    with pytest.raises(AntError, match=message):
        make_data(recipe, 64)
    assert not recipe.tokens_dir.exists()
