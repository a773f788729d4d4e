"""The step of each loss in a comparison: chosen on the held-out part, for all losses from one ladder and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autosegloss.loss.base import LossContent
from autosegloss.proxy.own_loss import is_own
from autosegloss.proxy.settings import Optimizer
from autosegloss.search.ladder import Stepped, at_step, step_name


@dataclass(frozen=True)
class Ladder:
    """The steps at which every loss of a setting is tried.

    Args:
        steps: The steps; with a single one there is nothing to choose.
        optimizer: The optimiser of the setting, which decides what a step is; see `at_step`.
    """

    steps: tuple[float, ...] = (1.0,)
    optimizer: Optimizer = "sgd"

    def at(self, loss: LossContent, place: int) -> Stepped:
        """A loss at one of the steps; at step 1 it is as it was given."""
        step = self.steps[place]
        return Stepped(loss) if step == 1 else at_step(loss, step, self.optimizer)

    def name(self, name: str, loss: LossContent, place: int) -> str:
        """What a loss at one of the steps is called."""
        return step_name(name, self.steps[place], self.optimizer, own=is_own(loss))

    def best(self, means: Sequence[float | None]) -> int:
        """The place of the step with the highest mean; of equal ones, and where there is none, of that nearest to 1.

        Args:
            means: The mean reward at each step; None where every run failed. Empty if there is a single step.
        """
        known = dict(enumerate(means))

        def rank(place: int) -> tuple[float, float]:
            mean = known.get(place)
            return math.inf if mean is None else -mean, abs(math.log(self.steps[place]))

        return min(range(len(self.steps)), key=rank)


@dataclass(frozen=True)
class Tuning:
    """How the steps of a comparison are chosen.

    Args:
        ladders: The ladder of each setting.
        seeds: The seeds of the trials at each step.
    """

    ladders: Mapping[str, Ladder]
    seeds: tuple[int, ...] = ()

    def tried(self, setting: str) -> int:
        """The number of steps that are tried in a setting: none where there is nothing to choose."""
        steps = len(self.ladders[setting].steps)
        return steps if steps > 1 and self.seeds else 0

    @property
    def width(self) -> int:
        """The largest number of steps of a setting."""
        return max(len(ladder.steps) for ladder in self.ladders.values())


@dataclass(frozen=True)
class Tuned:
    """The step of a loss in a setting.

    Args:
        name: What the loss is called at its step.
        step: The step.
        heldout: The mean of the target on the held-out part at each step of the ladder, over the runs that ended; None
            where none did. Empty if there was nothing to choose.
    """

    name: str
    step: float
    heldout: tuple[float | None, ...]
