"""One run from recipe to `final/`: plan, prepare, train or resume, export, reload, report."""

from __future__ import annotations

import math
import shlex
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

from ant_hf.data.dataset import check_one_block
from ant_hf.data.packing import find_data, make_data
from ant_hf.data.repacking import given_by_parts, training_order
from ant_hf.data.sources import open_source
from ant_hf.data.survey import Survey, survey
from ant_hf.data.tokenizer import end_of_text, load_tokenizer, token_byte_lengths
from ant_hf.data.tokens import TRAIN, VALIDATION, PackedTokens, read_manifest, verify_shards
from ant_hf.errors import AntError, RunStopped
from ant_hf.model.architecture import build_model
from ant_hf.model.loading import load_any, load_final
from ant_hf.model.saving import export_final
from ant_hf.model.scoring import SAME_LOSS
from ant_hf.recipe import OWN_TEXT, Recipe, share_in_words
from ant_hf.train.before_after import before_after_table, general_text, measure, measure_held_out
from ant_hf.train.checkpoints import checkpoint_name
from ant_hf.train.distributed import check_run_folder_is_shared, is_first_on_another_machine
from ant_hf.train.estimates import (
    TimeToGo,
    check_rooms,
    choose_compilation,
    measure_training,
    room_for,
    show_estimates,
)
from ant_hf.train.run_folder import (
    RunFolder,
    RunRecord,
    begin_or_go_on,
    check_can_go_on,
    check_is_run,
    is_finished,
    open_run_folder,
)
from ant_hf.train.setup import Setup, fit_length, fit_vocabulary, set_up, show_plan, with_recipe
from ant_hf.train.trainer import AntTrainer, RunData
from ant_hf.train.uploads import checked_client, fetch_checkpoint, start_uploads
from ant_hf.utils.console import is_first_process, lasting_output, say, show
from ant_hf.utils.files import file_sha256, writing
from ant_hf.utils.hardware import peak_memory_bytes
from ant_hf.utils.locks import check_free, check_usable, locked
from ant_hf.utils.metrics import read_metrics
from ant_hf.utils.names import FINAL, MANIFEST, METRICS, PLOTS, RUN_RECORD, WEIGHTS
from ant_hf.utils.plots import plot_run
from ant_hf.utils.provenance import now
from ant_hf.utils.stopping import phase

# Tokens of the training text, where no text is held out.
_SCORED_INSTEAD = 65_536


@lasting_output()
def pretrain(recipe: Recipe, fresh: bool = False) -> None:
    """Run a recipe to its end, or continue it from its newest complete checkpoint.

    Args:
        fresh: remove the run in the output folder first.

    Raises:
        AntError: anything in the recipe, the data or the folder that the user must correct.
        RunStopped: a signal or the time budget ended it early, with a checkpoint to continue from.
    """
    _quiet_trainer()
    output_dir = Path(recipe.output_dir)
    _check_beginning(recipe, fresh)
    recipe = _fitted(recipe)
    setup = set_up(recipe, output_dir)
    with ExitStack() as held:
        # The first process alone removes and makes files; the others come after and find them.
        with setup.arguments.main_process_first(local=False, desc="preparing data"):
            if is_first_process():
                held.enter_context(locked(output_dir, "run"))
            fetch_checkpoint(recipe, fresh)
            is_open = recipe.training.num_train_epochs and not (recipe.tokens_dir / MANIFEST).exists()
            if is_open and (output_dir / RUN_RECORD).exists() and not fresh and is_first_process():
                # The run that is there has the length for its text, which only the tokens tell.
                make_data(recipe, setup.config.max_position_embeddings, setup.tokenizer_from)
            recipe = _fitted(recipe)
            # An old run goes only when the data is there: a text that is refused must not cost it.
            if fresh and is_first_process():
                check_is_run(output_dir)
                folder = RunFolder(output_dir)
            else:
                folder = open_run_folder(recipe)
            if not folder.is_finished and is_first_process():
                text = _look_at_text(setup, folder, seconds=1.0, sample_bytes=1_000_000)
                planned = with_recipe(setup, _fitted(recipe, _own_tokens(recipe, text)))
                show_plan(planned, text)
                show_estimates(planned, folder, text)
                make_data(recipe, setup.config.max_position_embeddings, setup.tokenizer_from)
                if fresh:
                    folder = open_run_folder(recipe, fresh)
        check_run_folder_is_shared(output_dir)
        with setup.arguments.main_process_first(local=True, desc="preparing data"):
            if not folder.is_finished and is_first_on_another_machine():
                find_data(recipe, setup.config.max_position_embeddings, setup.tokenizer_from)
        if folder.record and folder.record.final and folder.is_finished:
            say("finished", f"{output_dir / FINAL} exists already ({folder.record.finished})")
            _say_result(folder.record, output_dir)
            if uploads := start_uploads(recipe):
                uploads.finish(output_dir / FINAL)
        else:
            entries = load_tokenizer(recipe.tokenizer_dir).get_vocab_size()
            _train(fit_vocabulary(with_recipe(setup, _fitted(recipe)), entries), folder)


def dry_run(recipe: Recipe, fresh: bool = False) -> None:
    """Do what a run does before it writes anything, time some steps, and print plan, time and room.

    Raises:
        AntError: as `pretrain`, for what shows in some seconds.
    """
    _quiet_trainer()
    _check_beginning(recipe, fresh)
    recipe = _fitted(recipe)
    folder = open_run_folder(recipe, fresh, look_only=True)
    text: Survey | None = None
    problem: AntError | None = None
    if folder.is_finished:
        say("finished", f"{folder.path / FINAL} exists already; a new run, with --fresh, would take this:")
        folder = open_run_folder(recipe, fresh=True, look_only=True)
    with tempfile.TemporaryDirectory() as scratch:
        setup = set_up(recipe, Path(scratch))
        with setup.arguments.main_process_first(local=False, desc="looking at the text"):
            if is_first_process():
                check_free(folder.path, "run")
                if recipe.training.push_to_hub:
                    checked_client(recipe)
                say("dry run", "reading a sample of the text")
                try:
                    text = _look_at_text(setup, folder)
                except AntError as error:
                    # Without the network the rest can be told all the same.
                    if not any(each.source == "hub" for each in recipe.corpus.texts):
                        raise
                    problem, text = error, Survey("not read", train_tokens=recipe.corpus.max_tokens)
                if text.packing_seconds == 0:
                    verify_shards(recipe.tokens_dir)
        entries, length = broadcast_object_list(
            [text and text.vocab_size, text and _own_tokens(recipe, text)]
        )
        if entries:
            setup = fit_vocabulary(setup, entries)
        setup = with_recipe(setup, _fitted(recipe, length))
        if text:
            show_plan(setup, text)
            say("dry run", "timing a few steps on random tokens")
        rate = measure_training(choose_compilation(setup))
    if text:
        show_estimates(setup, folder, text, rate)
        say("dry run", "nothing was written")
    if problem:
        raise problem


def _fitted(recipe: Recipe, own_tokens: int | None = None) -> Recipe:
    """The recipe with the length for so many tokens, or for those that are packed, if that is known."""
    replay = recipe.corpus.replay
    if own_tokens is None and (recipe.tokens_dir / MANIFEST).exists() and recipe.training.num_train_epochs:
        manifest = read_manifest(recipe.tokens_dir)
        own_tokens = (manifest["parts"][OWN_TEXT] if replay else manifest["splits"])[TRAIN]["tokens"]
    # With replay, a pass over one's own text takes so much longer.
    share = 1 - replay.share if replay else 1
    return fit_length(recipe, round(own_tokens / share)) if own_tokens else recipe


def _own_tokens(recipe: Recipe, text: Survey) -> int | None:
    """Tokens of the text that passes are counted over."""
    return text.tokens_by_part.get(OWN_TEXT) if recipe.corpus.replay else text.train_tokens


def _check_beginning(recipe: Recipe, fresh: bool) -> None:
    """Refuse at once what needs no look into a file.

    Raises:
        AntError: a folder is a file or holds another thing, or there is no text, or no general one.
    """
    output_dir, data_dir = Path(recipe.output_dir), recipe.tokenizer_dir.parent
    for folder in (output_dir, data_dir):
        check_usable(folder)
    if data_dir != output_dir and (data_dir / RUN_RECORD).exists() and not recipe.tokenizer_dir.exists():
        raise AntError(
            f"data_dir {data_dir} is the folder of a run, which keeps its data elsewhere",
            hint=f"Name the folder that {data_dir / RUN_RECORD} has as data_dir: --set data_dir=FOLDER",
        )
    if is_first_process() and (fresh or not is_finished(output_dir)):
        for text in recipe.corpus.texts:
            open_source(text)
        general_text(recipe)


def _look_at_text(setup: Setup, folder: RunFolder, **limits: Any) -> Survey:
    """Hold text, data and disk to what the run needs.

    Args:
        limits: of `survey`.

    Raises:
        AntError: see `survey`; the training text is smaller than a block; the data are not those of the run
            in the folder; or the disk has no room.
    """
    recipe = setup.recipe
    text = survey(recipe, setup.config.max_position_embeddings, base=setup.tokenizer_from, **limits)
    if text.is_whole:
        check_one_block(TRAIN, text.train_tokens or 0, recipe.training.sequence_length)
    if text.packing_seconds == 0:
        check_can_go_on(setup, folder)
    check_rooms(room_for(setup, folder, text))
    return text


def _quiet_trainer() -> None:
    if not is_first_process():
        logging.set_verbosity_error()
    # A bar for each 40 MB file would tear up the bar of the training.
    logging.disable_progress_bar()


def _train(setup: Setup, folder: RunFolder) -> None:
    """Train what is left of the run, and finish it."""
    recipe, started = setup.recipe, time.perf_counter()
    before = folder.record.environment if folder.record and folder.checkpoint else {}
    on_this_device = before.get("device") == setup.execution.device
    setup = choose_compilation(setup, before.get("torch_compile") if on_this_device else None)
    record = begin_or_go_on(setup, folder)
    data = _read_data(setup)
    trainer = AntTrainer(setup, data, record.sha256)
    trainer.add_callback(TimeToGo(setup, len(data.validation)))
    uploads = start_uploads(recipe, trainer)
    if is_first_process():
        record.mix = given_by_parts(data.order, recipe)
        for name, given in (record.mix or {}).items():
            share = share_in_words(given["share"], given.get("decay_share"))
            passes = f"{given['passes']:.2f} passes over {given['tokens_of_text']:,}"
            say("", f"part {name}: {given['tokens']:,} tokens ({share}), {passes}")
        record.write(folder.path)
    trainer.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)
    meter = trainer.meter
    record.training_seconds, record.timed_steps = round(meter.seconds, 1), meter.steps
    record.tokens_per_second = round(meter.tokens_per_second(setup.plan.tokens_per_step), 1)
    record.compile_seconds = round(meter.compile_seconds, 1) if meter.compile_steps else None
    record.skipped_steps = trainer.guard.skipped_steps
    if stopped_by := trainer.stopped_by():
        step = trainer.state.global_step
        record.status, record.stopped = "stopped", {"step": step, "reason": stopped_by, "when": now()}
    else:
        _finish(trainer, record)
        record.train_and_finish_seconds = round(time.perf_counter() - started, 1)
    if is_first_process():
        record.write(folder.path)
        if not stopped_by:
            _say_finished(recipe, record)
    # Where time ran out the machine may be gone in a moment, and another one continues from what has arrived.
    if uploads:
        uploads.finish(None if stopped_by else folder.path / FINAL)
    if stopped_by:
        text = (
            f"by {stopped_by} at step {step:,} of {trainer.state.max_steps:,}, saved in "
            f"{folder.path / checkpoint_name(step)}. Run the same command again to continue."
        )
        say("stopped", text)
    # The launcher ends the others as soon as one has left.
    trainer.accelerator.wait_for_everyone()
    if stopped_by:
        raise RunStopped(f"stopped {text}")


def _read_data(setup: Setup) -> RunData:
    recipe, training = setup.recipe, setup.recipe.training
    tokenizer = load_tokenizer(recipe.tokenizer_dir)
    if tokenizer.get_vocab_size() != setup.config.vocab_size and not setup.base:
        raise AntError(
            f"{recipe.tokenizer_dir} has {tokenizer.get_vocab_size()} entries, but {recipe.architecture} has "
            f"vocab_size {setup.config.vocab_size}",
            hint="Set vocab_size there to the same number, or use another data_dir: --set data_dir=FOLDER",
        )
    # Fills up the last block, where it is not a target.
    end = tokenizer.token_to_id(end_of_text(recipe.tokenizer_dir))
    assert end is not None, "load_tokenizer checked it"
    byte_lengths = token_byte_lengths(tokenizer, setup.config.vocab_size)
    order, tokens = training_order(recipe, end), len(PackedTokens(recipe.tokens_dir, TRAIN))
    say("training", f"{len(order) * training.sequence_length / tokens:.2f} passes over {tokens:,} tokens")
    # What a text is trained on beside its replay is to be judged by that text alone.
    own = OWN_TEXT if recipe.corpus.replay else None
    if recipe.corpus.validation_fraction:
        return RunData(order, PackedTokens(recipe.tokens_dir, VALIDATION, part=own), byte_lengths)
    # Then only what was exported is checked against what was trained, on text that says nothing about either.
    scored = PackedTokens(recipe.tokens_dir, TRAIN, part=own, limit=_SCORED_INSTEAD)
    return RunData(order, scored, byte_lengths)


@phase("finishing the run", "Every checkpoint is kept. Run the same command again to finish it.")
def _finish(trainer: AntTrainer, record: RunRecord) -> None:
    """Export the model, hold the reloaded files to what was trained, and let them write.

    Every process scores; the first one does the rest.
    """
    setup, data = trainer.setup, trainer.data
    recipe, final = setup.recipe, trainer.folder / FINAL
    in_training = last = trainer.score()
    if recipe.training.average_last:
        trainer.load_mean()
        in_training = trainer.score()
    trained, weights = trainer.whole_model()
    if not is_first_process():
        return
    # A copy: what goes wrong in the export must not be able to change what it is checked against.
    kept = {name: weight.detach().clone() for name, weight in trained.state_dict().items()}
    with writing("the final model", trainer.folder, 4 * setup.ledger.total):
        dtype = getattr(torch, recipe.export_dtype)
        record.exported_sha256 = export_final(trained, recipe.tokenizer_dir, final, weights, dtype)
    now_here = measure(*load_final(final), setup, data)
    scores = now_here.held_out
    if not math.isclose(scores.loss, in_training.loss, rel_tol=SAME_LOSS) and weights is None:
        # 16-bit autocast alone can be as far off, in models with large activations: the same without it.
        plain = build_model(setup.config, recipe.training.seed)
        plain.load_state_dict(kept)
        plain.to(setup.arguments.device)  # type: ignore[arg-type]  # wrapped by a decorator of transformers
        in_training = measure_held_out(plain, setup, data)
    if not math.isclose(scores.loss, in_training.loss, rel_tol=SAME_LOSS):
        raise AntError(
            f"{final} does not reproduce the trained model when it is loaded: its validation loss is "
            f"{scores.loss:.4f}, and it was {in_training.loss:.4f} in training",
            expected=f"a difference of at most {SAME_LOSS:.1%}",
            hint="Do not use it. Please report this run's run.json",
        )
    record.samples, record.general = now_here.samples, now_here.general
    if setup.base:
        before = measure(*load_any(setup.base.folder), setup, data)
        record.before = {
            "final": before.final(setup),
            "general": before.general,
            "samples": before.samples,
        }
    state = trainer.state
    if recipe.keeps_best and state.best_global_step:
        best = {"step": state.best_global_step, "loss": state.best_metric, "last_step": state.global_step}
        record.best = best
    plot_run(read_metrics(trainer.folder / METRICS), trainer.folder / PLOTS, recipe.name)
    record.status, record.finished = "finished", now()
    record.final = {
        **now_here.final(setup),
        "loss_in_training": in_training.loss,
        "weights_sha256": file_sha256(final / WEIGHTS),
    }
    if recipe.training.average_last:
        record.final["averaged"] = {"steps": trainer.mean.steps, "last": last.metrics()}
    if not recipe.corpus.validation_fraction:
        record.final["split"] = TRAIN
    record.peak_memory_bytes = peak_memory_bytes()


def _say_finished(recipe: Recipe, record: RunRecord) -> None:
    folder = Path(recipe.output_dir)
    assert record.final
    assert record.samples
    assert record.peak_memory_bytes
    _say_result(record, folder)
    say(
        "speed",
        f"{record.tokens_per_second:,.0f} tokens per second, "
        f"{record.training_seconds:,.0f} s of training"
        + (
            f" ({record.compile_seconds:,.0f} s of it for the first step, which compiled the model)"
            if record.compile_seconds
            else ""
        )
        + ", "
        f"{record.peak_memory_bytes['process'] / 1e9:.2f} GB of memory at most",
    )
    if record.before:
        say()
        say("before", record.before["samples"][0]["text"])
    say()
    say("after" if record.before else "sample", record.samples[0]["text"])
    say()
    final, prompt = shlex.quote(str(folder / FINAL)), shlex.quote(recipe.sample_prompt)
    say("curves", folder / PLOTS / "loss.png")
    say("try it", f"ant-hf generate {final} --prompt {prompt}")
    say("measure it", f"ant-hf evaluate {final}")


def _say_result(record: RunRecord, path: Path) -> None:
    final, best = record.final or {}, record.best
    if best:
        why = "the held-out loss was lowest there" if best["step"] < best["last_step"] else "the last one"
        say("best", f"the model of step {best['step']:,} of {best['last_step']:,}: {why}")
    say("final", path / FINAL)
    text = "training text" if final.get("split") == TRAIN else "validation"
    say(
        "reloaded",
        f"{text} byte perplexity {final['byte_perplexity']:.3f} (uniform guess "
        f"{final['uniform_byte_perplexity']:.2f}), {final['bits_per_byte']:.3f} bits per byte, "
        f"loss {final['loss']:.4f} (in training {final['loss_in_training']:.4f})",
    )
    for name, part in final.get("parts", {}).items():
        say("", f"part {name}: {part['bits_per_byte']:.3f} bits per byte on its held-out text")
    if averaged := final.get("averaged"):
        steps = ", ".join(f"{step:,}" for step in averaged["steps"])
        say(
            "mean",
            f"of the checkpoints {steps}: loss {final['loss_in_training']:.4f}; the last one alone: "
            f"{averaged['last']['loss']:.4f}",
        )
    if record.before and record.base:
        now_here = {"final": final, "general": record.general}
        show(before_after_table(record.base["name"], record.before, now_here))
        if final["bits_per_byte"] >= record.before["final"]["bits_per_byte"]:
            say("warning", "the model does not read your text better than before: try a lower learning rate")
