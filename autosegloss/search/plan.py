"""The plan of a search: what is to be trained, step after step, and what follows from the outcomes.

It is deterministic given the outcomes, and knows neither when nor where a trial runs.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from statistics import fmean
from typing import Any

import numpy as np

from autosegloss.search.algorithms import Algorithm
from autosegloss.search.journal import Job, Outcome

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
        theta: Its parameters; None is cross-entropy.
        reward: Mean reward over the seeds, a failed seed counting as the lowest of all; None if every seed failed.
        rewards: Reward per seed, None where the training failed.
        metrics: Every metric on the held-out part, per seed.
        validation: Every metric on the validation set, per seed. No decision looks at it.
    """

    label: str
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
        theta: The winner's parameters.
        reward: The winner's mean reward over the fresh seeds.
        seeds: The fresh seeds.
        steps: The course of the search.
        finals: Cross-entropy, the identity curves, then the candidates.
    """

    label: str
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
        steps: Steps of the search.
        candidates: Distinct thetas that enter the finals beside the identity curves.
        finalist_seeds: Fresh seeds each member of the finals is run on.
        seed: Source of every trial's seed.
        baseline: Whether every step trains with cross-entropy as well.
        lag: A step is asked for when all but this many of the steps before it are done; with 0, when all are.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any],
        *,
        steps: int,
        candidates: int,
        finalist_seeds: int,
        seed: int,
        baseline: bool = False,
        lag: int = 0,
    ) -> None:
        self._algorithm = algorithm
        self._candidates = candidates
        self._finalist_seeds = finalist_seeds
        self._seed = seed
        self._baseline = baseline
        self._lag = lag

        self.step_count = steps
        """Steps of the search, done or not."""
        self.steps: list[Step] = []
        """The steps done."""
        step_size = len(algorithm.ask(algorithm.init())) + baseline
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
                self.total -= len(points) + self._baseline - len(jobs)
                asked.append((asking, points, jobs))
                new.append(jobs)
                begun += 1
            outcomes = yield new
            asked_state, points, jobs = asked.popleft()
            tried = list(zip(jobs, outcomes, strict=True))[: len(jobs) - self._baseline]
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

        members: list[tuple[str, Theta | None]] = [
            ("cross-entropy", None),
            ("identity", algorithm.start),
            *self._choose_candidates(trials),
        ]
        self.total -= (2 + self._candidates - len(members)) * self._finalist_seeds
        seeds = self._fresh_seeds()
        outcomes = yield [
            [
                Job("final", ordinal, index, theta, seed)
                for ordinal, seed in enumerate(seeds)
                for index, (_, theta) in enumerate(members)
            ]
        ]
        return self._decide(members, seeds, outcomes)

    def _jobs(self, step: int, points: Sequence[Theta]) -> list[Job]:
        """One for each distinct point, then that of cross-entropy if there is one."""
        # One seed for all trials of a step: they differ by their losses, not by their luck.
        seed = self._seed_of("search", step)
        first = {theta: index for index, theta in reversed(list(enumerate(points)))}
        jobs = [Job("search", step, index, theta, seed) for index, theta in enumerate(points) if first[theta] == index]
        return [*jobs, Job("search", step, len(points), None, seed)] if self._baseline else jobs

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

    def _decide(
        self, members: Sequence[tuple[str, Theta | None]], seeds: Sequence[int], outcomes: Sequence[Outcome]
    ) -> Findings:
        """The best of identity and candidates by mean reward: never worse than where the search began."""
        rewards = _failed_as_lowest(outcomes)
        finals: list[Final] = []
        for index, (label, theta) in enumerate(members):
            own = outcomes[index :: len(members)]
            alive = any(outcome.reward is not None for outcome in own)
            finals.append(
                Final(
                    label=label,
                    theta=theta,
                    reward=fmean(rewards[index :: len(members)]) if alive else None,
                    rewards=tuple(outcome.reward for outcome in own),
                    metrics=tuple(outcome.metrics for outcome in own),
                    validation=tuple(outcome.validation for outcome in own),
                )
            )
        # `max` keeps the first of equals: the identity before a candidate that is no better.
        theta, reward, label = max(
            (
                (final.theta, final.reward, final.label)
                for final in finals
                if final.theta is not None and final.reward is not None
            ),
            key=lambda entry: entry[1],
        )
        return Findings(label, theta, reward, tuple(seeds), tuple(self.steps), tuple(finals))

    def _seed_of(self, stage: str, ordinal: int) -> int:
        sequence = np.random.SeedSequence(self._seed, spawn_key=(["search", "final"].index(stage), ordinal))
        return int(sequence.generate_state(1)[0])

    def _fresh_seeds(self) -> list[int]:
        used = {step.seed for step in self.steps}
        fresh: list[int] = []
        ordinal = 0
        while len(fresh) < self._finalist_seeds:
            seed = self._seed_of("final", ordinal)
            ordinal += 1
            if seed not in used:
                used.add(seed)
                fresh.append(seed)
        return fresh


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
