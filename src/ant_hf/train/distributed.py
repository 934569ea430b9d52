"""Several processes and machines: how they are started, and what they must agree on."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed
from accelerate.utils import broadcast_object_list, gather_object

from ant_hf.errors import AntError
from ant_hf.utils.console import is_first_process
from ant_hf.utils.files import check_hash
from ant_hf.utils.locks import owner_of


def is_first_on_another_machine() -> bool:
    """Whether this is the first process of its machine, and that is not the first machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0" and not is_first_process()


def _is_alone() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1


def check_run_folder_is_shared(folder: Path) -> None:
    """Let every process look for the lock that the first one holds on the run's folder.

    Raises:
        AntError: it is missing, so this machine's folder is another one.
    """
    if _is_alone():
        return
    seen = owner_of(folder, "run")
    (held,) = broadcast_object_list([seen if is_first_process() else None])
    if seen != held:
        raise AntError(
            f"output_dir {folder.absolute()} on {socket.gethostname()} is not the folder that the first "
            f"process writes to, on {held.get('host')}",
            hint="Several machines need a folder on a file system that they share: --output-dir FOLDER. "
            "data_dir may be on each machine's own disk.",
        )


def check_fsdp(plugin: Any) -> None:
    """Refuse an FSDP that would not be done, or not be saved as whole files.

    Args:
        plugin: accelerate's, as it took effect; None for none.

    Raises:
        AntError: FSDP was asked for and accelerate does not do it; or another kind than ours was set.
    """
    hint = "Use configs/accelerate/fsdp-8.yaml, with your number of processes."
    if plugin is None:
        if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
            raise AntError("FSDP was asked for, but accelerate shards models only on several GPUs", hint=hint)
        return
    seen = f"version {plugin.fsdp_version}, {plugin.state_dict_type}"
    if plugin.fsdp_version != 2 or "FULL_STATE_DICT" not in seen:
        raise AntError(
            "this setting of FSDP is not supported",
            seen=seen,
            expected="version 2, FULL_STATE_DICT",
            hint=hint,
        )


def check_equal_inputs(hashes: Mapping[str, str]) -> None:
    """Compare the config, tokenizer and tokens of all processes.

    Raises:
        AntError: a machine has others; names the first that differs, and both hashes.
    """
    if _is_alone():
        return
    everyone = gather_object([(socket.gethostname(), dict(hashes))])
    first_host, first = everyone[0]
    for host, seen in everyone:
        for name, wanted in first.items():
            hint = f"Copy them from {first_host}, or let the machines share data_dir."
            check_hash(f"the {name} on {host} differ from those on {first_host}", seen[name], wanted, hint)


def check_launch() -> None:
    """Refuse a launcher that was asked for several CPU processes and started one.

    accelerate 1.x starts several CPU processes only through MPI: `--cpu --num_processes 2` without it
    starts one, and says nothing; so does each machine under `--num_machines`.

    Raises:
        AntError: that is so; says what to type.
    """
    environment = os.environ
    if (
        environment.get("ACCELERATE_USE_CPU") == "True"
        and "MASTER_ADDR" in environment
        and "RANK" not in environment
    ):
        raise AntError(
            "accelerate was asked for several CPU processes, but started only one",
            hint=f"Run: torchrun --nproc_per_node N {shlex.join(sys.argv)} (on several machines also "
            "--nnodes, --node_rank, --master_addr and --master_port).",
        )
