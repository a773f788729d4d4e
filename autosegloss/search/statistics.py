"""How sure the mean of some runs is, and how two losses differ over the same seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t as student


@dataclass(frozen=True)
class Score:
    """A metric over several seeds: its mean, and the standard deviation of one run (n - 1)."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: list[float]) -> Score:
        """The score of some runs; one run alone has no spread, given as 0."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of two values or more, and the ends of its 95% t-interval."""
    mean = statistics.fmean(values)
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def interval_text(values: Sequence[float], form: str) -> str:
    """The same in words, each number in the given format.

    Example:
        >>> interval_text([1.0, 2.0, 3.0], ".1f")
        '2.0 [-0.5, 4.5]'
    """
    mean, low, high = t_interval(values)
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


@dataclass(frozen=True)
class Estimate(Score):
    """A score with the 95% t-interval of its mean, which one run alone does not have."""

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
    """How a loss differs from the first one, over the seeds on which both ended.

    Args:
        mean: Of the differences.
        low: Of their 95% t-interval.
        high: Of the same.
        p: Of the two-sided paired t-test, as it is: the verdict takes account of how many there are.
        verdict: Which loss is the better one, where the test of the table says so; see `judged`.
    """

    mean: float
    low: float
    high: float
    p: float
    verdict: Literal["better", "worse"] | None = None

    @classmethod
    def of(cls, ours: Sequence[float], first: Sequence[float]) -> Difference | None:
        """The difference of paired values; None of fewer than two pairs, which have no interval."""
        gains = [a - b for a, b in zip(ours, first, strict=True)]
        if len(gains) < 2:
            return None
        mean, low, high = t_interval(gains)
        error = statistics.stdev(gains) / math.sqrt(len(gains))
        # Without an error every seed says the same.
        p = 2 * float(student.sf(abs(mean) / error, len(gains) - 1)) if error > 0 else float(mean == 0)
        return cls(mean, low, high, p)


def holm(values: Sequence[float]) -> list[float]:
    """The p-values of a family as Holm adjusts them.

    Rejecting those up to 5% errs anywhere in the family with a probability of 5% at most.

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
