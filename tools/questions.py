"""Make questions and answers from text by a few rules of English, as text to train on.

    python tools/questions.py 'data/text/openstax-*' --output data/questions/openstax.jsonl.gz

Benchmarks write `Question: ...` and `Answer: ...`, and books do not. A sentence is turned around, so the
answer is always words of the text: "Yew is a conifer." becomes "What is a conifer?" and "yew". Two in three
have their paragraph before them. No benchmark is read. Some questions are not good English.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ant_hf.cli.main import run
from ant_hf.data.corpus import Corpus
from ant_hf.recipe import CorpusRecipe

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_TERM = r"(?:[A-Za-z][a-z-]+ ){0,3}[A-Za-z][a-z-]+"
_SUBJECT = rf"((?:(?:The|An?) )?{_TERM})"
_IS = re.compile(rf"{_SUBJECT}(?: \([^)]*\))?,? (is|are|was|were) ((?:an?|the|one of) .+)\.")
_CALLED = re.compile(rf"(.+? (?:is|are|was|were) (?:called|known as|termed))(?: an?| the)? ({_TERM})[.,;].*")
_VERBS = (
    "absorb|allow|carry|carrie|cause|contain|control|convert|cover|form|have|help|hold|include|make|mean|move|"
    "need|produce|protect|provide|release|remove|store|use"
)
_DOES = re.compile(rf"{_SUBJECT} ((?:{_VERBS})s?|has) (.+)\.")
_LAST = re.compile(
    r"(.+ (?:by|called|from|in|into|of|through|to|with)) (?:an? |the )?((?:[a-z-]{4,} ){0,2}[a-z-]{4,})\."
)
# WordNet's entries name a kind before they explain.
_KIND = re.compile(r"^an? (?:kind of|example of the category) [^:]+: ")
# Words that a sentence may begin with and that mean nothing without the one before it.
_NOT_FIRST = re.compile(
    r"(?:after|all|also|although|an?other|and|any|as|at|because|before|both|but|by|during|each|for|from|he|her|here|"
    r"his|how|however|i|if|in|it|its|many|most|my|no|not|on|one|or|others?|our|she|since|so|some|such|that|their|"
    r"then|there|these|they|this|those|to|we|what|when|where|which|while|who|with|yet|you|your)\b",
    re.IGNORECASE,
)


class Questions:
    """Questions about documents; remembers which words it has seen in small letters."""

    def __init__(self) -> None:
        self._small: set[str] = set()

    def about(self, document: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        """Paragraphs, each with questions and answers; an empty one where the document itself asks."""
        self._small.update(re.findall(r"(?<=[a-z,] )[a-z-]+", document))
        first, *others = document.split("\n\n")
        if first.endswith("?") and others:
            yield "", [(first.replace("\n", " "), " ".join(_sentences(others[0])[:2]))]
        for paragraph in others if first.endswith("?") else (first, *others):
            if 80 <= len(paragraph) <= 1500:
                sentences = [each for each in _sentences(paragraph) if 30 <= len(each) <= 200]
                if asked := [pair for sentence in sentences for pair in self._turned(sentence)]:
                    yield paragraph, asked

    def _turned(self, sentence: str) -> Iterator[tuple[str, str]]:
        if _NOT_FIRST.match(sentence):
            return
        if match := _IS.fullmatch(sentence):
            subject, verb, rest = match.groups()
            rest = _KIND.sub("", rest)
            yield f"What {verb} {self._inside(subject, with_article=True)}?", rest
            yield f"What {verb} {rest}?", self._inside(subject)
        elif match := _CALLED.fullmatch(sentence):
            yield f"{match[1]} what?", match[2]
        elif (match := _DOES.fullmatch(sentence)) and match[1].split()[-1].lower() in self._small:
            subject, verb, rest = match.groups()
            yield f"What {verb} {rest}?", self._inside(subject)
        elif match := _LAST.fullmatch(sentence):
            yield f"{match[1]} what?", match[2]

    def _inside(self, subject: str, with_article: bool = False) -> str:
        """A subject as it is written inside a sentence."""
        first, *others = subject.split()
        if first in ("The", "A", "An") and others:
            return " ".join([first.lower(), *others] if with_article else others)
        return " ".join([first.lower() if first.lower() in self._small else first, *others])


def _sentences(paragraph: str) -> list[str]:
    return _SENTENCE.split(paragraph.replace("\n", " "))


def written(paragraph: str, asked: list[tuple[str, str]]) -> tuple[str, int]:
    """A document of up to three of the questions, and how many; a third of them without their paragraph."""
    draw = random.Random(paragraph + asked[0][0])
    chosen = draw.sample(asked, min(len(asked), draw.randint(1, 3)))
    lines = [f"Question: {question}\nAnswer: {answer}" for question, answer in chosen]
    is_alone = not paragraph or draw.random() < 1 / 3
    return "\n\n".join(lines) if is_alone else "\n".join([paragraph, *lines]), len(lines)


def main(
    text: Annotated[str, typer.Argument(help="Files of text, in quotes: 'data/text/openstax-*'.")],
    output: Annotated[Path, typer.Option(help="The file to write, .jsonl.gz.")],
    validation_fraction: Annotated[
        float,
        typer.Option(min=0, max=1, help="That of the recipe. Nothing is asked about what it holds out."),
    ] = 0.003,
) -> None:
    """Make questions and answers from text by a few rules of English, as text to train on."""
    corpus = Corpus.from_recipe(
        CorpusRecipe(source="files", path=text, validation_fraction=validation_fraction)
    )
    questions, lines, count = Questions(), [], 0
    for document in corpus:
        if not document.is_validation:
            for paragraph, asked in questions.about(document.text):
                made, number = written(paragraph, asked)
                lines.append(json.dumps({"text": made}, ensure_ascii=False) + "\n")
                count += number
    output.parent.mkdir(parents=True, exist_ok=True)
    # Without the time that gzip notes: the same text gives the same file.
    output.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
    print(f"{count:,} questions in {output}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
