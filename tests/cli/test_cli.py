import re

import pytest
import torch
import yaml
from commands import in_a_process, run_here
from conftest import tiny_values

from ant_hf.cli.options import whole_number
from ant_hf.errors import AntError


@pytest.fixture
def recipe_file(shared, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny_values(shared, tmp_path / "run")))
    return file


def options(help_text):
    return sorted(set(re.findall(r"--[a-z-]+", help_text)) - {"--help", "--num", "--quiet"})


def test_flags_of_pretrain_are_few_and_frozen():
    """A new knob belongs into the recipe."""
    result = run_here("python", "pretrain.py", "--help")
    assert result.returncode == 0
    known = ["--config", "--data", "--dry-run", "--fresh", "--output-dir", "--report-to", "--set"]
    assert options(result.stdout) == known


def test_every_command_explains_itself():
    # As a user meets it; the others need no process of their own.
    text = in_a_process("ant-hf", "--help").stdout
    names = ("new", "tokenizer", "pack", "params", "generate", "perplexity", "evaluate", "compare", "plots")
    for name in (*names, "audit", "card", "verify", "publish", "inspect", "export"):
        assert name in text
        result = run_here("ant-hf", name, "--help")
        assert result.returncode == 0
        assert "Usage" in result.stdout


def test_params_prints_ledger_and_published_difference():
    result = run_here("ant-hf", "params")
    assert result.returncode == 0, result.stderr
    for word in ("9,902,336", "9,902,464", "+128", "1,048,576 embeddings + 12 x 737,792"):
        assert word in result.stdout


def test_a_report_that_cannot_be_written_is_refused_before_the_gate(tmp_path, monkeypatch):
    monkeypatch.setattr("ant_hf.release.verify.verify", lambda *_, **__: pytest.fail("asked the gate"))
    result = run_here("ant-hf", "verify", tmp_path, "--report", tmp_path)
    assert "is a folder. Name a file: --report" in one_line_error(result)


def one_line_error(result):
    """The message, which may stand below a progress bar but is the last thing said."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    before, found, message = result.stderr.rpartition("error: ")
    assert found
    assert "error" not in before
    return message


def test_missing_recipe_and_architecture_list_those_there_are(tmp_path):
    result = run_here("python", "pretrain.py", "--config", "no.yaml")
    assert "quickstart" in one_line_error(result)
    result = run_here("ant-hf", "params", "ant11m", cwd=tmp_path)
    assert "Did you mean ant10m?" in one_line_error(result)
    # What was recommended is there.
    assert run_here("ant-hf", "params", "ant10m", cwd=tmp_path).returncode == 0


def test_mistakes_in_recipe_data_and_device_are_one_message(recipe_file, tmp_path):
    command = ("python", "pretrain.py", "--config", str(recipe_file))

    def error(*extra):
        return one_line_error(run_here(*command, *extra))

    misspelt = run_here(*command, "--set", "training.max_step=3")
    assert "did you mean training.max_steps" in one_line_error(misspelt)
    assert "corpus not found" in error("--data", "nothing.txt")
    assert "no file matches" in error("--data", str(tmp_path / "*.jsonl"))
    assert "no file matches *.nothing" in error("--data", "*.nothing")
    assert "corpus not found: 2026" in error("--data", "2026")
    missing = "mps" if torch.cuda.is_available() else "cuda"
    assert "does not have such a device" in error("--set", f"training.device={missing}")
    assert f"{recipe_file} with the options of this command has" in error("--set", "training.max_steps=-3")
    (tmp_path / "one.txt").write_text("One short document, and no other to be held out or trained on.")
    assert "expected at least 4,096" in error("--data", str(tmp_path / "one.txt"))
    (tmp_path / "blank.txt").write_text(" \n")
    assert "no text to train on; saw '1 documents, 1 of" in error("--data", str(tmp_path / "blank.txt"))
    few = "\n\n".join(
        f"Line {number} is one of a few that hold no more than these words." for number in range(200)
    )
    (tmp_path / "few.txt").write_text(few)
    assert "--set tokenizer.vocab_size=null" in error("--data", str(tmp_path / "few.txt"))
    assert not (tmp_path / "run" / "tokenizer").exists()
    assert not (tmp_path / "run" / "run.json").exists()


def test_home_is_expanded_in_options_which_the_shell_leaves_alone(tiny_run, tmp_path):
    (tmp_path / "run").symlink_to(tiny_run)
    words = ("perplexity", "~/run/final", "--tokens=~/run/tokens", "--context=64")
    result = run_here("ant-hf", *words, HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    error = one_line_error(run_here("python", "pretrain.py", "--config=~/my.yaml", HOME=str(tmp_path)))
    assert f"{tmp_path}/my.yaml" in error


def test_the_plan_says_where_it_differs_from_the_recipe(recipe_file):
    command = ("python", "pretrain.py", "--config", str(recipe_file), "--dry-run", "--set")
    plan = run_here(*command, "training.per_device_batch_size=3")
    assert plan.returncode == 0, plan.stderr
    assert "random weights" not in plan.stdout
    said = " ".join(plan.stdout.replace("\u2502", " ").split())
    assert "2 per device x 4 accumulated); the recipe's 3 per device do not divide it" in said
    assert "the recipe's" not in run_here(*command, "training.per_device_batch_size=4").stdout


def test_a_model_as_architecture_gives_its_shape_and_the_plan_says_so(recipe_file, tiny_run):
    command = ("python", "pretrain.py", "--config", str(recipe_file), "--dry-run")
    plan = run_here(*command, "--set", f"architecture={tiny_run / 'final'}", COLUMNS="200")
    assert plan.returncode == 0, plan.stderr
    assert "random weights; only the shape is taken from" in plan.stdout


def test_unknown_flag_and_missing_model_are_refused(tmp_path):
    # In processes of their own, as users meet them.
    result = in_a_process("python", "pretrain.py", "--confg", "x")
    assert result.returncode == 2
    assert "No such option" in result.stderr
    assert "it has no config.json" in one_line_error(run_here("ant-hf", "generate", str(tmp_path)))
    assert "Pass a model folder" in one_line_error(run_here("ant-hf", "generate", str(tmp_path / "x")))
    assert "metrics of a run not found" in one_line_error(in_a_process("ant-hf", "plots", str(tmp_path)))
    assert "model config not found" in one_line_error(run_here("ant-hf", "params", str(tmp_path / "x.json")))


def test_corpus_below_one_block_is_refused(recipe_file, tmp_path, chapters):
    sentences = "".join(f"{s.strip()}\n<|endoftext|>\n" for chapter in chapters for s in chapter.split("."))
    (tmp_path / "c.txt").write_text(sentences)
    limits = ["--set", "corpus.max_tokens=1", "--set", "corpus.validation_fraction=0.9"]
    result = run_here(
        "python", "pretrain.py", "--config", str(recipe_file), "--data", str(tmp_path / "c.txt"), *limits
    )
    assert "smaller than one block" in one_line_error(result)
    assert not (tmp_path / "run" / "final").exists()
    # Repaired in the recipe, the same folder is free.
    assert not (tmp_path / "run" / "run.json").exists()


def test_stages_one_by_one_feed_each_other(recipe_file, tmp_path, tiny_run):
    result = run_here("python", "train_tokenizer.py", "--config", str(recipe_file))
    assert result.returncode == 0, result.stderr
    assert "bytes per token" in result.stdout
    result = run_here("ant-hf", "pack", "--config", str(recipe_file))
    assert result.returncode == 0, result.stderr
    assert "reused" in result.stdout
    result = run_here(
        "ant-hf", "perplexity", str(tiny_run / "final"), "--tokens", str(tmp_path / "run" / "tokens")
    )
    assert result.returncode == 0, result.stderr
    assert "byte perplexity" in result.stdout
    result = run_here("ant-hf", "generate", str(tiny_run / "final"), "--prompt", "And")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("And")
    # The settings, and nothing else.
    assert result.stderr.startswith("sampling ")
    assert result.stderr.count("\n") == 1


def test_plots_are_drawn_from_metrics_alone(tiny_run, tmp_path):
    (tmp_path / "metrics.jsonl").write_text((tiny_run / "metrics.jsonl").read_text())
    result = run_here("ant-hf", "plots", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "plots" / "loss.png").is_file()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20M", 20_000_000),
        ("1.1B", 1_100_000_000),
        ("400k", 400_000),
        ("8,192", 8192),
        ("3_000", 3000),
        ("1t", 10**12),
    ],
)
def test_numbers_are_read_as_people_write_them(text, value):
    assert whole_number("--tokens", text) == value


@pytest.mark.parametrize("text", ["", "many", "-3", "0", "1.5", "0.0001k", "20MB", "1e6", "nan"])
def test_what_is_no_whole_number_is_named(text):
    with pytest.raises(AntError, match=r"--tokens is .*such as 20M"):
        whole_number("--tokens", text)
