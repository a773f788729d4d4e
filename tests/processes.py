"""Processes that are the ranks of a distributed run."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 120  # far beyond what the processes need; a hang ends here


def seen_by_ranks(one_rank: Callable[..., None], world: int, folder: Path, shares: object) -> list[dict[Any, Any]]:
    """Run `one_rank(rank, world, folder, shares)` in a process for each rank, and read what each wrote there."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=one_rank, args=(rank, world, folder, shares)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(SECONDS)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0] * world, "a process failed, or hung (None)"
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(world)]
