"""Checkpoints on the Hub while a run trains, and a run that continues from there on another machine.

Not Trainer's own push: that sends the whole output folder, tokens included, drops a push while another
is running unless `hub_always_push` is set, uploads from folders that the next save may remove, and stops
the run when the Hub does not answer at its start. Here the one worker of `HfApi.run_as_future` sends one
commit per checkpoint, in order, from hard links of its own; what the Hub does never reaches the training.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ant_hf.errors import AntError
from ant_hf.hub import HubClient, HubUnreachableError
from ant_hf.recipe import Recipe
from ant_hf.train.checkpoints import checkpoint_name
from ant_hf.utils.console import is_first_process, say
from ant_hf.utils.files import inventory, read_json, read_sealed, whole_folder, write_json, write_sealed
from ant_hf.utils.names import LAST_CHECKPOINT, METRICS, MODEL_FILES, RUN_RECORD, SEAL, TOKENIZER_FILES
from ant_hf.utils.provenance import without_paths
from ant_hf.utils.stopping import phase

_STAGE = ".hub-upload"
# Written by Trainer for itself: a pickle with this machine's paths in it, not needed to continue.
_NOT_SENT = "training_args.bin"
_WAIT_SECONDS = 600.0


class CheckpointUploads(TrainerCallback):
    """Sends every saved checkpoint to the Hub beside the training; failures are said and forgotten.

    Args:
        client: may write to the recipe's `hub_model_id`.
        recipe: says where to and how much (`hub_strategy`).
    """

    def __init__(self, client: HubClient, recipe: Recipe) -> None:
        self._client, self._recipe, self._output_dir = client, recipe, Path(recipe.output_dir)
        self._repository = str(recipe.training.hub_model_id)
        self._newest: tuple[str, Path, Future[None]] | None = None
        self._is_created = self._is_given_up = False
        self.sent: list[str] = []
        self.failed: list[str] = []
        shutil.rmtree(self._output_dir / _STAGE, ignore_errors=True)
        disable_progress_bars()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not state.is_world_process_zero or self._recipe.training.hub_strategy == "end":
            return
        what = f"step {state.global_step:,}"
        try:
            stage = self._stage_checkpoint(self._output_dir / checkpoint_name(state.global_step))
        except OSError as error:
            self._fail(what, str(error))
            return
        if self._newest and not self._recipe.training.hub_always_push:
            older, its_stage, upload = self._newest
            # Only what still waits can be cancelled.
            if upload.cancel():
                say(
                    "hub", f"{older} is not sent, because a newer one was saved before the upload could begin"
                )
                shutil.rmtree(its_stage, ignore_errors=True)
        self._put_in_line(what, stage)

    def finish(self, final: Path | None) -> None:
        """Send the exported model, if there is one, and wait until everything is there, or has failed.

        Args:
            final: its folder; None for a run that was stopped.
        """
        last = "the final model" if final else "the last checkpoint"
        kept = f"All of it is in {self._output_dir}. Run the same command again to send the rest."
        with phase(f"sending {last} to {self._repository}", kept):
            if final:
                stage = self._new_stage("final")
                for path in final.iterdir():
                    if path.is_file():
                        _link(path, stage / path.name)
                self._put_in_line(last, stage)
            say("hub", f"waiting for the uploads to {self._repository}; Ctrl-C ends without them")
            # In line behind all others, it is done when they are.
            is_late = wait([self._client.api.run_as_future(int)], _WAIT_SECONDS).not_done
        if is_late:
            self._is_given_up = True
            self._fail(last, f"the upload did not end within {_WAIT_SECONDS:.0f} s")
        if self.failed:
            say("hub", "some uploads did not arrive; run the same command again to continue")
        else:
            say("hub", f"{len(self.sent)} uploads to {self._repository} arrived")

    def _put_in_line(self, what: str, stage: Path) -> None:
        self._newest = what, stage, self._client.api.run_as_future(self._send, what, stage)

    def _send(self, what: str, stage: Path) -> None:
        # Python itself waits for the worker when it ends: for what is under way, and nothing more.
        if self._is_given_up:
            return
        api, is_private = self._client.api, self._recipe.training.hub_private_repo
        # Files of an earlier checkpoint that this one does not have.
        gone = f"{LAST_CHECKPOINT}/*" if (stage / LAST_CHECKPOINT).is_dir() else None
        try:
            if not self._is_created:
                self._client.step(
                    f"creating {self._repository}",
                    lambda: api.create_repo(self._repository, private=is_private, exist_ok=True),
                )
                self._is_created = True
            self._client.step(f"sending {what}", lambda: self._commit(what, stage, gone))
            self.sent.append(what)
        except Exception as error:  # whatever it is, it must not reach the training
            self._fail(what, self._client.redact(str(error)))
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _commit(self, what: str, stage: Path, gone: str | None) -> None:
        api = self._client.api
        # A file of two names, as the weights are, would go over the line twice; what has arrived does not.
        hashes = {name: values["sha256"] for name, values in inventory(stage).items()}
        count = Counter(hashes.values())
        twice = {sha256: name for name, sha256 in hashes.items() if count[sha256] > 1}
        additions = [CommitOperationAdd(name, stage / name) for name in twice.values()]
        api.preupload_lfs_files(self._repository, additions)
        api.upload_folder(
            repo_id=self._repository,
            folder_path=stage,
            commit_message=f"Training in progress, {what}",
            delete_patterns=gone,
        )

    def _fail(self, what: str, why: str) -> None:
        self.failed.append(what)
        say("hub", f"{what} was not sent, but the training continues: {why}")

    def _stage_checkpoint(self, checkpoint: Path) -> Path:
        """The files of one commit, as hard links that a later removal of the checkpoint cannot take away."""
        stage = self._new_stage(checkpoint.name)
        for name in MODEL_FILES:
            if (checkpoint / name).is_file():
                _link(checkpoint / name, stage / name)
        for name in TOKENIZER_FILES:
            _link(self._recipe.tokenizer_dir / name, stage / name)
        targets = {"checkpoint": [LAST_CHECKPOINT], "all_checkpoints": [LAST_CHECKPOINT, checkpoint.name]}
        for target in targets.get(self._recipe.training.hub_strategy, []):
            folder = self._new_stage(f"{checkpoint.name}/{target}")
            for path in checkpoint.iterdir():
                if path.name not in (_NOT_SENT, SEAL):
                    _link(path, folder / path.name)
            if (checkpoint / SEAL).is_file():
                seal = read_json(checkpoint / SEAL, "the seal", "")
                seal["files"].pop(_NOT_SENT, None)
                write_json(folder / SEAL, seal)
        return stage

    def _new_stage(self, name: str) -> Path:
        """A folder with the run's records, as the public may see them."""
        stage = self._output_dir / _STAGE / name
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        record = read_sealed(self._output_dir / RUN_RECORD, "run record", "")
        write_sealed(stage / RUN_RECORD, without_paths(record))
        if (self._output_dir / METRICS).is_file():
            shutil.copyfile(self._output_dir / METRICS, stage / METRICS)
        return stage


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without links.
        shutil.copyfile(source, target)


def start_uploads(recipe: Recipe, trainer: Trainer | None = None) -> CheckpointUploads | None:
    """The callback for a recipe with `push_to_hub`, on the first process, also added to the trainer.

    A token that will not do is refused here, before anything is spent; a Hub that does not answer is
    only said, because each save tries again.

    Raises:
        AntError: no token, or one that may not write.
    """
    if not recipe.training.push_to_hub or not is_first_process():
        return None
    uploads = CheckpointUploads(checked_client(recipe), recipe)
    if trainer:
        trainer.add_callback(uploads)
    return uploads


def checked_client(recipe: Recipe) -> HubClient:
    """A client that may write to the recipe's repository, or for now cannot reach the Hub.

    Raises:
        AntError: no token, or one that may not write there.
    """
    try:
        client = HubClient(attempts=3, timeout=30.0)
        client.check_may_write(str(recipe.training.hub_model_id))
    except HubUnreachableError as error:
        say("hub", f"{error}; training continues, and every save tries again")
    except AntError as error:
        raise AntError(f"training.push_to_hub is on, and {error}") from None
    return client


def fetch_checkpoint(recipe: Recipe, fresh: bool) -> None:
    """On a machine without this run, put the Hub's last checkpoint in place, to continue from.

    Raises:
        AntError: the Hub cannot say whether it holds one: starting over would put a first checkpoint
            over a later one.
    """
    output_dir, repository = Path(recipe.output_dir), str(recipe.training.hub_model_id)
    is_wanted = recipe.training.push_to_hub and not fresh and is_first_process()
    if not is_wanted or (output_dir / RUN_RECORD).is_file():
        return
    # Now, and not after hours of packing.
    client = checked_client(recipe)

    def download() -> Path | None:
        try:
            snapshot = client.api.snapshot_download(repository, allow_patterns=f"{LAST_CHECKPOINT}/*")
        except RepositoryNotFoundError:
            return None
        folder = Path(snapshot, LAST_CHECKPOINT)
        return folder if (folder / RUN_RECORD).is_file() else None

    try:
        found = client.step(f"looking for a checkpoint in {repository}", download)
    except HubUnreachableError as error:
        raise AntError(
            f"{error}; so it is not known whether {repository} holds a checkpoint of this run",
            hint="Try again later, or train without the Hub: --set training.push_to_hub=false",
        ) from None
    if not found:
        return
    state = read_json(found / "trainer_state.json", "trainer state of the Hub's checkpoint", "")
    record = read_sealed(found / RUN_RECORD, "run record of the Hub's checkpoint", "")
    now = recipe.model_dump()
    then = _with_paths(record["recipe"], now) | {key: now[key] for key in ("output_dir", "data_dir")}
    step = int(state["global_step"])
    output_dir.mkdir(parents=True, exist_ok=True)
    with whole_folder(output_dir / checkpoint_name(step)) as partial:
        for path in found.iterdir():
            if path.name not in (RUN_RECORD, METRICS):
                shutil.copyfile(path, partial / path.name)
    if (found / METRICS).is_file():
        shutil.copyfile(found / METRICS, output_dir / METRICS)
    # Last: a folder with this file counts as the run's.
    write_sealed(output_dir / RUN_RECORD, record | {"recipe": then})
    say("hub", f"the checkpoint of step {step:,} was downloaded from {repository}")


def _with_paths(then: Any, now: Any, key: str = "") -> Any:
    """The recorded recipe with the paths of this machine where only the folders differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        return {name: _with_paths(value, now.get(name), name) for name, value in then.items()}
    return now if without_paths(then, key) == without_paths(now, key) else then
