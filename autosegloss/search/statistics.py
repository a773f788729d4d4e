"""Statistics over seeds: means with intervals, and paired differences between two losses."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import scipy

LEVEL: Final = 0.05
"""The level of every test, and 1 minus the confidence of every bound and interval."""


def number(value: float, own: bool, sign: str = "-", digits: int = 1) -> str:
    """A score in %, or a number of a trial of the user's own as it is.

    Args:
        value: The score, or the number.
        own: Whether it is a number of a trial.
        sign: "+" shows the sign of all numbers.
        digits: Decimals of a score.
    """
    text = f"{value:{sign}.4g}" if own else f"{100 * value:{sign}.{digits}f}"
    return text.replace("-", "+" if sign == "+" else "") if float(text) == 0 else text  # no -0.0


@dataclass(frozen=True)
class Score:
    """Mean and standard deviation (n - 1) of a metric over several seeds."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: list[float]) -> Score:
        """The score of some runs; the standard deviation of a single run is given as 0."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


LEAST_RANKS: Final = 5
"""The fewest values whose signed ranks can reach the level: four positive ones are so by chance once in 16 times."""


def signed_rank(values: Sequence[float]) -> tuple[float, float, float]:
    """Wilcoxon's one-sided signed-rank test that values lie above 0, and the estimate that belongs to it.

    It is exact for values that are symmetric about their centre. A few that are far out decide less than in a t-test,
    which they keep from seeing what all others agree on.

    Args:
        values: At least `LEAST_RANKS` values.

    Returns:
        The centre (the median of the means of all pairs, each value with itself too), its one-sided lower bound at the
        level, which is above 0 if and only if the test rejects, and the p-value. A difference of 0 speaks against.

    Reference: Hodges and Lehmann, Estimates of location based on rank tests, Annals of Mathematical Statistics 34,
    1963.
    """
    x = np.asarray(values, dtype=float)
    means = np.sort(((x[:, None] + x) / 2)[np.triu_indices(len(x))])
    # By chance each rank is positive half of the time: the number of positive means is the sum of these ranks.
    chances = np.ones(1)
    for rank in range(1, len(x) + 1):
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    at_most = np.cumsum(chances)
    p = at_most[len(means) - np.count_nonzero(means > 0)]  # as likely as so many that are not positive
    return float(np.median(means)), float(means[np.count_nonzero(at_most <= LEVEL) - 1]), float(p)


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of two or more values, and the ends of its 95% t-interval."""
    mean = statistics.fmean(values)
    half = float(scipy.stats.t.ppf(1 - LEVEL / 2, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def interval_text(values: Sequence[float], form: str) -> str:
    """The mean and its 95% t-interval as text, with each number in the given format.

    Example:
        >>> interval_text([1.0, 2.0, 3.0], ".1f")
        '2.0 [-0.5, 4.5]'
    """
    mean, low, high = t_interval(values)
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


@dataclass(frozen=True)
class Estimate(Score):
    """A score with the 95% t-interval of its mean; None for a single run."""

    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: list[float]) -> Estimate:
        """The estimate from some runs."""
        score = Score.of(values)
        if len(values) < 2:
            return cls(score.mean, score.sd, None, None)
        _, low, high = t_interval(values)
        return cls(score.mean, score.sd, low, high)


@dataclass(frozen=True)
class Difference:
    """The paired difference between a loss and the baseline, over the seeds on which both succeeded.

    Args:
        mean: Mean of the differences.
        low: Lower end of their 95% t-interval.
        high: Upper end.
        p: p-value of the two-sided paired t-test, unadjusted.
        verdict: Whether the loss is better or worse, if the adjusted test says so; see `judged`.
    """

    mean: float
    low: float
    high: float
    p: float
    verdict: Literal["better", "worse"] | None = None

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Difference | None:
        """The difference of paired values; None for fewer than two pairs, which have no interval."""
        gains = [a - b for a, b in zip(ours, theirs, strict=True)]
        if len(gains) < 2:
            return None
        mean, low, high = t_interval(gains)
        error = statistics.stdev(gains) / math.sqrt(len(gains))
        # A standard error of 0: the difference is the same on every seed.
        p = 2 * float(scipy.stats.t.sf(abs(mean) / error, len(gains) - 1)) if error > 0 else float(mean == 0)
        return cls(mean, low, high, p)


def holm(values: Sequence[float]) -> list[float]:
    """The p-values of a family, adjusted by Holm's procedure.

    Rejecting the adjusted values up to 5% keeps the probability of any false rejection at 5% or less.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Reference: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6, 1979.
    """
    adjusted, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = least
    return adjusted
