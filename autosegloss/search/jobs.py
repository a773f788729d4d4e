"""Jobs and outcomes: one training to be done, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from autosegloss.loss.base import LossContent

Stage = Literal["search", "final", "compare"]
Place: TypeAlias = tuple[str, int, int]
"""Stage, step and index of a job."""


@dataclass(frozen=True)
class Job:
    """One training to be done: with which loss, with which seed, and what for.

    Args:
        stage: "search" for a sample of the algorithm, "final" for a run that decides the winner, "compare" for one of
            a comparison.
        step: Step of the search; in finals and comparisons, the ordinal of the seed. The jobs of a step share it.
        index: Place within the step.
        loss: The whole loss, as the content of its file.
        seed: Seed of the training.
        theta: Where an optimiser drew the loss, in [0, 1]^d, for the record; None of a loss that none drew.
    """

    stage: Stage
    step: int
    index: int
    loss: LossContent = field(hash=False)
    seed: int
    theta: tuple[float, ...] | None = None

    @property
    def place(self) -> Place:
        """What names it among all of a study."""
        return self.stage, self.step, self.index


@dataclass(frozen=True)
class Outcome:
    """What came of a job: a reward, or an error.

    Args:
        reward: The target metric on the held-out part, which the search maximises; None if the training failed.
        metrics: Every metric on the held-out part.
        validation: Every metric on the validation set; not of a job of the search.
        error: Why there is no reward.
        seconds: Wall-clock time spent. The only field that differs from run to run.
    """

    reward: float | None
    metrics: dict[str, float]
    validation: dict[str, float]
    error: str | None
    seconds: float

    @classmethod
    def failed(cls, error: str, seconds: float) -> Outcome:
        """Outcome of a training that broke."""
        return cls(reward=None, metrics={}, validation={}, error=error, seconds=seconds)

    def checked(self) -> Outcome:
        """This outcome in plain, finite floats; a failed one if a number is not finite."""
        if self.reward is None:
            return Outcome.failed(self.error or "no reward, and no error given", float(self.seconds))
        numbers = {"reward": self.reward, **self.metrics, **self.validation}
        wrong = [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
        if wrong:
            return Outcome.failed("not finite: " + ", ".join(wrong), float(self.seconds))
        return replace(
            self,
            reward=float(self.reward),
            metrics={name: float(value) for name, value in self.metrics.items()},
            validation={name: float(value) for name, value in self.validation.items()},
            error=None,
            seconds=float(self.seconds),
        )


Objective: TypeAlias = Callable[[Job], Outcome]
"""Runs a trial: a deterministic function of the job, but for the seconds."""
