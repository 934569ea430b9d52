"""SIGINT and SIGTERM in what is done with a model: one line, code 75, and nothing half-made."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from benchmark_data import write_benchmarks
from commands import run_here, stop_command
from conftest import ROOT, tiny_values

from ant_hf.train.callbacks import StepGuard, ThroughputMeter
from ant_hf.train.checkpoints import newest_checkpoint
from ant_hf.utils import stopping


def leave(code):
    raise SystemExit(code)


@pytest.fixture
def interrupted(monkeypatch):
    """A function that runs a command line here, and sends the process a signal where it calls `place`.

    Returns the line that says so, after which the command would have left.
    """

    def run(place, *words, by=signal.SIGINT):
        with monkeypatch.context() as patched:
            # Both belong to the process, and this one continues.
            patched.setattr("os._exit", leave)
            patched.setattr(sys, "unraisablehook", sys.unraisablehook)
            # In another thread than the main one the call continues, as one that takes long.
            patched.setattr(place, lambda *_, **__: (os.kill(os.getpid(), by), time.sleep(0.3)))
            result = run_here(*words, joined=True)
        assert result.returncode == 75, result.stdout
        assert "Traceback" not in result.stdout
        (line,) = (line for line in result.stdout.splitlines() if "stopped     by" in line)
        assert f"by {by.name} while" in line
        return line

    return run


@pytest.fixture
def final(trained_run, tmp_path):
    return shutil.copytree(trained_run, tmp_path / "run") / "final"


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_an_evaluation_goes_on_after_what_was_scored(interrupted, final, tmp_path):
    (final / "results.json").unlink()
    data = write_benchmarks(tmp_path / "benchmarks")
    words = ["ant-hf", "evaluate", final, "--data-dir", data, "--tasks", "arc_easy,wikitext"]
    line = interrupted("ant_hf.evaluation.evaluate.perplexity_record", *words)
    assert "while measuring the model. What was scored is kept." in line
    assert not (final / "results.json").exists()
    again = run_here(*words)
    assert "an interrupted evaluation: " in again.stdout
    assert (final / "results.json").is_file()


@pytest.mark.parametrize(
    ("place", "words", "kept"),
    [
        ("export.gguf.ollama_files", ["export", "--to", "gguf", "--type", "f16"], "is as it was before"),
        ("inspection.examination.check_weights", ["inspect"], "Nothing was written"),
        ("release.build.read_inputs", ["card", "--repo", "GODELEV/x"], "that was there before is kept"),
        ("release.verify.run_gate", ["verify"], "Nothing was changed"),
    ],
    ids=["export", "inspect", "card", "verify"],
)
@pytest.mark.usefixtures("quick_gate")
def test_nothing_half_made_is_left(interrupted, final, place, words, kept):
    before = names_in(final.parent)
    line = interrupted(f"ant_hf.{place}", "ant-hf", words[0], final, *words[1:], by=signal.SIGTERM)
    assert kept in line
    assert "Run the same command again" in line
    assert names_in(final.parent) == before


@pytest.fixture
def recipe(shared, prepared, tmp_path, monkeypatch):
    # Drawn, the figures would take most of such a run's time.
    monkeypatch.setattr("ant_hf.train.pretrain.plot_run", lambda *_: [])
    values = tiny_values(shared, tmp_path / "run", save_steps=2) | {"data_dir": str(prepared)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "recipe.yaml"


def test_a_second_signal_while_training_leaves_at_once(interrupted, monkeypatch, recipe, tmp_path):
    monkeypatch.setattr(stopping, "_ONE_PRESS_SECONDS", 0.05)
    pressed = []

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 3:
            # The launcher passes on what the terminal has sent; then a second press.
            for pause in (0, 0, 0.1):
                time.sleep(pause)
                pressed.append(pause)
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ThroughputMeter, "on_step_begin", on_step_begin)
    line = interrupted("ant_hf.train.pretrain._finish", "python", "pretrain.py", "--config", recipe)
    assert pressed == [0, 0, 0.1]
    assert f"while training. The checkpoints saved before are kept in {tmp_path / 'run'}" in line
    assert newest_checkpoint(tmp_path / "run").name == "checkpoint-2"
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-2"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_ctrl_c_does_not_reach_the_compiler(recipe, tmp_path):
    """A terminal sends it to every process; without its compiler the run would end with a traceback."""
    compiler, called = tmp_path / "compiler", tmp_path / "called"
    compiler.write_text(
        f"#!{sys.executable}\nimport os, sys, time\n"
        f"print(*sys.argv, file=open({str(called)!r}, 'a'))\ntime.sleep(1)\n"
        "os.execvp('g++', ['g++', *sys.argv[1:]])\n"
    )
    compiler.chmod(0o755)
    values = yaml.safe_load(recipe.read_text())
    values["training"]["torch_compile"] = "on"
    recipe.write_text(yaml.safe_dump(values))
    command = [sys.executable, ROOT / "pretrain.py", "--config", recipe]
    own = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=os.environ | own, start_new_session=True, **pipes) as process:
        # The first of the model's own code; before it come questions about the machine.
        while ".main.cpp" not in (called.read_text() if called.exists() else ""):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        output = process.communicate(timeout=300)[0]
    assert process.returncode == 75, output
    assert "stopped     by SIGINT at step 1 of 8" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("place", ["on_step_end", "on_evaluate"])
def test_a_signal_in_the_last_step_does_not_wait_for_the_end_of_the_run(monkeypatch, recipe, place):
    original = getattr(StepGuard, place)

    def signalled(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(StepGuard, place, signalled)
        patched.setattr("os._exit", leave)
        patched.setattr("atexit._run_exitfuncs", lambda: None)
        result = run_here("python", "pretrain.py", "--config", recipe)
    assert result.returncode == 75, result.stderr
    assert "stopped     by SIGINT at step 8 of 8, saved in" in result.stdout


def test_a_signal_after_the_last_step_is_told_what_is_left(interrupted, recipe):
    line = interrupted("ant_hf.train.pretrain.export_final", "python", "pretrain.py", "--config", recipe)
    assert "while finishing the run. Every checkpoint is kept" in line


def test_a_second_signal_ends_what_never_looks_up():
    """The first is a request, which nothing hears of before a long call of a library returns."""
    script = """
import hashlib, signal
from ant_hf.utils import stopping
stopping._GRACE_SECONDS, stopping._ONE_PRESS_SECONDS = 0.2, 0.2
with stopping.phase("saving", "All is kept."), stopping.stopped_by_signals(lambda number: None):
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 500_000_000)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        for pause in (0.0, 0.4):
            time.sleep(pause)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
        assert process.wait(10) == 75
        assert process.stderr.read() == "stopped     by SIGINT while saving. All is kept.\n"


def unwinds_in_time(script):
    """Run a script that waits, and gets a signal while it does."""
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "unwound\n"
    assert result.stderr == "stopped     by SIGINT while waiting. All is kept.\n"
    assert time.monotonic() - began < 10


def test_a_signal_that_a_destructor_swallowed_counts():
    """Python only prints what is raised there; without a second try the command would be killed."""
    script = """
import os, signal, time
from ant_hf.utils import stopping
stopping._GRACE_SECONDS = 30

class Swallows:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

try:
    with stopping.phase("waiting", "All is kept."), stopping.stopped_by_signals():
        Swallows()
        time.sleep(20)
except stopping.Interrupted:
    print("unwound")
"""
    unwinds_in_time(script)


def test_a_signal_that_another_thread_took_ends_what_the_main_one_waits_for():
    """Python's handlers run in the main thread, which nothing wakes then."""
    script = """
import signal, threading
from ant_hf.utils import stopping
stopping._GRACE_SECONDS = 30
take = threading.Timer(0.3, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
try:
    with stopping.phase("waiting", "All is kept."), stopping.stopped_by_signals():
        take.start()
        threading.Event().wait(20)
except stopping.Interrupted:
    print("unwound")
"""
    unwinds_in_time(script)


def test_the_end_of_a_forked_process_is_not_the_commands():
    """lm-eval's pools end theirs by SIGTERM, whose handlers a fork inherits."""
    script = """
import multiprocessing, time
from ant_hf.utils import stopping
stopping._GRACE_SECONDS = 0.1
with stopping.stopped_by_signals():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(abs, range(4))
    time.sleep(0.5)
print("continued")
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "continued\n", "")


# A command without the seconds that torch takes to load, and with workers from the first chunk on.
PREPARATION = """
import sys
from ant_hf.cli.main import run
from ant_hf.data import packing, packing_tasks, tokenizer
from ant_hf.recipe import load_recipe
from ant_hf.utils.stopping import stopped_by_signals

packing.CHUNKS_WITHOUT_WORKERS, packing.CHUNK_CHARACTERS = 0, 50_000
recipe = load_recipe(sys.argv[1])
prepare = {
    "tokenizer": lambda: tokenizer.make_tokenizer(recipe, 64),
    "packing": lambda: packing.make_tokens(recipe),
    "workers": lambda: packing_tasks.pack_with_workers(recipe, 2),
}[sys.argv[2]]
run(stopped_by_signals()(prepare))
"""


@pytest.mark.parametrize(
    ("phase", "by", "kept"),
    [
        ("tokenizer", signal.SIGINT, "Nothing is written yet"),
        ("packing", signal.SIGINT, "is kept. Run the same command again to pack the text"),
        ("workers", signal.SIGTERM, "of 4 files are encoded and kept"),
    ],
)
def test_preparing_a_text_ends_with_all_its_processes(make_recipe, chapters, tmp_path, phase, by, kept):
    """Sent to the process group, as a terminal does; the tokenizer is at a call that takes 30 s."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    make_recipe()
    for number in range(4):
        dice = random.Random(number)
        texts = [f"{number} {copy} {text}" for copy in range(32) for text in chapters]
        if phase == "tokenizer":
            texts = ["".join(dice.choices("ACGT", k=1_500_000)), *texts[:20]]
        rows = (json.dumps({"text": text}) + "\n" for text in texts)
        (corpus / f"{number}.jsonl").write_text("".join(rows))
    values = yaml.safe_load((tmp_path / "run.yaml").read_text())
    values["corpus"]["path"] = str(corpus)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    folder = Path(values["data_dir"])
    shutil.rmtree(folder / "tokens")
    if phase == "tokenizer":
        shutil.rmtree(folder / "tokenizer")
    at = {
        "tokenizer": (folder / ".data.owner.json").exists,
        "packing": (folder / ".tokens.partial").exists,
        "workers": "packing     4 files with 2 workers",
    }[phase]
    stopped = stop_command("python", "-c", PREPARATION, tmp_path / "run.yaml", phase, at=at, after=0.5, by=by)
    assert stopped.faults(kept) == []
    assert not (folder / "tokens").exists()
    assert [path.name for path in folder.iterdir() if path.name.endswith((".partial", ".json"))] == []


def test_evaluation_sets_that_are_read_are_named(interrupted, make_recipe, shared, tmp_path):
    make_recipe()
    sets = tmp_path / "sets"
    sets.mkdir()
    shutil.copy(shared / "corpus.jsonl", sets / "questions.jsonl")
    words = ["ant-hf", "tokenizer", "--config", tmp_path / "run.yaml", "--output-dir", tmp_path / "new"]
    words += ["--set", f"corpus.decontaminate={sets}", "--set", f"data_dir={tmp_path / 'other'}"]
    line = interrupted("ant_hf.data.decontamination.run_hashes", *words)
    assert "while reading the evaluation sets" in line
