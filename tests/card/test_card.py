"""The card: nothing missing, nothing typed, nothing foreign gets out of its cell."""

import copy
import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import markdown_it
import numpy as np
import pytest
import yaml
from conftest import ROOT
from hub.metadata_rules import problems
from huggingface_hub import ModelCard
from records import measured, table_rows

from ant_hf.card.audit import audit
from ant_hf.card.claims import card_claims, read_card
from ant_hf.card.inputs import read_inputs
from ant_hf.card.markdown import Safe, code, escape, quote, read_tables, table
from ant_hf.card.rendering import KEYS, co2_estimate, comparison_table, render_card
from ant_hf.errors import AntError
from ant_hf.evaluation.comparison import compare
from ant_hf.release.build import make_release
from ant_hf.release.files import read_release
from ant_hf.utils.files import file_sha256, inventory, write_sealed

REPO = "GODELEV/Ant-10M"


@pytest.fixture
def inputs(released):
    """The records of a released run; a copy that a test may change."""
    folder = released / "release"
    files = inventory(folder, without=("README.md", "release.json"))
    return copy.deepcopy(read_inputs(folder, REPO, "apache-2.0", files))


def metadata(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def html(card):
    body = ModelCard(card).text
    return markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(body)


def test_card_has_every_part(inputs):
    card = render_card(inputs)
    for part in (
        "It is not an assistant", "perplexity trap", "Architecture", "Hardware and training",
        "Training dynamics", "Perplexity", "Benchmarks, zero-shot", "Arithmark-2.0 by number of operators",
        "Key takeaways", "Use the model", "Release gate", "Reproduce", "Data and licence", "Limits",
        "plots/loss.png", "plots/learning_rate.png", "plots/fragmentation.png", "plots/benchmarks.png",
        "Ant-5M (published)", "Ant-10M (published)", "Ant-10M (measured)", f'model_id = "{REPO}"', "CO2",
    ):  # fmt: skip
        assert part in card, part
    assert "88,520,100.69" in card
    assert str(inputs.run["environment"]["commit"]) in card


def test_metadata_has_only_real_keys_and_passes_the_strict_check(inputs):
    card = render_card(inputs)
    values = metadata(card)
    assert set(values) <= KEYS
    assert problems(card) == []
    (model,) = values["model-index"]
    assert model["name"] == "Ant-10M"
    by_set = {r["dataset"]["name"]: r["metrics"][0] for r in model["results"]}
    assert by_set["PIQA"]["value"] == round(990 / 1838, 4)
    assert "perplexity" in by_set["WikiText-2"]["type"]


def test_the_cards_language_is_the_recipes_or_none(inputs):
    for language in ("en", "ru", None):
        inputs.run["recipe"]["corpus"]["language"] = language
        (english,) = (check for check in inputs.gate["checks"] if "English" in check["name"])
        english["passed"] = True if language == "en" else None
        card = render_card(inputs)
        assert metadata(card).get("language") == language
        assert ("English text, as named here" in card) == (language == "en")
        assert ("Text in one language (ru)" in card) == (language == "ru")
    # Earlier records name none; their gate held every model to English.
    del inputs.run["recipe"]["corpus"]["language"]
    english["passed"] = True
    assert metadata(render_card(inputs))["language"] == "en"


def test_our_own_card_has_no_finding(inputs):
    findings = audit(card_claims(render_card(inputs), "card"))
    assert len(findings) > 20
    assert [finding for finding in findings if finding.verdict == "DISAGREES"] == []


def test_a_comparison_beside_the_model_is_in_the_card(released, tmp_path, monkeypatch):
    run = shutil.copytree(released, tmp_path / "run")
    passed = json.loads((run / "release" / "gate.json").read_text())
    monkeypatch.setattr("ant_hf.release.build._gate_report", lambda *_: passed)
    final = run / "final"
    chance = np.random.default_rng(0)
    right = (chance.random(300) < 0.6).astype(int)
    ours = measured(tmp_path / "ours", {"logic": right})
    base = measured(tmp_path / "<b>base|", {"logic": right * (chance.random(300) < 0.8)})
    values, _ = compare([ours, base], output_dir=tmp_path / "comparison")
    values["models"][0]["weights_sha256"] = file_sha256(final / "model.safetensors")
    write_sealed(final / "comparison.json", values)
    release = make_release(final, REPO)
    card = (release / "README.md").read_text(encoding="utf-8")
    assert "## Compared with &lt;b&gt;base\\|" in card
    assert "ours is better on LOGIC (by" in card
    (row,) = (row for row in table_rows(card) if row[0].startswith("LOGIC"))
    assert row[-2:] == ["300 documents", "better"]
    pair = values["pairs"][0]
    pair["figures"][0]["how"] = "67 groups"
    assert "300 documents, 67 groups" in comparison_table(pair)
    assert "<b>" not in html(card)
    findings = audit(card_claims(card, "card"))
    assert [finding for finding in findings if finding.verdict == "DISAGREES"] == []
    assert "comparison.json" in read_release(release, "")["files"]
    assert str(tmp_path) not in (release / "comparison.json").read_text()
    # Of other weights it says nothing about this model.
    write_sealed(final / "comparison.json", values | {"models": [{"weights_sha256": "0" * 64}]})
    with pytest.raises(AntError, match="compares another model"):
        make_release(final, REPO)


def test_a_second_release_at_the_same_time_waits_and_finds_the_first(released, tmp_path, monkeypatch):
    run = shutil.copytree(released, tmp_path / "run")
    passed = json.loads((run / "release" / "gate.json").read_text())
    shutil.rmtree(run / "release")
    reached, continued, gates = threading.Event(), threading.Event(), []

    def gate(*_):
        gates.append(passed)
        reached.set()
        assert continued.wait(60)
        return passed

    monkeypatch.setattr("ant_hf.release.build._gate_report", gate)
    told = []
    monkeypatch.setattr("ant_hf.utils.locks.say", lambda *words: (told.append(words), continued.set()))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(make_release, run / "final", REPO)
        assert reached.wait(60)
        second = make_release(run / "final", REPO)
        assert first.result() == second == run / "release"
    assert len(gates) == 1
    assert [label for label, _ in told] == ["waiting"]


def test_slices_belong_to_the_benchmark_of_the_table_and_to_no_name_like_it(inputs):
    tasks = inputs.results["tasks"]
    other = {**tasks["arithmark_2.0"], "label": "Algorithms", "slices": None}
    half = {"n": 586, "value": 0.25, "stderr": 0.02, "floor": 0.25, "verdict": "indistinguishable"}
    tasks["arc_challenge"] |= {"value": 293 / 1172, "slice_title": "phenomenon"}
    tasks["arc_challenge"]["slices"] = {
        "binding": half | {"value": 146 / 586},
        "ellipsis": half | {"value": 147 / 586},
    }
    inputs.results["tasks"] = {"algorithms": other, **tasks}
    card = render_card(inputs)
    claims = card_claims(card, "card")
    assert claims.accuracies[0].label == "Algorithms"
    assert [(each.overall.label, len(each.parts)) for each in claims.sliced] == [
        ("ARC-Challenge", 2), ("Arithmark-2.0", 3)
    ]  # fmt: skip
    assert "### ARC-Challenge by phenomenon" in card
    assert [finding for finding in audit(claims) if finding.agrees is False] == []
    # One right answer more in one part, and the parts no longer make up the whole.
    (row,) = re.findall(r"\| binding .*", card)
    changed = audit(card_claims(card.replace(row, row.replace("0.2491", "0.2611")), "card"))
    assert [f.claim for f in changed if f.agrees is False] == ["ARC-Challenge 25.00% overall"]


@pytest.mark.parametrize(
    ("printed", "changed"),
    [
        ("| Tokens per step | 512 |", "| Tokens per step | 640 |"),
        (
            "| PIQA | `acc_norm` | 0.4951 | 0.5032 | 0.5386 |",
            "| PIQA | `acc_norm` | 0.4951 | 0.5032 | 0.5388 |",
        ),
        ("| Hidden size (`hidden_size`) | 32 |", "| Hidden size (`hidden_size`) | 48 |"),
    ],
    ids=["tokens", "accuracy", "shape"],
)
def test_a_figure_typed_by_hand_is_found(inputs, printed, changed):
    card = render_card(inputs)
    assert printed in card
    findings = audit(card_claims(card.replace(printed, changed), "card"))
    assert [finding for finding in findings if finding.verdict == "DISAGREES"]


@pytest.mark.parametrize(
    ("printed", "changed"),
    [
        ("| Tokens seen |", "| Tokens |"),
        ("| Validation loss |", "| Loss |"),
        ("| items |", "| n |"),
        (" (measured) |", " |"),
        ("| Tokens per step | 512 |", "| Tokens per step | nan |"),
        ("| Tokens per step | 512 |", "| Tokens per step |"),
        ("# Ant-10M", "# Ant-10M \udcff"),
    ],
)
def test_a_card_that_was_cut_by_hand_is_refused_in_words(inputs, tmp_path, printed, changed):
    card = render_card(inputs)
    assert printed in card
    text = card.replace(printed, changed).encode(errors="surrogateescape")
    (tmp_path / "README.md").write_bytes(text)
    with pytest.raises(AntError, match=r"cannot be read: |is not a number; saw 'nan'"):
        read_card(tmp_path)


RECORDS = ("run.json", "results.json", "gate.json", "fragmentation.json", "tokens.json", "metrics.jsonl")


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("results.json", "conditions.context_length"),
        ("results.json", "perplexity.wikitext.byte_perplexity"),
        ("results.json", "tasks.piqa.stderr"),
        ("run.json", "final.bits_per_byte"),
        ("run.json", "environment.device_name"),
        ("run.json", "samples"),
        ("fragmentation.json", "bytes_per_token"),
        ("tokens.json", "splits.train.documents"),
        ("gate.json", "verdict"),
    ],
)
def test_a_missing_number_is_named_with_its_file(released, tmp_path, file, path):
    for name in RECORDS:
        shutil.copy(released / "release" / name, tmp_path)
    record = json.loads((tmp_path / file).read_text())
    *parents, key = path.split(".")
    values = record
    for parent in parents:
        values = values[parent]
    del values[key]
    (tmp_path / file).write_text(json.dumps(record))
    files = inventory(released / "release", without=("README.md", "release.json"))
    with pytest.raises(
        AntError, match=rf"{re.escape(str(tmp_path / file))} lacks {path}, which the card shows"
    ):
        render_card(read_inputs(tmp_path, REPO, "apache-2.0", files))


def keys_of(values, path=()):
    """Every key of a record, at any depth; of a list its first entry."""
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from keys_of(value[0], (*path, key, 0))
        elif isinstance(value, dict):
            yield from keys_of(value, (*path, key))


@pytest.mark.parametrize("file", [name for name in RECORDS if name.endswith(".json")])
def test_whatever_key_is_missing_is_named_or_the_card_does_without(released, tmp_path, file):
    files = inventory(released / "release", without=("README.md", "release.json"))
    for name in RECORDS:
        shutil.copy(released / "release" / name, tmp_path)
    whole = json.loads((tmp_path / file).read_text())
    # All benchmarks are read alike.
    whole |= {"tasks": {"arithmark_2.0": whole["tasks"]["arithmark_2.0"]}} if "tasks" in whole else {}
    refused, messages = 0, []
    for *parents, key in keys_of(whole):
        values = record = copy.deepcopy(whole)
        for parent in parents:
            values = values[parent]
        del values[key]
        (tmp_path / file).write_text(json.dumps(record))
        try:
            render_card(read_inputs(tmp_path, REPO, "apache-2.0", files))
        except AntError as error:
            refused += 1
            messages.append((key, str(error)))
    for key, message in messages:
        assert file in message
        assert key in message or "belongs to other weights" in message
    assert refused > 5


HOSTILE = (
    "x\n---\nlicense: evil\n---\n| a | b |\n<script>alert(1)</script> "
    "![](http://evil) [l](j:x) `c` **b** $m$ &lt; \u202e"
)


def test_hostile_values_stay_text(inputs):
    clean = render_card(inputs)
    inputs.run["environment"]["device_name"] = HOSTILE
    inputs.run["samples"][1]["text"] = HOSTILE + "\n```\n# heading\n- list\n1. list\n<img src=x onerror=y>"
    inputs.run["recipe"]["sample_prompt"] = "``` \n````\n</code>"
    inputs.run["recipe"]["corpus"]["path"] = HOSTILE
    inputs.run["recipe"]["corpus"]["source"] = "hub"
    inputs.fragmentation["worst_shattered_words"][0]["word"] = "`|<b>`` x"
    inputs.results["tasks"]["piqa"]["label"] = HOSTILE
    card = render_card(inputs)
    assert metadata(card)["license"] == "apache-2.0"
    assert "evil" not in str(metadata(card).get("datasets"))
    assert problems(card) == []
    page, clean_page = html(card), html(clean)
    for tag in ("script", "img", "a", "h1", "h2", "table", "tr", "strong", "pre", "ol", "hr"):
        assert page.count(f"<{tag}") == clean_page.count(f"<{tag}"), tag
    assert "&lt;script&gt;" in page
    assert "\u202e" not in card
    assert [row for rows in read_tables(card) for row in rows if len(row) != len(rows[0])] == []


def test_cells_survive_the_way_into_markdown_and_back():
    cells = ["a|b", "*x* _y_ `z`", "<i>&amp;", "back\\slash", "#1 [l](u) !$~"]
    ((header, row),) = read_tables(table(cells, [cells]))
    assert row[0] == "a|b"
    assert row[2:] == cells[2:]
    assert header == row
    assert escape(Safe("**ours**")) == "**ours**"
    assert code("a`b") == "`` a`b ``"
    assert quote("one\n> two") == "> one  \n> &gt; two  "


def test_incomplete_sets_are_labelled_and_stay_out_of_the_index(inputs):
    inputs.results["tasks"]["piqa"] |= {"n": 20, "complete": False, "value": 0.55, "stderr": 0.11}
    card = render_card(inputs)
    assert "| 20 of 1,838 |" in card
    (model,) = metadata(card)["model-index"]
    assert "PIQA" not in {result["dataset"]["name"] for result in model["results"]}
    assert re.search(r"not compared[^.]*: PIQA\.", card)
    assert "better on PIQA" not in card


def test_a_score_of_none_or_all_is_shown_with_its_interval(inputs):
    """Its standard error is 0, and so many of them away from the floor it is not."""
    inputs.results["tasks"]["piqa"] |= {"n": 10, "value": 0.0, "stderr": 0.0, "verdict": "below"}
    inputs.results["tasks"]["boolq"] |= {"n": 1, "value": 1.0, "stderr": None, "verdict": "indistinguishable"}
    card = render_card(inputs)
    rows = {row[0]: row for rows in read_tables(card) for row in rows}
    assert "0.0000 to 0.3085" in rows["PIQA"]
    assert "below" in rows["PIQA"]
    assert "0.0250 to 1.0000" in rows["BoolQ"]
    assert "(+0.0" not in "".join([*rows["PIQA"], *rows["BoolQ"]])
    assert re.search(r"below it on PIQA \(95 % interval 0\.0% to 30\.8%\)", card)
    assert problems(card) == []


def test_takeaways_follow_the_numbers(inputs):
    assert re.search(r"above[^.]* PIQA \(\+3\.3 ", render_card(inputs))
    assert "better on PIQA" in render_card(inputs)
    inputs.results["tasks"]["piqa"] |= {"value": 800 / 1838, "verdict": "below"}
    card = render_card(inputs)
    assert "above it on PIQA" not in card
    assert "worse on PIQA" in card
    inputs.results["perplexity"]["wikitext"]["uniform_guess_byte_perplexity"] = 2.0
    assert "on this text the model is broken" in render_card(inputs)


def test_co2_needs_a_known_device_and_the_whole_time(inputs):
    run = inputs.run
    assert co2_estimate(run) is None
    run["environment"]["device_name"], run["training_seconds"] = "Tesla T4", 9.63 * 3600
    estimate = co2_estimate(run)
    # 70 W x 9.63 h x 445 g/kWh
    assert estimate["emissions"] == pytest.approx(300.0, abs=0.1)
    card = render_card(inputs)
    assert metadata(card)["co2_eq_emissions"]["hardware_used"] == "1 x Tesla T4"
    assert problems(card) == []
    run["resumed_from_steps"] = [4]
    assert co2_estimate(run) is None


def test_a_continued_run_shows_its_whole_time_where_all_of_it_was_measured(inputs):
    inputs.run["resumed_from_steps"] = [20, 40]
    assert "Continued from steps" in (card := render_card(inputs))
    assert "Training time, hours" in card
    del inputs.run["timed_steps"]
    assert "Throughput of the last session" in (card := render_card(inputs))
    assert "Training time, hours" not in card


def test_sources_and_contamination_are_named_where_they_are_known(inputs):
    assert re.search(r"overlap[^.]* not measured", render_card(inputs))
    inputs.run["recipe"]["corpus"]["sources"] = [
        {"name": "Encyclopedia of everything", "license": "CC BY-SA 3.0", "url": None},
        {"name": HOSTILE, "license": HOSTILE, "url": HOSTILE},
    ]
    inputs.manifest["documents"] |= {"contaminated": 7, "contaminated_by_set": {"boolq": 6, "mmlu": 2}}
    inputs.manifest["inputs"]["corpus"]["decontaminate"] = {"ngram_words": 13, "sets": {}}
    card = render_card(inputs)
    assert problems(card) == []
    rows = [row for rows in read_tables(card) for row in rows]
    assert ["boolq", "6"] in rows
    assert ["Encyclopedia of everything", "CC BY-SA 3.0", "-"] in rows
    assert "share\n  13 consecutive words" in card
    assert "not measured" not in card.partition("## Data and licence")[2]


def test_the_parts_of_a_mix_are_told_with_what_they_gave(inputs):
    part = {"source": "files", "path": "a.txt", "name": HOSTILE, "license": HOSTILE, "url": HOSTILE}
    hub = part | {"source": "hub", "path": "owner/texts", "name": None, "license": None, "url": None}
    inputs.run["recipe"]["corpus"] |= {"source": "hub", "path": None, "mix": {"books": part, "wiki": hub}}
    given = {"share": 0.4, "tokens": 4000, "documents": 9, "tokens_of_text": 1000, "passes": 4.0}
    inputs.run["mix"] = {"books": given, "wiki": given | {"share": 0.6}}
    inputs.run["final"] |= {"parts": {"wiki": {"bits_per_byte": 1.25}}}
    inputs.run["final"]["averaged"] = {"steps": [40, 50, 60], "last": {"loss": 3.25}}
    card = render_card(inputs)
    assert problems(card) == []
    rows = [row for rows in read_tables(card) for row in rows]
    wiki = ["wiki", "not recorded", "owner/texts", "60.0%", "4,000", "1,000", "4.00", "1.2500"]
    assert wiki in rows
    assert ["Weights", "the mean of the checkpoints at steps 40, 50, 60"] in rows
    assert ["Validation loss of the last checkpoint alone", "3.2500"] in rows
    assert "see the table of its parts" in card
    assert yaml.safe_load(card.split("---")[1])["datasets"] == ["owner/texts"]
    # Many parts are counted in the first sentence. What the base has read too is told once.
    more = {name: part | {"name": name, "license": "MIT", "url": None} for name in ("plays", "talk")}
    inputs.run["recipe"]["corpus"]["mix"] |= more
    inputs.run["mix"] |= dict.fromkeys(more, given)
    read = [{"name": name, "license": "MIT", "url": None} for name in ("plays", "letters")]
    base = {"name": "first/final", "repository": None, "revision": None, "weights_sha256": "0" * 64}
    base |= {"license": None, "datasets": [], "tokens": 7, "results": None}
    inputs.run["base"] = base | {"sources": read}
    card = render_card(inputs)
    assert problems(card) == []
    assert "on 7 tokens as `first/final`, then on" in card
    assert "tokens of 4 kinds of text" in card
    assert "`first/final` was trained on 1 of these texts" in card
    rows = [row for rows in read_tables(card) for row in rows]
    assert ["letters (of the base)", "MIT", "-"] in rows
    assert not any(row[0] == "plays (of the base)" for row in rows)
    assert "which were not released" in card
    del inputs.run["base"]
    # A text and its replay are two parts.
    corpus = part | {"sources": [{"name": "Own text", "license": "MIT", "url": None}], "mix": None}
    inputs.run["recipe"]["corpus"] |= corpus | {"replay": {**hub, "share": 0.6}}
    inputs.run["mix"] = {"text": given, "replay": given | {"share": 0.6}}
    rows = [row for rows in read_tables(render_card(inputs)) for row in rows]
    assert ["replay", *wiki[1:-1], "-"] in rows
    assert any(row[0] == "Own text" and row[3] == "40.0%" for row in rows if len(row) > 3)


def test_release_json_holds_every_file(released):
    release = json.loads((released / "release" / "release.json").read_text())
    assert release["files"] == inventory(released / "release", without=("release.json",))


def test_the_released_card_is_what_its_records_give():
    """After a change to the template: python tools/render_release.py release/Ant-10M."""
    folder = ROOT / "release" / "Ant-10M"
    release = json.loads((folder / "release.json").read_text())
    assert release["files"] == inventory(folder, without=("release.json",))
    files = {name: values for name, values in release["files"].items() if name != "README.md"}
    files = {name: values for name, values in files.items() if not name.startswith("plots/")}
    inputs = read_inputs(folder, release["repository"], release["license"], files)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert render_card(inputs) == card
    assert problems(card) == []
    assert [f for f in audit(card_claims(card, "card")) if f.verdict == "DISAGREES"] == []
    for image in re.findall(r"\]\((plots/[^)]+)\)", card):
        assert (folder / image).is_file()
