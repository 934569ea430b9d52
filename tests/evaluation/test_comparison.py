"""`ant-hf compare`: which of two models is better, from answers that are known; what is never compared."""

import json
import runpy
import shutil

import numpy as np
import pytest
import torch
from benchmark_data import write_benchmarks
from commands import ROOT, run_here
from records import measured
from safetensors.torch import load_file, save_file
from scipy import stats

import ant_hf
from ant_hf.cli.tables import results_table
from ant_hf.errors import AntError
from ant_hf.evaluation import statistics
from ant_hf.evaluation.comparison import compare
from ant_hf.evaluation.statistics import (
    Estimate,
    Units,
    holm,
    more_items,
    paired,
    sign_flip_p,
    unpaired,
)
from ant_hf.utils.files import read_sealed, write_sealed

CHANCE = np.random.default_rng(0)
SEVEN_TEN = (CHANCE.random(400) < 0.7).astype(int)


def worsened(answers, count):
    """The same answers with so many of the right ones made wrong."""
    changed = np.array(answers)
    changed[np.flatnonzero(changed)[:count]] = 0
    return changed


@pytest.fixture(autouse=True)
def here(request, tmp_path, monkeypatch):
    """An empty folder to be in. Only tests that ask for `pages` draw figures, which is most of the time."""
    monkeypatch.chdir(tmp_path)
    if "pages" not in request.fixturenames:
        monkeypatch.setattr("ant_hf.evaluation.comparison.write_report", lambda *_: None)
    return tmp_path


@pytest.fixture
def pages():
    pass


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Results of two models: a clear difference in one set and in the text, none in another, and loops."""
    folder = tmp_path_factory.mktemp("two")
    groups = {f"language_{index}": (CHANCE.random(20) < 0.6).astype(int) for index in range(12)}
    nats = 700 + 50 * CHANCE.standard_normal(30)
    first = measured(
        folder / "first",
        {"logic": SEVEN_TEN, "trivia": SEVEN_TEN, "language": groups},
        text=nats,
        loops=[True] * 30 + [False] * 20,
    )
    second = measured(
        folder / "second",
        {"logic": worsened(SEVEN_TEN, 30), "trivia": worsened(SEVEN_TEN[::-1], 2), "language": groups},
        text=nats + 20 + CHANCE.standard_normal(30),
        loops=[True] * 10 + [False] * 40,
    )
    return first, second


@pytest.fixture(scope="module")
def compared(two, tmp_path_factory):
    return compare(two, output_dir=tmp_path_factory.mktemp("compared") / "a")


def rows(values, pair=0):
    return {row["name"]: row for row in values["pairs"][pair]["figures"]}


def test_the_answer_names_the_better_model_and_where(compared):
    values, folder = compared
    answer = values["pairs"][0]["answer"]
    assert answer.startswith("Neither is better everywhere: first on LOGIC (by 7.5 points) and WikiText-2")
    assert "; second on Loops, greedy (by 40.0 points). On 3 of 6 figures the two cannot" in answer
    by_name = rows(values)
    assert {name: row["verdict"] for name, row in by_name.items()} == {
        "logic": "better", "trivia": "cannot be told apart", "language": "cannot be told apart",
        "wikitext": "better", "loops_greedy": "worse", "loops_sampled": "cannot be told apart",
    }  # fmt: skip
    logic = by_name["logic"]
    assert logic["difference"] == pytest.approx(30 / 400)
    assert logic["mcnemar"] == (30, 0, pytest.approx(2 * 0.5**30))
    assert logic["interval"][0] > 0
    assert by_name["language"]["how"] == "12 groups"
    assert by_name["language"]["in_words"] == "cannot be told apart: no difference was seen"
    assert "more items would be needed" in by_name["trivia"]["in_words"]
    text = by_name["wikitext"]
    assert text["difference"] < 0 < text["second"] - text["first"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "comparison.html", "comparison.json", "differences.png",
    ]  # fmt: skip
    assert (folder / "differences.png").read_bytes()[:4] == b"\x89PNG"


def test_turned_round_every_verdict_is_the_other(two, compared):
    ours, theirs = rows(compared[0]), rows(compare(two[::-1])[0])
    turned = {"better": "worse", "worse": "better"}
    for name, row in ours.items():
        assert theirs[name]["verdict"] == turned.get(row["verdict"], row["verdict"])
        assert theirs[name]["difference"] == pytest.approx(-row["difference"])


def test_a_comparison_says_what_it_was_made_of_and_comes_out_the_same(two, compared):
    again, folder = compare(two)
    assert folder.name == "first-vs-second"
    values = read_sealed(compared[1] / "comparison.json", "comparison", "")
    assert values["pairs"] == json.loads(json.dumps(again["pairs"]))
    assert values["method"]["seed"] == 0
    assert {len(each["sha256"]) for model in values["models"] for each in model["results"]} == {64}


def test_a_third_model_makes_every_verdict_harder(two, here):
    third = measured(here / "third", {"logic": worsened(SEVEN_TEN, 6)})
    alone = rows(compare([two[0], third], ["logic"])[0])["logic"]
    values = compare([two[0], two[1], third], ["logic", "trivia", "wikitext"])[0]
    among = rows(values, pair=1)["logic"]
    assert alone["verdict"] == "better"
    assert among["p"] == alone["p"]
    assert among["verdict"] == "cannot be told apart"
    assert [pair["second"] for pair in values["pairs"]] == ["second", "third"]
    assert values["pairs"][1]["not_compared"] == {
        "TRIVIA": "there are no results of third",
        "WikiText-2": "there are no results of third",
    }


def test_documents_are_lined_up_by_what_they_are(two, here):
    # The last 100 documents only, as another file of the set would have them: other places, the same hashes.
    part = measured(here / "part", {"logic": worsened(SEVEN_TEN, 30)})
    lines = (part / "samples.jsonl").read_text().splitlines(keepends=True)[300:]
    (part / "samples.jsonl").write_text("".join(lines))
    _resealed(part, lambda values: values["tasks"]["logic"].update(n=100, value=SEVEN_TEN[300:].mean()))
    (row,) = compare([two[0], part])[0]["pairs"][0]["figures"]
    assert row["n"] == 100
    assert (row["first"], row["difference"]) == (pytest.approx(SEVEN_TEN[300:].mean()), 0)
    assert "on the 100 documents that both have, of 400 and 100" in row["remarks"]


def _resealed(folder, change):
    from ant_hf.utils.files import file_sha256

    values = read_sealed(folder / "results.json", "results", "")
    change(values)
    if (folder / "samples.jsonl").exists():
        values["files"]["samples.jsonl"] = file_sha256(folder / "samples.jsonl")
    write_sealed(folder / "results.json", values)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2.0}, "another version of the task: 1.0 and 2.0"),
        ({"metric": "acc_norm"}, "another metric: acc and acc_norm"),
    ],
    ids=["version", "metric"],
)
def test_other_questions_are_not_compared(two, here, change, reason):
    other = shutil.copytree(two[1], here / "other")
    _resealed(other, lambda values: values["tasks"]["logic"].update(change))
    with pytest.raises(AntError, match=f"nothing can be compared:\n  - LOGIC: {reason}"):
        compare([two[0], other], ["logic"])


def test_other_prompts_are_not_compared(two, here):
    other = shutil.copytree(two[1], here / "other")
    samples = other / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"question 7"', '"Question 7?"'))
    _resealed(other, lambda _: None)
    values = compare([two[0], other])[0]
    assert values["pairs"][0]["not_compared"]["LOGIC"] == "prompts or choices differ in 1 of 400 documents"
    assert "wikitext" in rows(values)


def test_a_metric_of_which_less_may_be_better_has_no_verdict(two, here):
    copies = [shutil.copytree(folder, here / folder.name) for folder in two]
    for folder, value in zip(copies, (35.0, 20.0), strict=True):
        changed = {"metric": "perplexity", "value": value, "stderr": 1.0}
        _resealed(folder, lambda values, changed=changed: values["tasks"]["logic"].update(changed))
    (pair,) = compare(copies)[0]["pairs"]
    assert "perplexity has no interval here" in pair["not_compared"]["LOGIC"]
    # Nor is it a share.
    table = results_table(read_sealed(copies[0] / "results.json", "results", ""), [])
    assert "35.00 ±1.00" in table.columns[2].cells


def test_a_text_of_one_document_has_no_error_to_compare_by(here):
    models = [measured(here / name, {}, text=np.array([nats])) for name, nats in (("a", 700), ("b", 710))]
    with pytest.raises(AntError, match="2 documents or more that both have, and there are 1"):
        compare(models)
    for model in models:
        (model / "samples.jsonl").unlink()
    with pytest.raises(AntError, match="bits_per_byte has no interval here"):
        compare(models)


def test_other_documents_are_not_compared(two, here):
    other = shutil.copytree(two[1], here / "other")
    samples = other / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"logic ', '"other '))
    _resealed(other, lambda _: None)
    with pytest.raises(AntError, match="documents or more that both have, and there are 0"):
        compare([two[0], other], ["logic"])
    # Without samples, the hash of all documents says so.
    samples.unlink()
    _resealed(other, lambda values: values["tasks"]["logic"].update(data_sha256="1" * 64))
    with pytest.raises(AntError, match="documents differ, and pairing them needs the samples"):
        compare([two[0], other], ["logic"])


def test_conditions_that_differ_are_said(two, here):
    other = shutil.copytree(two[1], here / "other")
    _resealed(other, lambda values: values["conditions"].update(dtype="bfloat16", context_length=32))
    remarks = compare([two[0], other])[0]["pairs"][0]["remarks"]
    assert "precision differs: float32 and bfloat16" in remarks
    assert "context in tokens differs: 64 and 32" in remarks


def test_without_samples_only_larger_differences_count(two, here):
    bare = shutil.copytree(two[1], here / "bare")
    (bare / "samples.jsonl").unlink()
    sharp, wide = (rows(compare([two[0], other], ["logic"])[0])["logic"] for other in (two[1], bare))
    assert wide["difference"] == pytest.approx(sharp["difference"])
    assert np.ptp(wide["interval"]) > np.ptp(sharp["interval"])
    assert (sharp["is_paired"], wide["is_paired"]) == (True, False)
    assert sharp["p"] < 1e-6 < wide["p"] < 0.05


def test_figures_or_samples_changed_by_hand_are_refused(two, here):
    other = shutil.copytree(two[1], here / "other")
    samples = other / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"acc": 0.0', '"acc": 1.0', 1))
    with pytest.raises(AntError, match="does not belong to"):
        compare([two[0], other])
    results = other / "results.json"
    results.write_text(results.read_text().replace('"n": 400', '"n": 401', 1))
    with pytest.raises(AntError, match="was changed after it was written"):
        compare([two[0], other])


def test_a_folder_that_holds_something_else_is_not_replaced(two, here):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(AntError, match="mine exists already and is not a comparison"):
        compare(two, output_dir="mine")
    assert (here / "mine" / "thesis.tex").exists()
    # Its own is.
    for _ in range(2):
        compare(two, output_dir="fresh")


def test_the_command_answers_in_a_sentence_and_a_table(two, here, pages):
    result = run_here("ant-hf", "compare", *two, cwd=here, COLUMNS="120")
    assert result.returncode == 0, result.stderr
    first, *_ = result.stdout.splitlines()
    assert first.startswith("Neither is better everywhere")
    assert "unclear: no difference was seen" in result.stdout
    assert "comparison  comparisons/first-vs-second" in result.stdout
    for words, message in (
        ((two[0],), "two models or more"),
        ((two[0], two[0]), "is given twice"),
        ((two[0], here / "none"), "not found"),
        ((*two, "--tasks", "chemistry"), "nothing can be compared"),
        ((*two, "--for-card"), "needs a model folder"),
    ):
        result = run_here("ant-hf", "compare", *words, cwd=here)
        assert result.returncode == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_names_from_outside_stay_text(two, here, pages):
    hostile = shutil.copytree(two[0], here / "<script>$x$[b]")
    _, folder = compare([hostile, two[1]])
    page = (folder / "comparison.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;$x$[b]" in page
    for name in ("http://", "https://", "src="):
        assert name not in page
    result = run_here("ant-hf", "compare", hostile, two[1], cwd=here)
    assert "<script>$x$[b]" in result.stdout


# --- With models: what is missing is measured first.


@pytest.fixture(scope="module")
def models(tiny_run, tmp_path_factory):
    """A run's model, and a copy with noise in it; and a few documents of every set."""
    folder = tmp_path_factory.mktemp("models")
    ours, theirs = (shutil.copytree(tiny_run, folder / name) / "final" for name in ("plain", "noisy"))
    weights = load_file(theirs / "model.safetensors")
    chance = torch.Generator().manual_seed(0)
    for tensor in weights.values():
        tensor += 0.2 * tensor.std() * torch.randn(tensor.shape, generator=chance)
    save_file(weights, theirs / "model.safetensors", metadata={"format": "pt"})
    return ours, theirs, write_benchmarks(folder / "benchmarks")


def test_what_is_missing_is_measured_once_it_is_wanted(models, here, pages):
    ours, theirs, data = models
    words = ("ant-hf", "compare", ours, theirs, "--data-dir", data)
    result = run_here(*words, "--tasks", "arc_easy,wikitext", cwd=here)
    assert result.returncode == 2
    assert "plain is not measured on arc_easy and wikitext; noisy is not measured on" in result.stderr
    assert "Add --yes to measure it first" in result.stderr
    result = run_here(*words, "--tasks", "arc_easy,wikitext", "--yes", "--for-card", cwd=here)
    assert result.returncode == 0, result.stderr
    values = read_sealed(ours / "comparison.json", "comparison", "")
    assert set(rows(values)) == {"arc_easy", "wikitext"}
    assert all(row["is_paired"] for row in rows(values).values())
    assert values["models"][0]["weight_bytes"] > 0
    # Without a question all is there now; and a set that one model alone has is asked for.
    assert run_here(*words, cwd=here).returncode == 0
    ant_hf.evaluate(ours, ["boolq"], data_dir=data, device="cpu")
    asked = []
    values, folder = ant_hf.compare([ours, theirs], ask=lambda text: bool(asked.append(text)))
    assert asked == ["noisy is not measured on boolq"]
    assert values["pairs"][0]["not_compared"] == {"BoolQ": "there are no results of noisy"}
    assert (folder / "learning.png").exists()


def test_a_trial_leaves_the_full_results_alone(models, here):
    ours, _, data = models
    values, _ = compare(models[:2], ["piqa"], data_dir=data, limit=3, yes=True)
    assert rows(values)["piqa"]["n"] == 3
    assert "not the complete set of 1,838" in rows(values)["piqa"]["remarks"]
    assert (here / "evaluations" / "plain--final-limit-3" / "results.json").is_file()
    assert "piqa" not in (ours / "results.json").read_text() if (ours / "results.json").exists() else True


def test_results_of_other_weights_are_refused(models, here):
    ours = shutil.copytree(models[0].parent, here / "run") / "final"
    measured(here / "elsewhere", {"logic": SEVEN_TEN})
    for name in ("results.json", "samples.jsonl"):
        shutil.copy(here / "elsewhere" / name, ours)
    with pytest.raises(AntError, match="was measured with other weights than"):
        compare([ours, models[1]])


# --- The statistics, against scipy and against a known truth.


def test_signs_of_answers_are_mcnemars_exact_test():
    for more, less in ((10, 2), (5, 5), (1, 0), (60, 40)):
        differences = np.repeat([1.0, -1.0, 0.0], [more, less, 100])
        expected = stats.binomtest(more, more + less).pvalue
        assert sign_flip_p(differences, np.random.default_rng(0)) == pytest.approx(expected)


def test_signs_of_any_differences_agree_with_scipys_permutation_test():
    differences = np.random.default_rng(1).standard_normal(12) + 0.4
    exact = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flip_p(differences, np.random.default_rng(0)) == pytest.approx(exact, abs=0.01)


def test_the_interval_agrees_with_scipys_bootstrap_of_many_documents():
    differences = np.random.default_rng(2).choice([-1.0, 0.0, 1.0], 1000, p=[0.1, 0.75, 0.15])
    expected = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=5000, rng=0)
    found = paired(Units(differences, np.ones(1000)))
    assert found.interval == pytest.approx(tuple(expected.confidence_interval), abs=0.003)
    assert found.stderr == pytest.approx(expected.standard_error, rel=0.05)
    # Of few documents it is wider, as a t-interval is.
    few = np.random.default_rng(2).standard_normal(12)
    plain = stats.bootstrap((few,), np.mean, method="percentile", n_resamples=5000, rng=0).confidence_interval
    assert np.ptp(paired(Units(few, np.ones(12))).interval) > 1.05 * np.ptp(plain)


def test_no_difference_in_few_documents_is_no_certainty():
    found = paired(Units(np.zeros(10), np.ones(10)))
    assert found.interval == pytest.approx((-0.3085, 0.3085), abs=1e-4)
    assert found.p == 1.0


def test_unpaired_scores_have_newcombes_interval():
    # His example: 56 of 70 and 48 of 80, with Wilson's intervals (1998, table II, method 10).
    wilson = [stats.binomtest(*counts).proportion_ci(method="wilson") for counts in ((56, 70), (48, 80))]
    found = unpaired((0.8, tuple(wilson[0])), (0.6, tuple(wilson[1])))
    assert found.interval == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert found.p < 0.05


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_items_needed_grow_as_the_difference_shrinks_and_end_where_there_is_none():
    # (1.96 + 0.84) ** 2 * 0.2 / 0.02 ** 2 = 3,924 documents in all.
    assert more_items(Estimate(0.02, (0, 0), (0.2 / 1000) ** 0.5, 0.2), 1000, 1) == 3000
    assert more_items(Estimate(0.01, (0, 0), (0.2 / 1000) ** 0.5, 0.5), 1000, 1) == 15_000
    assert more_items(Estimate(0.0, (0, 0), 0.01, 1.0), 1000, 1) is None


@pytest.fixture(scope="module")
def simulation():
    return runpy.run_path(str(ROOT / "benchmarks/comparison.py"))


@pytest.mark.parametrize("kind", ["documents", "groups", "texts"])
def test_models_that_are_alike_are_rarely_told_apart(simulation, kind, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    draw = {
        "documents": simulation["documents"](1000, 0.2),
        "groups": simulation["groups"](57, 246, 0.05),
        "texts": simulation["texts"](62, 0.01),
    }[kind]
    generator = np.random.default_rng(3)
    p_values = [sign_flip_p(draw(generator).differences, generator) for _ in range(150)]
    # 5 % and three standard errors of so many pairs.
    assert np.mean(np.array(p_values) < 0.05) < 0.05 + 3 * (0.05 * 0.95 / 150) ** 0.5


def test_the_documented_tables_are_the_simulations(simulation):
    values = json.loads((ROOT / "docs/comparison-simulation.json").read_text())
    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    assert values["pairs"] == 1000
    for table in simulation["tables"](values):
        assert str(table) in text
    for key in ("any_false", "any_false_uncorrected"):
        assert f"{values['families'][key]:.1%}" in text


def test_a_true_difference_is_found(simulation):
    draw, generator = simulation["documents"](2376, 0.1, 0.02), np.random.default_rng(4)
    p_values = [sign_flip_p(draw(generator).differences, generator) for _ in range(200)]
    assert np.mean(np.array(p_values) < 0.05) > 0.75
