"""The study of the released recipe, and its tables in docs/recipe-27m.md."""

import itertools
import json
import math
import re

from commands import ROOT
from records import table_rows

from ant_hf.studies.record import StudyRecord
from ant_hf.studies.study_file import Options, load_study

TEXT = (ROOT / "docs/recipe-27m.md").read_text()
# Trained on other text, these are told of without a difference, and are no runs of the study.
OTHER_TEXT = {"without the novels", "part of the text, once", "a quarter of that part, four times"}


def neighbours(text):
    """All pairs of cells that stand side by side in a table."""
    return {pair for cells in table_rows(text) for pair in itertools.pairwise(cells)}


def triples(text):
    """Three cells that stand side by side in a table."""
    return {tuple(cells[at : at + 3]) for cells in table_rows(text) for at in range(len(cells) - 2)}


def values_of(runs):
    """Of each run by its name, with the names that the committed figures have."""
    return {run.cell.replace("constant, mean", "constant, no decay, mean"): run for run in runs}


def test_every_row_on_the_same_text_is_a_run_of_the_study():
    runs = values_of(load_study("recipe").runs)
    rows = json.loads((ROOT / "docs/recipe/sweep.json").read_text())
    assert {row["name"] for row in rows} - OTHER_TEXT - {"base, another seed"} == set(runs)
    for row in rows:
        if row["name"] in runs and "steps" in row:
            run = runs[row["name"]]
            assert (run.recipe.training.max_steps, run.tokens) == (row["steps"], row["tokens_seen"])
    assert runs["half the batch"].recipe.training.warmup_steps == 20
    assert runs["constant, no decay, mean of the last 4 checkpoints"].recipe.training.average_last == 4


def test_the_longer_schedule_is_the_same_study_at_four_times_the_tokens():
    base, *rows = json.loads((ROOT / "docs/recipe/schedule.json").read_text())
    (command,) = re.findall(r"`ant-hf study recipe --data TEXT ([^`]*)`", " ".join(TEXT.split()))
    overrides = re.findall(r"--set (\S+)", command)
    assert "--scale 4" in command
    runs = values_of(load_study("recipe", Options(overrides, scale=4)).runs)
    for override in base["overrides"]:
        key, _, value = override.partition("=")
        assert getattr(runs["base"].recipe.training, key.removeprefix("training.")) == float(value)
    for row in rows:
        assert runs[row["name"]].recipe.training.save_steps == 32


def test_the_tables_of_the_recipe_are_what_was_measured():
    cells = {cell for row in table_rows(TEXT) for cell in row}
    base, *rows = json.loads((ROOT / "docs/recipe/sweep.json").read_text())
    assert (f"{base['bits_per_byte']:.4f}", "") in neighbours(TEXT)
    for row in rows:
        whole = "bits_per_byte_of_whole_text"
        key = whole if whole in row else "bits_per_byte"
        value = f"{row[key]:.4f}"
        if row["name"] in OTHER_TEXT:
            assert re.search(rf"\b{value}\b", TEXT), row["name"]
        else:
            assert (value, f"{row[key] - base[key]:+.4f}") in neighbours(TEXT), row["name"]
    for row in (base, *rows):
        by_source = row.get("bits_per_byte_by_source", {}).values()
        assert {f"{value:.3f}" for value in by_source} <= cells, row["name"]


def test_the_study_reproduces_the_table_of_the_script():
    cells = {cell.name: cell for cell in StudyRecord.read(ROOT / "docs/studies/recipe.json").cells}
    record = {name: cell.mean("bits_per_byte") for name, cell in cells.items()}
    base, *rows = json.loads((ROOT / "docs/recipe/sweep.json").read_text())
    noise = cells["base"].deviation("bits_per_byte")
    for row in rows:
        name = row["name"].replace("constant, no decay, mean", "constant, mean")
        if name not in record:
            continue
        whole = "bits_per_byte_of_whole_text"
        key = whole if whole in row else "bits_per_byte"
        again, first = record[name] - record["base"], row[key] - base[key]
        assert (f"{record[name]:.4f}", f"{again:+.4f}", f"{row[key]:.4f}") in triples(TEXT), name
        # The verdict: whether a run is told apart from the base's three seeds, and to which side.
        limit = 2 * noise * math.sqrt(1 + 1 / 3)
        assert [abs(again) > limit, again > limit] == [abs(first) > limit, first > limit], name


def test_the_table_of_the_schedules_is_what_was_measured():
    base, *rows = json.loads((ROOT / "docs/recipe/schedule.json").read_text())
    assert (f"{base['bits_per_byte']:.4f}", "") in neighbours(TEXT)
    for row in rows:
        difference = row["bits_per_byte"] - base["bits_per_byte"]
        assert (f"{row['bits_per_byte']:.4f}", f"{difference:+.4f}") in neighbours(TEXT), row["name"]
