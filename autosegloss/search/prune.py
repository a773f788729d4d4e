"""Pruning: a trial that shows little early is given up, and its reward is the one that such trials come to.

A policy weighs a reward against the mean of its step. Were a trial that is given up to count with what it has shown,
which is lower than what it would have come to, the mean would sink, and every trial that was kept would look better
than it is. So it counts with the reward that is expected of it: the isotonic regression of the rewards on what was
shown, over the trials of earlier steps that were trained to their end. Where what is shown says all about the reward
that theta says, neither the mean nor the policy's gradient has a bias but that of the regression, which is small beside
the spread of the rewards. What is left besides: theta may say more; and the regression may differ from step to step,
with the seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

Seen = tuple[float, float | None]
"""What a trial showed early, and its reward; None of one that was given up."""
FEWEST = 3
"""Trials to go by."""


@dataclass(frozen=True)
class Rung:
    """What decides early whether a trial goes on, and what it counts if not.

    Args:
        floor: What it has to show.
        shown: Of trials of earlier steps, rising.
        rewards: What is expected of those; never falling.
    """

    floor: float = -math.inf
    shown: tuple[float, ...] = ()
    rewards: tuple[float, ...] = ()

    def expected(self, early: float) -> float:
        """The reward that is expected of a trial that shows this: on a straight line between those seen."""
        return float(np.interp(early, self.shown, self.rewards))


def rung(share: float, steps: Sequence[Sequence[Seen]]) -> Rung:
    """The rung of a step, from the steps before it and nothing else, so that it does not depend on timing.

    Args:
        share: Of the last step's trials, those below the floor; in [0, 1).
        steps: What was seen of every step so far, the latest last.

    Returns:
        A rung without a floor as long as there is nothing to go by.
    """
    ended = sorted((early, reward) for step in steps for early, reward in step if reward is not None)
    if len(ended) < FEWEST or not steps[-1]:
        return Rung()
    shown, rewards = np.array(ended).T
    shown, places, counts = np.unique(shown, return_inverse=True, return_counts=True)
    means = np.bincount(places, rewards) / counts
    fitted = scipy.optimize.isotonic_regression(means, weights=counts).x
    floor = float(np.quantile([early for early, _ in steps[-1]], share))
    return Rung(floor, tuple(shown.tolist()), tuple(fitted.tolist()))
