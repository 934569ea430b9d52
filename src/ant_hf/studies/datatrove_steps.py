"""The runs of a study as tasks of a datatrove pipeline: one GPU each, on one machine or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError, RunStopped
from ant_hf.studies.running import Scoring, in_a_process, outcome_of, write_recipe
from ant_hf.studies.study import without_impossible
from ant_hf.studies.study_file import Options, load_study
from ant_hf.utils.provenance import install_command

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError:
    raise AntError("these steps need datatrove", hint=install_command("cluster")) from None


class TrainRuns(PipelineStep):
    """Trains and scores every `world_size`-th run of a study; as many tasks as runs give one run to each.

    Afterwards `ant-hf study` with the same file writes the page: it trains nothing that is finished.

    Args:
        file: the study file.
        gpu_by_rank: task 0 takes GPU 0, task 1 GPU 1, and so on: for one machine with as many tasks as GPUs.
            Slurm gives each task its own.
    """

    type, name = "TRAIN", "train runs"

    def __init__(
        self,
        file: str,
        options: Options | None = None,
        data_dir: Path | None = None,
        gpu_by_rank: bool = False,
    ) -> None:
        super().__init__()
        self.file, self.options, self.data_dir, self.gpu_by_rank = file, options, data_dir, gpu_by_rank

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        yield from data or ()
        if self.gpu_by_rank:
            # Before CUDA starts, which it does in the process of the run.
            os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)
        loaded = load_study(self.file, self.options)
        scoring = Scoring.of(loaded.study, self.data_dir)
        _, left_out = without_impossible(loaded)
        # Of all runs: on a machine that leaves out others, a task has the same ones.
        for run in loaded.trainings[rank::world_size]:
            if run.cell in left_out:
                continue
            write_recipe(run)
            if outcome_of(run, scoring) is None:
                try:
                    in_a_process(run, scoring, lambda tokens: None)
                except RunStopped as stopped:
                    # After an ordinary exception a worker of datatrove goes on with the next task.
                    raise SystemExit(stopped.exit_code) from None
