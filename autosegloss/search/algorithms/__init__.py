"""The door to the search algorithms: one class each, chosen by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from autosegloss.search.algorithms.external import CMAES, TPE, RandomSearch, TuneSearch
from autosegloss.search.algorithms.ppo import PPO2
from autosegloss.search.algorithms.snes import SNES

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

    def skip(self, state: S) -> S:
        """State of the next step while the rewards of this one are out: asked, it gives new points from old knowledge.

        A search that does not wait for the slowest trial of a step asks it, and hands it to `tell` with the rewards.
        """

    def tell(self, state: S, rewards: Sequence[float], asked: S | None = None) -> S:
        """State of the next step, from one finite reward for each point of `ask(asked)`; more is better.

        `asked` is `state` itself by default, or an older one, skipped to the number of steps that `state` has done.
        """

    def answer(self, state: S) -> tuple[float, ...] | None:
        """The point this state stands for (a policy's centre), or None if there is none but the samples."""

    def spread(self, state: S) -> tuple[float, ...] | None:
        """The standard deviation of each coordinate around `answer`, before truncation; None if it is not known."""


ALGORITHMS: Mapping[str, type[Any]] = {
    "ppo2": PPO2,
    "snes": SNES,
    "random": RandomSearch,
    "cma_es": CMAES,
    "tpe": TPE,
    "tune": TuneSearch,
}
"""Every `Algorithm` by its name; the fields beside `start`, `samples` and `seed` are its options."""
