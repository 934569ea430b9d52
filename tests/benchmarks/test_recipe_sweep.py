"""benchmarks/recipe_sweep.py from its command line to its table and plot, with a model 32 wide."""

import itertools
import json
import re

import pytest
from commands import ROOT, in_a_process, run_here
from records import table_rows

from ant_hf.data.corpus import Corpus
from ant_hf.data.sources import LocalFiles

BENCHMARK = ROOT / "benchmarks/recipe_sweep.py"
ROWS = (
    "base",
    "base, another seed",
    "half the batch",
    "twice the batch",
    "constant, no decay",
    "part of the text, once",
    "a quarter of that part, four times",
)


@pytest.mark.slow
def test_rows_are_trained_once_and_shown(make_recipe, shared, tmp_path):
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "stable_fraction": 0.5, "min_lr_rate": 0.0}
    make_recipe("tiny", max_steps=16, optimizer="muon", muon_learning_rate=0.02, **schedule)
    places = {"config": tmp_path / "tiny.yaml", "data": shared / "corpus.jsonl"}
    places |= {"output": tmp_path / "shown", "runs": tmp_path / "runs"}
    options = [item for name, path in places.items() for item in (f"--{name}", str(path))]
    first = in_a_process("python", BENCHMARK, *options, "--only", *ROWS)
    assert first.returncode == 0, first.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "shown/sweep.json").read_text())}
    means = [name for name in rows if name.startswith("constant, no decay, mean of the last")]
    assert [*rows] == [*ROWS[:5], *means, *ROWS[5:]]
    assert len(means) == 3
    # Where the text is repeated its last block is shorter.
    assert [rows[name]["tokens_seen"] for name in ROWS] == pytest.approx([16 * 8 * 64] * len(ROWS), rel=0.02)
    assert rows["half the batch"]["steps"] == 32
    assert rows["base"]["bits_per_byte"] != rows["base, another seed"]["bits_per_byte"]
    assert (tmp_path / "shown/sweep.png").stat().st_size > 5000
    written = (tmp_path / "runs/base/run.json").read_bytes()
    again = in_a_process("python", BENCHMARK, *options, "--only", *ROWS[:2])
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "runs/base/run.json").read_bytes() == written


def test_a_part_of_the_text_has_training_and_held_out_documents(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from recipe_sweep import write_part

    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": f"document {number} " * 20}) + "\n" for number in range(3000))
    )
    write_part(str(texts), tmp_path / "part.jsonl", 30_000)
    corpus = Corpus(LocalFiles.find(str(tmp_path / "part.jsonl")), 0.1)
    held_out = [document.is_validation for document in corpus]
    assert 400 < len(held_out) < 700
    assert 0.05 < sum(held_out) / len(held_out) < 0.15


def test_a_part_is_there_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import recipe_sweep

    texts, part = tmp_path / "texts.jsonl", tmp_path / "runs" / "part.jsonl"
    texts.write_text("".join(json.dumps({"text": f"document {number}"}) + "\n" for number in range(30)))
    written = []

    def killed_at_the_tenth(text):
        written.append(text)
        if len(written) == 10:
            raise KeyboardInterrupt
        return text.encode()

    with monkeypatch.context() as patched:
        patched.setattr(recipe_sweep, "normalised", killed_at_the_tenth)
        with pytest.raises(KeyboardInterrupt):
            recipe_sweep.write_part(str(texts), part, 1000)
    assert not part.exists()
    recipe_sweep.write_part(str(texts), part, 1000)
    assert len(part.read_text().splitlines()) == 30


def test_averages_find_the_architecture_from_any_folder(make_recipe, tiny_run, shared, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import recipe_sweep

    # Recipes name it from the root of the repository, where the runs are started.
    base = make_recipe().model_copy(update={"architecture": "config.json"})
    monkeypatch.setattr(recipe_sweep, "ROOT", shared)
    monkeypatch.chdir(tmp_path)
    rows = recipe_sweep.averaged_rows(tiny_run, base, tiny_run / "tokens")
    assert [row["checkpoints"] for row in rows] == [2, 4, 8]
    assert all(0 < row["bits_per_byte"] < 20 for row in rows)


# Trained on other text, these are told of without a difference.
OTHER_TEXT = {"without the novels", "part of the text, once", "a quarter of that part, four times"}


def neighbours(text):
    """All pairs of cells that stand side by side in a table."""
    return {pair for cells in table_rows(text) for pair in itertools.pairwise(cells)}


def test_the_tables_of_the_recipe_are_what_was_measured():
    text = (ROOT / "docs/recipe.md").read_text()
    cells = {cell for row in table_rows(text) for cell in row}
    base, *rows = json.loads((ROOT / "docs/recipe/sweep.json").read_text())
    assert (f"{base['bits_per_byte']:.4f}", "") in neighbours(text)
    for row in rows:
        whole = "bits_per_byte_of_whole_text"
        key = whole if whole in row else "bits_per_byte"
        value = f"{row[key]:.4f}"
        if row["name"] in OTHER_TEXT:
            assert re.search(rf"\b{value}\b", text), row["name"]
        else:
            assert (value, f"{row[key] - base[key]:+.4f}") in neighbours(text), row["name"]
    for row in (base, *rows):
        by_source = row.get("bits_per_byte_by_source", {}).values()
        assert {f"{value:.3f}" for value in by_source} <= cells, row["name"]


def test_the_table_of_the_schedules_is_what_was_measured():
    text = (ROOT / "docs/recipe.md").read_text()
    base, *rows = json.loads((ROOT / "docs/recipe/schedule.json").read_text())
    assert (f"{base['bits_per_byte']:.4f}", "") in neighbours(text)
    command = " ".join(f"--set {change}" for change in base["overrides"])
    assert command in " ".join(text.split())
    for row in rows:
        difference = row["bits_per_byte"] - base["bits_per_byte"]
        assert (f"{row['bits_per_byte']:.4f}", f"{difference:+.4f}") in neighbours(text), row["name"]


def test_a_row_that_is_none_is_refused():
    result = run_here("python", BENCHMARK, "--data", "text", "--output", "out", "--only", "bigger")
    assert result.returncode == 2
    assert "bigger" in result.stderr
