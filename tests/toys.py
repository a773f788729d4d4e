"""Toy rewards with known optima, as pure functions of theta and seed.

Ray's workers import this module by name.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from autosegloss.loss.base import LossContent
from autosegloss.search.algorithms import Algorithm
from autosegloss.search.algorithms.ppo import PPO2
from autosegloss.search.content import CROSS_ENTROPY
from autosegloss.search.finals import Schedule
from autosegloss.search.jobs import Job, Objective, Outcome
from autosegloss.search.journal import Journal
from autosegloss.search.plan import without_rivals
from autosegloss.search.runners.base import Runner
from autosegloss.search.study import Study


@dataclass(frozen=True)
class Quadratic:
    """Reward -sum(w (theta - optimum)^2) plus noise of the seed; 0 at the optimum. Cross-entropy earns -1.

    Args:
        optimum: Where the reward is highest.
        weights: One weight per coordinate, >= 0.
        noise: Standard deviation of the noise.
        delay: Seconds a trial takes.
        break_at: What happens at a (stage, step, index): "raise", "nan", "kill" or "interrupt".
    """

    optimum: tuple[float, ...]
    weights: tuple[float, ...]
    noise: float = 0.0
    delay: float = 0.0
    break_at: dict[tuple[str, int, int], str] = field(default_factory=dict)

    @classmethod
    def random(cls, dimensions: int, seed: int, **options: float) -> Quadratic:
        """A quadratic of total weight 3 with its optimum in [0.1, 0.9]^d."""
        rng = np.random.default_rng(1000 + seed)
        weights = rng.uniform(size=dimensions)
        optimum = rng.uniform(0.1, 0.9, dimensions)
        return cls(tuple(optimum.tolist()), tuple((3 * weights / weights.sum()).tolist()), **options)  # type: ignore[arg-type]

    def regret(self, theta: tuple[float, ...]) -> float:
        """How far below the optimum theta is, without noise."""
        return math.fsum(w * (x - o) ** 2 for w, x, o in zip(self.weights, theta, self.optimum, strict=True))

    def __call__(self, job: Job) -> Outcome:
        """Objective of a study."""
        time.sleep(self.delay)
        match self.break_at.get((job.stage, job.step, job.index)):
            case "raise":
                raise RuntimeError("CUDA out of memory.")
            case "nan":
                return Outcome(math.nan, {}, {}, None, 0.0)
            case "kill":
                os.kill(os.getpid(), 9)
            case "interrupt":
                raise KeyboardInterrupt
            case _:
                pass
        value = -1.0 if job.theta is None else -self.regret(job.theta)
        key = [job.seed, *(int(x * 2**32) for x in job.theta or ())]
        reward = value + self.noise * float(np.random.default_rng(key).standard_normal())
        metrics = {"toy": reward, "other": 1 - reward}
        return Outcome(reward, metrics, metrics if job.stage == "final" else {}, None, self.delay)


def fault_is_due(folder: Path, job: Job) -> bool:
    """Whether a job meets with a fault: (search, 1, 0) when it is first met, (search, 2, 3) always."""
    met = folder / "met"
    first = (job.stage, job.step, job.index) == ("search", 1, 0) and not met.exists()
    if first:
        met.touch()
    return first or (job.stage, job.step, job.index) == ("search", 2, 3)


@dataclass(frozen=True)
class Clumsy:
    """A toy that kills its process when a fault is due, and notes where each trial ran."""

    folder: Path
    toy: Quadratic

    def __call__(self, job: Job) -> Outcome:
        """Objective of a study."""
        with (self.folder / "where").open("a") as file:
            file.write(json.dumps([os.getpid(), os.environ.get("OMP_NUM_THREADS"), os.getcwd()]) + "\n")
        if fault_is_due(self.folder, job):
            os.kill(os.getpid(), 9)
        return self.toy(job)


@dataclass(frozen=True)
class Hanging:
    """A toy that hangs when a fault is due."""

    folder: Path

    def __call__(self, job: Job) -> Outcome:
        """Objective of a study."""
        if fault_is_due(self.folder, job):
            time.sleep(3600)
        return TOY(job)


@dataclass(frozen=True)
class Clocked:
    """A toy that takes a while, and notes where and when: the clock is one for all processes of a machine."""

    folder: Path

    def __call__(self, job: Job) -> Outcome:
        """Objective of a study."""
        start = time.monotonic()
        outcome = replace(TOY, delay=0.4)(job)  # long beside what a loaded machine adds
        with (self.folder / "spans").open("a") as file:
            file.write(json.dumps([job.stage, job.step, os.getpid(), start, time.monotonic()]) + "\n")
        return outcome


class ToyLosses:
    """What stands for the losses of a search: a toy goes by theta."""

    def content(self, theta: tuple[float, ...]) -> LossContent:
        """What stands for the loss at a point."""
        return toy_loss(theta)

    def rate(self, theta: tuple[float, ...]) -> float:
        """The learning rate, as it is."""
        return 1.0


def search_of(
    algorithm: Algorithm[Any],
    journal: Journal,
    *,
    guard: Mapping[str, float] | None = None,
    observer: Callable[[Study], None] | None = None,
    **numbers: int,
) -> Study:
    """A study of toys without rivals."""
    begin = without_rivals(algorithm, ToyLosses())
    return Study(begin, journal, CROSS_ENTROPY, Schedule(**numbers), guard=guard, observer=observer)


def toy_loss(theta: tuple[float, ...]) -> LossContent:
    """What stands for the loss at a point: a toy goes by theta."""
    return {"theta": list(theta)}


def toy_study(journal: Journal, observer: Callable[[Study], None] | None = None, lag: int = 0) -> Study:
    """A small study: 3 steps of 8 samples, then 2 candidates on 2 seeds; 37 trials in all."""
    algorithm = PPO2(start=(0.5,) * 3, samples=8, updates=5)
    return search_of(algorithm, journal, steps=3, candidates=2, finalist_seeds=2, seed=7, lag=lag, observer=observer)


TOY = Quadratic((0.7, 0.3, 0.6), (1.0, 1.0, 1.0), noise=0.02)


def run_toy(folder: Path, runner: Runner, objective: Objective = TOY, *, resume: bool = False) -> str:
    """Run the small study in a folder; its result as text."""
    with Journal(folder / "trials.jsonl", resume=resume) as journal:
        study = toy_study(journal)
        runner.run(study, objective)
        return study.findings().to_json()


def drive(folder: Path) -> None:
    """A driver process: run the small study with slow trials on a Ray of its own."""
    from autosegloss.search.runners.ray import RayRunner

    run_toy(folder, RayRunner(2), replace(TOY, delay=0.2))
