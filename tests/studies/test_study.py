"""A study from its file to its page: plan, runs, record, resumption."""

import copy
import json
import os
import re
import shutil
import signal

import pytest
import yaml
from commands import in_a_process, run_here, stop_command

from ant_hf.errors import AntError
from ant_hf.studies import study as study_module
from ant_hf.studies.planning import plan_study
from ant_hf.studies.record import StudyRecord
from ant_hf.studies.running import Scoring, outcome_of, train_and_score, write_recipe
from ant_hf.studies.scores import gradient_noise
from ant_hf.studies.study import run_study
from ant_hf.studies.study_file import Options, load_study

# The tokens of these tests are prepared: no run packs its own.
SCORES = ["bits_per_byte", "tokens_per_second", "hidden_rank", "embedding_share"]


@pytest.fixture
def small(write_study, tmp_path, prepared):
    """A study of two runs of two steps; its options."""
    shutil.copytree(prepared, tmp_path / "data", dirs_exist_ok=True)
    changes = {"tokens": 1024, "data_dir": str(tmp_path / "data"), "training.eval_max_tokens": 500}
    file = write_study(
        changes=changes,
        runs={
            "base": {"seeds": [1]},
            # A thousandth of the text is one step.
            "faster": {"training.learning_rate": 0.03, "training.num_train_epochs": 0.001, "seeds": [3]},
        },
        score=SCORES,
    )
    return file, Options(output_dir=str(tmp_path / "out"))


@pytest.fixture
def here(monkeypatch):
    """Runs in this process, which saves the seconds of a new one; the names of those that were trained."""
    trained = []

    def run(run, scoring, progress):
        trained.append(run.name)
        train_and_score(run.folder, scoring)

    monkeypatch.setattr(study_module, "in_a_process", run)
    return trained


def test_one_model_by_two_names_is_trained_once_and_shown_twice(small, here, tmp_path, capsys):
    file, options = small
    values = yaml.safe_load(file.read_text())
    values["runs"]["other"] = copy.deepcopy(values["runs"]["base"])
    file.write_text(yaml.safe_dump(values))
    loaded = load_study(file, options)
    plan_study(loaded, tokens_per_second=1000)
    assert re.search(r"runs\W+2, of which 0 are finished", capsys.readouterr().out)

    record = run_study(loaded)
    assert here == ["base-s1", "faster-s3"]
    base, _, other = record.runs
    assert (base.cell, other.cell, other.scores) == ("base", "other", base.scores)
    text = (tmp_path / "out" / "small.md").read_text()
    assert "“base” and “other” are one model, trained once." in text
    assert f"{base.minutes + record.runs[1].minutes:.0f} minutes in all" in text


def test_runs_become_a_record_and_a_page_and_are_not_run_again(small, here, tmp_path, capsys):
    file, options = small
    record = run_study(load_study(file, options), docs=tmp_path / "docs")
    assert here == ["base-s1", "faster-s3"]
    first, other = record.runs
    assert (first.cell, first.seed, other.changes["training.learning_rate"]) == ("base", 1, 0.03)
    assert first.scores["bits_per_byte"] != other.scores["bits_per_byte"]
    assert (first.facts["tokens"], other.facts["tokens"]) == (1024, 512)
    assert 0 < first.scores["hidden_rank"] <= 1
    assert first.scores["embedding_share"] == pytest.approx(384 * 32 / first.facts["parameters"])
    assert [*first.sha256] == ["recipe", "architecture", "run", "tokenizer", "tokens"]
    assert StudyRecord.read(tmp_path / "out/study.json") == record
    said = capsys.readouterr().out
    assert "Does it work?" in said
    assert "2 of 2, faster-s3: bits per byte" in said
    assert "Not yet answered" in (tmp_path / "docs/small.md").read_text()
    assert (tmp_path / "docs/small.png").stat().st_size > 3000
    assert not [*(tmp_path / "out").rglob("checkpoint-*")]

    # The answer is all that changes.
    file.write_text(file.read_text() + "answer: It does.\n")
    again = run_study(load_study(file, options), docs=tmp_path / "docs")
    assert len(here) == 2
    assert again.runs == record.runs
    assert "**It does.**" in (tmp_path / "docs/small.md").read_text()
    assert str(tmp_path) not in (tmp_path / "docs/small.json").read_text()

    # Other values in the same folders are refused.
    values = yaml.safe_load(file.read_text())
    values["runs"]["faster"]["training.learning_rate"] = 0.04
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(
        AntError,
        match=r"(?s)faster-s3 already holds a run with other values.*learning_rate was 0.03, is 0.04",
    ):
        run_study(load_study(file, options))


def test_a_run_whose_numbers_break_is_a_result(small, tmp_path):
    file, options = small
    run = load_study(file, options).runs[0]
    write_recipe(run)
    assert outcome_of(run, Scoring(SCORES)) is None
    train_and_score(run.folder, Scoring(["bits_per_byte"]))
    path = run.folder / "run.json"
    values = json.loads(path.read_text()) | {"status": "running", "format_version": 1}
    path.write_text(json.dumps({key: value for key, value in values.items() if key != "values_sha256"}))
    assert outcome_of(run, Scoring(SCORES)) is None
    with (run.folder / "metrics.jsonl").open("a") as rows:
        rows.write(json.dumps({"step": 2, "stopped_by_gradient_norm": "nan", "blocks": [1]}) + "\n")
    outcome = outcome_of(run, Scoring(SCORES))
    assert outcome.broken == "gradient norm nan at step 2"
    assert set(outcome.scores.values()) == {None}


def test_a_run_that_breaks_keeps_no_checkpoints_and_other_errors_are_told(small, monkeypatch):
    run = load_study(*small).runs[0]
    write_recipe(run)
    checkpoint = run.folder / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "checkpoint.json").write_text("{}")

    def breaks(_):
        raise AntError("the loss is nan")

    monkeypatch.setattr("ant_hf.studies.running.pretrain", breaks)
    with pytest.raises(AntError, match="the loss is nan"):
        train_and_score(run.folder, Scoring(SCORES))
    assert checkpoint.exists()
    (run.folder / "metrics.jsonl").write_text('{"step": 2, "stopped_by_loss": "nan"}\n')
    train_and_score(run.folder, Scoring(SCORES))
    assert not checkpoint.exists()


def test_scores_on_another_number_of_documents_are_measured_again(small, tiny_run, tmp_path, monkeypatch):
    run = load_study(*small).runs[0]
    shutil.copytree(tiny_run, run.folder)
    write_recipe(run)
    results = {"conditions": {"limit": 2}, "degeneration": {"greedy": {"loop_rate": 0.5}}}
    (run.folder / "final/results.json").write_text(json.dumps(results))
    measured = []
    monkeypatch.setattr("ant_hf.evaluation.evaluate.evaluate", lambda *_, **options: measured.append(options))
    assert outcome_of(run, Scoring(["loop_rate"], limit=2)).scores == {"loop_rate": 0.5}
    train_and_score(run.folder, Scoring(["loop_rate"], limit=2))
    assert not measured
    assert outcome_of(run, Scoring(["loop_rate"], limit=3)) is None
    train_and_score(run.folder, Scoring(["loop_rate"], limit=3))
    assert [(options["limit"], options["fresh"]) for options in measured] == [(3, True)]


def test_gradient_noise_is_of_the_second_half():
    rows = [{"grad_norm": norm} for norm in (9.0, 5.0, 7.0, 1.0, 2.0, 3.0)]
    assert gradient_noise(rows) == pytest.approx(0.5)
    assert gradient_noise(rows[:4]) is None


def test_a_dry_run_writes_nothing(small, tmp_path, capsys):
    file, options = small
    before = sorted(tmp_path.rglob("*"))
    plan_study(load_study(file, options), tokens_per_second=1000)
    assert sorted(tmp_path.rglob("*")) == before
    said = " ".join(capsys.readouterr().out.split())
    assert "2, of which 0 are finished" in said
    assert "2,048" in said
    assert re.search(r"1,000[ │]+tokens[ │]+per[ │]+second[ │]+for", said)
    assert "GB are free" in said


def test_a_precision_that_is_not_here_is_left_out(write_study, tmp_path, monkeypatch):
    monkeypatch.setattr("ant_hf.train.setup.torch.cuda.is_available", lambda: False)
    file = write_study(grid={"training.precision": ["fp16", "fp32"]})
    loaded, left_out = study_module.without_impossible(load_study(file))
    assert [run.cell for run in loaded.runs] == ["precision fp32"]
    assert "'fp16' on cpu" in left_out["precision fp16"]
    with pytest.raises(AntError, match="cannot train any of its runs"):
        study_module.without_impossible(load_study(write_study(grid={"training.precision": ["fp16"]})))


def test_a_task_leaves_out_what_its_machine_cannot_train(write_study, tmp_path, monkeypatch):
    from ant_hf.studies import datatrove_steps

    trained = []
    monkeypatch.setattr(datatrove_steps, "in_a_process", lambda run, *_: trained.append(run.cell))
    monkeypatch.setattr("ant_hf.train.setup.torch.cuda.is_available", lambda: False)
    file = write_study(grid={"training.precision": ["fp16", "fp32"]})
    assert list(datatrove_steps.TrainRuns(str(file), Options(output_dir=str(tmp_path / "out"))).run()) == []
    assert trained == ["precision fp32"]


def test_the_command_names_what_is_wrong(write_study):
    result = run_here("ant-hf", "study", write_study(changes={"training.max_stepz": 1}), "--dry-run")
    assert result.returncode == 2
    assert "training.max_stepz is not a key of a recipe; did you mean training.max_steps?" in result.stderr


def long_study(file, tmp_path, steps):
    """Make of the small study one of four longer runs; their folders, and how to see one train."""
    values = yaml.safe_load(file.read_text()) | {"runs": {}, "seeds": [1, 2], "score": ["bits_per_byte"]}
    values["changes"] |= {"tokens": steps * 512, "training.save_steps": 10, "training.logging_steps": 5}
    values["grid"] = {"training.learning_rate": [0.01, 0.03]}
    file.write_text(yaml.safe_dump(values))

    def is_training(run):
        rows = run / "metrics.jsonl"
        return rows.exists() and rows.read_text().count("\n") >= 4

    out = tmp_path / "out"
    return [out / f"learning-rate-{rate}-s{seed}" for rate in (0.01, 0.03) for seed in (1, 2)], is_training


@pytest.mark.slow
def test_stopped_killed_and_continued(small, tmp_path):
    """Two by two runs in processes of their own; Ctrl-C in the second, a kill in the third."""
    file, _ = small
    runs, is_training = long_study(file, tmp_path, steps=200)
    out = tmp_path / "out"
    command = ("ant-hf", "study", file, "--output-dir", out)

    stopped = stop_command(*command, at=lambda: is_training(runs[1]))
    assert stopped.faults("1 are finished", "Run the same command again") == []
    finished = (runs[0] / "run.json").read_bytes()
    assert json.loads((runs[1] / "run.json").read_text())["status"] == "stopped"

    killed = stop_command(*command, at=lambda: is_training(runs[2]), by=signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert killed.left_over == []

    done = in_a_process(*command)
    assert done.returncode == 0, done.stderr
    assert (runs[0] / "run.json").read_bytes() == finished
    records = [json.loads((run / "run.json").read_text()) for run in runs]
    assert [record["status"] for record in records] == ["finished"] * 4
    assert records[1]["resumed_from_steps"]
    assert records[2]["resumed_from_steps"]
    assert len(StudyRecord.read(out / "study.json").runs) == 4


@pytest.mark.slow
def test_datatrove_trains_what_the_command_then_shows(small, tmp_path, monkeypatch):
    from datatrove.executor.local import LocalPipelineExecutor

    from ant_hf.studies.datatrove_steps import TrainRuns

    file, options = small
    step = TrainRuns(str(file), options)
    LocalPipelineExecutor([step], tasks=2, workers=2, logging_dir=str(tmp_path / "logs")).run()

    def refused(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(study_module, "in_a_process", refused)
    assert len(run_study(load_study(file, options)).runs) == 2
    assert os.environ.get("CUDA_VISIBLE_DEVICES") is None


@pytest.mark.slow
def test_ctrl_c_ends_datatrove_and_all_its_runs(small, tmp_path):
    file, options = small
    # No run is to end before the other has begun.
    runs, is_training = long_study(file, tmp_path, steps=5000)
    script = tmp_path / "train.py"
    script.write_text(
        "from datatrove.executor.local import LocalPipelineExecutor\n"
        "from ant_hf.studies.datatrove_steps import TrainRuns\n"
        "from ant_hf.studies.study_file import Options\n"
        "if __name__ == '__main__':\n"
        f"    step = TrainRuns({str(file)!r}, Options(output_dir={options.output_dir!r}))\n"
        f"    logs = {str(tmp_path / 'logs')!r}\n"
        "    LocalPipelineExecutor([step], tasks=4, workers=2, logging_dir=logs).run()\n"
    )
    stopped = stop_command("python", script, at=lambda: all(map(is_training, runs[:2])))
    assert stopped.returncode
    assert stopped.left_over == []
    assert [json.loads((run / "run.json").read_text())["status"] for run in runs[:2]] == ["stopped"] * 2
    assert not (runs[2] / "run.json").exists()
