"""The table in docs/reliability-tables.md is the soak's own output, and nothing in it was lost."""

import json

from soak import PAGE, RESULTS, fill, render


def test_the_page_shows_the_results_of_the_soak():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    assert fill(page, render(results)) == page


def test_nothing_was_lost():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for tally in results["kills"]:
        assert tally["lost_steps"] == tally["corrupt_resumes"] == tally["runs_different"] == 0
        assert tally["runs_equal"] == tally["runs_finished"] > 0
        assert tally["failures"] == []
    assert [fault for fault, row in results["faults"].items() if row["lost"]] == []
