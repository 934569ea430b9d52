"""tools/questions.py on a text of its own."""

import gzip
import json

import pytest
from commands import ROOT, run_here

from ant_hf.data.corpus import identified, in_validation_split

TOOL = ROOT / "tools/questions.py"


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.syspath_prepend(TOOL.parent)
    from questions import Questions

    def pairs(document):
        return [pair for _, asked in Questions().about(document) for pair in asked]

    return pairs


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            "Yew is a kind of conifer: any of many evergreen trees with red cups, and a yew is old.",
            [
                ("What is yew?", "any of many evergreen trees with red cups, and a yew is old"),
                ("What is any of many evergreen trees with red cups, and a yew is old?", "yew"),
            ],
        ),
        (
            "A measure of the acidity of soils is called the reaction, by the farmers at least.",
            [("A measure of the acidity of soils is called what?", "reaction")],
        ),
        (
            "The roots, the stem and the leaves hold water. Leaves produce most of the sugar of plants.",
            [("What produce most of the sugar of plants?", "leaves")],
        ),
        # Only a name was seen of it: "What contain six protons?" would be about any of them.
        ("Six is its number here. Carbons contain six protons and about six neutrons.", []),
        (
            "Energy moves in one direction, from the prey to the predator.",
            [("Energy moves in one direction, from the prey to what?", "predator")],
        ),
        ("It is a small animal, and it lives in the woods of the far north.", []),
    ],
)
def test_a_sentence_is_turned_around_or_left(asked, sentence, expected):
    paragraph = f"{sentence} He said no more about this that could be asked, and he went away again."
    assert asked(paragraph) == expected


def test_a_document_that_asks_is_answered_by_its_next_paragraph(asked):
    assert asked("What is a yew?\n\nA tree. It is old. It is green.") == [
        ("What is a yew?", "A tree. It is old.")
    ]


def test_two_in_three_have_their_paragraph_and_none_has_more_than_three_questions(monkeypatch):
    monkeypatch.syspath_prepend(TOOL.parent)
    from questions import written

    asked = [(f"What is {n}?", f"number {n}") for n in range(5)]
    made = [written(f"Paragraph {n}.", asked) for n in range(90)]
    assert {number for _, number in made} == {1, 2, 3}
    assert all(text.count("Question: ") == number == text.count("\nAnswer: ") for text, number in made)
    assert 45 <= sum(text.startswith("Paragraph") for text, _ in made) <= 75
    assert written("", asked)[0].startswith("Question: ")


def test_missing_text_and_wrong_flags_are_told(tmp_path):
    output = tmp_path / "questions.jsonl.gz"
    missing = run_here("python", TOOL, tmp_path / "none.jsonl", "--output", output)
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "none.jsonl" in missing.stderr
    wrong = run_here("python", TOOL, tmp_path / "none.jsonl", "--out", output)
    assert wrong.returncode == 2
    assert "--output" in wrong.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_is_asked_about_held_out_documents(tmp_path):
    texts = [
        f"Yew number {n} stands there. The tallest yew is a conifer of the class {n}, as yews are."
        for n in range(60)
    ]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    output = tmp_path / "made" / "questions.jsonl.gz"
    result = run_here(
        "python", TOOL, tmp_path / "text.jsonl", "--output", output, "--validation-fraction", "0.3"
    )
    assert result.returncode == 0, result.stderr
    with gzip.open(output, "rt", encoding="utf-8") as file:
        made = "".join(json.loads(line)["text"] for line in file)
    held_out = [in_validation_split(identified(text)[0][16:], 0.3) for text in texts]
    assert 0 < sum(held_out) < len(texts)
    assert [f"class {n}," in made for n in range(60)] == [not out for out in held_out]
