from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.errors import InputError
from autosegloss.search.algorithms.snes import MARGIN, NARROWEST, SNES, WIDEST, State


def by_hand(algorithm: SNES, state: State, asked: State, rewards: list[float]) -> tuple[list[float], list[float]]:
    """The update of the paper's algorithm 6, coordinate by coordinate; the rewards are distinct, the clips far."""
    points, n, d = algorithm.ask(asked), len(rewards), len(state.mu)
    best_first = sorted(range(n), key=lambda k: -rewards[k])
    raw = [max(0.0, float(np.log(n / 2 + 1) - np.log(place))) for place in range(1, n + 1)]
    utility = {k: raw[place] / sum(raw) - 1 / n for place, k in enumerate(best_first)}
    mu, std = [], []
    for i in range(d):
        s = [(points[k][i] - asked.mu[i]) / asked.std[i] for k in range(n)]
        mu.append(state.mu[i] + asked.std[i] * sum(utility[k] * s[k] for k in range(n)))
        rate = (3 + np.log(d)) / (5 * np.sqrt(d))
        std.append(state.std[i] * float(np.exp(rate / 2 * sum(utility[k] * (s[k] ** 2 - 1) for k in range(n)))))
    return mu, std


@pytest.mark.parametrize("asked", [None, State(3, (0.42, 0.58), (0.1, 0.12))])
def test_an_update_is_that_of_the_paper(asked: State | None) -> None:
    algorithm = SNES(start=(0.4, 0.6), samples=9)
    state = State(3, (0.45, 0.55), (0.1, 0.11))
    rewards = np.random.default_rng(0).standard_normal(9).tolist()
    told = algorithm.tell(state, rewards, asked)
    mu, std = by_hand(algorithm, state, asked or state, rewards)
    assert told.step == 4
    assert told.mu == pytest.approx(mu, abs=1e-12)
    assert told.std == pytest.approx(std, abs=1e-12)


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_only_the_order_of_the_rewards_counts(scale: float, shift: float) -> None:
    algorithm = SNES(start=(0.4, 0.6, 0.2), samples=6)
    state = algorithm.init()
    rewards = [0.3, -0.1, 0.3, 0.8, 0.0, -0.5]
    assert algorithm.tell(state, [scale * reward + shift for reward in rewards]) == algorithm.tell(state, rewards)


def test_equal_rewards_leave_the_policy_where_it_is() -> None:
    algorithm = SNES(start=(0.25, 1 / 3), samples=7)
    state = algorithm.init()
    told = algorithm.tell(state, [0.5] * 7)
    assert told.mu == pytest.approx(state.mu, abs=1e-12)
    assert told.std == pytest.approx(state.std, abs=1e-12)


def test_the_policy_narrows_at_an_optimum_and_widens_on_a_slope() -> None:
    inside, slope = SNES(start=(0.5,), samples=64), SNES(start=(0.3,), samples=64, std=0.05)
    at_optimum, on_slope = inside.init(), slope.init()
    for _ in range(6):
        at_optimum = inside.tell(at_optimum, [-((theta[0] - 0.5) ** 2) for theta in inside.ask(at_optimum)])
    for _ in range(3):
        on_slope = slope.tell(on_slope, [theta[0] for theta in slope.ask(on_slope)])
    assert at_optimum.std[0] < 0.1
    assert on_slope.std[0] > 0.05
    assert on_slope.mu[0] > 0.35


def test_mu_and_std_stay_in_their_bounds() -> None:
    algorithm = SNES(start=(0.9, 0.5), samples=16)
    state = algorithm.init()
    for _ in range(40):
        rewards = [theta[0] - abs(theta[1] - 0.5) for theta in algorithm.ask(state)]
        state = algorithm.tell(state, rewards)
        assert all(MARGIN <= x <= 1 - MARGIN for x in state.mu)
        assert all(NARROWEST <= x <= WIDEST for x in state.std)
    assert state.mu[0] > 0.9
    assert state.std[1] == pytest.approx(NARROWEST, rel=0.5)


@pytest.mark.parametrize(
    ("start", "message"), [((), "at least one coordinate"), ((0.5, 1.0), "strictly between 0 and 1")]
)
def test_a_start_that_cannot_be_searched_from_is_refused(start: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SNES(start=start)
