import json
import shutil
import subprocess
from pathlib import Path

from commands import ROOT, run_here

from ant_hf.utils.files import read_sealed, write_sealed

RECORDS = ("release/Ant-10M", "docs/recipe/Ant-5M")


def side_by_side(*folders: str, figure: Path) -> subprocess.CompletedProcess[str]:
    return run_here("python", "tools/side_by_side.py", *folders, "--figure", figure)


def test_the_table_of_the_two_models_is_made_of_their_records(tmp_path):
    result = side_by_side(*RECORDS, figure=tmp_path / "figure.png")
    assert result.returncode == 0, result.stderr
    assert result.stdout in (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_a_model_without_an_evaluation_is_named(tmp_path):
    result = side_by_side(RECORDS[0], str(tmp_path), figure=tmp_path / "figure.png")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert f"{tmp_path}/results.json" in result.stderr
    assert "ant-hf evaluate" in result.stderr
    assert not (tmp_path / "figure.png").exists()


def test_a_run_without_a_log_is_named(tmp_path):
    shutil.copy(ROOT / RECORDS[1] / "results.json", tmp_path)
    result = side_by_side(RECORDS[0], str(tmp_path), figure=tmp_path / "figure.png")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert f"{tmp_path}/metrics.jsonl" in result.stderr
    assert not (tmp_path / "figure.png").exists()


def test_figures_changed_by_hand_are_refused(tmp_path):
    shutil.copytree(ROOT / RECORDS[1], tmp_path / "Ant-5M")
    path = tmp_path / "Ant-5M/results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    results["tasks"]["sciq"]["value"] = 0.99
    path.write_text(json.dumps(results), encoding="utf-8")
    result = side_by_side(RECORDS[0], str(path.parent), figure=tmp_path / "figure.png")
    assert result.returncode == 1
    assert "was changed after it was written" in result.stderr


def test_sets_that_one_model_was_not_measured_on_and_errors_that_are_unknown_are_left_out(tmp_path):
    folder = tmp_path / "Ant-5M"
    shutil.copytree(ROOT / RECORDS[1], folder)
    results = read_sealed(folder / "results.json", "results", "")
    # As `ant-hf evaluate --tasks` writes it, with a metric that lm-eval gives no error for.
    del results["degeneration"]
    results["tasks"]["sciq"]["stderr"] = None
    write_sealed(folder / "results.json", results)
    result = side_by_side(RECORDS[0], str(folder), figure=tmp_path / "figure.png")
    assert result.returncode == 0, result.stderr
    assert "loop_rate" not in result.stdout
    _, _, ours, theirs, difference, *_ = (
        next(line for line in result.stdout.splitlines() if "SciQ" in line).strip("| ").split(" | ")
    )
    assert ("±" in ours, "±" in theirs, "±" in difference) == (True, False, False)
