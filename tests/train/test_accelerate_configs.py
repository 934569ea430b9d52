"""The launch configurations mean what their names say, to accelerate's own reader and launcher."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from conftest import ROOT

CONFIGS = ROOT / "configs" / "accelerate"
# Kind, machines, processes over all machines.
MEANING = {
    "gpu-2": ("MULTI_GPU", 1, 2),
    "gpu-8": ("MULTI_GPU", 1, 8),
    "nodes-2x8": ("MULTI_GPU", 2, 16),
    "fsdp-8": ("FSDP", 1, 8),
}


def test_every_config_is_listed():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == MEANING.keys()


@pytest.mark.parametrize("name", MEANING)
def test_accelerate_reads_what_is_meant(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    kind, machines, processes = MEANING[name]
    seen = (config.distributed_type.value, config.num_machines, config.num_processes)
    assert seen == (kind, machines, processes)
    assert not config.use_cpu
    # The recipe decides the precision.
    assert config.mixed_precision == "no"


def launch_environment(name, *flags):
    words = ["--config_file", str(CONFIGS / f"{name}.yaml"), *flags, "pretrain.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    return arguments, prepare_multi_gpu_env(arguments)


def test_nodes_are_told_apart_by_rank():
    for rank in ("0", "1"):
        arguments, _ = launch_environment("nodes-2x8", "--machine_rank", rank)
        assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "8", int(rank))
        assert (arguments.rdzv_backend, arguments.rdzv_endpoint) == ("static", "10.0.0.1:29500")


def test_fsdp_reaches_the_training():
    _, environment = launch_environment("fsdp-8")
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "LlamaDecoderLayer"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
