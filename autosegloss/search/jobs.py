"""Jobs and their outcomes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from autosegloss.loss.base import LossContent

Stage = Literal["screen", "fidelity", "search", "final", "tune", "compare"]
Place: TypeAlias = tuple[str, int, int]
"""Stage, step and index of a job."""


@dataclass(frozen=True)
class Job:
    """One training to run: its loss, its seed and its purpose.

    Args:
        stage: "screen" for a rival before the search, "fidelity" for a rival at the schedule of the finals, "search"
            for a sample of the algorithm, "final" for a run that decides the winner; "tune" for a loss at a step before
            a comparison, "compare" for a run of the comparison.
        step: Round of the screening, step of the search; elsewhere the ordinal of the seed. The jobs of a step share
            it.
        index: Place within the step.
        loss: The whole loss, as the content of its file.
        seed: Seed of the training.
        theta: The point in [0, 1]^d at which an optimiser drew the loss, for the record; None otherwise.
        rate: The factor of the learning rate with which it trains.
    """

    stage: Stage
    step: int
    index: int
    loss: LossContent = field(hash=False)
    seed: int
    theta: tuple[float, ...] | None = None
    rate: float = 1.0

    @property
    def place(self) -> Place:
        """Stage, step and index, which identify the job within a study."""
        return self.stage, self.step, self.index


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job: a reward or an error.

    Args:
        reward: The target metric on the held-out part, which the search maximises; None if the training failed.
        metrics: Every metric on the held-out part.
        validation: Every metric on the validation set; empty for jobs of the search.
        error: Why the training failed.
        seconds: Wall-clock time. The only field that differs between runs.
    """

    reward: float | None
    metrics: dict[str, float]
    validation: dict[str, float]
    error: str | None
    seconds: float

    @classmethod
    def failed(cls, error: str, seconds: float) -> Outcome:
        """The outcome of a failed training."""
        return cls(reward=None, metrics={}, validation={}, error=error, seconds=seconds)

    def checked(self) -> Outcome:
        """This outcome with plain floats, or a failed one if a number is not finite."""
        if self.reward is None:
            return Outcome.failed(self.error or "no reward and no error message", float(self.seconds))
        numbers = {"reward": self.reward, **self.metrics, **self.validation}
        wrong = {name: f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)}
        if wrong:
            others = [text for name, text in wrong.items() if name not in ("reward", "target")]  # they are one of these
            return Outcome.failed("not finite: " + ", ".join(others or wrong.values()), float(self.seconds))
        return replace(
            self,
            reward=float(self.reward),
            metrics={name: float(value) for name, value in self.metrics.items()},
            validation={name: float(value) for name, value in self.validation.items()},
            error=None,
            seconds=float(self.seconds),
        )


Objective: TypeAlias = Callable[[Job], Outcome]
"""Runs a trial: a deterministic function of the job, except for the seconds."""
