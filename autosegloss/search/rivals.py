"""The rivals of a search, which are the losses that people would use, and their screening.

The screening finds the best rivals and the step of each: a first round trains every rival at the middle of the ladder,
further rounds let the better half climb it, and a last round trains the best on more seeds. All trainings of a seed are
paired.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, NamedTuple

from autosegloss.errors import AutoseglossError, InputError, cut
from autosegloss.loss import SurrogateLoss, load_loss, slots
from autosegloss.loss.base import Loss, LossContent
from autosegloss.loss.classic import LOG_AT_HALF
from autosegloss.loss.curve import Point
from autosegloss.metric import metric
from autosegloss.metric.expr import Expr
from autosegloss.proxy.settings import Optimizer
from autosegloss.search.content import CROSS_ENTROPY, bare_content, parts_of
from autosegloss.search.ladder import at_step, middle, step_name
from autosegloss.search.settings import StudyConfig

IDENTITY: Final = "identity"
LOG: Final = "log"
OF_THE_METRIC: Final = {
    IDENTITY: "the metric of the configuration as a loss, under identity curves",
    LOG: "the same under a log curve of e = 0.1 on each AND",
}
"""Names of rivals that are no name of a loss."""
PEOPLE_USE: Final = (
    "cross_entropy",
    "cross_entropy(class_power=0.5)",
    "cross_entropy(class_power=1)",
    "focal",
    "0.5*soft_dice + 0.5*cross_entropy",
    "0.75*jml + 0.25*cross_entropy",
    "lovasz",
    "0.75*lovasz + 0.25*cross_entropy",
    "0.75*lovasz + 0.25*cross_entropy(class_power=0.5)",
    "log_miou",
)
"""What people would use."""
BEST: Final = 5
"""The rivals that the last round of a screening trains, and whose spread decides the headroom."""
BASELINE: Final = "cross-entropy"
"""The label of cross-entropy at step 1, which every round compares with."""


@dataclass(frozen=True)
class Rival:
    """A loss that people would use.

    Args:
        name: Its name.
        loss: The content of its file, at step 1.
    """

    name: str
    loss: LossContent


def default_rivals(target: Expr, soft_labels: bool) -> tuple[str, ...]:
    """The names of what people would use for a metric; where labels are soft, of what is right for them."""
    names = PEOPLE_USE if target == metric("miou") else (*PEOPLE_USE, IDENTITY, LOG)
    if not soft_labels:
        return names
    return tuple(name for name in names if "lovasz" not in name and LOG not in name and name != IDENTITY)


def rivals_of(config: StudyConfig) -> list[Rival]:
    """The rivals of a configuration, in its order.

    Raises:
        InputError: A name is no loss, two names are of one loss, or a loss does not suit the labels.
        LossFileError: A loss file is missing or damaged.
    """
    target, names, soft = metric(config.metric), config.rivals.losses, config.proxy.labels.soft
    found: list[Rival] = []
    for name in default_rivals(target, soft) if names is None else names:
        try:
            loss = _of_metric(name, target) if name in OF_THE_METRIC else load_loss(name)
        except AutoseglossError as error:
            raise type(error)(f"rivals.losses: {error}") from error
        if soft and any(isinstance(part, SurrogateLoss) and part.logic == "lovasz" for part in parts_of(loss)):
            raise InputError(f"rivals.losses: `{cut(name)}` needs hard labels, and proxy.labels makes soft ones.")
        rival = Rival(name, bare_content(loss))
        if same := next((other.name for other in found if other.loss == rival.loss), None):
            raise InputError(f"rivals.losses: `{cut(name)}` is the same loss as `{cut(same)}`; name each once.")
        found.append(rival)
    return found


def _of_metric(name: str, target: Expr) -> Loss:
    if name == IDENTITY:
        return SurrogateLoss(target, curve="identity")
    points: list[list[Point]] = [[(0.5, LOG_AT_HALF)] if slot.operator == "and" else [] for slot in slots(target)]
    return SurrogateLoss(target, points, curve="log")


@dataclass(frozen=True)
class Arm:
    """A rival at a step of the ladder.

    Args:
        name: What it is called, such as "8*lovasz".
        rival: The name of the rival.
        step: The step.
        loss: The content of its file, at this step.
        rate: The factor of the learning rate.
    """

    name: str
    rival: str
    step: float
    loss: LossContent
    rate: float


class Run(NamedTuple):
    """A training of the screening: an arm, and the ordinal of the seed."""

    arm: Arm
    seed: int


@dataclass(frozen=True)
class Tried:
    """An arm with its rewards.

    Args:
        arm: The arm.
        rewards: The reward on each seed of the screening, in their order; None for a training that failed. Arms that
            were left behind have fewer.
    """

    arm: Arm
    rewards: tuple[float | None, ...]

    @property
    def reward(self) -> float:
        """The mean reward; -inf if a training failed."""
        return fmean(-math.inf if reward is None else reward for reward in self.rewards)


@dataclass(frozen=True)
class Screened:
    """What a screening found.

    Args:
        baseline: Cross-entropy at step 1.
        tried: Every arm: first those that were trained on all seeds, the best first, then the others likewise.
        seeds: Number of seeds.
    """

    baseline: Tried
    tried: tuple[Tried, ...]
    seeds: int

    @property
    def finalists(self) -> tuple[Tried, ...]:
        """The arms that were trained on all seeds without a failure, the best first."""
        return tuple(each for each in self.tried if len(each.rewards) == self.seeds and each.reward > -math.inf)

    @property
    def best(self) -> tuple[Tried, ...]:
        """The best arm of each rival among the finalists, the best first, at most `BEST`."""
        return best_of_each(self.finalists)[:BEST]


def best_of_each(ranked: Sequence[Tried]) -> tuple[Tried, ...]:
    """The first arm of each rival."""
    first: dict[str, Tried] = {}
    for each in ranked:
        first.setdefault(each.arm.rival, each)
    return tuple(first.values())


class Screening:
    """Successive halving of rivals that climb a ladder of steps.

    1. On the first seed, cross-entropy at step 1, and every rival at the middle of the ladder.
    2. The better half of the rivals at the steps beside it.
    3. Of the best five rivals, those whose best step is the last that was tried in its direction go on in it.
    4. On the other seeds, cross-entropy, the best five rivals, each at its best step, and the best two also at their
       second best.

    Rounds 2 to 4 shrink to keep to the budget; round 1 and two rivals in round 4 are always there.

    Args:
        rivals: The rivals.
        steps: The ladder, ascending.
        optimizer: The optimizer of the trainings.
        seeds: Number of seeds.
        budget: Number of trainings; None for no limit.
    """

    def __init__(
        self, rivals: Sequence[Rival], steps: Sequence[float], optimizer: Optimizer, seeds: int, budget: int | None
    ) -> None:
        self._rivals, self._steps = rivals, steps
        self.seeds = seeds
        """Number of seeds."""
        self._arms = [
            [
                Arm(step_name(rival.name, step, optimizer), rival.name, step, *at_step(rival.loss, step, optimizer))
                for step in steps
            ]
            for rival in rivals
        ]
        self._baseline = Arm(BASELINE, "cross_entropy", 1.0, CROSS_ENTROPY, 1.0)
        self._rewards: dict[tuple[int, int], list[float | None]] = {}
        first = 1 + len(rivals)
        self._last = min(BEST, len(rivals))
        climbs = len(steps) - 1
        most = first + self._beside() * min(2, climbs) + self._last * max(0, climbs - 2) + self._on_more(self._last + 2)
        if budget is not None:
            while self._last > 2 and first + self._on_more(self._last) > budget:
                self._last -= 1
        self.total = most if budget is None else max(min(most, budget), first + self._on_more(min(2, self._last)))
        """The most trainings that there can be."""

    @property
    def rounds(self) -> int:
        """The most rounds 2 and 3, which are on the first seed, without cross-entropy."""
        return len(self._steps) // 2 if self._rivals else 0

    def _beside(self) -> int:
        """The better half of the rivals, or the best five if those are more."""
        return max(math.ceil(len(self._rivals) / 2), self._last)

    def _on_more(self, arms: int) -> int:
        """The trainings on further seeds of cross-entropy and so many arms."""
        return (self.seeds - 1) * (arms + 1)

    def course(self) -> Generator[list[Run], Sequence[float | None], Screened]:
        """Run the screening as a generator: it yields rounds of trainings and is sent their rewards, in order."""
        start = middle(self._steps)
        places = [(i, start) for i in range(len(self._arms))]
        first = yield [Run(self._baseline, 0), *self._runs(places)]
        self._note(places, first[1:])
        left = self.total - 1 - len(places) - self._on_more(self._last)
        places = self._places_beside(left)
        while places:
            self._note(places, (yield self._runs(places)))
            left -= len(places)
            places = self._places_further(left)
        finalists = self._finalists(left)
        of_cross_entropy = [first[0]]
        if self.seeds > 1:
            runs = [
                run
                for seed in range(1, self.seeds)
                for run in [Run(self._baseline, seed), *(Run(self._arms[i][j], seed) for i, j in finalists)]
            ]
            rewards = yield runs
            for number, reward in enumerate(rewards):
                place = number % (1 + len(finalists))
                (of_cross_entropy if place == 0 else self._rewards[finalists[place - 1]]).append(reward)
        return self._result(of_cross_entropy)

    def _runs(self, places: Sequence[tuple[int, int]]) -> list[Run]:
        return [Run(self._arms[i][j], 0) for i, j in places]

    def _note(self, places: Sequence[tuple[int, int]], rewards: Sequence[float | None]) -> None:
        for place, reward in zip(places, rewards, strict=True):
            self._rewards[place] = [reward]

    def _reward(self, place: tuple[int, int]) -> float:
        first = self._rewards[place][0]
        return -math.inf if first is None else first

    def _ranked(self) -> list[tuple[int, int]]:
        """The best place of each rival, the best first; of equals the smaller step and the earlier rival."""
        best: dict[int, tuple[int, int]] = {}
        for place in sorted(self._rewards, key=lambda place: (-self._reward(place), *place)):
            best.setdefault(place[0], place)
        return list(best.values())

    def _places_beside(self, left: int) -> list[tuple[int, int]]:
        """The neighbours on the ladder of as many of the better half as fit."""
        beside = [
            (i, k) for i, j in self._ranked()[: self._beside()] for k in (j - 1, j + 1) if 0 <= k < len(self._steps)
        ]
        return beside[: max(0, left)]

    def _places_further(self, left: int) -> list[tuple[int, int]]:
        """The next steps of the best rivals that are still climbing."""
        further = [
            (i, k)
            for i, j in self._ranked()[: self._last]
            for k in (j - 1, j + 1)
            if 0 <= k < len(self._steps) and (i, k) not in self._rewards and (i, 2 * j - k) in self._rewards
        ]
        return further[: max(0, left)]

    def _finalists(self, left: int) -> list[tuple[int, int]]:
        """The best rivals, each at its best step, then the second best steps of the best two as far as they fit.

        What failed is left out.
        """
        best = [place for place in self._ranked() if self._reward(place) > -math.inf][: self._last]
        alive = [place for place in self._rewards if self._reward(place) > -math.inf]
        second = [
            max((place for place in alive if place[0] == i and place != (i, j)), key=self._reward, default=None)
            for i, j in best[:2]
        ]
        more = left // (self.seeds - 1) if self.seeds > 1 else 0
        return [*best, *[place for place in second if place is not None][: max(0, more)]]

    @property
    def so_far(self) -> tuple[Tried, ...]:
        """Every arm of the finished rounds, in the order of `Screened.tried`."""
        tried = [Tried(self._arms[i][j], tuple(rewards)) for (i, j), rewards in self._rewards.items()]
        return tuple(sorted(tried, key=lambda each: (-len(each.rewards), -each.reward)))

    def _result(self, baseline: Sequence[float | None]) -> Screened:
        return Screened(Tried(self._baseline, tuple(baseline)), self.so_far, self.seeds)
