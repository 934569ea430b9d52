"""`pretrain.py` under accelerate's FSDP2 on CPUs: `torchrun fsdp_on_cpu.py --config RECIPE`.

accelerate shards on accelerators only and would train without it here. Told that the CPUs are one, all of its
code and torch's runs as on GPUs, over gloo.
"""

import torch
from accelerate.state import DistributedType, PartialState

from ant_hf.cli.main import pretrain_app, run

if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_NPU)
    run(pretrain_app)
