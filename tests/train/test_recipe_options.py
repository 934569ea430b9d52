"""Runs on a mix, with blocks packed afresh each pass, and with the mean of the last checkpoints."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from ant_hf.data.repacking import RepackedOrder, training_order
from ant_hf.data.tokens import VALIDATION, PackedTokens, read_manifest
from ant_hf.errors import AntError, RunStopped
from ant_hf.model.scoring import score_tokens
from ant_hf.recipe import CorpusRecipe, load_recipe
from ant_hf.train.averaging import averaged_steps
from ant_hf.train.callbacks import ThroughputMeter
from ant_hf.train.pretrain import pretrain
from ant_hf.utils.files import read_sealed


def weights(path):
    return load_file(path / "model.safetensors")


def run_record(folder):
    return read_sealed(folder / "run.json", "run record", "")


@pytest.fixture
def leave_at(monkeypatch):
    """A function that lets a run be left as a step begins: by a signal, or as a kill would."""

    def leave(recipe, step, is_kill):
        original = ThroughputMeter.on_step_begin

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step:
                if is_kill:
                    raise KeyboardInterrupt
                signal.raise_signal(signal.SIGTERM)
            return original(self, args, state, control, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(ThroughputMeter, "on_step_begin", on_step_begin)
            with pytest.raises((RunStopped, KeyboardInterrupt)):
                pretrain(recipe)

    return leave


def test_the_mean_of_the_last_checkpoints_is_exported_whatever_interrupts_the_run(
    make_recipe, leave_at, tmp_path, capsys
):
    options = {"average_last": 3, "save_steps": 2, "repack_each_pass": True, "sequences_per_step": 4}
    whole = make_recipe("whole", save_total_limit=5, **options)
    pretrain(whole)
    printed = capsys.readouterr().out
    folder = tmp_path / "whole"
    checkpoints = [weights(folder / f"checkpoint-{step}") for step in (4, 6, 8)]
    exported = weights(folder / "final")
    for name, value in exported.items():
        mean = torch.stack([checkpoint[name] for checkpoint in checkpoints]).double().mean(0)
        assert torch.allclose(value.double(), mean, rtol=1e-6, atol=1e-8)
        assert not torch.equal(value, checkpoints[-1][name])
    # Both losses are told.
    record = run_record(folder)
    averaged = record["final"]["averaged"]
    assert averaged["steps"] == [4, 6, 8]
    last = LlamaForCausalLM.from_pretrained(folder / "checkpoint-8")
    tokens = PackedTokens(whole.tokens_dir, VALIDATION)
    alone = score_tokens(last, tokens, [1] * 384, context=64, batch_size=8).loss
    assert averaged["last"]["loss"] == pytest.approx(alone, rel=1e-5) != record["final"]["loss"]
    assert record["final"]["loss_in_training"] == pytest.approx(record["final"]["loss"], rel=1e-4)
    assert "mean        of the checkpoints 4, 6, 8" in printed
    assert f"the last one alone: {alone:.4f}" in printed
    # Left at a step whose checkpoint does not count, then after one that counts; one checkpoint is kept.
    cut = make_recipe("cut", save_total_limit=1, **options)
    leave_at(cut, 5, is_kill=False)
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-6"]
    leave_at(cut, 7, is_kill=True)
    pretrain(cut)
    resumed = weights(tmp_path / "cut" / "final")
    assert all(torch.equal(value, resumed[name]) for name, value in exported.items())
    assert run_record(tmp_path / "cut")["final"]["averaged"] == averaged


def test_which_checkpoints_are_averaged_follows_from_the_recipe(make_recipe):
    def steps(**options):
        return averaged_steps(make_recipe(**options).training)

    assert steps(max_steps=10, save_steps=3, average_last=2) == [9, 10]
    assert steps(max_steps=9, save_steps=3, average_last=3) == [3, 6, 9]
    assert steps(max_steps=9, save_steps=3) == []
    with pytest.raises(AntError, match=r"average_last is 4; the run saves 3 checkpoints, one every 3 steps"):
        make_recipe(max_steps=9, save_steps=3, average_last=4)


def test_another_interval_of_saves_is_another_mean(make_recipe, leave_at):
    leave_at(make_recipe(average_last=2, save_steps=2), 5, is_kill=True)
    with pytest.raises(AntError, match=r"training\.save_steps was 2, is 4"):
        pretrain(make_recipe(average_last=2, save_steps=4))


def test_a_run_reads_what_was_packed_afresh(make_recipe):
    fixed, fresh = make_recipe(), make_recipe("fresh", repack_each_pass=True)
    orders = [training_order(recipe, 1) for recipe in (fixed, fresh)]
    assert not isinstance(orders[0], RepackedOrder)
    assert isinstance(orders[1], RepackedOrder)
    assert len(orders[0]) == len(orders[1]) == 64


@pytest.fixture
def with_replay(make_recipe, tmp_path, prepared, chapters):
    """The tiny recipe on twenty chapters, with twenty others as replay."""
    for name, texts in (("own", chapters[:20]), ("general", chapters[20:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    make_recipe("replay", data_dir=tmp_path / "replay-data")
    changes = {
        "corpus.path": str(tmp_path / "own.jsonl"),
        "corpus.replay": {"path": str(tmp_path / "general.jsonl"), "share": 0.25, "name": "General text"},
    }
    return load_recipe(tmp_path / "replay.yaml", changes=changes)


def test_a_run_with_replay_is_judged_by_its_own_text_and_tells_both(with_replay, tmp_path, capsys):
    pretrain(with_replay)
    record, manifest = run_record(tmp_path / "replay"), read_manifest(with_replay.tokens_dir)
    given, final = record["mix"], record["final"]
    assert sum(part["tokens"] for part in given.values()) == 8 * 8 * 64
    for name, share in (("text", 0.75), ("replay", 0.25)):
        assert given[name]["share"] == share
        assert given[name]["tokens"] / (8 * 8 * 64) == pytest.approx(share, abs=0.1)
        assert given[name]["documents"] == manifest["parts"][name]["train"]["documents"]
        text = given[name]["tokens_of_text"]
        assert text == manifest["parts"][name]["train"]["tokens"]
        assert given[name]["passes"] == given[name]["tokens"] / text
        assert final["parts"][name]["tokens"] <= manifest["parts"][name]["validation"]["tokens"] - 1
    assert final["tokens"] == manifest["parts"]["text"]["validation"]["tokens"] - 1
    assert final["bits_per_byte"] == final["parts"]["text"]["bits_per_byte"] or final["tokens"] > 2000
    printed = capsys.readouterr().out
    assert "part replay: " in printed
    assert "part text: " in printed
    # What the card says of the text may change; what is trained on may not.
    replay = with_replay.corpus.replay.model_copy(update={"license": "CC0", "url": "https://example.org"})
    corpus = with_replay.corpus.model_copy(update={"replay": replay})
    pretrain(with_replay.model_copy(update={"corpus": corpus}))
    assert "exists already" in capsys.readouterr().out
    more = CorpusRecipe.model_validate(
        corpus.model_dump() | {"replay": {**replay.model_dump(), "share": 0.5}}
    )
    with pytest.raises(AntError, match=r"corpus\.replay\.share was 0\.25, is 0\.5"):
        pretrain(with_replay.model_copy(update={"corpus": more}))
