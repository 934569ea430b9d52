"""What is shown of a study: the table, the page and the plot, from records."""

import numpy as np
import pytest
from commands import ROOT
from study_records import record_of, row

from ant_hf.errors import AntError
from ant_hf.studies.fitting import fitted
from ant_hf.studies.record import StudyRecord
from ant_hf.studies.report import draw, page, results_table, rows_of
from ant_hf.studies.scaling_law import Law
from ant_hf.studies.study_file import Budgets, Fit, Plot, Point

TRUE = Law(E=1.7, A=60.0, B=700.0, alpha=0.3, beta=0.4)


def test_nothing_is_concluded_inside_the_noise():
    record = record_of(
        [row("a", 1, 2.00), row("a", 2, 2.02), row("b", 1, 2.02), row("b", 2, 2.04), row("c", 1, 2.20)]
    )
    # The pooled deviation is 0.0141, and two standard errors of two means of two are 0.028.
    assert [each.less_best for each in rows_of(record)] == ["best", "+0.0200 (same)", "+0.1900"]
    assert rows_of(record)[0].figures == ["2.0100 ± 0.0141"]
    assert rows_of(record)[2].figures == ["2.2000"]


def test_the_best_is_of_the_same_tokens():
    rows = [row("small", 1, 2.5), row("large", 1, 2.4), row("long", 1, 2.0)]
    rows = [
        each.model_copy(update={"changes": {"tokens": tokens}})
        for each, tokens in zip(rows, (5, 5, 9), strict=True)
    ]
    record = record_of(rows)
    assert [each.less_best for each in rows_of(record)] == ["+0.1000", "best", "best"]
    assert "same compute or tokens" in page(record)
    assert "same compute or tokens" not in page(record_of(rows[:2]))


def test_a_run_with_the_tokens_of_its_recipe_is_compared_with_those_that_are_given_as_many():
    own, given = row("own", 1, 2.5), row("given", 1, 2.4)
    given = given.model_copy(update={"changes": {"tokens": own.facts["tokens"] / 4}})
    rows = rows_of(record_of([own, given], scale=4.0))
    assert [each.less_best for each in rows] == ["+0.1000", "best"]


def test_one_model_by_two_names_counts_once():
    rows = [row("a", 1, 2.0), row("a", 2, 2.2), row("b", 1, 3.0), row("b", 2, 3.0)]
    record = record_of(rows)
    twice = [each.model_copy(update={"cell": "like a"}) for each in rows[:2]]
    assert record_of([*rows, *twice]).noise("loss") == record.noise("loss")
    for each in (record, record_of([*rows, *twice])):
        assert "| 6 minutes in all |" in page(each)


def test_what_follows_from_the_recipe_has_no_deviation():
    record = record_of([row("a", 1, 2.0), row("a", 2, 2.0)])
    assert rows_of(record)[0].figures == ["2.0000"]


def test_one_seed_says_nothing_of_chance():
    text = page(record_of([row("a", 1, 2.0), row("b", 1, 2.1)]))
    assert "any difference may be chance" in text
    assert "+0.1000 |" in text


def test_what_broke_is_in_the_table_and_is_not_best():
    broke = {"broken": "loss nan at step 7"}
    rows = [
        row("good", 1, 2.5),
        row("bad", 1, None, **broke),
        row("half", 1, None, **broke),
        row("half", 2, 1.0),
    ]
    good, bad, half = rows_of(record_of(rows))
    assert (good.less_best, bad.less_best, bad.figures) == ("best", "", ["broke: loss nan at step 7"])
    assert half.figures == ["1.0000 (1 of 2 broke)"]
    assert "runs that broke are not drawn" in page(record_of(rows))


def test_the_page_has_question_answer_conditions_and_limits():
    record = record_of([row("a", 1, 2.0)], left_out={"fp16": "no GPU"}, scale=100.0)
    text = page(record)
    assert text.startswith("# Which is best?\n")
    assert "Not yet answered" in text
    for words in (
        "small.png",
        "`tokens` 5000",
        "device | cpu",
        "100 times",
        "fp16 (no GPU)",
        "- Anything else.",
    ):
        assert words in text
    answered = page(record.model_copy(update={"answer": "It is a.\nNothing else was tried."}))
    assert "Not yet answered" not in answered
    assert "**It is a.\nNothing else was tried.**" in answered


def test_a_record_that_was_changed_is_refused(tmp_path):
    record_of([row("a", 1, 2.0)]).write(tmp_path / "study.json")
    assert StudyRecord.read(tmp_path / "study.json") == record_of([row("a", 1, 2.0)])
    text = (tmp_path / "study.json").read_text()
    (tmp_path / "study.json").write_text(text.replace("2.0,", "1.0,", 1))
    with pytest.raises(AntError, match=r"study.json was changed after it was written"):
        StudyRecord.read(tmp_path / "study.json")


@pytest.fixture(scope="module")
def law_rows():
    sizes, lengths = np.meshgrid([3e5, 1e6, 3e6, 9e6], [5e5, 1e6, 4e6])
    noise = np.random.default_rng(0).normal(0, 0.002, sizes.size)
    return [
        row(
            f"{n:g}, {d:g}", 42, float(TRUE.loss(n, d) * np.exp(moved)),
            non_embedding_parameters=n, parameters=1.5 * n, tokens=d, flops=6 * n * d,
        )
        for n, d, moved in zip(sizes.ravel(), lengths.ravel(), noise, strict=True)
    ]  # fmt: skip


def test_the_fit_predicts_the_held_out_run_and_is_shown(law_rows, tmp_path):
    points = {
        "ours": Point(run=str(ROOT / "docs/recipe/Ant-10M-27M")),
        "the card": Point(parameters=8_853_760, tokens=2_979_215_382, published=2.5303, source="its table"),
    }
    fit = Fit(held_out=["9e+06, 4e+06"], predict=points, budgets=Budgets(hours=[1.0, 10.0]), resamples=20)
    found = fitted(fit, law_rows)
    (held_out,), (ours, card) = found.held_out, found.predictions
    assert found.runs == len(found.residuals) == 11
    assert held_out.loss.value == pytest.approx(held_out.measured, rel=0.02)
    assert (ours.parameters, ours.tokens) == (8_853_760, 27_033_600)
    assert ours.measured == pytest.approx(3.1025, abs=1e-3)
    assert ours.source == "on its own held-out text"
    assert (card.published, card.measured) == (2.5303, None)
    small, large = found.best_sizes
    assert large.flops == 10 * small.flops
    assert large.parameters.value > small.parameters.value
    record = record_of(law_rows, fit=found, scores=["loss"])
    text = page(record)
    for words in (
        "9e+06, 4e+06, held out of the fit",
        "| 2.530 |",
        "(its table)",
        "65 TFLOP/s",
        "arXiv 2203.15556",
    ):
        assert words in text
    # Published and measured figures stand in columns of their own.
    assert "| measured here | published |" in text
    draw(record, tmp_path / "law.png")
    assert (tmp_path / "law.png").stat().st_size > 10_000


def test_a_point_that_cannot_be_predicted_is_refused(law_rows):
    with pytest.raises(AntError, match=r"fit.predict.mine lacks a size"):
        fitted(Fit(predict={"mine": Point(tokens=5)}, resamples=20), law_rows)


@pytest.mark.parametrize("plot", [Plot(), Plot(x="tokens", lines="size"), Plot(x="size")], ids=str)
def test_lines_and_dots_are_drawn(plot, tmp_path):
    rows = [
        row(f"{size}, {tokens}", seed, 2.0 + seed / 100, point={"size": size}, tokens=tokens)
        for size in ("small", "large")
        for tokens in (1e3, 1e4, 1e5)
        for seed in (1, 2)
    ]
    record = record_of([*rows, row("beside the grid", 1, 2.2)], plot=plot)
    draw(record, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert results_table(record).row_count == 7


def test_runs_that_all_broke_are_drawn_and_told(tmp_path):
    rows = [row(name, 1, None, point={"size": name}, broken="loss nan at step 7") for name in ("a", "b")]
    record = record_of(rows)
    draw(record, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").is_file()
    assert page(record).count("broke: loss nan at step 7") == 2


PAGES = sorted((ROOT / "docs/studies").glob("*.json"))


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_a_committed_page_is_what_its_record_gives(file):
    record = StudyRecord.read(file)
    assert record.name == file.stem
    assert file.with_suffix(".md").read_text(encoding="utf-8") == page(record)
    assert file.with_suffix(".png").is_file()
