"""Commands of README.md and docs/train.md are run as they stand, with a tiny run in place of a real one."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from benchmark_data import COPA, write_benchmarks
from commands import ROOT, run_here
from conftest import TINY_CONFIG

from ant_hf.card.rendering import comparison_table
from ant_hf.evaluation.benchmarks import known_benchmarks
from ant_hf.evaluation.comparison import compare
from ant_hf.published import published_models
from ant_hf.recipe import load_recipe
from ant_hf.utils.files import read_sealed

README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPE = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
RELEASE = ROOT / "release" / "Ant-10M"


TRAIN = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_generation_snippet_runs_unchanged():
    (snippet,) = blocks("python")
    result = run_here("python", "-c", snippet)
    assert result.returncode == 0, result.stderr
    prompt = "The basic principles of small language models require"
    heading, _, text = result.stdout.partition("\n")
    assert heading == "Generated Output Fragments:"
    assert text.startswith(prompt)
    assert len(text.split()) > len(prompt.split()) + 5


LINES = [line for text in (README, TRAIN) for block in blocks("bash", text) for line in block.splitlines()]
COMMANDS = list(dict.fromkeys(line.partition("#")[0].strip() for line in LINES))


# Publishing needs a Hub: tests/hub/test_journey.py runs that line.
# Publishing, training on a text, new recipes, and the demo, which serves until it is ended, have their own.
ELSEWHERE = ("ant-hf publish", "ant-hf demo", "ant-hf train", "ant-hf new")
LOCAL = [c for c in COMMANDS if c.startswith(("ant-hf", "python")) and not c.startswith(ELSEWHERE)]


def narrower(recipe: Path, folder: Path) -> Path:
    """The same recipe for a model that takes seconds at the recipe's own batch and length."""
    values = yaml.safe_load(recipe.read_text())
    given = json.loads((ROOT / values["architecture"]).read_text())
    kept = {name: given[name] for name in ("vocab_size", "max_position_embeddings")}
    (folder / "narrow.json").write_text(json.dumps(TINY_CONFIG | kept))
    (folder / recipe.name).write_text(yaml.safe_dump(values | {"architecture": str(folder / "narrow.json")}))
    return folder / recipe.name


@pytest.mark.parametrize("command", LOCAL)
def test_commands_run(command, tiny_run, released, tmp_path, quick_gate):
    words = shlex.split(command)
    run_dir = tmp_path / "run"
    if "runs/quickstart" in command:
        shutil.copytree(released if words[1] in ("card", "verify") else tiny_run, run_dir)
    words = [word.replace("runs/quickstart", str(run_dir)) for word in words]
    if "--context" in words:
        words[-1] = "64"
    if words[1] == "inspect":
        words += ["--html", str(tmp_path / "inspection.html")]
    if words[1] == "compare":
        words += ["--output-dir", str(tmp_path / "comparison")]
    if words[1] == "evaluate":
        # The sets are on the Hub; here a few documents of each are enough.
        words += ["--data-dir", str(write_benchmarks(tmp_path / "benchmarks")), "--limit", "2"]
    if "train_tokenizer.py" in words:
        words += ["--output-dir", str(tmp_path / "tokenizer-run")]
    if "pretrain.py" in words:
        place = words.index("--config") + 1
        words[place] = str(narrower(ROOT / words[place], tmp_path))
    result = run_here(*words, COLUMNS="200")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("accelerate launch")])
def test_launches_name_scripts_and_recipes_that_exist(command):
    words = shlex.split(command)
    assert Path(ROOT, next(word for word in words if word.endswith(".py"))).is_file()
    load_recipe(ROOT / words[words.index("--config") + 1])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_targets_exist(command):
    words = ["make", "--dry-run", *shlex.split(command)[1:]]
    assert subprocess.run(words, cwd=ROOT, capture_output=True).returncode == 0


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def heading_anchors(page: Path) -> set[str]:
    """As GitHub makes them of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_heading_that_a_page_links_to_is_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        assert not anchor or anchor in heading_anchors(linked), target


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w-]+\.md)", index))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} == linked


def test_what_is_said_of_the_two_models_is_what_compare_says(tmp_path):
    folder = ROOT / "docs" / "recipe" / "Ant-10M-vs-Ant-5M"
    kept = read_sealed(folder / "comparison.json", "comparison", "")
    values, _ = compare([RELEASE, ROOT / "docs/recipe/Ant-5M"], output_dir=tmp_path / "comparison")
    (pair,) = json.loads(json.dumps(values["pairs"]))
    assert [pair] == kept["pairs"]
    assert str(comparison_table(pair)) in RECIPE
    assert pair["answer"] in README.replace("\n> ", " ")


def test_evaluation_notes_list_every_default_set_with_its_size():
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = {row[0]: row[1:] for row in re.findall(r"\| `([a-z0-9_.]+)` \| ([\d,]+) \| (\w+) \|", text)}
    table = {name: item for name, item in known_benchmarks().items() if item.default}
    assert rows == {name: (f"{item.documents:,}", item.metric) for name, item in table.items()}
    for item in table.values():
        assert f"`{item.file}`" in text
    (own,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert own.strip() == COPA.strip()


def test_the_table_of_the_evaluation_is_that_of_the_release():
    results = json.loads((RELEASE / "results.json").read_text(encoding="utf-8"))
    published = {model.name: model.results for model in published_models()}

    def claim(model, name, metric):
        value = published[model].get(name, {}).get(metric)
        return "" if value is None else f"{value if 'perplexity' in metric else 100 * value:.2f}"

    for name, values in results["tasks"].items():
        metric = values["metric"]
        verdict = {"indistinguishable": "same"}.get(values["verdict"], values["verdict"])
        measured = f"{100 * values['value']:.2f} \u00b1 {100 * values['stderr']:.2f}"
        row = (
            f"| {values['label']} | {metric} | {measured} "
            f"| {100 * values['floor']:.2f} | {verdict} "
            f"| {claim('Ant-10M', name, metric)} | {claim('Ant-5M', name, metric)} |"
        )
        assert row in RECIPE, row
    text = results["perplexity"]["wikitext"]
    measured = f"{text['byte_perplexity']:.2f} \u00b1 {text['byte_perplexity_stderr']:.2f}"
    uniform = f"{text['uniform_guess_byte_perplexity']:.2f}"
    row = f"| WikiText-2 | byte_perplexity | {measured} | {uniform} | better | 30.62 | 48.91 |"
    assert row in RECIPE, row
    for page in (README, RECIPE):
        assert re.search(rf"WikiText-2[^|\n]* {text['byte_perplexity']:.2f}\b", page)
    parts = results["tasks"]["blimp"]["slices"]
    for choose, word in ((max, "best"), (min, "worst")):
        assert f"{word} ({100 * choose(part['value'] for part in parts.values()):.1f} %)" in RECIPE
    for way in ("greedy", "sampled"):
        values = results["degeneration"][way]
        assert re.search(rf"\b{100 * values['loop_rate']:.1f} %[^.]* {way}\b", RECIPE), way
