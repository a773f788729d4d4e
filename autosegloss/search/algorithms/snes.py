"""SNES, separable natural evolution strategies: a truncated normal policy like that of PPO2, with a learned spread.

A step draws points from a normal distribution with a mean and a standard deviation per coordinate, truncated to [0, 1],
and moves both along the natural gradient of the expected utility. Utilities depend on the ranks of the rewards alone,
so the scale of the rewards and random effects that all trials of a step share have no influence.

Reference: Wierstra et al., Natural Evolution Strategies, JMLR 15, 2014, algorithm 6 and section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from autosegloss.search.algorithms import policy
from autosegloss.search.algorithms.state import JsonState, check_rewards
from autosegloss.search.seeds import step_rng

# mu stays inside (0, 1), and no std collapses or outgrows the cube.
MARGIN, NARROWEST, WIDEST = 1e-3, 0.02, 0.5


@dataclass(frozen=True)
class State(JsonState):
    """The number of finished steps, and the centre and standard deviations of the policy."""

    step: int
    mu: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class SNES:
    """Natural-gradient ascent of the centres and the spreads of a truncated normal, with the paper's rates.

    Args:
        start: Centre of the first step, one number inside (0, 1) per coordinate.
        samples: Points per step.
        seed: Seed of the points; `ask` uses it with the number of the step.
        std: Standard deviation of the first step before truncation.

    Raises:
        InputError: There is no coordinate, or the start is not inside (0, 1).
    """

    start: tuple[float, ...]
    samples: int = 32
    seed: int = 0
    std: float = 0.2

    def __post_init__(self) -> None:
        policy.check_start(self.start)

    def init(self) -> State:
        """The state before the first step."""
        return State(step=0, mu=self.start, std=(self.std,) * len(self.start))

    def answer(self, state: State) -> tuple[float, ...]:
        """The centre of the policy, mu."""
        return state.mu

    def spread(self, state: State) -> tuple[float, ...]:
        """The policy's standard deviations."""
        return state.std

    def ask(self, state: State) -> list[tuple[float, ...]]:
        """The points to evaluate next."""
        rng = step_rng(self.seed, state.step)
        points: list[list[float]] = policy.sample(state.mu, state.std, self.samples, rng).tolist()
        return [tuple(point) for point in points]

    def skip(self, state: State) -> State:
        """The state of the next step before the rewards of this one are known: the same policy, new draws."""
        return State(state.step + 1, state.mu, state.std)

    def tell(self, state: State, rewards: Sequence[float], asked: State | None = None) -> State:
        """Move the policy towards the points of high rank.

        Args:
            state: The current state.
            rewards: One finite reward for each point of `ask(asked)`, in its order; higher is better.
            asked: The state that gave the points, at whose policy the gradient is taken; by default `state` itself.

        Raises:
            InputError: The number of rewards is wrong, or one is not finite.
        """
        asked = state if asked is None else asked
        theta = np.array(self.ask(asked))
        check_rewards(rewards, len(theta))
        utility = _utilities(rewards)
        std, dimensions = np.array(asked.std), len(self.start)
        s = (theta - np.array(asked.mu)) / std
        rate = (3 + np.log(dimensions)) / (5 * np.sqrt(dimensions))
        mu = np.array(state.mu) + std * (utility @ s)
        spread = np.array(state.std) * np.exp(rate / 2 * (utility @ (s**2 - 1)))
        return State(
            state.step + 1,
            tuple(np.clip(mu, MARGIN, 1 - MARGIN).tolist()),
            tuple(np.clip(spread, NARROWEST, WIDEST).tolist()),
        )


def _utilities(rewards: Sequence[float]) -> NDArray[np.float64]:
    """The utility of each point, by its rank alone; utilities sum to 0, and equal rewards have equal utilities."""
    n = len(rewards)
    worth = np.maximum(0, np.log(n / 2 + 1) - np.log(np.arange(n, 0, -1)))  # from the lowest reward to the highest
    worth = worth / worth.sum() - 1 / n
    ranks = scipy.stats.rankdata(rewards, method="min").astype(int)
    return np.array([worth[low - 1 : low - 1 + np.sum(ranks == low)].mean() for low in ranks])
