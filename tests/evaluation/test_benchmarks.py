"""Which sets run, from where, and what is said about data that does not fit."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import yaml
from benchmark_data import COPA, arc, write_benchmarks, write_jsonl
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from ant_hf.errors import AntError
from ant_hf.evaluation.benchmarks import check_schema, choose_benchmarks, generate_arithmark, known_benchmarks
from ant_hf.evaluation.tasks import load_tasks, write_definitions
from ant_hf.published import published_models

# What an override may touch: where documents come from, and the name. Never prompts or scoring.
ALLOWED = {
    "include", "task", "tag", "dataset_path", "dataset_name", "dataset_kwargs",
    "training_split", "validation_split", "test_split", "fewshot_split", "custom_dataset",
}  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def all_tasks():
    return TaskManager()


@pytest.fixture
def read_once(all_tasks, monkeypatch):
    """lm-eval's 14,000 definitions, which take seconds to read."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: all_tasks)


def test_every_definition_is_lm_evals_and_every_published_figure_has_a_set():
    table = known_benchmarks()
    assert all(benchmark.definition.exists() for benchmark in table.values())
    for model in published_models():
        assert set(model.results) <= set(table)


def test_only_the_place_of_the_documents_changes(data_dir, tmp_path):
    table = known_benchmarks()
    chosen, absent = choose_benchmarks([], table, data_dir)
    assert absent == []
    write_definitions(chosen, tmp_path / "d")
    seen = 0
    for path in (tmp_path / "d").rglob("*.yaml"):
        values = load_yaml(path, resolve_func=False, recursive=False)
        if "group" not in values:
            seen += 1
            assert set(values) <= ALLOWED
            assert values["dataset_path"] == "json"
    assert seen == 15


def test_prompts_and_choices_are_those_of_lm_evals_own_tasks(data_dir, tmp_path):
    chosen, _ = choose_benchmarks(["arc_easy", "mmlu", "blimp", "hellaswag"], known_benchmarks(), data_dir)
    write_definitions(chosen, tmp_path / "d")
    loaded = load_tasks(chosen, tmp_path / "d")
    task = loaded["arc_easy"]["tasks"]["arc_easy"]
    document = next(iter(task.eval_docs))
    assert task.doc_to_text(document) == "Question: Which of these is a river?\nAnswer:"
    assert task.doc_to_choice(document) == ["river", "mountain stone", "teacher stone stone"]
    assert sorted(loaded["mmlu"]["tasks"]) == ["mmlu_anatomy", "mmlu_astronomy", "mmlu_virology"]
    anatomy = loaded["mmlu"]["tasks"]["mmlu_anatomy"]
    assert "about anatomy" in anatomy.config.description
    assert {document["subject"] for document in anatomy.eval_docs} == {"anatomy"}
    assert sorted(loaded["blimp"]["tasks"]) == ["blimp_adjunct_island", "blimp_causative"]
    assert next(iter(loaded["hellaswag"]["tasks"]["hellaswag"].eval_docs))["query"].startswith(
        "Gardening: A man"
    )


def test_without_a_data_folder_definitions_point_to_the_hub(tmp_path):
    chosen, _ = choose_benchmarks(["arc_easy", "mmlu", "arithmark_2.0"], known_benchmarks(), None)
    write_definitions(chosen, tmp_path)
    index = TaskManager(include_path=tmp_path, include_defaults=False).task_index
    assert {"arc_easy", "mmlu", "mmlu_stem", "mmlu_anatomy", "arithmark_2.0"} <= set(index)
    assert "dataset_path" not in yaml.safe_load((tmp_path / "arc_easy" / "arc_easy.yaml").read_text())


def test_arithmark_of_the_hub_is_replaced_by_the_generated_one_under_its_own_name(data_dir, tmp_path):
    names = [benchmark.name for benchmark in choose_benchmarks([], known_benchmarks(), data_dir)[0]]
    assert "arithmark_generated" in names
    assert "arithmark_2.0" not in names
    own = write_benchmarks(tmp_path)
    generate_arithmark(own / "arithmark_2.0.jsonl")
    names = [benchmark.name for benchmark in choose_benchmarks([], known_benchmarks(), own)[0]]
    assert "arithmark_2.0" in names
    assert "arithmark_generated" not in names


def test_the_generated_arithmark_has_the_shape_of_the_real_one(tmp_path):
    generate_arithmark(tmp_path / "a")
    generate_arithmark(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    check_schema(rows, "generated")
    assert len({row["ctx"] for row in rows}) == 2500
    for operators, size in {1: 1250, 2: 750, 3: 500}.items():
        part = [row for row in rows if row["metadata"]["operator_count"] == operators]
        assert len(part) == size
        assert max(Counter(row["label"] for row in part).values()) <= size // 4 + 1
        assert all(("(" in row["ctx"]) == (operators == 3) for row in part)
        assert all(sum(map(row["ctx"].count, ("+", " - ", "*"))) == operators for row in part)
    for row in rows:
        values = [int(ending) for ending in row["endings"]]
        answer = eval(row["ctx"].removesuffix(" ="))
        assert values[row["label"]] == answer
        assert len(set(values)) == 4
        assert all(abs(value - answer) <= 20 for value in values)
        assert all(ending.startswith(" ") for ending in row["endings"])


@pytest.mark.parametrize(
    "row",
    [
        {"question": "1 + 1", "answer": "2"},
        {"ctx": "1 + 1 =", "endings": [" 2"], "label": 0, "metadata": {"operator_count": 1}},
        {
            "ctx": "1 + 1 =",
            "endings": [" 1", " 2", " 3", " 4"],
            "label": 7,
            "metadata": {"operator_count": 1},
        },
        {"ctx": "1 + 1 =", "endings": [" 1", " 2", " 3", " 4"], "label": 1, "metadata": {}},
    ],
)
def test_another_schema_is_not_arithmark(row):
    with pytest.raises(AntError, match=r"of Arithmark-2.0.* saw .* expected ctx"):
        check_schema([row], "arithmark_2.0")


def test_a_missing_field_names_file_line_and_field(tmp_path):
    document = arc(0)
    del document["answerKey"]
    write_jsonl(tmp_path / "arc_easy.jsonl", [arc(1), document])
    chosen, _ = choose_benchmarks(["arc_easy"], known_benchmarks(), tmp_path)
    with pytest.raises(
        AntError, match=r"arc_easy\.jsonl, line 2: the field answerKey is missing; saw .*'question'"
    ):
        write_definitions(chosen, tmp_path / "d")


@pytest.mark.parametrize("content", ["", "{", "[1, 2]\n", "\xff"], ids=["empty", "cut", "list", "binary"])
def test_damaged_data_is_refused_by_name(tmp_path, content):
    (tmp_path / "arc_easy.jsonl").write_bytes(content.encode("latin-1"))
    chosen, _ = choose_benchmarks(["arc_easy"], known_benchmarks(), tmp_path)
    with pytest.raises(AntError, match=r"arc_easy\.jsonl"):
        write_definitions(chosen, tmp_path / "d")


def test_mmlu_needs_its_dev_file_and_known_subjects(tmp_path):
    write_benchmarks(tmp_path)
    (tmp_path / "mmlu_dev.jsonl").unlink()
    chosen, _ = choose_benchmarks(["mmlu"], known_benchmarks(), tmp_path)
    with pytest.raises(AntError, match=r"mmlu also needs the file mmlu_dev\.jsonl"):
        write_definitions(chosen, tmp_path / "d")
    write_benchmarks(tmp_path)
    text = (tmp_path / "mmlu.jsonl").read_text().replace("anatomy", "alchemy")
    (tmp_path / "mmlu.jsonl").write_text(text)
    with pytest.raises(AntError, match="subject does not name a part of mmlu; saw 'alchemy'"):
        write_definitions(chosen, tmp_path / "e")


def test_an_unknown_task_gets_the_nearest_names(data_dir, read_once):
    with pytest.raises(AntError, match=r"unknown task arc_esay.*Similar names: arc_easy"):
        choose_benchmarks(["arc_esay"], known_benchmarks(), None)


def test_a_named_set_without_a_file_is_an_error_and_a_default_one_is_reported(tmp_path):
    write_jsonl(tmp_path / "arc_easy.jsonl", [arc(0)])
    with pytest.raises(AntError, match=r"piqa has no documents.*piqa\.jsonl"):
        choose_benchmarks(["piqa"], known_benchmarks(), tmp_path)
    chosen, absent = choose_benchmarks([], known_benchmarks(), tmp_path)
    assert [benchmark.name for benchmark in chosen] == ["arc_easy", "arithmark_generated"]
    assert {"piqa", "blimp", "lambada_openai"} <= set(absent)


def test_any_task_of_lm_evals_may_be_named(tmp_path, read_once):
    write_jsonl(tmp_path / "arc_ca_challenge.jsonl", [arc(0)])
    (benchmark,), _ = choose_benchmarks(["arc_ca_challenge"], known_benchmarks(), tmp_path)
    assert benchmark.definition.name.endswith(".yaml")


# The lines that docs/evaluation.md shows for a set of one's own.
def test_a_few_lines_add_a_set(tmp_path):
    row = {
        "premise": "It rained.",
        "choice1": "I ran.",
        "choice2": "I ate.",
        "question": "effect",
        "label": 0,
    }
    write_jsonl(tmp_path / "copa.jsonl", [row] * 3)
    (tmp_path / "benchmarks.yaml").write_text(COPA)
    chosen, _ = choose_benchmarks(["copa"], known_benchmarks(tmp_path), tmp_path)
    write_definitions(chosen, tmp_path / "d")
    task = load_tasks(chosen, tmp_path / "d")["copa"]["tasks"]["copa"]
    assert task.doc_to_text(row) == "It rained therefore"
    assert chosen[0].label == "COPA"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("copa: {metric: acc}", "copa lacks the key definition"),
        ("copa: {definition: nowhere.yaml}", "names a task file that does not exist"),
        ("copa: {definition: piqa/piqa.yaml, filed: [a]}", "unknown keys"),
        (
            "copa: {definition: piqa/piqa.yaml, fields: goal}",
            "copa has 1 problem:\n  - fields is 'goal'; must be",
        ),
        ("copa: {definition: piqa/piqa.yaml, extra: dev.jsonl}", "extra is 'dev.jsonl'; must be"),
        ("- copa", "is not a mapping of sets"),
        ("a: [", "is not readable YAML"),
    ],
)
def test_a_wrong_addition_is_refused(tmp_path, text, message):
    (tmp_path / "benchmarks.yaml").write_text(text)
    with pytest.raises(AntError, match=message):
        known_benchmarks(tmp_path)


def test_a_metric_that_the_set_lacks_is_refused_before_it_is_scored(tmp_path):
    write_benchmarks(tmp_path)
    (tmp_path / "benchmarks.yaml").write_text("piqa: {definition: piqa/piqa.yaml, metric: f1}")
    chosen, _ = choose_benchmarks(["piqa"], known_benchmarks(tmp_path), tmp_path)
    write_definitions(chosen, tmp_path / "d")
    with pytest.raises(AntError, match=r"piqa does not have the metric f1.*acc_norm"):
        load_tasks(chosen, tmp_path / "d")


def test_parts_by_a_field_that_holds_lists(tmp_path):
    benchmark = replace(known_benchmarks()["sciq"], slice_by="kind", slice_names={"a": "first"})
    assert [benchmark.slice_of({"kind": kind}) for kind in ("a", "b_c", ["a", "b"], None)] == [
        "first", "b c", "['a', 'b']", None
    ]  # fmt: skip
