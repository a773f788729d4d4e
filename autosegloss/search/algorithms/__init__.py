"""The search algorithms, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from autosegloss.search.algorithms.external import CMAES, TPE, RandomSearch, TuneSearch
from autosegloss.search.algorithms.ppo import PPO2
from autosegloss.search.algorithms.snes import SNES

S = TypeVar("S")


class Algorithm(Protocol[S]):
    """An ask/tell optimiser.

    The study owns the loop. All knowledge of the optimiser is in an explicit, immutable state that JSON can store, and
    every method is a pure function of its arguments and of the fields of the class.
    """

    @property
    def start(self) -> tuple[float, ...]:
        """The start of the search: identity curves, and the middle of all else."""

    def init(self) -> S:
        """The state before the first step."""

    def ask(self, state: S) -> list[tuple[float, ...]]:
        """The points in [0, 1]^d to evaluate next; their number is the same in every step."""

    def skip(self, state: S) -> S:
        """The state of the next step before the rewards of this one are known: new points, no new knowledge.

        A search with a lag asks this state for points, and passes it to `tell` together with their rewards.
        """

    def tell(self, state: S, rewards: Sequence[float], asked: S | None = None) -> S:
        """The state of the next step, given one finite reward for each point of `ask(asked)`; higher is better.

        `asked` is `state` by default, or an older state skipped to the step of `state`.
        """

    def answer(self, state: S) -> tuple[float, ...] | None:
        """The best guess of the state (the centre of a policy), or None if there are only samples."""

    def spread(self, state: S) -> tuple[float, ...] | None:
        """The standard deviation of each coordinate around `answer`, before truncation; None if unknown."""


ALGORITHMS: Mapping[str, type[Any]] = {
    "ppo2": PPO2,
    "snes": SNES,
    "random": RandomSearch,
    "cma_es": CMAES,
    "tpe": TPE,
    "tune": TuneSearch,
}
"""Every `Algorithm` by its name; the fields beside `start`, `samples` and `seed` are its options."""
