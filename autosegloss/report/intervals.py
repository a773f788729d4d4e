"""How sure a mean is, and how far two lists agree on an order."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
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


def rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Spearman's rank correlation along the last axis; 0 where all values of a list are equal: they have no order."""
    x, y = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (rankdata(a, axis=-1), rankdata(b, axis=-1)))
    scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    # Where ranks differ, the squares of their deviations sum to 1/2 at least.
    correlation: NDArray[np.float64] = (x * y).sum(axis=-1) / np.maximum(scale, 0.25)
    return correlation
