"""The gates of a search: whether losses differ here at all, and whether short trainings rank them as long ones do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy

from autosegloss.search.statistics import LEVEL, number

LEAST_FIDELITY: Final = 0.6
"""The rank correlation below which short trainings say too little of long ones."""
LEAST_SEEDS: Final = 3
"""The paired seeds below which nothing is said of how rivals differ."""
FIDELITY_RIVALS: Final = 8
"""The rivals that are trained at both schedules."""


@dataclass(frozen=True)
class Headroom:
    """The spread between the best rivals beside the noise of the seed, by variance components.

    The reward of rival i on seed j is taken as m + a_i + b_j + e_ij, with independent random effects of the rival, the
    seed and their interaction. With the mean squares of the two-way table, the variance of e is MS_e, and that of a is
    (MS_a - MS_e) / seeds; F = MS_a / MS_e tests that a has none. One training that collapses may hide every difference
    from this test, so that Friedman's test of the ranks of the rivals is made too.

    Args:
        names: The rivals, the best first.
        means: Their mean rewards.
        seeds: Number of paired seeds.
        spread: Standard deviation of a; 0 where the estimate of its variance is negative.
        noise: Standard deviation of e.
        p: The smaller one of both p-values. A search too many costs time, one too few a better loss.

    Reference: Searle, Casella and McCulloch, Variance Components, Wiley 1992, chapter 4.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    seeds: int
    spread: float
    noise: float
    p: float

    @classmethod
    def of(cls, names: Sequence[str], rewards: Sequence[Sequence[float]]) -> Headroom | None:
        """The headroom from the rewards of each rival on the same seeds; None for one rival or fewer than 3 seeds."""
        table = np.asarray(rewards, dtype=np.float64)
        if table.ndim != 2 or len(table) < 2 or table.shape[1] < LEAST_SEEDS:
            return None
        rivals, seeds = table.shape
        means = table.mean(axis=1)
        rest = table - means[:, None] - table.mean(axis=0) + table.mean()
        between = float(seeds * means.var(ddof=1))
        noise = float((rest**2).sum() / ((rivals - 1) * (seeds - 1)))
        if noise > 0:
            p = float(scipy.stats.f.sf(between / noise, rivals - 1, (rivals - 1) * (seeds - 1)))
        else:
            p = float(between == 0)
        if rivals > 2 and between > 0:
            p = min(p, float(scipy.stats.friedmanchisquare(*table).pvalue))
        spread = math.sqrt(max(0.0, between - noise) / seeds)
        return cls(tuple(names), tuple(map(float, means)), seeds, spread, math.sqrt(noise), p)

    @property
    def told_apart(self) -> bool:
        """Whether the rivals differ by more than the noise."""
        return self.p < LEVEL

    def __str__(self) -> str:
        return self.text()

    def text(self, own: bool = False) -> str:
        """What was seen, in %; of numbers of a trial of the user's own, as they are."""
        means = [number(mean, own) for mean in self.means]
        spread, noise = (number(each, own, digits=2) for each in (self.spread, self.noise))
        seen = ", ".join(f"{name} {mean}" for name, mean in zip(self.names, means, strict=True))
        figures = (
            f"spread between losses {spread}, noise of the seed {noise}, p = {self.p:.2g}, {self.seeds} paired seeds"
        )
        if self.told_apart:
            return f"headroom: the best rivals differ ({figures}): {seen}"
        return f"no headroom: the best {len(self.names)} rivals can't be told apart ({figures}): {seen}"


@dataclass(frozen=True)
class Fidelity:
    """The rank correlation between the rewards of the same losses at the proxy's schedule and at that of the finals.

    Args:
        names: The losses.
        short: Their rewards at the proxy's schedule.
        long: Those at the schedule of the finals, on the same seed.
        correlation: Spearman's rank correlation.
        low: Lower end of its 95% interval.
        high: Upper end.

    Reference: Bonett and Wright, Sample size requirements for estimating Pearson, Kendall and Spearman correlations,
    Psychometrika 65, 2000, for the interval.
    """

    names: tuple[str, ...]
    short: tuple[float, ...]
    long: tuple[float, ...]
    correlation: float
    low: float
    high: float

    @classmethod
    def of(cls, names: Sequence[str], short: Sequence[float], long: Sequence[float]) -> Fidelity | None:
        """The fidelity from paired rewards; None for fewer than four losses, or if one side is constant."""
        if len(names) < 4 or len(set(short)) == 1 or len(set(long)) == 1:
            return None
        r, n = float(scipy.stats.spearmanr(short, long).statistic), len(names)
        # Equal or reversed orders have no interval of their own: they take that of an order one swap away.
        largest = 1 - 12 / (n * (n * n - 1))
        inner = max(-largest, min(largest, r))
        z, half = math.atanh(inner), 1.96 * math.sqrt((1 + inner * inner / 2) / (n - 3))
        low, high = min(r, math.tanh(z - half)), max(r, math.tanh(z + half))
        return cls(tuple(names), tuple(short), tuple(long), r, low, high)

    @property
    def suffices(self) -> bool:
        """Whether the short trainings rank the losses well enough."""
        return self.correlation >= LEAST_FIDELITY

    def __str__(self) -> str:
        text = (
            f"fidelity: rank correlation {self.correlation:.2f} [{self.low:.2f}, {self.high:.2f}] between the rewards "
            f"of {len(self.names)} losses at the proxy's schedule and at that of the finals"
        )
        return text if self.suffices else f"{text}; below {LEAST_FIDELITY}: lengthen the trainings of the search"
