"""Processes that are the ranks of a distributed run."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 120  # far beyond what the processes need; a hang ends here

# All processes are forked from one that has imported what they need.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch._dynamo", "torchmetrics", "autosegloss"])

OneRank = Callable[[int, Any], dict[Any, Any]]
"""What a process does, from its rank and what all are given to what it saw."""


def seen_by_ranks(one_rank: OneRank, world: int, folder: Path, given: object) -> list[dict[Any, Any]]:
    """What each of several processes saw that are the ranks of one group."""
    ranks = [CONTEXT.Process(target=_in_group, args=(one_rank, rank, world, folder, given)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(SECONDS)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0] * world, f"a process failed, or hung (None): {codes}"
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(world)]


def _in_group(one_rank: OneRank, rank: int, world: int, folder: Path, given: object) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    seen = one_rank(rank, given)
    dist.barrier()
    gc.collect()  # a DistributedDataParallel, which is part of a cycle, may hang if it outlives the group
    dist.destroy_process_group()
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(seen))
