"""Guards: a loss must not win on its own metric by letting others collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from autosegloss.loss.base import LossContent
from autosegloss.search.jobs import Job, Outcome

SCALE = 0.1
"""The shortfall that takes a factor of e from a reward: noise of a few percent costs little, a collapse everything."""


def guarded(outcomes: Mapping[Job, Outcome], shares: Mapping[str, float], baseline: LossContent) -> dict[Job, Outcome]:
    """Outcomes whose rewards are reduced where other metrics fell too far below cross-entropy's.

    A metric falls short by 1 - m / (share * baseline), if that is above 0, where the baseline is what cross-entropy
    has with the same seed. With s the sum over the guarded metrics, a reward r becomes r - |r| (1 - exp(-s / SCALE)):
    continuous, so that the search still sees which way is up.

    Args:
        outcomes: Of one step or of the finals; with shares, there is a job of the baseline for every seed, and it did
            not fail.
        shares: The least share of the baseline, in (0, 1], per metric.
        baseline: The loss to compare with, which is cross-entropy.

    Returns:
        The same jobs in the same order.
    """
    if not shares:
        return dict(outcomes)
    baselines = {job.seed: outcome for job, outcome in outcomes.items() if job.loss == baseline}
    return {job: _reduced(outcome, baselines[job.seed], shares) for job, outcome in outcomes.items()}


def _reduced(outcome: Outcome, baseline: Outcome, shares: Mapping[str, float]) -> Outcome:
    if outcome.reward is None:
        return outcome
    wanted = {name: share * baseline.metrics[name] for name, share in shares.items()}
    short = sum(max(0.0, 1 - outcome.metrics[name] / least) for name, least in wanted.items() if least > 0)
    return replace(outcome, reward=outcome.reward - abs(outcome.reward) * -math.expm1(-short / SCALE))
