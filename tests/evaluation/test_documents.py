"""What is read from a data folder, and which documents are refused, with file and line, before scoring."""

import gzip
import json
from types import SimpleNamespace

import pytest
from benchmark_data import COPA, arc, boolq, hellaswag, mmlu, piqa, sciq, winogrande, write_jsonl
from lm_eval.api.task import ConfigurableTask

from ant_hf.errors import AntError
from ant_hf.evaluation.benchmarks import choose_benchmarks, known_benchmarks
from ant_hf.evaluation.language_model import BatchedLM, LikelihoodStore
from ant_hf.evaluation.tasks import check_documents, load_tasks, write_definitions
from ant_hf.model.loading import load_final
from ant_hf.utils.files import file_sha256

ANYTHING = SimpleNamespace(check=lambda request, where: None)
COPA_ROW = {
    "premise": "It rained.",
    "choice1": "I ran.",
    "choice2": "I ate.",
    "question": "effect",
    "label": 0,
}
# A set of a user's own: words that end outside of the prompt.
SPELLING = """
task: spelling
dataset_path: json
output_type: multiple_choice
test_split: test
doc_to_text: "{{stem}}"
doc_to_choice: "{{endings}}"
doc_to_target: "{{label}}"
target_delimiter: ""
"""


@pytest.fixture
def ready(tmp_path):
    """A function that reads and checks a set's documents as before scoring, and gives lm-eval's task."""

    def make(name, rows=None, folder=None, language_model=ANYTHING, limit=None):
        folder = folder or tmp_path / "data"
        folder.mkdir(exist_ok=True)
        if rows is not None:
            write_jsonl(folder / known_benchmarks(folder)[name].file, rows)
        chosen, _ = choose_benchmarks([name], known_benchmarks(folder), folder)
        write_definitions(chosen, tmp_path / "definitions")
        loaded = load_tasks(chosen, tmp_path / "definitions")
        check_documents(chosen, loaded, language_model, limit)
        return loaded[name]["tasks"].get(name)

    return make


@pytest.fixture(scope="module")
def language_model(tiny_run, tmp_path_factory):
    store = LikelihoodStore(tmp_path_factory.mktemp("store") / "s", {})
    return BatchedLM(*load_final(tiny_run / "final"), store, 1)


@pytest.mark.parametrize("name", ["sets[12]", "sets [v1]", "sets?", "s*", "{sets1,sets2}", "sets!%23 é"])
def test_a_folder_name_is_never_a_pattern(ready, tmp_path, name):
    neighbours = [tmp_path / other for other in ("sets1", "sets2", "sets", "setsx")]
    for folder in neighbours:
        folder.mkdir()
        write_jsonl(folder / "piqa.jsonl", [piqa(7)])
    task = ready("piqa", [piqa(0), piqa(1)], folder=tmp_path / name)
    assert [document["goal"] for document in task.eval_docs] == [piqa(0)["goal"], piqa(1)["goal"]]
    (source,) = task.config.dataset_kwargs["files"].values()
    assert source["sha256"] == file_sha256(tmp_path / name / "piqa.jsonl")


def test_definitions_may_lie_anywhere(tmp_path):
    """As with a TMPDIR of such a name."""
    folder = tmp_path / "a [b]*"
    folder.mkdir()
    write_jsonl(folder / "mmlu.jsonl", [mmlu(i) for i in range(4)])
    write_jsonl(folder / "mmlu_dev.jsonl", [mmlu(0)])
    chosen, _ = choose_benchmarks(["mmlu"], known_benchmarks(folder), folder)
    write_definitions(chosen, folder / "definitions [1]")
    loaded = load_tasks(chosen, folder / "definitions [1]")["mmlu"]["tasks"]
    assert {name: len(task.eval_docs) for name, task in loaded.items()} == {
        "mmlu_anatomy": 2, "mmlu_astronomy": 1, "mmlu_virology": 1,
    }  # fmt: skip


def test_a_set_of_ones_own_in_a_relative_folder(ready, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "own [1]"
    folder.mkdir()
    (folder / "spelling.yaml").write_text(SPELLING)
    (folder / "benchmarks.yaml").write_text("spelling: {definition: spelling.yaml, file: 'words [a].jsonl'}")
    row = {"stem": "The sea", "endings": [" is salt", " is old"], "label": 0}
    task = ready("spelling", [row], folder=folder.relative_to(tmp_path))
    assert task.doc_to_text(task.eval_docs[0]) == "The sea"


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    write_jsonl(tmp_path / "piqa.jsonl", [piqa(0)])
    chosen, _ = choose_benchmarks(["piqa"], known_benchmarks(tmp_path), tmp_path)
    write_definitions(chosen, tmp_path / "d")
    write_jsonl(tmp_path / "piqa.jsonl", [piqa(1)])
    # Read long ago, as in a long evaluation.
    write_definitions(choose_benchmarks(["sciq"], known_benchmarks(), with_sciq(tmp_path))[0], tmp_path / "e")
    write_definitions(
        choose_benchmarks(["boolq"], known_benchmarks(), with_sciq(tmp_path))[0], tmp_path / "f"
    )
    with pytest.raises(AntError, match=r"piqa.jsonl was changed"):
        load_tasks(chosen, tmp_path / "d")


def with_sciq(folder):
    write_jsonl(folder / "sciq.jsonl", [sciq(0)])
    write_jsonl(folder / "boolq.jsonl", [boolq(0)])
    return folder


UNLABELLED = [
    ("piqa", piqa, {"label": -1}),
    ("piqa", piqa, {"label": None}),
    ("boolq", boolq, {"label": -1}),
    ("hellaswag", hellaswag, {"label": ""}),
    ("winogrande", winogrande, {"answer": ""}),
    ("arc_easy", arc, {"answerKey": ""}),
    ("openbookqa", lambda i: arc(i) | {"question_stem": "A"}, {"answerKey": "-1"}),
    ("sciq", sciq, {"correct_answer": " "}),
]


@pytest.mark.parametrize(("name", "make", "change"), UNLABELLED)
def test_a_document_without_an_answer_is_refused(ready, name, make, change):
    with pytest.raises(AntError, match=rf"{name}.jsonl, line 3: .*may be a test split without labels"):
        ready(name, [make(0), make(1), make(2) | change])


@pytest.mark.parametrize("make", [piqa, boolq, hellaswag])
def test_an_answer_that_is_left_out_is_refused(ready, make):
    rows = [make(0), make(1)]
    del rows[1]["label"]
    with pytest.raises(AntError, match=r"line 2: the field label is missing.*without labels"):
        ready(make.__name__, rows)


@pytest.mark.parametrize("answer", [-1, None, ""])
def test_so_is_a_set_of_which_the_answer_is_not_known(ready, tmp_path, answer):
    """lm-eval takes every label of COPA's but 0 for the second choice."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "benchmarks.yaml").write_text(COPA.partition("  fields")[0])
    with pytest.raises(
        AntError,
        match=r"copa.jsonl, line 1: label does not give an answer.*in every other line.*without labels",
    ):
        ready("copa", [COPA_ROW | {"label": answer}] * 2, folder=folder)


@pytest.mark.parametrize(
    ("name", "make", "change", "message"),
    [
        ("piqa", piqa, {"label": 0.0}, "label is a fraction; saw 0.0"),
        ("piqa", piqa, {"label": float("nan")}, "label is a fraction; saw nan"),
        ("piqa", piqa, {"label": 2}, "does not name a choice; saw 2; expected 0 to 1"),
        ("piqa", piqa, {"label": "1"}, "label is text; saw '1'; expected a number, as in .* line 1"),
        ("piqa", piqa, {"sol2": None}, "sol2 is or contains null"),
        ("piqa", piqa, {"sol2": ""}, "a choice is empty or not text"),
        ("piqa", piqa, {"sol2": 7}, "sol2 is a number"),
        ("piqa", piqa, {"goal": ["a"]}, "goal is a list"),
        ("hellaswag", hellaswag, {"endings": []}, "too few choices"),
        ("hellaswag", hellaswag, {"endings": ["a", None]}, "endings is or contains null"),
        ("hellaswag", hellaswag, {"endings": ["a", 5]}, r"endings\[\] is a number; saw 5"),
        ("hellaswag", hellaswag, {"label": "x"}, "cannot read this document"),
        ("hellaswag", hellaswag, {"label": "4"}, "does not name a choice; saw 4"),
        ("winogrande", winogrande, {"sentence": "No blank."}, "cannot read this document"),
        ("winogrande", winogrande, {"sentence": "It was _"}, "nothing to score"),
        ("winogrande", winogrande, {"answer": "3"}, "cannot read this document"),
        ("arc_easy", arc, {"answerKey": "Z"}, "cannot read this document"),
        ("arc_easy", arc, {"choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}, "too few choices"),
        ("mmlu", mmlu, {"answer": 4}, "does not name a choice; saw 4"),
        ("mmlu", mmlu, {"choices": ["a", "b"]}, "cannot read this document"),
        ("boolq", boolq, {"passage": "a\ud800"}, "cannot read this document"),
        ("wikitext", lambda i: {"page": f"Page {i}."}, {"page": ""}, "nothing to score"),
        (
            "lambada_openai",
            lambda i: {"text": "The sea is salt"},
            {"text": "A blank at the end "},
            "nothing to",
        ),
        ("lambada_openai", lambda i: {"text": "The sea is salt"}, {"text": ""}, "nothing to score"),
    ],
)
def test_a_value_that_cannot_be_scored_is_refused(ready, tmp_path, name, make, change, message):
    file = known_benchmarks()[name].file
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "mmlu_dev.jsonl", [mmlu(0)])
    # Of members of a group, the second document of the member.
    rows = [make(0), make(3), make(6) | change]
    with pytest.raises(AntError, match=f"{file}, line 3: .*{message}"):
        ready(name, rows)


def test_a_limit_spares_the_rest_what_takes_a_prompt_to_see(ready):
    assert len(ready("piqa", [piqa(0), piqa(1) | {"label": 2}], limit=1).instances) == 2


@pytest.mark.parametrize(
    ("content", "goals"),
    [
        (b"\xef\xbb\xbf{}\r\n\r\n{}\n \n", 2),
        ("{}\n{}".replace("warm", "a\u2028b\x85c").encode(), 2),
        (b"{}", 1),
    ],
    ids=["bom-crlf-blank", "unicode-lines", "no-line-end"],
)
def test_lines_are_read_as_training_text_is(ready, tmp_path, content, goals):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(goals):
        row = json.dumps(piqa(number) | {"goal": f"a\u2028b\x85c {number}"}, ensure_ascii=False).encode()
        content = content.replace(b"{}", row, 1)
    (folder / "piqa.jsonl").write_bytes(content)
    task = ready("piqa")
    assert [document["goal"] for document in task.eval_docs] == [f"a\u2028b\x85c {n}" for n in range(goals)]


def test_packed_documents_are_read(ready, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    with gzip.open(folder / "piqa.jsonl.gz", "wt") as file:
        file.write(json.dumps(piqa(0)) + "\n")
    assert len(ready("piqa").eval_docs) == 1


def test_dates_stay_text(ready):
    """Other readers take a column of these for times."""
    rows = [piqa(i) | {"sol1": f"2001-01-0{i + 1}T00:00:00", "sol2": f"2002-01-0{i + 1}"} for i in range(2)]
    task = ready("piqa", rows)
    assert task.doc_to_choice(task.eval_docs[0]) == ["2001-01-01T00:00:00", "2002-01-01"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not contain any documents"),
        (b"\n \n", "does not contain any documents"),
        (b'{"goal": "a", "goal": "b"}\n', "line 1.*a key is given twice"),
        (b"[1]\n", "line 1.*not a JSON object"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8.*UTF-16"),
        (b'{"goal": ' + b"[" * 100_000, "line 1"),
    ],
)
def test_damaged_files_are_refused(ready, tmp_path, content, message):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "piqa.jsonl").write_bytes(content)
    with pytest.raises(AntError, match=message):
        ready("piqa")


def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "piqa.jsonl").mkdir()
    with pytest.raises(AntError, match=r"piqa.jsonl is a folder"):
        choose_benchmarks(["piqa"], known_benchmarks(), tmp_path)
    file = write_jsonl(tmp_path / "sciq.jsonl", [sciq(0)])
    with pytest.raises(AntError, match=r"--data-dir is a file.*Pass a folder"):
        known_benchmarks(file)


def test_an_answer_longer_than_the_context_is_refused(ready, language_model):
    rows = [piqa(0), piqa(1) | {"sol1": "and " * 80}]
    with pytest.raises(AntError, match=r"line 2: an answer is longer than the model's context.*at most 64"):
        ready("piqa", rows, language_model=language_model)


def test_an_answer_that_shares_its_only_token_with_the_prompt_is_refused(ready, tmp_path, language_model):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "spelling.yaml").write_text(SPELLING)
    (folder / "benchmarks.yaml").write_text("spelling: {definition: spelling.yaml}")
    encode = language_model.tokenizer.encode
    whole = next(
        word
        for word in sorted(language_model.tokenizer.get_vocab())
        if word.isalpha() and len(word) > 2 and len(encode(word)) == 1 == len(encode(word[:-1]))
    )
    rows = [
        {"stem": "The sea", "endings": [" is salt", " is old"], "label": 0},
        {"stem": whole[:-1], "endings": [whole[-1], "?"], "label": 0},
    ]
    with pytest.raises(AntError, match="line 2: the answer does not have a token of its own"):
        ready("spelling", rows, folder=folder, language_model=language_model)


def test_a_task_file_that_lm_eval_does_not_read_is_named(ready, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "own.yaml").write_text("task: [")
    (folder / "benchmarks.yaml").write_text("own: {definition: own.yaml}")
    with pytest.raises(AntError, match=r"own.yaml is not a task file"):
        ready("own", [piqa(0)], folder=folder)


def test_the_search_for_the_first_document_loads_few_times(ready, monkeypatch):
    """A set of thousands is not loaded once per document."""
    times, init = [], ConfigurableTask.__init__
    monkeypatch.setattr(ConfigurableTask, "__init__", lambda *a, **k: (times.append(1), init(*a, **k))[1])
    rows = [hellaswag(i) for i in range(200)]
    rows[120]["label"] = "x"
    with pytest.raises(AntError, match="line 121"):
        ready("hellaswag", rows)
    assert len(times) < 15
