"""Trials that meet with a fault or look about them, and what tests of faults share.

Ray's workers import this module by name.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autosegloss.proxy import trial
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.objective import ProxyObjective
from tests.toys import TOY, fault_is_due

DRIVERS = multiprocessing.get_context("spawn")
BOUND = 240  # seconds, on waiting; no claim of speed
TINY = {
    "metric": {"name": "biou", "radius": 2},
    "relaxation": {"curve": "bezier", "pieces": 1, "logic": "product", "scale": 1, "cross_entropy": 0},
    "rivals": {"losses": []},
    "proxy": {"data": {"name": "nuclei"}, "start": {"iterations": 2}, "train": {"iterations": 2, "batch_size": 4}},
    "search": {"steps": 2, "samples": 4},
    "finalists": {"candidates": 1, "seeds": 2},
}
TRIALS = 5 + 6 + 3 * 2  # in the first step the centre is the start


def in_a_process(work: Callable[..., None], *arguments: object) -> None:
    """Run a function in a process of its own, which may start a Ray of its own."""
    process = DRIVERS.Process(target=work, args=arguments)
    process.start()
    process.join(BOUND)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0


def lines_of(path: Path) -> list[Any]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@dataclass(frozen=True)
class Located:
    """A toy that notes the node, the process and the step when a trial begins, then takes a while.

    On a node that is doomed it does not end. In the finals it waits for one worker more than in the search, one that
    replaces another.
    """

    notes: Path
    workers: int

    def __call__(self, job: Job) -> Outcome:
        import ray

        node, doom = ray.get_runtime_context().get_node_id(), self.notes.with_suffix(".doom")
        doomed = doom.exists() and doom.read_text() == node
        with self.notes.open("a") as file:
            file.write(json.dumps([node, os.getpid(), job.stage, job.step, doomed]) + "\n")
        if doomed:
            time.sleep(BOUND)
        wanted = self.workers + (job.stage == "final")
        wait_until(lambda: len({pid for _, pid, *_ in lines_of(self.notes)}) >= wanted)
        return replace(TOY, delay=0.25)(job)


@dataclass(frozen=True)
class Greedy:
    """A toy that takes up to 4 GiB when a fault is due."""

    folder: Path

    def __call__(self, job: Job) -> Outcome:
        if fault_is_due(self.folder, job):
            held = []
            for _ in range(64):
                held.append(b"x" * 2**26)
                time.sleep(0.02)
            time.sleep(BOUND / 8)  # until the monitor, which looks 20 times a second, has seen it
        return TOY(job)


class Jumping:
    """`time.time`, but a year ahead or behind at every other call."""

    def __init__(self) -> None:
        self._honest, self._ahead = time.time, False

    def __call__(self) -> float:
        self._ahead = not self._ahead
        return self._honest() + (1 if self._ahead else -1) * 365 * 86400


def toy_with_a_jumping_clock(job: Job) -> Outcome:
    if not isinstance(time.time, Jumping):
        time.time = Jumping()
    return TOY(job)


@dataclass(frozen=True)
class Sharing:
    """An objective that looks at the arrays it was sent, and can't pretrain."""

    objective: ProxyObjective

    def __call__(self, job: Job) -> Outcome:
        def pretrain(*arguments: object, **options: object) -> None:
            raise AssertionError("a worker pretrains")

        trial.pretrain = pretrain
        dataset = self.objective.proxy.dataset
        splits = (dataset.train, dataset.heldout, dataset.validation)
        for array in (array for split in splits for array in (split.images, split.labels)):
            assert not array.flags.writeable, "a copy of its own"
            assert not array.flags.owndata, "a copy of its own"
        return self.objective(job)


@dataclass(frozen=True)
class Visible:
    """A toy that notes which GPU its process may use, and when."""

    notes: Path

    def __call__(self, job: Job) -> Outcome:
        start = time.monotonic()
        outcome = replace(TOY, delay=0.1)(job)
        with self.notes.open("a") as file:
            file.write(json.dumps([os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], start, time.monotonic()]) + "\n")
        return outcome
