"""Checkpoints on the Hub while a run trains, and a run that goes on from there on another machine.

Not Trainer's own push: that sends the whole output folder, tokens included, drops a push while another
is running unless `hub_always_push` is set, uploads from folders that the next save may remove, and stops
the run when the Hub does not answer at its start. Here one thread sends one commit a checkpoint, from
hard links of its own; what the Hub does never reaches the training.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import threading
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ant_hf.errors import AntError
from ant_hf.hub import HubClient, HubUnreachableError
from ant_hf.recipe import Recipe
from ant_hf.utils.console import is_first_process, say
from ant_hf.utils.files import read_json, read_sealed, whole_folder, write_json, write_sealed
from ant_hf.utils.names import METRICS, RUN_RECORD, SEAL
from ant_hf.utils.provenance import without_paths

LAST = "last-checkpoint"
_STAGE = ".hub-upload"
_MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# Written by Trainer for itself: a pickle with this machine's paths in it, not needed to go on.
_NOT_SENT = {"training_args.bin"}
# Keys whose values are places on a machine.
_PLACES = ("output_dir", "data_dir")
_WAIT_SECONDS = 600.0


class CheckpointUploads(TrainerCallback):
    """Sends every saved checkpoint to the Hub from a thread; failures are said and forgotten.

    Args:
        client: may write to the recipe's `hub_model_id`.
        recipe: says where to and how much (`hub_strategy`).
    """

    def __init__(self, client: HubClient, recipe: Recipe) -> None:
        self._client, self._recipe = client, recipe
        self._output_dir = Path(recipe.output_dir)
        self._jobs: queue.Queue[tuple[str, Path] | None] = queue.Queue()
        self._created = False
        self.sent: list[str] = []
        self.failed: list[str] = []
        shutil.rmtree(self._output_dir / _STAGE, ignore_errors=True)
        disable_progress_bars()
        self._thread = threading.Thread(target=self._work, name="hub uploads", daemon=True)
        self._thread.start()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not state.is_world_process_zero or self._recipe.training.hub_strategy == "end":
            return
        what = f"step {state.global_step:,}"
        try:
            stage = self._stage_checkpoint(state.global_step)
        except OSError as error:
            self._fail(what, str(error))
            return
        if not self._recipe.training.hub_always_push:
            self._drop_waiting()
        self._jobs.put((what, stage))

    def finish(self, final: Path) -> None:
        """Send the exported model and wait until everything is there, or has failed."""
        stage = self._new_stage("final")
        for path in final.iterdir():
            if path.is_file():
                _link(path, stage / path.name)
        self._add_records(stage)
        self._jobs.put(("the final model", stage))
        self.close("the final model")

    def close(self, last: str) -> None:
        """Wait until everything is there, or has failed.

        Args:
            last: what was put in line last, for the message.
        """
        self._jobs.put(None)
        say(f"hub         waiting for the uploads to {self._recipe.training.hub_model_id}")
        self._thread.join(_WAIT_SECONDS)
        if self._thread.is_alive():
            self._fail(last, f"no end after {_WAIT_SECONDS:.0f} s")
        if self.failed:
            say("hub         not everything arrived; run the same command again to go on")
        else:
            say(f"hub         {len(self.sent)} uploads to {self._recipe.training.hub_model_id} arrived")

    def _work(self) -> None:
        while job := self._jobs.get():
            what, stage = job
            try:
                self._send(what, stage)
                self.sent.append(what)
            except Exception as error:  # whatever it is, it must not reach the training
                self._fail(what, self._client.redact(str(error)))
            finally:
                shutil.rmtree(stage, ignore_errors=True)

    def _send(self, what: str, stage: Path) -> None:
        training, api = self._recipe.training, self._client.api
        repository = str(training.hub_model_id)
        if not self._created:
            self._client.step(
                f"creating {repository}",
                lambda: api.create_repo(repository, private=training.hub_private_repo, exist_ok=True),
            )
            self._created = True
        self._client.step(
            f"sending {what}",
            lambda: api.upload_folder(
                repo_id=repository,
                folder_path=stage,
                commit_message=f"Training in progress, {what}",
                # Files of an earlier checkpoint that this one does not have.
                delete_patterns=f"{LAST}/*" if (stage / LAST).is_dir() else None,
            ),
        )

    def _fail(self, what: str, why: str) -> None:
        self.failed.append(what)
        say(f"hub         {what} was not sent, training goes on: {why}")

    def _drop_waiting(self) -> None:
        """A newer checkpoint takes the place of one that still waits, and says so."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job:
                say(f"hub         {job[0]} is not sent: a newer checkpoint is there before the line is free")
                shutil.rmtree(job[1], ignore_errors=True)

    def _stage_checkpoint(self, step: int) -> Path:
        """The files of one commit, as hard links that a later removal of the checkpoint cannot take away."""
        checkpoint = self._output_dir / f"checkpoint-{step}"
        stage = self._new_stage(checkpoint.name)
        for name in _MODEL_FILES:
            if (checkpoint / name).is_file():
                _link(checkpoint / name, stage / name)
        for name in _TOKENIZER_FILES:
            _link(self._recipe.tokenizer_dir / name, stage / name)
        self._add_records(stage)
        strategy = self._recipe.training.hub_strategy
        targets = {"checkpoint": [LAST], "all_checkpoints": [LAST, checkpoint.name]}.get(strategy, [])
        for target in targets:
            (stage / target).mkdir()
            for path in checkpoint.iterdir():
                if path.name not in _NOT_SENT:
                    _link(path, stage / target / path.name)
            _reseal(stage / target)
            self._add_records(stage / target)
        return stage

    def _new_stage(self, name: str) -> Path:
        stage = self._output_dir / _STAGE / name
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        return stage

    def _add_records(self, stage: Path) -> None:
        record = read_sealed(self._output_dir / RUN_RECORD, "run record", "")
        write_sealed(stage / RUN_RECORD, without_paths(record))
        if (self._output_dir / METRICS).is_file():
            shutil.copyfile(self._output_dir / METRICS, stage / METRICS)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without links.
        shutil.copyfile(source, target)


def _reseal(checkpoint: Path) -> None:
    """Take what is not sent out of the checkpoint's own list of files."""
    path = checkpoint / SEAL
    if path.is_file():
        seal = json.loads(path.read_text(encoding="utf-8"))
        seal["files"] = {name: value for name, value in seal["files"].items() if name not in _NOT_SENT}
        # Not written through the link, which would change the local checkpoint.
        path.unlink()
        write_json(path, seal)


def finish_uploads(uploads: CheckpointUploads | None, final: Path | None) -> None:
    """Send the exported model, if the recipe pushes to the Hub; without one, wait for the last checkpoint."""
    if uploads and final:
        uploads.finish(final)
    elif uploads:
        uploads.close("the last checkpoint")


def start_uploads(recipe: Recipe, trainer: Trainer | None = None) -> CheckpointUploads | None:
    """The callback for a recipe with `push_to_hub`, on the first process, also added to the trainer.

    A token that will not do is refused here, before anything is spent; a Hub that does not answer is
    only said, because each save tries again.

    Raises:
        AntError: no token, or one that may not write.
    """
    if not recipe.training.push_to_hub or not is_first_process():
        return None
    client = HubClient(attempts=3, timeout=30.0)
    _check_token(client)
    uploads = CheckpointUploads(client, recipe)
    if trainer:
        trainer.add_callback(uploads)
    return uploads


def _check_token(client: HubClient) -> None:
    try:
        account = client.step("asking who the token belongs to", client.api.whoami)
    except HubUnreachableError as error:
        say(f"hub         {error}; training goes on, and every save tries again")
        return
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise AntError(
            f"the Hub token of {account['name']} may only read, and training.push_to_hub is on",
            hint="Make one that may write at https://huggingface.co/settings/tokens",
        )


def fetch_checkpoint(recipe: Recipe, fresh: bool) -> None:
    """On a machine without this run, put the Hub's last checkpoint in place, to go on from.

    Raises:
        AntError: the Hub cannot say whether it holds one: starting over would put a first checkpoint
            over a later one.
    """
    output_dir = Path(recipe.output_dir)
    training = recipe.training
    if not training.push_to_hub or fresh or not is_first_process() or (output_dir / RUN_RECORD).is_file():
        return
    client = HubClient(attempts=3, timeout=30.0)
    # Now, and not after hours of packing.
    _check_token(client)
    repository = str(training.hub_model_id)

    def download() -> Path | None:
        try:
            folder = Path(snapshot_download(repository, allow_patterns=f"{LAST}/*", token=client.api.token))
        except RepositoryNotFoundError:
            return None
        return folder / LAST if (folder / LAST / RUN_RECORD).is_file() else None

    try:
        found = client.step(f"looking for a checkpoint in {repository}", download)
    except HubUnreachableError as error:
        raise AntError(
            f"{error}; whether {repository} holds a checkpoint of this run is not known",
            hint="Try again later, or train without the Hub: --set training.push_to_hub=false",
        ) from None
    if found:
        _put_in_place(found, recipe, output_dir)


def _with_paths(then: Any, now: Any, key: str = "") -> Any:
    """The recorded recipe with the paths of this machine where only the folders differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        return {name: _with_paths(value, now.get(name), name) for name, value in then.items()}
    return now if without_paths(then, key) == without_paths(now, key) else then


def _put_in_place(found: Path, recipe: Recipe, output_dir: Path) -> None:
    state = read_json(found / "trainer_state.json", "trainer state of the Hub's checkpoint", "")
    record = read_sealed(found / RUN_RECORD, "run record of the Hub's checkpoint", "")
    now = recipe.model_dump()
    then = _with_paths(record.get("recipe", {}), now) | {key: now[key] for key in _PLACES}
    step = int(state["global_step"])
    output_dir.mkdir(parents=True, exist_ok=True)
    with whole_folder(output_dir / f"checkpoint-{step}") as partial:
        for path in found.iterdir():
            if path.name not in (RUN_RECORD, METRICS):
                shutil.copyfile(path, partial / path.name)
    if (found / METRICS).is_file():
        shutil.copyfile(found / METRICS, output_dir / METRICS)
    # Last: a folder with this file counts as the run's.
    write_sealed(output_dir / RUN_RECORD, record | {"recipe": then})
    say(f"hub         step {step:,} was fetched from {recipe.training.hub_model_id}")
