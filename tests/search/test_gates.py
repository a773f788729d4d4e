"""Headroom and fidelity: against their formulas written anew, against SciPy, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.search.gates import Fidelity, Headroom
from tests.examples import examples

Array = npt.NDArray[np.float64]


def headroom(table: Array) -> Headroom:
    found = Headroom.of([f"rival {i}" for i in range(len(table))], table.tolist())
    assert found is not None
    return found


def anova(table: Array) -> tuple[float, float, float]:
    """Two-way analysis of variance without repeats, by least squares: the mean squares of rows and rest, and p."""
    rows, columns = table.shape

    def squares(of_rows: bool) -> float:
        """The sum of squares that columns, or rows and columns, leave over."""
        row, column = np.indices(table.shape).reshape(2, -1)
        design = [np.ones(table.size), *(column == j for j in range(1, columns))]
        design += [row == i for i in range(1, rows)] if of_rows else []
        matrix = np.stack(design, 1).astype(float)
        rest = table.ravel() - matrix @ np.linalg.lstsq(matrix, table.ravel(), rcond=None)[0]
        return float(rest @ rest)

    whole, of_columns = squares(True), squares(False)
    between = (of_columns - whole) / (rows - 1)
    within = whole / ((rows - 1) * (columns - 1))
    p = 1 - scipy.stats.f.cdf(between / within, rows - 1, (rows - 1) * (columns - 1))
    return between, within, float(p)


def friedman(table: Array) -> float:
    """Friedman's test of rows, for columns without ties."""
    rows, columns = table.shape
    ranks = (table[:, None] >= table).sum(1).sum(1)
    statistic = 12 / (columns * rows * (rows + 1)) * float((ranks**2).sum()) - 3 * columns * (rows + 1)
    return float(scipy.stats.chi2.sf(statistic, rows - 1))


@examples(20)
@given(rows=st.integers(2, 5), columns=st.integers(3, 5), spread=st.floats(0, 2), seed=st.integers(0, 10**6))
def test_headroom_is_the_analysis_of_variance(rows: int, columns: int, spread: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = spread * rng.normal(size=(rows, 1)) + 5 * rng.normal(size=columns) + rng.normal(size=(rows, columns))
    found = headroom(table)
    between, within, p = anova(table)
    assert found.noise == pytest.approx(math.sqrt(within))
    assert found.spread == pytest.approx(math.sqrt(max(0.0, (between - within) / columns)), abs=1e-6)
    by_ranks = friedman(table) if rows > 2 else 1.0
    assert found.p == pytest.approx(min(p, by_ranks), abs=1e-9)
    assert found.means == pytest.approx(table.mean(axis=1))
    assert found.told_apart == (found.p < 0.05)


def test_without_a_spread_rivals_are_told_apart_one_time_in_twenty_and_with_a_large_one_always() -> None:
    """Whatever the seed does to all of them."""
    rng = np.random.default_rng(0)
    seeds = 10 * rng.normal(size=(1000, 1, 3))
    alarms = [headroom(table).told_apart for table in rng.normal(size=(1000, 5, 3)) + seeds]
    assert 0.03 < np.mean(alarms) < 0.07
    apart = np.arange(5.0)[:, None] * 3
    found = [headroom(table) for table in rng.normal(size=(200, 5, 3)) + seeds[:200] + apart]
    assert np.mean([each.told_apart for each in found]) > 0.99
    variance = apart.var(ddof=1)
    assert np.mean([each.spread**2 for each in found]) == pytest.approx(variance, rel=0.1)
    assert np.mean([each.noise**2 for each in found]) == pytest.approx(1, rel=0.1)


def test_a_training_that_collapses_hides_no_difference_between_the_others() -> None:
    """Rewards of a search on `shapes`, where the F-test is at 8%."""
    table = np.array(
        [[75.0, 75.3, 76.1], [74.1, 75.8, 73.3], [73.8, 74.7, 72.3], [70.6, 73.5, 52.4], [67.2, 62.6, 64.1]]
    )
    assert anova(table)[2] > 0.05
    assert headroom(table).p == pytest.approx(friedman(table))
    assert headroom(table).told_apart
    assert not headroom(table[:3]).told_apart


def test_without_noise_any_difference_is_one() -> None:
    equal, apart = headroom(np.tile([0.25, 0.5, 0.75], (5, 1))), headroom(np.add.outer([0.5, 0.25], [0.0, 0.5, 0.25]))
    assert (equal.noise, equal.spread, equal.p, equal.told_apart) == (0, 0, 1, False)
    assert (apart.noise, apart.p, apart.told_apart) == (0, 0, True)
    assert apart.spread == pytest.approx(0.25 / math.sqrt(2))
    assert str(apart) == (
        "headroom: the best rivals differ (spread between losses 17.68, noise of the seed 0.00, p = 0, 3 paired "
        "seeds): rival 0 75.0, rival 1 50.0"
    )
    assert str(equal).startswith("no headroom: the best 5 rivals can't be told apart (spread between losses 0.00, ")


def test_one_rival_or_one_seed_tells_nothing() -> None:
    assert Headroom.of(["a"], [[0.1, 0.2, 0.3]]) is None
    assert Headroom.of(["a", "b"], [[0.1], [0.2]]) is None
    assert Headroom.of(["a", "b"], [[0.1, 0.2], [0.2, 0.3]]) is None, "two seeds tell nothing"
    assert Headroom.of([], []) is None


# Fidelity.


def fidelity(short: list[float], long: list[float]) -> Fidelity | None:
    return Fidelity.of([str(i) for i in range(len(short))], short, long)


@examples(30)
@given(pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=9))
def test_fidelity_is_the_correlation_of_the_ranks(pairs: list[tuple[int, int]]) -> None:
    short, long = ([float(x) for x in side] for side in zip(*pairs, strict=True))
    found = fidelity(short, long)
    if len(set(short)) == 1 or len(set(long)) == 1:
        assert found is None
        return
    assert found is not None
    ranks = [[sum(y < x for y in side) + sum(y == x for y in side) / 2 for x in side] for side in (short, long)]
    assert found.correlation == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert -1 <= found.low <= found.correlation + 1e-9
    assert found.correlation - 1e-9 <= found.high <= 1
    assert found.suffices == (found.correlation >= 0.6)


def test_its_interval_is_that_of_bonett_and_wright() -> None:
    """Fisher's z with the variance (1 + r^2 / 2) / (n - 3), here r = 0.8 and n = 5."""
    found = fidelity([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])
    assert found is not None
    assert found.correlation == pytest.approx(0.8)
    half = 1.959964 * math.sqrt(1.32 / 2)
    assert (found.low, found.high) == pytest.approx(
        (math.tanh(math.atanh(0.8) - half), math.tanh(math.atanh(0.8) + half)), abs=1e-4
    )
    assert str(found) == (
        "fidelity: rank correlation 0.80 [-0.46, 0.99] between the rewards of 5 losses at the proxy's schedule and at "
        "that of the finals"
    )
    reverse = fidelity([1, 2, 3, 4], [4, 3, 2, 1])
    assert reverse is not None
    assert reverse.correlation == pytest.approx(-1)
    assert reverse.low == pytest.approx(-1)
    assert reverse.high > -0.5, "four losses say little"
    equal = fidelity([*range(8)], [*range(8)])
    assert equal is not None
    assert (equal.low, equal.high) == pytest.approx((0.815, 1), abs=1e-3), "that of one swap, r = 0.976"
    assert str(reverse).endswith("; below 0.6: lengthen the trainings of the search")


def test_few_losses_or_a_constant_side_have_no_correlation() -> None:
    assert fidelity([1, 2, 3], [1, 2, 3]) is None
    assert fidelity([1, 1, 1, 1], [1, 2, 3, 4]) is None
    assert fidelity([1, 2, 3, 4], [2, 2, 2, 2]) is None
