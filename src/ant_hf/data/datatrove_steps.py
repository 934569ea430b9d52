"""Packing by tasks as steps of a datatrove pipeline: for Slurm, Ray, or any of its executors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ant_hf.data.packing_tasks import Packing, merge
from ant_hf.errors import AntError
from ant_hf.utils.locks import locked
from ant_hf.utils.provenance import install_command

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError:
    raise AntError("these steps need datatrove", hint=install_command("cluster")) from None


class EncodeFiles(PipelineStep):
    """The step of all tasks: each encodes its files."""

    type, name = "TOKENS", "encode files"

    def __init__(self, packing: Packing) -> None:
        super().__init__()
        self.packing = packing

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        yield from data or ()
        self.packing.encode(rank, world_size)


class MergeParts(EncodeFiles):
    """The step of one task, after all others: shards and manifest from all parts."""

    name = "merge parts"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        yield from data or ()
        if rank == 0:
            with locked(self.packing.recipe.tokens_dir.parent, "data", wait=True):
                merge(self.packing)
