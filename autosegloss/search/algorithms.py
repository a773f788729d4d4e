"""The door to the search algorithms: one class each, chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from autosegloss.search.history import CMAES, TPE, RandomSearch, TuneSearch
from autosegloss.search.ppo import PPO2

S = TypeVar("S")


class Algorithm(Protocol[S]):
    """An optimiser that is asked for points and told their rewards.

    It never owns the loop. All it knows is in a state that is explicit, immutable and serialisable as JSON, and every
    method is a pure function of its arguments and of the fields of the class.
    """

    @property
    def start(self) -> tuple[float, ...]:
        """Where the search begins: the identity curves."""

    def init(self) -> S:
        """State before the first step."""

    def ask(self, state: S) -> list[tuple[float, ...]]:
        """Points in [0, 1]^d whose rewards `tell` wants; their number is the same in every step."""

    def tell(self, state: S, rewards: Sequence[float]) -> S:
        """State of the next step, from one finite reward for each point of `ask(state)`; more is better."""

    def answer(self, state: S) -> tuple[float, ...] | None:
        """The point this state stands for (a policy's centre), or None if there is none but the samples."""


ALGORITHMS: Mapping[str, Callable[..., Algorithm[Any]]] = {
    "ppo2": PPO2,
    "random": RandomSearch,
    "cma_es": CMAES,
    "tpe": TPE,
    "tune": TuneSearch,
}
