"""Public boards: their formulas, the rows of others beside ours, and the command from records to plot."""

import json
import shutil

import pytest
from benchmark_data import write_benchmarks
from commands import run_here
from records import accuracy, results_for, task

from ant_hf.errors import AntError
from ant_hf.evaluation.boards import board_rows, load_board, markdown_row
from ant_hf.evaluation.evaluate import evaluate
from ant_hf.published import published_rows
from ant_hf.utils.files import write_sealed


def complete(final):
    """Records of a model with every set of both boards; its ARC-Easy differs by metric."""
    results = results_for(final)
    results["tasks"] |= {
        "blimp": task("BLiMP", "acc", 67000, 40200, 0.5),
        "arc_easy": task("ARC-Easy", "acc_norm", 2376, 770, 0.25),
        "hellaswag": task("HellaSwag", "acc_norm", 10042, 2800, 0.25),
    }
    results["tasks"]["arc_easy"]["metrics"]["acc"] = accuracy(1188, 2376)
    results["model"]["parameters"] = 9_902_336
    for record in results["tasks"].values():
        record["metrics"] = {
            name: {k: v[k] for k in ("value", "stderr")} for name, v in record["metrics"].items()
        }
    results["perplexity"]["wikitext"]["byte_perplexity_stderr"] = 0.02
    return results


def test_the_formulas_give_what_others_published():
    tiny, open_slm = load_board("tiny-ml"), load_board("open-slm")
    # The card of qoat-tiny-wiki30-8m (2026-10-09) prints its efficiency with what it follows from.
    values = {"blimp": 0.6878955, "arc_easy": 0.3611111, "wikitext": 2.5773766}
    assert tiny.score_of(values, 8_388_608) == pytest.approx(74.357, abs=0.01)
    assert tiny.score_of({"blimp": 0.6, "arc_easy": 0.3}, 8_388_608) is None
    # 40, 50 and 30, and 60 %, with guessing at 25 and 50: 20 points each.
    values = {"hellaswag": 0.4, "arc_easy": 0.5, "arc_challenge": 0.3, "piqa": 0.6}
    assert open_slm.score_of(values, 5_000_000) == pytest.approx(20.0)
    assert open_slm.score_of({**values, "arithmark_2.0": 0.9}, 5_000_000) == pytest.approx(20.0)


def test_our_row_stands_among_the_published_ones_by_the_metric_of_the_board(tiny_run):
    board, results = load_board("tiny-ml"), complete(tiny_run / "final")
    rows = board_rows(board, results, "me/mine")
    scores = [row.score for row in rows if row.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert all(row.score is None for row in rows[len(scores) :])
    (own,) = (row for row in rows if row.is_measured)
    # ARC-Easy by acc, although results.json shows acc_norm.
    assert own.shown["arc_easy"].startswith("50.00 ±")
    (tuned,) = (row for row in rows if row.name.endswith("qielbas-tiny-9m-m2"))
    assert (tuned.tuned_on, tuned.shown["wikitext"]) == (["arc_easy"], "2.337")
    assert {row.name: row.tuned_on for row in rows}["finnianx/michel-micro"] is None
    assert markdown_row(board, rows).splitlines()[2].startswith("| me/mine | 9,902,336 | 60.00 | 50.00 | ")
    # The other board is of models under 10M, ours stays in any case.
    others = board_rows(load_board("open-slm"), results, "me/mine")
    assert all(row.parameters <= 10_000_000 for row in others)
    assert "EleutherAI/pythia-14m" in {row.name for row in rows} - {row.name for row in others}


def test_the_first_documents_of_a_set_are_no_place_on_a_board(tiny_run):
    results = complete(tiny_run / "final")
    results["tasks"]["blimp"] |= {"n": 100, "complete": False}
    rows = board_rows(load_board("tiny-ml"), results, "mine")
    (own,) = (row for row in rows if row.is_measured)
    assert (own.score, own.shown["blimp"].split(" ")[0]) == (None, "60.00*")
    assert markdown_row(load_board("tiny-ml"), rows) is None


def test_every_published_row_says_where_it_is_from():
    for row in published_rows():
        assert row.source, row.name
        assert row.looked_up, row.name
        assert all(float(text) > 0 for figures in row.results.values() for text in figures.values())


def test_records_that_are_there_are_shown_without_measuring(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(tiny_run / "final", tmp_path / "model")
    results = complete(model)
    results["model"]["name"] = "my-ant/final"
    write_sealed(model / "results.json", results)
    monkeypatch.setattr("ant_hf.evaluation.evaluate.evaluate", None)
    result = run_here("ant-hf", "evaluate", model, "--board", "tiny-ml", COLUMNS="80")
    assert result.returncode == 0, result.stderr
    table, _, rest = result.stdout.partition("accuracies in %")
    assert max(map(len, table.splitlines())) <= 80
    for part in ("here", "publ.", "qielbas-tiny-9m-m2"):
        assert part in table
    for part in ("as fitted 2026-11", "bytes per token", "| my-ant | 9,902,336 | 60.00 |"):
        assert part in rest
    assert (model / "board-tiny-ml.png").read_bytes()[:4] == b"\x89PNG"


def test_only_what_is_missing_is_measured(tiny_run, tmp_path, capsys):
    model, data = (
        shutil.copytree(tiny_run / "final", tmp_path / "model"),
        write_benchmarks(tmp_path / "data", 2),
    )
    first, _ = evaluate(model, ["arc_easy"], data_dir=data, device="cpu")
    results, _ = evaluate(model, board="tiny-ml", data_dir=data, device="cpu")
    assert "ARC-Easy: measured before on these weights" in capsys.readouterr().out
    assert results["tasks"]["arc_easy"] == first["tasks"]["arc_easy"]
    assert set(results["tasks"]) | set(results["perplexity"]) == set(load_board("tiny-ml").tasks)
    # No stand-in takes the place of a set that a board wants.
    (data / "blimp.jsonl").unlink()
    others, _ = evaluate(model, board="open-slm", data_dir=data, device="cpu")
    assert "arithmark_generated" not in others["tasks"]
    assert "has no file for them" in capsys.readouterr().out
    assert "degeneration" not in json.loads((model / "results.json").read_text())


@pytest.mark.parametrize(
    ("tasks", "board", "message"),
    [
        ((), "tiny", "unknown board; saw 'tiny'.*tiny-ml or open-slm.*Did you mean --board tiny-ml"),
        (("piqa",), "tiny-ml", "--board and --tasks were both given"),
        (
            (),
            "open-slm",
            "there is nothing to measure: .* has no file for these sets; saw 'hellaswag, arc_easy",
        ),
    ],
)
def test_a_wrong_choice_of_board_is_refused(tiny_run, tmp_path, tasks, board, message):
    with pytest.raises(AntError, match=message):
        evaluate(tiny_run / "final", tasks, board=board, data_dir=tmp_path, device="cpu")
