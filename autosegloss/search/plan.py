"""The plan of a search: what is to be trained, step after step, and what follows from the outcomes.

It is deterministic given the outcomes, and knows neither when nor where a trial runs.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from statistics import fmean
from typing import Any

from autosegloss.loss.base import LossContent
from autosegloss.search.algorithms import Algorithm
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.seeds import final_seeds, step_seed

Theta = tuple[float, ...]
Trial = tuple[Job, Outcome]


@dataclass(frozen=True)
class Step:
    """One step of the search, done.

    Args:
        step: Its number.
        seed: The seed all its trials shared.
        mu: The algorithm's answer before the step, if it has one.
        std: Its spread around that, of each coordinate, if it is known.
        mean: Mean reward, a failed trial counting as the lowest.
        best: Highest reward.
        failed: Number of trials without a reward.
    """

    step: int
    seed: int
    mu: Theta | None
    std: Theta | None
    mean: float
    best: float
    failed: int


@dataclass(frozen=True)
class Final:
    """One member of the finals, run on every fresh seed.

    Args:
        label: "cross-entropy", "identity", "mu of step 7" or "sample 3 of step 7".
        loss: The content of its loss file.
        theta: Its coordinates; None of cross-entropy, which has none.
        reward: Mean reward over the seeds, a failed seed counting as the lowest of all; None if every seed failed.
        rewards: Reward per seed, None where the training failed.
        metrics: Every metric on the held-out part, per seed.
        validation: Every metric on the validation set, per seed. No decision looks at it.
    """

    label: str
    loss: LossContent
    theta: Theta | None
    reward: float | None
    rewards: tuple[float | None, ...]
    metrics: tuple[dict[str, float], ...]
    validation: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class Findings:
    """What a search found, and on what grounds. It holds no times: equal searches give equal results.

    Args:
        label: Which of the finals won.
        loss: The winner, as the content of its loss file.
        theta: Its coordinates.
        reward: The winner's mean reward over the fresh seeds.
        seeds: The fresh seeds.
        steps: The course of the search.
        finals: Cross-entropy, the identity curves, then the candidates.
    """

    label: str
    loss: LossContent
    theta: Theta
    reward: float
    seeds: tuple[int, ...]
    steps: tuple[Step, ...]
    finals: tuple[Final, ...]

    def to_json(self) -> str:
        """Write the result as JSON text, the same bytes for the same result."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"


class Plan:
    """The course of a search, in the order of the paper, then the finals.

    Args:
        algorithm: The optimiser.
        loss_at: The loss at a point, as the content of its file.
        baseline: The loss to compare with, cross-entropy.
        steps: Steps of the search.
        candidates: Distinct thetas that enter the finals beside the identity curves.
        finalist_seeds: Fresh seeds each member of the finals is run on.
        seed: Source of every trial's seed, see `seeds`.
        compare_each_step: Whether every step trains with the baseline as well.
        lag: A step is asked for when all but this many of the steps before it are done; with 0, when all are.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any],
        loss_at: Callable[[Theta], LossContent],
        baseline: LossContent,
        *,
        steps: int,
        candidates: int,
        finalist_seeds: int,
        seed: int,
        compare_each_step: bool = False,
        lag: int = 0,
    ) -> None:
        self._algorithm = algorithm
        self._loss_at = loss_at
        self._candidates = candidates
        self._finalist_seeds = finalist_seeds
        self._seed = seed
        self._baseline = baseline
        self._extra = int(compare_each_step)
        self._lag = lag

        self.step_count = steps
        """Steps of the search, done or not."""
        self.steps: list[Step] = []
        """The steps done."""
        step_size = len(algorithm.ask(algorithm.init())) + self._extra
        self.total = steps * step_size + (2 + candidates) * finalist_seeds
        """Trials of the whole; corrected downwards where thetas coincide or the search yields fewer candidates."""

    def course(self) -> Generator[list[list[Job]], list[Outcome], Findings]:
        """The search as a generator.

        It yields batches of jobs to begin, none or several, and is sent the outcomes of the oldest batch of those that
        are begun, in the order of its jobs. It returns what was found.
        """
        algorithm, state = self._algorithm, self._algorithm.init()
        asked: deque[tuple[Any, list[Theta], list[Job]]] = deque()
        trials: list[Trial] = []
        begun = 0
        for step in range(self.step_count):
            new: list[list[Job]] = []
            while begun < min(step + self._lag + 1, self.step_count):
                asking = state
                for _ in range(begun - step):
                    asking = algorithm.skip(asking)
                points = algorithm.ask(asking)
                jobs = self._jobs(begun, points)
                self.total -= len(points) + self._extra - len(jobs)
                asked.append((asking, points, jobs))
                new.append(jobs)
                begun += 1
            outcomes = yield new
            asked_state, points, jobs = asked.popleft()
            tried = list(zip(jobs, outcomes, strict=True))[: len(jobs) - self._extra]
            rewards = _rewards(points, {job.theta: outcome for job, outcome in tried})
            self.steps.append(
                Step(
                    step=step,
                    seed=jobs[0].seed,
                    mu=algorithm.answer(asked_state),
                    std=algorithm.spread(asked_state),
                    mean=fmean(rewards),
                    best=max(rewards),
                    failed=sum(outcome.reward is None for _, outcome in tried),
                )
            )
            trials += tried
            state = algorithm.tell(state, rewards, asked_state)

        members = [
            _Member("cross-entropy", self._baseline, None),
            *(
                _Member(label, self._loss_at(theta), theta)
                for label, theta in [("identity", algorithm.start), *self._choose_candidates(trials)]
            ),
        ]
        self.total -= (2 + self._candidates - len(members)) * self._finalist_seeds
        seeds = final_seeds(self._seed, self._finalist_seeds, {step.seed for step in self.steps})
        outcomes = yield [
            [
                Job("final", ordinal, index, member.loss, seed, member.theta)
                for ordinal, seed in enumerate(seeds)
                for index, member in enumerate(members)
            ]
        ]
        return self._decide(members, seeds, outcomes)

    def _jobs(self, step: int, points: Sequence[Theta]) -> list[Job]:
        """One for each distinct point, then that of the baseline if each step has it."""
        seed = step_seed(self._seed, step)
        first = {theta: index for index, theta in reversed(list(enumerate(points)))}
        jobs = [
            Job("search", step, index, self._loss_at(theta), seed, theta)
            for index, theta in enumerate(points)
            if first[theta] == index
        ]
        return [*jobs, Job("search", step, len(points), self._baseline, seed)] if self._extra else jobs

    def _choose_candidates(self, trials: Sequence[Trial]) -> list[tuple[str, Theta]]:
        """The best centres and the best samples in turn, distinct from each other and from the start.

        A centre comes first: its step's mean is an average over many trainings (the paper's own choice), whereas the
        best sample is the luckiest of all, and mostly looks better than it is.
        """
        by_mean = sorted(self.steps, key=lambda step: -step.mean)  # stable: of equals, the earlier first
        by_reward = sorted(
            ((job, outcome.reward) for job, outcome in trials if outcome.reward is not None),
            key=lambda trial: -trial[1],
        )
        taken = {self._algorithm.start}
        centres = _distinct(((f"mu of step {step.step}", step.mu) for step in by_mean), taken)
        samples = _distinct(((f"sample {job.index} of step {job.step}", job.theta) for job, _ in by_reward), taken)
        in_turn = [entry for pair in zip_longest(centres, samples) for entry in pair if entry is not None]
        return in_turn[: self._candidates]

    def _decide(self, members: Sequence[_Member], seeds: Sequence[int], outcomes: Sequence[Outcome]) -> Findings:
        """The best of identity and candidates by mean reward: never worse than where the search began."""
        rewards = _failed_as_lowest(outcomes)
        finals: list[Final] = []
        for index, member in enumerate(members):
            own = outcomes[index :: len(members)]
            alive = any(outcome.reward is not None for outcome in own)
            finals.append(
                Final(
                    label=member.label,
                    loss=member.loss,
                    theta=member.theta,
                    reward=fmean(rewards[index :: len(members)]) if alive else None,
                    rewards=tuple(outcome.reward for outcome in own),
                    metrics=tuple(outcome.metrics for outcome in own),
                    validation=tuple(outcome.validation for outcome in own),
                )
            )
        # `max` keeps the first of equals: the identity before a candidate that is no better.
        theta, reward, winner = max(
            (
                (final.theta, final.reward, final)
                for final in finals
                if final.theta is not None and final.reward is not None
            ),
            key=lambda entry: entry[1],
        )
        return Findings(winner.label, winner.loss, theta, reward, tuple(seeds), tuple(self.steps), tuple(finals))


@dataclass(frozen=True)
class _Member:
    """What enters the finals."""

    label: str
    loss: LossContent
    theta: Theta | None


def _rewards(points: Iterable[Theta], outcomes: Mapping[Theta | None, Outcome]) -> list[float]:
    """A reward for each point, those that coincide with another one included."""
    return _failed_as_lowest([outcomes[theta] for theta in points])


def _failed_as_lowest(outcomes: Sequence[Outcome]) -> list[float]:
    """Rewards, with the lowest of them in place of those that are missing."""
    lowest = min(outcome.reward for outcome in outcomes if outcome.reward is not None)
    return [lowest if outcome.reward is None else outcome.reward for outcome in outcomes]


def _distinct(entries: Iterable[tuple[str, Theta | None]], taken: set[Theta]) -> list[tuple[str, Theta]]:
    """Entries whose theta is not taken yet, each of which takes its own."""
    chosen: list[tuple[str, Theta]] = []
    for label, theta in entries:
        if theta is not None and theta not in taken:
            taken.add(theta)
            chosen.append((label, theta))
    return chosen
