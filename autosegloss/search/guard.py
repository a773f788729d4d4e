"""Guards against losses that improve the target metric while other metrics collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from autosegloss.loss.base import LossContent
from autosegloss.search.jobs import Job, Outcome

SCALE = 0.1
"""The shortfall that divides a reward by e: noise of a few percent costs little, a collapse costs everything."""


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
    baselines = {job.seed: outcome for job, outcome in outcomes.items() if job.loss == baseline}
    return {job: _reduced(outcome, baselines[job.seed], shares) for job, outcome in outcomes.items()}


def _reduced(outcome: Outcome, baseline: Outcome, shares: Mapping[str, float]) -> Outcome:
    if outcome.reward is None:
        return outcome
    wanted = {name: share * baseline.metrics[name] for name, share in shares.items()}
    short = sum(max(0.0, 1 - outcome.metrics[name] / least) for name, least in wanted.items() if least > 0)
    return replace(outcome, reward=outcome.reward - abs(outcome.reward) * -math.expm1(-short / SCALE))
