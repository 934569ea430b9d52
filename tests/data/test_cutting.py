"""One text, or a few, trains: it is cut, and no paragraph is on both sides."""

import json
import random
import re
import unicodedata

import pytest

from ant_hf.data.corpus import Corpus
from ant_hf.data.cutting import paragraphs
from ant_hf.data.packing import make_data, make_tokens
from ant_hf.data.packing_tasks import merge, pack_with_workers, plan_packing
from ant_hf.data.sources import LocalFiles
from ant_hf.data.tokenizer import load_tokenizer
from ant_hf.data.tokens import TRAIN, VALIDATION, PackedTokens, read_manifest
from ant_hf.errors import AntError
from ant_hf.recipe import TokenizerRecipe

WORDS = [
    "river",
    "stone",
    "garden",
    "mother",
    "teacher",
    "winter",
    "summer",
    "field",
    "market",
    "letter",
    "boat",
    "bread",
    "song",
]


def sentence(dice):
    return " ".join(dice.choices(WORDS, k=dice.randrange(4, 16))).capitalize() + "."


def paragraph(dice):
    return " ".join(sentence(dice) for _ in range(dice.randrange(1, 6)))


def prose(size, joined="\n\n", of=paragraph):
    """A text of about so many characters."""
    dice, parts = random.Random(size), []
    while sum(map(len, parts)) < size:
        parts.append(of(dice))
    return joined.join(parts)


@pytest.fixture
def recipe_for(make_recipe, tmp_path):
    """A function that gives a recipe for texts, each a file of its own."""

    def make(*texts, fraction=0.05, name="data"):
        folder = tmp_path / f"corpus-{name}"
        folder.mkdir(exist_ok=True)
        for index, text in enumerate(texts):
            (folder / f"{index:03d}.txt").write_bytes(text.encode())
        recipe = make_recipe(data_dir=tmp_path / name)
        corpus = recipe.corpus.model_copy(update={"path": str(folder), "validation_fraction": fraction})
        return recipe.model_copy(update={"corpus": corpus, "tokenizer": TokenizerRecipe()})

    return make


def split_texts(recipe, split):
    """The documents that were packed, decoded."""
    tokens = PackedTokens(recipe.tokens_dir, split)
    ids = "".join(map(chr, tokens.slice(0, len(tokens)).tolist())).split("\0")[:-1]
    tokenizer = load_tokenizer(recipe.tokenizer_dir)
    return [tokenizer.decode([ord(each) for each in document]) for document in ids]


def own_paragraphs(texts):
    return {part.strip() for text in texts for part in re.split(r"(?:\r?\n[ \t]*){2,}", text) if part.strip()}


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.3])
def test_one_text_trains_at_any_share(recipe_for, capsys, fraction):
    text = prose(60_000)
    recipe = recipe_for(text, fraction=fraction)
    make_data(recipe, 64)
    trained, held_out = (split_texts(recipe, split) for split in (TRAIN, VALIDATION))
    assert not own_paragraphs(trained) & own_paragraphs(held_out)
    assert own_paragraphs(trained) | own_paragraphs(held_out) == own_paragraphs([text])
    share = sum(map(len, held_out)) / len(text)
    assert share == pytest.approx(fraction, abs=0.02)
    # Documents that hold many paragraphs, and few ends of text within what was one.
    assert max(map(len, trained)) > 10 * len(text) / len(own_paragraphs([text]))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "few documents" in line]
    assert "pieces held out" in line
    manifest = read_manifest(recipe.tokens_dir)
    assert manifest["inputs"]["corpus"]["cut"] == 1
    assert manifest["documents"]["cut"]["characters"] == len(text)


def lines(dice):
    return "".join(dice.choices("abcdefghij ", k=60)).strip()


def chinese(dice):
    return "".join(chr(0x4E00 + dice.randrange(300)) for _ in range(20)) + "\u3002"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(prose(20_000), id="20 kB"),
        pytest.param(prose(40_000, "\r\n\r\n"), id="Windows"),
        pytest.param(prose(40_000, "\r\r"), id="old Mac"),
        pytest.param(prose(40_000, " "), id="one line of sentences"),
        pytest.param(prose(40_000, "\n", lines), id="lines without sentences"),
        pytest.param(prose(40_000, "", chinese), id="Chinese"),
        pytest.param(prose(40_000, " ", lines).replace(" ", ""), id="one word"),
        pytest.param(prose(40_000, "\n\n* * *\n\n"), id="short paragraphs again and again"),
        pytest.param(f"{prose(40_000)}\n\n" * 3, id="the same three times"),
    ],
)
def test_every_kind_of_text_is_cut_into_two(recipe_for, text):
    recipe = recipe_for(text)
    corpus = Corpus.from_recipe(recipe.corpus)
    documents = list(corpus)
    trained, held_out = (
        [document.text for document in documents if document.is_validation is wanted]
        for wanted in (False, True)
    )
    assert own_paragraphs(trained)
    assert own_paragraphs(held_out)
    assert not own_paragraphs(trained) & own_paragraphs(held_out)
    assert 0.02 < sum(map(len, held_out)) / sum(map(len, [*trained, *held_out])) < 0.12
    # Again the same, and nothing is lost but what is said to repeat.
    assert list(corpus) == documents
    if not corpus.counts.cut["repeated"]:
        assert sorted("".join(trained + held_out)) == sorted(text)


@pytest.mark.parametrize("text", [prose(9_000, "\r\n \r\n", lines), "a\n\n\n b\n", "\n\n", "x" * 9_000, ""])
def test_paragraphs_joined_are_the_text(text):
    assert "".join(paragraphs(text)) == text


def test_few_files_are_cut_and_many_are_not(recipe_for):
    few = recipe_for(*(prose(3_000 + i) for i in range(5)), fraction=0.001)
    assert "cut" in Corpus.from_recipe(few.corpus).identity()
    assert {document.is_validation for document in Corpus.from_recipe(few.corpus)} == {False, True}
    many = recipe_for(*(prose(300 + i) for i in range(60)), fraction=0.1, name="many")
    assert "cut" not in Corpus.from_recipe(many.corpus).identity()


def test_all_of_a_few_that_would_be_held_out_are_cut_too(recipe_for):
    recipe = recipe_for(prose(40_000), fraction=0.9)
    assert {document.is_validation for document in Corpus.from_recipe(recipe.corpus)} == {False, True}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["equal " * 200] * 50, ["of 50 documents 49 repeat another", "1,200 characters"]),
        (["too short"], ["too short", "9 characters", "at least 4,096"]),
        (["yes\n\n" * 5_000], ["repeats itself", "25,000 characters"]),
    ],
    ids=["equal documents", "short", "one paragraph again and again"],
)
def test_advice_for_text_that_cannot_be_cut_never_asks_for_another_share(recipe_for, texts, words):
    with pytest.raises(AntError) as refused:
        make_data(recipe_for(*texts, fraction=0.3), 64)
    for word in words:
        assert word in str(refused.value)
    assert "validation_fraction" not in str(refused.value)


def test_workers_pack_a_single_text_to_the_same_bytes(recipe_for, capsys):
    text = prose(40_000)
    recipe = recipe_for(text)
    make_data(recipe, 64)
    other = recipe_for(text, name="other")
    (other.tokenizer_dir.parent).mkdir()
    other.tokenizer_dir.symlink_to(recipe.tokenizer_dir)
    with pytest.raises(AntError, match="too few documents for several workers"):
        merge(plan_packing(other))
    pack_with_workers(other, 2)
    assert "in one process" in capsys.readouterr().out
    for path in recipe.tokens_dir.iterdir():
        assert path.read_bytes() == (other.tokens_dir / path.name).read_bytes(), path.name


def test_what_is_packed_is_reused_without_reading_the_text(recipe_for, monkeypatch):
    """Where the text is on the Hub, and the machine has no network any more."""
    recipe = recipe_for(prose(40_000))
    make_data(recipe, 64)

    def unreachable(*_):
        raise AssertionError("the text was read")

    monkeypatch.setattr(LocalFiles, "documents", unreachable)
    make_data(recipe, 64)
    monkeypatch.undo()
    with pytest.raises(AntError, match="made of other text or settings"):
        make_tokens(recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"max_tokens": 9})}))


def test_a_quotation_of_an_evaluation_set_takes_little_with_it(recipe_for, tmp_path):
    question = "Which gas do plants take in from the air when they make sugar by the light of the sun?"
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "questions.jsonl").write_text(json.dumps({"text": question}) + "\n")
    recipe = recipe_for(f"{prose(100_000)}\n\n{question}\n\n{prose(90_000)}")
    decontaminated = recipe.corpus.model_copy(update={"decontaminate": str(tmp_path / "sets")})
    corpus = Corpus.from_recipe(decontaminated)
    kept = "".join(document.text for document in corpus)
    assert question not in kept
    assert len(kept) > 160_000
    assert corpus.counts.contaminated == 1


def test_decomposed_letters_are_the_same_paragraph(recipe_for):
    parts = [f"{part} caf\u00e9" for part in prose(30_000).split("\n\n")]
    twice = "\n\n".join([*parts, *(unicodedata.normalize("NFD", part) for part in parts)])
    corpus = Corpus.from_recipe(recipe_for(twice).corpus)
    assert list(corpus)
    assert corpus.counts.cut["repeated"] == pytest.approx(len(parts), rel=0.1)


def test_few_documents_are_cut_where_whole_ones_would_be_another_share(recipe_for, chapters):
    """One long document and nine short ones: its hash would hold out nearly all of the text."""
    long = "\n\n".join(chapters[:30])
    shares = []
    for at, fraction in enumerate((0.05, 0.1, 0.3)):
        recipe = recipe_for(long, *chapters[30:39], fraction=fraction, name=f"few-{at}")
        corpus = Corpus.from_recipe(recipe.corpus)
        sizes = {False: 0, True: 0}
        for document in corpus:
            sizes[document.is_validation] += document.characters
        shares.append(sizes[True] / sum(sizes.values()) / fraction)
    assert all(0.4 < share < 2.5 for share in shares), shares
    # Of many, each stays whole.
    many = recipe_for(*chapters, fraction=0.05, name="many")
    assert not Corpus.from_recipe(many.corpus).is_cut
