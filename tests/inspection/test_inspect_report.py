"""`ant-hf inspect` as a user meets it: the summary, the page, its files, its errors."""

import html.parser
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY_CONFIG
from safetensors.torch import load_file, save_file

from ant_hf.cli.models import inspect
from ant_hf.errors import AntError
from ant_hf.inspection import examination
from ant_hf.inspection.examination import compare, default_report
from ant_hf.inspection.findings import as_json
from ant_hf.inspection.fragments import SURPRISE_STEPS, contrast, surprise_colours, surprise_step
from ant_hf.inspection.report import SHOWN_FRAGMENTS, _map, render_report
from ant_hf.utils import files

HOSTILE = "a <script>alert(1)</script> & \"q\" 'r' </span><img src=x onerror=y> $x^2$ {{ 7*7 }} "


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory):
    """A copy of the tiny run whose name is not a harmless one."""
    run = tmp_path_factory.mktemp("inspect") / "<b>$r$&"
    shutil.copytree(tiny_run, run)
    return run


@pytest.fixture(scope="module")
def wide(folder, tmp_path_factory):
    """A model with another number of layers, heads and units, and the same tokenizer."""
    from transformers import AutoConfig

    from ant_hf.model.architecture import build_model
    from ant_hf.model.saving import export_final

    target = tmp_path_factory.mktemp("inspect") / "wide"
    config = TINY_CONFIG | {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6}
    export_final(build_model(AutoConfig.for_model(**config), seed=1), folder / "final", target)
    return target


def inspections(model, other=None, text=HOSTILE, position=None, tokens=None):
    return compare(str(model), other and str(other), text, position, tokens)


@pytest.fixture(scope="module")
def pair(folder, wide):
    return inspections(folder / "final", wide, HOSTILE * 8, position=3)


@pytest.fixture(scope="module")
def page(pair):
    return render_report(pair)


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_page_needs_nothing_from_outside(page):
    for tag, attributes in Page(page).tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert value.startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", page)
    assert len(page) < 2_000_000


def test_texts_and_names_are_escaped(page):
    tags = [tag for tag, _ in Page(page).tags]
    # A name or a text that got through would have opened one of these; b stands in tips and findings only.
    assert "script" not in tags
    assert not [attributes for tag, attributes in Page(page).tags if tag == "img"]
    assert "<b>$r$" not in page
    assert "&lt;b&gt;$r$&amp;/final" in page
    assert "{{" not in page.replace("{{ 7*7 }}", "")
    assert "49" not in page[page.index("<title>") : page.index("</title>")]


def test_page_shows_every_fragment_with_its_tip(page, pair):
    boxes = [attributes for tag, attributes in Page(page).tags if tag == "span" and "tabindex" in attributes]
    expected = [fragment for each in pair for fragment in each.reading.fragments[:SHOWN_FRAGMENTS]]
    assert len(boxes) == len(expected)
    steps = [int(re.search(r"s(\d)", box["class"])[1]) for box in boxes]
    assert steps == [surprise_step(fragment.nats) for fragment in expected]
    first = pair[0].reading.fragments[0]
    assert f"id {first.token_id}, bytes <code>{first.raw.hex(' ').upper()}</code> at 0" in page
    assert f"loss {first.nats:.2f} nats" in page
    best = pair[0].reading.expected[0].candidates[0]
    assert f"{100 * best.probability:.1f}%" in page


def test_ids_are_unique_and_references_lead_somewhere(page):
    tags = Page(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"] for _, attributes in tags if "href" in attributes}
    used = {link[1:] for link in links if link.startswith("#")}
    assert used
    assert used | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_both_themes_are_there(page):
    assert "prefers-color-scheme: dark" in page
    assert "var(--ink)" in page
    for placeholder in ("#010101", "#020202", "#030303", "#040404"):
        assert placeholder not in page
    text = Page(page).text
    for title in ("Dimensions in use, by layer", "Attention entropy / largest possible", "Embedding norms"):
        assert title in text


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_read_and_ordered(theme):
    steps = surprise_colours(theme)
    assert len(steps) == SURPRISE_STEPS
    assert all(contrast(*pair) >= 4.5 for pair in steps)
    to_black = [contrast(background, "#000000") for background, _ in steps]
    assert to_black == sorted(to_black, reverse=theme == "light")
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert [surprise_step(nats) for nats in (None, 0.99, 1.0, 50.0)] == [0, 0, 1, SURPRISE_STEPS - 1]


def test_figures_can_be_read_on_a_phone(pair, page):
    """366 of its 390 points are a figure's; a larger one is moved sideways."""
    deep = {name: np.full(24, 0.5) for name in ("q_proj", "k_proj")}
    for figure in re.findall(r"<svg .*?</svg>", page + _map(deep, "many layers", "", 1.0)):
        width = float(re.search(r'viewBox="0 0 ([\d.]+)', figure)[1])
        shown = max(366.0, float((re.search(r"min-width: (\d+)px", figure) or [0, 0])[1]))
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", figure)]
        assert min(sizes) * shown / width >= 9


def test_two_models_are_put_at_the_same_place(pair):
    first, second = pair
    assert first.position == second.position == 3
    assert list(first.facts) == list(second.facts)
    assert (len(first.activations.hidden_rank), len(second.activations.hidden_rank)) == (3, 4)
    assert second.embeddings.from_training  # the same tokenizer: the first one's tokens are counted


def test_figures_as_json(pair):
    values = json.loads(json.dumps(as_json(pair[0]), allow_nan=False))
    assert values["parameters"]["total"] == sum(p.numel() for p in _weights(values, pair))
    assert len(values["matrices"]) == 2 * 7
    assert len(values["heads"]) == 2 * 4
    assert values["text"]["fragments"][0]["start"] == 0
    assert len(values["text"]["next"]["candidates"]) == 20


def _weights(values, pair):
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY_CONFIG)).parameters()


def test_report_never_lands_in_a_model_folder(folder, wide, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert default_report(str(folder / "final"), None) == folder.resolve() / "inspection.html"
    assert str(default_report(str(wide), None)) == "wide-inspection.html"
    assert default_report(str(folder / "final"), str(wide)).name == "inspection-beside-wide.html"


def test_a_run_that_cannot_be_written_to_is_told_and_the_report_lands_here(
    folder, monkeypatch, tmp_path, capsys
):
    def no_file(**place):
        raise OSError(30, "Read-only file system", str(place["dir"]))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files.tempfile, "TemporaryFile", no_file)
    assert str(default_report(str(folder / "final"), None)).endswith("-final-inspection.html")
    assert "is read-only, so the report goes into the current folder" in capsys.readouterr().out.replace(
        "\n", " "
    )


def test_places_that_cannot_be_written_are_refused_before_the_work(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(examination, "compare", lambda *_: pytest.fail("looked into the model first"))
    (tmp_path / "file").touch()
    no_folder, good = tmp_path / "file" / "report.html", tmp_path / "a"
    for page_file, json_file, problem in (
        (no_folder, None, "cannot be written. Name another place with --html FILE"),
        (good, no_folder, "cannot be written. Name another place with --json FILE"),
        (tmp_path, None, f"{tmp_path} is a folder. Name a file: --html"),
    ):
        with pytest.raises(AntError, match=re.escape(problem)):
            inspect(str(folder / "final"), None, None, None, None, page_file, json_file)


def test_command_prints_and_writes(folder, tmp_path, capsys):
    written = (tmp_path / "a.html", tmp_path / "a.json")
    # Called as the command line calls it; that it is reached from there, the README's commands show.
    inspect(str(folder / "final"), None, "In the beginning", 2, None, *written)
    printed = capsys.readouterr().out
    for part in (
        "dead heads",
        "never-trained tokens",
        "<|pad|>",
        "next token",
        "After 2 tokens",
        "bits per byte",
    ):
        assert part in printed
    assert written[0].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert json.loads(written[1].read_text())["models"][0]["text"]["position"] == 2
    assert not list((folder / "final").glob("*.html"))


def test_what_cannot_be_told_gets_no_tick(wide, tmp_path, capsys):
    page = tmp_path / "a.html"
    inspect(str(wide), None, "In the beginning", None, None, page, None)
    told = '<li class="unknown"><b>never-trained tokens</b>: only the training tokens can tell'
    assert told in page.read_text(encoding="utf-8")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "never-trained tokens" in line]
    assert "?" in line
    assert "\u2713" not in line


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"position": 99999}, r"--position is outside the text.*99999.*0 to \d+"),
        ({"text": ""}, "the text is empty"),
        ({"text": "missing/file.txt"}, "text file not found: missing/file.txt"),
        ({"model": "nowhere"}, "model not found: nowhere"),
    ],
)
def test_mistakes_are_named(folder, changes, problem):
    with pytest.raises(AntError, match=problem):
        inspections(**{"model": folder / "final", "text": "In the beginning"} | changes)


def test_tokens_of_another_tokenizer_are_refused(folder, wide, tmp_path):
    other = shutil.copytree(wide, tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(AntError, match="another tokenizer"):
        inspections(other, tokens=folder / "tokens")


def test_broken_weights_end_in_one_error(folder, tmp_path):
    broken = shutil.copytree(folder / "final", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = torch.inf
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AntError, match=r"model\.norm\.weight contains NaN or infinity"):
        inspections(broken)
