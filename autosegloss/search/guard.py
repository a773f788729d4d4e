"""Guards against losses that improve the target metric while other metrics collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from autosegloss.loss.base import LossContent
from autosegloss.search.jobs import Job, Outcome

SCALE = 0.1
"""The shortfall that divides a reward by e: noise of a few percent costs little, a collapse costs everything."""


@dataclass(frozen=True)
class Check:
    """A guard, checked for one loss in the finals.

    Args:
        metric: The guarded metric.
        share: The least share of its value under cross-entropy.
        value: Its mean over the seeds of the finals.
        baseline: The same mean for cross-entropy, over the seeds on which the loss did not fail.
    """

    metric: str
    share: float
    value: float
    baseline: float

    @property
    def least(self) -> float:
        """The least value that keeps the guard."""
        return self.share * self.baseline

    @property
    def kept(self) -> bool:
        """Whether the loss keeps the guard."""
        return self.least <= 0 or self.value >= self.least

    def __str__(self) -> str:
        return (
            f"{self.metric} is {100 * self.value:.2f} where at least {100 * self.least:.2f} was asked "
            f"({self.share:g} of cross-entropy's {100 * self.baseline:.2f})"
        )


def checked(
    runs: Sequence[Mapping[str, float]], baselines: Sequence[Mapping[str, float]], shares: Mapping[str, float]
) -> tuple[Check, ...]:
    """Check the guards for a loss in the finals.

    Args:
        runs: The metrics of the loss, one mapping per seed; empty where the training failed.
        baselines: Those of cross-entropy.
        shares: The least share of cross-entropy's value, per metric.

    Returns:
        A check per guard that the runs have measured; none if the loss failed on every seed.
    """
    pairs = [(own, other) for own, other in zip(runs, baselines, strict=True) if own and other]
    if not pairs:
        return ()
    return tuple(
        Check(name, share, *(fmean(each[name] for each in side) for side in zip(*pairs, strict=True)))
        for name, share in shares.items()
        if name in pairs[0][0]
    )


def is_baseline(job: Job, baseline: LossContent) -> bool:
    """Whether a job trains with cross-entropy as a user would, at the learning rate as it is."""
    return job.loss == baseline and job.rate == 1


def guarded(outcomes: Mapping[Job, Outcome], shares: Mapping[str, float], baseline: LossContent) -> dict[Job, Outcome]:
    """Reduce the rewards of outcomes whose other metrics fall too far below those of cross-entropy.

    A metric falls short by 1 - m / (share * baseline), if that is positive, where baseline is the value
    of cross-entropy with the same seed. With s the sum over the guarded metrics, a reward r becomes
    r - |r| (1 - exp(-s / SCALE)): continuous, so that the search keeps a direction to improve in.

    Args:
        outcomes: Those of one step or of the finals; with shares, every seed must have a successful job of the
            baseline.
        shares: The least share of the baseline, in (0, 1], per metric.
        baseline: The content of cross-entropy.

    Returns:
        The same jobs in the same order.
    """
    if not shares:
        return dict(outcomes)
    baselines = {job.seed: outcome for job, outcome in outcomes.items() if is_baseline(job, baseline)}
    return {job: _reduced(outcome, baselines[job.seed], shares) for job, outcome in outcomes.items()}


def _reduced(outcome: Outcome, baseline: Outcome, shares: Mapping[str, float]) -> Outcome:
    if outcome.reward is None:
        return outcome
    wanted = {name: share * baseline.metrics[name] for name, share in shares.items()}
    short = sum(max(0.0, 1 - outcome.metrics[name] / least) for name, least in wanted.items() if least > 0)
    return replace(outcome, reward=outcome.reward - abs(outcome.reward) * -math.expm1(-short / SCALE))
