"""Weights spread over two processes by accelerate's FSDP2 train, save, continue and export as whole ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from records import losses

from ant_hf.errors import AntError
from ant_hf.model.loading import load_final
from ant_hf.train.distributed import check_fsdp
from ant_hf.train.pretrain import pretrain
from ant_hf.utils.metrics import read_metrics

FSDP = yaml.safe_load((ROOT / "configs/accelerate/fsdp-8.yaml").read_text())["fsdp_config"]


def environment():
    """What `accelerate launch` makes of the committed config."""
    names = {"fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP"}
    values = {names.get(key, key.upper()): str(value) for key, value in FSDP.items()}
    values |= {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_TORCH_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    return os.environ | values


def train(arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).with_name("fsdp_on_cpu.py")), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_sharded_run_is_the_whole_one(make_recipe, tmp_path):
    """With both optimizers, Muon's matrices and AdamW's rest, stopped once and continued."""
    keys = {"per_device_batch_size": 4, "max_steps": 6, "save_steps": 3}
    keys |= {"optimizer": "muon", "muon_learning_rate": 0.02}
    whole = make_recipe("whole", **keys)
    pretrain(whole)
    make_recipe("sharded", **keys)
    command = ["--config", str(tmp_path / "sharded.yaml")]
    stopped = train([*command, "--set", "training.max_hours=0.0001"])
    assert "stopped     by training.max_hours at step 1 of 6" in stopped.stdout, stopped.stderr[-3000:]
    result = train(command)
    assert result.returncode == 0, result.stderr[-3000:]
    folder = tmp_path / "sharded"
    # Muon's iterations are in bf16, where slices add up in another order.
    tolerance = 1e-4
    assert losses(folder) == pytest.approx(losses(tmp_path / "whole"), rel=tolerance)
    scores = [
        [row["eval_loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl") if "eval_loss" in row]
        for name in ("sharded", "whole")
    ]
    assert scores[0] == pytest.approx(scores[1], rel=tolerance)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["resumed_from_steps"] == [1]
    model, _ = load_final(folder / "final")
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert not any("fsdp" in name.lower() for name, _ in model.named_parameters())


def test_other_kinds_of_sharding_are_refused(monkeypatch):
    class Plugin:
        fsdp_version = 1
        state_dict_type = "StateDictType.FULL_STATE_DICT"

    with pytest.raises(AntError, match=r"version 1.*expected version 2.*fsdp-8\.yaml"):
        check_fsdp(Plugin())
    Plugin.fsdp_version, Plugin.state_dict_type = 2, "StateDictType.SHARDED_STATE_DICT"
    with pytest.raises(AntError, match="SHARDED_STATE_DICT"):
        check_fsdp(Plugin())
    Plugin.state_dict_type = "StateDictType.FULL_STATE_DICT"
    check_fsdp(Plugin())
    check_fsdp(None)


def test_cpus_that_would_train_unsharded_are_refused(make_recipe, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(
        AntError, match="FSDP was asked for, but accelerate shards models only on several GPUs"
    ):
        pretrain(make_recipe())
