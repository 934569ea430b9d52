"""Commands of README.md and docs/train.md are run as they stand, with a tiny run in place of a real one."""

import json
import re
import shlex
import shutil
import subprocess
import sys
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
FIRST = ROOT / "docs" / "recipe" / "Ant-10M-27M"


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
        # A checkout may hold the run that the recipe names, of `make quickstart`.
        words += ["--output-dir", str(tmp_path / "pretrain-run")]
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
    text = re.sub(
        r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
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


def compared(folder, *models):
    values, _ = compare(models, output_dir=folder / "comparison")
    (pair,) = json.loads(json.dumps(values["pairs"]))
    return pair


def test_what_is_said_of_ant_5m_is_what_compare_says(tmp_path):
    kept = read_sealed(ROOT / "docs/recipe/Ant-10M-vs-Ant-5M/comparison.json", "comparison", "")
    pair = compared(tmp_path, FIRST, ROOT / "docs/recipe/Ant-5M")
    assert [pair] == kept["pairs"]
    assert str(comparison_table(pair)) in (ROOT / "docs" / "recipe-27m.md").read_text(encoding="utf-8")


def test_what_is_said_of_the_first_release_is_what_compare_says(tmp_path):
    """README compares the records; page and card the documents of both models, which are not kept."""
    records = compared(tmp_path, RELEASE, FIRST)
    assert records["answer"] in README.replace("\n> ", " ")
    (pair,) = read_sealed(RELEASE / "comparison.json", "comparison", "")["pairs"]
    assert str(comparison_table(pair)) in RECIPE
    measured, kept = (
        {figure["name"]: (figure["first"], figure["second"]) for figure in each["figures"]}
        for each in (pair, records)
    )
    # The first release was evaluated again for its documents: one pair of BLiMP of 67,000 came out otherwise.
    assert measured == {name: pytest.approx(values, rel=1e-4) for name, values in kept.items()}


def results_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_what_the_second_stage_changed_is_in_both_records():
    before, after = results_of(ROOT / "docs/recipe/Ant-10M-stage-1"), results_of(RELEASE)
    for name, values in after["tasks"].items():
        first, second = 100 * before["tasks"][name]["value"], 100 * values["value"]
        row = f"| {values['label']} | {first:.2f} | {second:.2f} | {second - first:+.2f} |"
        assert row in RECIPE, row


def test_grammar_and_held_out_text_of_both_releases_are_in_the_records():
    before, after = (results_of(folder)["tasks"]["blimp"]["slices"] for folder in (FIRST, RELEASE))
    for name, values in after.items():
        shares = f"{100 * before[name]['value']:.1f} | {100 * values['value']:.1f}"
        row = f"| {name} | {values['n'] // 1000} | {shares} |"
        assert row in RECIPE, row
    documents = json.loads((ROOT / "docs/recipe/held-out.json").read_text(encoding="utf-8"))
    size = sum(each["bytes"] for each in documents)
    old, new = (
        sum(each[f"bits of {name}"] for each in documents) / size for name in ("Ant-10M-27M", "Ant-10M")
    )
    row = f"| all | {len(documents)} | {size / 1000:.0f} | {old:.3f} | {new:.3f} | {new - old:+.3f} |"
    assert row in RECIPE


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


def options_exist(words):
    """Every option of an `ant-hf` line is one of that command's."""
    said = run_here("ant-hf", words[1], "--help", COLUMNS="200").stdout
    options = [word for word in words if word.startswith("--")]
    return [word for word in options if not re.search(rf"{word}\b", said)] == []


def test_the_workflow_that_publishes_is_complete():
    (workflow,) = re.findall(
        r"```yaml\n(name: publish\n.*?)```", (ROOT / "docs/releasing.md").read_text(), re.DOTALL
    )
    values = yaml.safe_load(workflow)
    # YAML 1.1 reads the key `on` as true.
    assert "workflow_dispatch" in values[True]
    assert values["permissions"] == {"contents": "read", "id-token": "write"}
    (job,) = values["jobs"].values()
    steps = [step for step in job["steps"] if "run" in step]
    install, launch, evaluate, publish = (shlex.split(step["run"]) for step in steps)
    extras = set(re.search(r"\[(.*)\]", install[-1])[1].split(","))
    known = (ROOT / "pyproject.toml").read_text()
    assert {"eval", "gguf"} <= extras
    assert all(f"\n{extra} = [" in known for extra in extras)
    recipe = load_recipe(ROOT / launch[launch.index("--config") + 1])
    assert Path(evaluate[2]) == Path(publish[2]) == Path(recipe.output_dir) / "final"
    assert set(evaluate[-1].split(",")) - {"degeneration"} <= set(known_benchmarks())
    assert all(options_exist(words) for words in (evaluate, publish))
    assert steps[-1]["env"]["HF_OIDC_RESOURCE"] == publish[publish.index("--repo") + 1]


def test_the_job_on_rented_gpus_names_options_that_exist():
    (command,) = re.findall(
        r"```bash\n(hf jobs run .*?)```", (ROOT / "docs/scale-out.md").read_text(), re.DOTALL
    )
    words = shlex.split(command)
    hf = Path(sys.executable).with_name("hf")
    said = subprocess.run([hf, "jobs", "run", "--help"], capture_output=True, text=True, check=True).stdout
    for word in [*words[: words.index("bash")], "t4-small"]:
        if word.startswith("--"):
            assert word in said
    assert "t4-small" in said
    inside = words[-1]
    launch = shlex.split(inside[inside.index("accelerate") :])
    overrides = [launch[place + 1] for place, word in enumerate(launch) if word == "--set"]
    recipe = load_recipe(ROOT / launch[launch.index("--config") + 1], overrides)
    assert recipe.training.push_to_hub
