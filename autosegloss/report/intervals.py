"""How sure a mean is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from scipy.stats import t as student


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
