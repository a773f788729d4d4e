from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import truncnorm

from autosegloss.errors import InputError
from autosegloss.search.algorithms import Algorithm
from autosegloss.search.algorithms.ppo import MARGIN, PPO2, State
from tests.toys import Quadratic

Theta = tuple[float, ...]


def drive(algorithm: Algorithm[Any], reward: Callable[[Theta], float], steps: int) -> list[tuple[Theta | None, float]]:
    """Each step's answer and mean reward, the last without one."""
    state = algorithm.init()
    course: list[tuple[Theta | None, float]] = []
    for _ in range(steps):
        rewards = [reward(theta) for theta in algorithm.ask(state)]
        course.append((algorithm.answer(state), float(np.mean(rewards))))
        state = algorithm.tell(state, rewards)
    return course


# PPO2.


@given(step=st.integers(0, 10**6), mu=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_a_state_survives_json(step: int, mu: list[float]) -> None:
    state = State(step, tuple(mu))
    assert State.from_json(state.to_json()) == state
    assert json.loads(state.to_json()).keys() == {"step", "mu"}


@pytest.mark.parametrize("older", [(0.2, 0.5, 0.8), (0.25, 0.5, 0.7)])
def test_the_first_update_follows_the_gradient_of_the_objective(older: Theta) -> None:
    # Adam's first step is the learning rate in the gradient's direction. All ratios are 1 but for older samples.
    algorithm = PPO2(start=(0.2, 0.5, 0.8), samples=16, updates=1, learning_rate=0.1)
    state, asked = algorithm.init(), State(0, older)
    theta = np.array(algorithm.ask(asked))
    rewards = np.random.default_rng(0).standard_normal(16)
    advantage = (rewards - rewards.mean())[:, None]

    def log_prob(mu: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        density = truncnorm.logpdf(theta, (0 - mu) / 0.2, (1 - mu) / 0.2, loc=mu, scale=0.2)
        return np.asarray(density, dtype=np.float64)

    def objective(mu: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        ratio = np.exp(log_prob(mu) - log_prob(np.array(older)))
        value: np.ndarray[Any, np.dtype[np.float64]] = np.minimum(
            ratio * advantage, ratio.clip(0.8, 1.2) * advantage
        ).sum(axis=0)
        return value

    mu = np.array(algorithm.start)
    direction = np.sign(objective(mu + 1e-6) - objective(mu - 1e-6))
    logit = np.log(mu / (1 - mu)) + 0.1 * direction
    told = algorithm.tell(state, rewards.tolist(), asked)
    assert told.mu == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)


@pytest.mark.parametrize("ratio", ["coordinate", "joint"])
def test_the_clip_holds_mu_back(ratio: str) -> None:
    toy = Quadratic.random(4, seed=1)
    clipped = PPO2(start=(0.5,) * 4, ratio=ratio)  # type: ignore[arg-type]
    free = replace(clipped, clip=1e9)
    rewards = [-toy.regret(theta) for theta in clipped.ask(clipped.init())]
    near, far = (np.array(algorithm.tell(algorithm.init(), rewards).mu) - 0.5 for algorithm in (clipped, free))
    assert 0 < np.linalg.norm(near) < 0.5 * np.linalg.norm(far)


@pytest.mark.parametrize("options", [{"ratio": "joint"}, {"baseline": "mu"}, {"ratio": "joint", "baseline": "mu"}])
@pytest.mark.slow
def test_every_variant_goes_to_the_optimum(options: dict[str, Any]) -> None:
    toy = Quadratic((0.7, 0.3, 0.6), (1.0, 1.0, 1.0))
    course = drive(PPO2(start=(0.2,) * 3, **options), lambda theta: -toy.regret(theta), 10)
    answer, _ = max(course, key=lambda step: step[1])
    assert answer is not None
    assert toy.regret(answer) < 0.1 * toy.regret((0.2,) * 3)


def test_baseline_mu_asks_for_mu_first() -> None:
    by_mean, by_mu = PPO2(start=(0.4, 0.6)), PPO2(start=(0.4, 0.6), baseline="mu")
    assert by_mu.ask(by_mu.init()) == [(0.4, 0.6), *by_mean.ask(by_mean.init())]


@given(reward=st.floats(-1, 1), baseline=st.sampled_from(["mean", "mu"]))
def test_equal_rewards_leave_mu_where_it_is(reward: float, baseline: Any) -> None:
    algorithm = PPO2(start=(0.25, 1 / 3), samples=7, updates=5, baseline=baseline)
    state = algorithm.init()
    told = algorithm.tell(state, [reward] * len(algorithm.ask(state)))
    assert told.step == 1
    assert told.mu == pytest.approx(state.mu, abs=1e-6)


def test_mu_stays_inside_and_can_come_back() -> None:
    algorithm = PPO2(start=(0.9,), samples=16)
    state = algorithm.init()
    for _ in range(12):
        state = algorithm.tell(state, [theta[0] for theta in algorithm.ask(state)])
    assert 0.95 < state.mu[0] <= 1 - MARGIN
    for _ in range(12):
        state = algorithm.tell(state, [-theta[0] for theta in algorithm.ask(state)])
    assert state.mu[0] < 0.2


@pytest.mark.parametrize("rewards", [[], [1.0] * 31, [1.0] * 31 + [float("nan")]])
def test_tell_refuses_what_it_did_not_ask_for(rewards: list[float]) -> None:
    algorithm = PPO2(start=(0.5,))
    with pytest.raises(InputError, match="rewards must be 32 finite numbers"):
        algorithm.tell(algorithm.init(), rewards)


@pytest.mark.parametrize(
    ("start", "message"), [((), "at least one coordinate"), ((0.5, 1.0), "strictly between 0 and 1")]
)
def test_a_start_that_cannot_be_searched_from_is_refused(start: Theta, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PPO2(start=start)
