"""Kill a small real run at random moments, resume it every time, compare its end with an uninterrupted one.

    python tests/faults/kills.py --processes 1 --kills 200 --tally kills-1.json

The run is `pretrain.py` with a tiny model. Most attempts are forked from this process, which has the
libraries loaded already, so that the seconds go into kills and not into imports; every tenth goes
through `accelerate launch`. Every other kill waits for a save to begin and strikes within it.
A second call with the same tally and folder continues counting.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[2]
MAX_STEPS = int(os.environ.get("ANT_HF_KILL_STEPS", "120"))
# A kill falls within this share of the time that the uninterrupted run took, or in the save that follows.
HORIZON = 0.7
RECIPE = {
    "name": "killed",
    "sample_prompt": "In the beginning",
    "tokenizer": {"vocab_size": 384},
    "training": {
        "sequence_length": 128,
        "sequences_per_step": 8,
        # Two micro-batches a step on one process as on two.
        "per_device_batch_size": 2,
        "max_steps": MAX_STEPS,
        "optimizer": "muon",
        "muon_learning_rate": 0.02,
        "learning_rate": 0.01,
        "warmup_steps": 4,
        # No multiples of each other: a row of the log averages over steps on both sides of a save.
        "logging_steps": 3,
        "eval_steps": 7,
        "save_steps": 2,
        "eval_max_tokens": 1000,
        "precision": "fp32",
        "device": "cpu",
        "cpu_threads": 1,
        "report_to": [],
    },
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    # Only a dropout makes the state of the random generators matter.
    "attention_dropout": 0.1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def write_recipe(folder: Path, name: str, chapters: int = 12, **training: object) -> Path:
    """A recipe file beside its own copy of text and config; the run makes nine passes."""
    from ant_hf.data.sources import EmbeddedBible

    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "corpus.jsonl"
    if not text.exists():
        rows = list(EmbeddedBible().documents())[:chapters]
        text.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(CONFIG))
    values = RECIPE | {
        "architecture": str(folder / "config.json"),
        "output_dir": str(folder / name),
        "corpus": {"source": "files", "path": str(text), "validation_fraction": 0.15},
        "training": RECIPE["training"] | training,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


class Attempt:
    """One start of the run: all its processes and what they said."""

    def __init__(self, recipe: Path, processes: int, by_command: bool, log: Path) -> None:
        self.log, self.by_command = log, by_command
        log.write_text("")
        if by_command:
            self.launcher = _launch(recipe, processes, log)
            self.pids = [self.launcher.pid]
        else:
            port = _free_port()
            self.pids = [_fork(recipe, rank, processes, port, log) for rank in range(processes)]
        self.codes: dict[int, int] = {}

    def running(self) -> bool:
        for pid in self.pids:
            if pid not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
                    if self.by_command:
                        self.launcher.returncode = self.codes[pid]
        return len(self.codes) < len(self.pids)

    def family(self) -> list[psutil.Process]:
        found = []
        for pid in self.pids:
            if pid not in self.codes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(pid)
                    found += [process, *process.children(recursive=True)]
        return found

    def kill(self, victims: list[int] | None = None) -> None:
        """SIGKILL everything at once, or one process first as the system does when memory is short."""
        if not self.by_command:
            # At once: listing a family takes longer than a save.
            for index in range(len(self.pids)) if victims is None else victims:
                if self.pids[index] not in self.codes:
                    os.kill(self.pids[index], signal.SIGKILL)
        family = self.family()
        if victims is not None:
            # The launcher asks the others to end, and does not wait for ever.
            self.wait(0.2)
            _signal(family, signal.SIGTERM)
            self.wait(3.0)
        _signal(family, signal.SIGKILL)
        self.wait(30.0)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive, alive

    def wait(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self.running() and time.monotonic() < until:
            time.sleep(0.005)
        return not self.running()


def _signal(family: list[psutil.Process], number: int) -> None:
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _fork(recipe: Path, rank: int, processes: int, port: int, log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if processes > 1:
            values = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": processes,
                "LOCAL_WORLD_SIZE": processes,
            }
            values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "True"}
            os.environ.update({name: str(value) for name, value in values.items()})
        sys.argv = ["pretrain.py", "--config", str(recipe)]
        from ant_hf.cli.main import pretrain_app, run

        run(pretrain_app)
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _launch(recipe: Path, processes: int, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes)]
    with log.open("a") as output:
        return subprocess.Popen(
            [*command, "pretrain.py", "--config", str(recipe)],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def newest_step(folder: Path) -> int:
    """The newest checkpoint that has its seal, which is the promise that it is complete."""
    return max(
        (int(seal.parent.name[11:]) for seal in folder.glob("checkpoint-*/checkpoint.json")), default=0
    )


def is_saving(folder: Path) -> bool:
    """Whether a checkpoint is being written: its seal comes last."""
    return any(not (path / "checkpoint.json").exists() for path in folder.glob("checkpoint-*"))


def log_rows(folder: Path) -> list[tuple]:
    """What the loss log says, without what depends on the clock."""
    from ant_hf.utils.metrics import read_metrics

    clock = {
        "data_loading_share",
        "tokens_per_second",
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
    }
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "train_runtime" not in row]
    return [tuple(sorted((k, v) for k, v in row.items() if k not in clock)) for row in rows]


def differences(folder: Path, reference: Path) -> list[str]:
    """In what a finished run differs from the uninterrupted one: weights bit by bit, loss log."""
    import torch
    from safetensors.torch import load_file

    mine, theirs = (load_file(path / "final" / "model.safetensors") for path in (folder, reference))
    found = [] if mine.keys() == theirs.keys() else ["names of weights"]
    found += [name for name in mine if name in theirs and not torch.equal(mine[name], theirs[name])]
    if log_rows(folder) != log_rows(reference):
        found.append("loss log")
    return found


def phase(folder: Path, log: str) -> str:
    """Where a killed attempt was."""
    if is_saving(folder):
        return "inside a save"
    if not re.search(r"^training {4}", log, re.MULTILINE):
        return "before training"
    if newest_step(folder) == MAX_STEPS:
        return "export and check"
    return "training"


class Soak:
    """Kills until there are enough, over as many runs as that takes."""

    def __init__(self, work: Path, tally: Path, processes: int) -> None:
        from ant_hf.utils.provenance import source_commit

        self.work, self.file, self.processes = work, tally, processes
        self.tally = json.loads(tally.read_text()) if tally.exists() else _empty_tally(processes)
        # Each slice must draw other moments, and the same call the same ones.
        self.random = random.Random(f"{processes} {self.tally['attempts']}")
        self.reference = work / f"reference{processes}"
        # A tally that is continued after a change counts for the code it began with.
        self.tally.setdefault("commit", source_commit())
        self.horizon = HORIZON * self._reference_seconds()

    def _reference_seconds(self) -> float:
        """Make the uninterrupted run, if it is not there."""
        recipe, took = write_recipe(self.work, self.reference.name), self.reference.with_suffix(".seconds")
        if not took.exists():
            began = time.monotonic()
            attempt = Attempt(recipe, self.processes, False, self.work / "reference.log")
            assert attempt.wait(120), "the uninterrupted run takes too long"
            assert set(attempt.codes.values()) == {0}, attempt.log.read_text()[-3000:]
            took.write_text(str(time.monotonic() - began))
        return float(took.read_text())

    def kill_until(self, kills: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.tally["kills"] < kills and time.monotonic() < until:
            self._one_run(kills, until)
            self.save()

    def save(self) -> None:
        self.file.write_text(json.dumps(self.tally, indent=2) + "\n")

    def _one_run(self, kills: int, until: float) -> None:
        name = f"run{self.processes}"
        folder, recipe = self.work / name, write_recipe(self.work, name)
        shutil.rmtree(folder, ignore_errors=True)
        killed_here = 0
        while True:
            enough = self.tally["kills"] >= kills or time.monotonic() > until
            before = newest_step(folder)
            attempt, was_killed = self._attempt(recipe, folder, spare=enough)
            self._check_resume(attempt, before, newest_step(folder))
            if was_killed:
                killed_here += 1
                continue
            if any(attempt.codes.values()):
                self._fail("corrupt_resumes", f"exit {attempt.codes}: {attempt.log.read_text()[-1500:]}")
                return
            break
        self.tally["runs_finished"] += 1
        found = differences(folder, self.reference)
        if found:
            self._fail("runs_different", f"after {killed_here} kills: {', '.join(found)}")
        else:
            self.tally["runs_equal"] += 1
        if killed_here:
            self.tally["kills_a_run"].append(killed_here)

    def _attempt(self, recipe: Path, folder: Path, spare: bool) -> tuple[Attempt, bool]:
        tally = self.tally
        tally["attempts"] += 1
        by_command = tally["attempts"] % 10 == 0
        tally["attempts_by_command"] += by_command
        attempt = Attempt(recipe, self.processes, by_command, self.work / f"attempt{self.processes}.log")
        if spare:
            assert attempt.wait(180)
            return attempt, False
        # The launcher needs seconds of its own before there is anything to kill.
        delay = self.random.uniform(0, self.horizon) + (6.0 if by_command else 0.0)
        aimed = self.random.random() < 0.5
        if not self._strike(attempt, folder, delay, aimed):
            return attempt, False
        if not by_command and self.processes > 1 and self.random.random() < 0.4:
            attempt.kill([self.random.randrange(self.processes)])
            tally["kills_of_one_process"] += 1
        else:
            attempt.kill()
        if -signal.SIGKILL not in attempt.codes.values() and not any(attempt.codes.values()):
            return attempt, False  # it had just ended by itself
        where = phase(folder, attempt.log.read_text())
        tally["kills"] += 1
        tally["by_phase"][where] = tally["by_phase"].get(where, 0) + 1
        return attempt, True

    def _strike(self, attempt: Attempt, folder: Path, delay: float, aimed: bool) -> bool:
        """Wait for the moment; False if the run ended before it came."""
        if attempt.wait(delay):
            return False
        if aimed:
            until = time.monotonic() + self.horizon
            while not is_saving(folder) and attempt.running() and time.monotonic() < until:
                time.sleep(0.0003)
            # As long as the saves of this model take on a fast disk.
            time.sleep(self.random.uniform(0, 0.012))
        return attempt.running()

    def _check_resume(self, attempt: Attempt, before: int, after: int) -> None:
        """It continued from the newest complete checkpoint, and left none older than that."""
        text = attempt.log.read_text()
        resumed = re.search(r"resuming +from step ([\d,]+)", text)
        if resumed:
            step = int(resumed[1].replace(",", ""))
            # A checkpoint may have been complete and killed just before it was sealed.
            self.tally["lost_steps"] += max(0, before - step)
            self.tally["resumes"] += 1
        elif before and re.search(r"^ *0%", text, re.MULTILINE):
            self._fail("corrupt_resumes", f"started over in spite of checkpoint-{before}")
        self.tally["lost_steps"] += max(0, before - after)

    def _fail(self, kind: str, text: str) -> None:
        self.tally[kind] += 1
        self.tally["failures"].append(text)


def _empty_tally(processes: int) -> dict:
    counts = ("attempts", "attempts_by_command", "kills", "kills_of_one_process", "resumes", "runs_finished")
    counts += ("runs_equal", "runs_different", "lost_steps", "corrupt_resumes")
    return {
        "processes": processes,
        **dict.fromkeys(counts, 0),
        "by_phase": {},
        "kills_a_run": [],
        "failures": [],
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="stop after this long; call again to continue"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--tally", type=Path, required=True, help="JSON file of the counts")
    options = parser.parse_args(argv)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import ant_hf.train.pretrain  # loaded before the forks  # noqa: F401

    soak = Soak(options.work, options.tally, options.processes)
    soak.kill_until(options.kills, options.seconds)
    soak.save()
    print(json.dumps(soak.tally))


if __name__ == "__main__":
    main()
