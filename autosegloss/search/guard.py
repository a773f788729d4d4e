"""Guards against losses that improve the target metric while other metrics collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from autosegloss.errors import RefusedError, cut
from autosegloss.loss.base import LossContent
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.statistics import number

SCALE = 0.1
"""The shortfall that divides a reward by e: noise of a few percent costs little, a collapse costs everything."""


@dataclass(frozen=True)
class Baseline:
    """The loss that a guard compares with.

    Args:
        label: What it is called.
        loss: The content of its file.
        rate: The factor of the learning rate with which it trains.
    """

    label: str
    loss: LossContent = field(hash=False)
    rate: float = 1.0

    def runs(self, job: Job) -> bool:
        """Whether a job trains with it."""
        return job.loss == self.loss and job.rate == self.rate


@dataclass(frozen=True)
class Guard:
    """A metric that must not fall below a share of its value under another loss.

    Args:
        metric: The metric.
        share: The least share, in (0, 1].
        of: The other loss: cross-entropy, or the rival that is best on the metric.
    """

    metric: str
    share: float
    of: Baseline


@dataclass(frozen=True)
class Check:
    """A guard, checked for one loss in the finals.

    Args:
        metric: The guarded metric.
        share: The least share of its value under the loss that the guard compares with.
        value: Its mean over the seeds of the finals.
        baseline: The same mean for that loss, over the seeds on which both did not fail.
        of: What that loss is called.
    """

    metric: str
    share: float
    value: float
    baseline: float
    of: str = "cross-entropy"

    @property
    def least(self) -> float:
        """The least value that keeps the guard."""
        return self.share * self.baseline

    @property
    def kept(self) -> bool:
        """Whether the loss keeps the guard."""
        return self.least <= 0 or self.value >= self.least

    def measured(self, own: bool = False) -> str:
        """The value in %; of a trial of the user's own, the number as it is."""
        return number(self.value, own, digits=2)

    def asked(self, own: bool = False) -> str:
        """The least value that keeps the guard and where it comes from; likewise."""
        least, baseline = (number(each, own, digits=2) for each in (self.least, self.baseline))
        return f"{least} ({self.share:g} of {self.of}'s {baseline})"

    def text(self, own: bool = False) -> str:
        """What was measured and asked; likewise."""
        least, why = self.asked(own).split(" ", 1)
        return f"{self.metric} is {self.measured(own)} where at least {least} was asked {why}"


def checked(
    runs: Sequence[Mapping[str, float]],
    of: Mapping[str, Sequence[Mapping[str, float]]],
    guards: Sequence[Guard],
) -> tuple[Check, ...]:
    """Check the guards for a loss in the finals.

    Args:
        runs: The metrics of the loss, one mapping per seed; empty where the training failed.
        of: Those of each loss that a guard compares with, by its label.
        guards: The guards.

    Returns:
        A check per guard that the runs have measured; none if the loss failed on every seed.
    """
    checks = []
    for guard in guards:
        pairs = [(own, other) for own, other in zip(runs, of[guard.of.label], strict=True) if own and other]
        if pairs and guard.metric in pairs[0][0]:
            value, baseline = (fmean(each[guard.metric] for each in side) for side in zip(*pairs, strict=True))
            checks.append(Check(guard.metric, guard.share, value, baseline, guard.of.label))
    return tuple(checks)


def guarded(outcomes: Mapping[Job, Outcome], guards: Sequence[Guard]) -> dict[Job, Outcome]:
    """Reduce the rewards of outcomes whose other metrics fall too far below those of the losses to compare with.

    A metric falls short by 1 - m / (share * baseline), if that is positive, where baseline is its value under the loss
    that the guard compares with, with the same seed. With s the sum over the guards, a reward r becomes
    r - |r| (1 - exp(-s / SCALE)): continuous, so that the search keeps a direction to improve in.

    Args:
        outcomes: Those of one step or of the finals; every seed must have a successful job of each loss that a guard
            compares with.
        guards: The guards.

    Returns:
        The same jobs in the same order.

    Raises:
        RefusedError: A guarded metric is negative with the loss to compare with.
    """
    least = {
        (job.seed, guard.metric): guard.share * _not_negative(guard, outcome.metrics[guard.metric])
        for guard in guards
        for job, outcome in outcomes.items()
        if guard.of.runs(job)
    }
    return {
        job: _reduced(outcome, {g.metric: least[job.seed, g.metric] for g in guards})
        for job, outcome in outcomes.items()
    }


def _not_negative(guard: Guard, value: float) -> float:
    """The value, if a share of it means what a guard means."""
    if value < 0:
        raise RefusedError(
            f"guard.{cut(guard.metric)}: {value:.4g} with {guard.of.label}. A guard keeps a share of a number of which "
            "more is better and which is never negative; guard another one, in another folder."
        )
    return value


def _reduced(outcome: Outcome, least: Mapping[str, float]) -> Outcome:
    if outcome.reward is None or not least:
        return outcome
    short = sum(max(0.0, 1 - outcome.metrics[name] / value) for name, value in least.items() if value > 0)
    return replace(outcome, reward=outcome.reward - abs(outcome.reward) * -math.expm1(-short / SCALE))
