"""The plan of a search: the jobs of each step and of the finals, and the result.

The plan is a deterministic function of the outcomes; when and where trials run does not matter.
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
from autosegloss.search.algorithms.state import Theta
from autosegloss.search.guard import Check, checked
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.seeds import final_seeds, step_seed

Trial = tuple[Job, Outcome]


@dataclass(frozen=True)
class Step:
    """A finished step of the search.

    Args:
        step: Number of the step.
        seed: Seed of all its trials.
        mu: The algorithm's answer before the step, if it has one.
        std: The algorithm's standard deviation of each coordinate, if it has one.
        mean: Mean reward; failed trials count as the lowest reward.
        best: Highest reward.
        failed: Number of trials without a reward.
        start: Reward of the loss at the start of the search, with the seed of the step; None if it failed.
    """

    step: int
    seed: int
    mu: Theta | None
    std: Theta | None
    mean: float
    best: float
    failed: int
    start: float | None


@dataclass(frozen=True)
class Final:
    """The result of one member of the finals.

    Args:
        label: "cross-entropy", "start", "mu of step 7" or "sample 3 of step 7".
        loss: The content of its loss file.
        theta: Its coordinates; None for cross-entropy.
        reward: Mean reward over the seeds; a failed run counts as the lowest reward. None if all runs failed.
        rewards: Reward per seed; None for a failed run.
        metrics: Every metric on the held-out part, per seed.
        validation: Every metric on the validation set, per seed. No decision looks at it.
        guards: The guards, checked; empty without guards, or if all runs failed.
    """

    label: str
    loss: LossContent
    theta: Theta | None
    reward: float | None
    rewards: tuple[float | None, ...]
    metrics: tuple[dict[str, float], ...]
    validation: tuple[dict[str, float], ...]
    guards: tuple[Check, ...] = ()

    @property
    def broken(self) -> tuple[Check, ...]:
        """The guards that the loss does not keep."""
        return tuple(check for check in self.guards if not check.kept)


@dataclass(frozen=True)
class Findings:
    """The result of a search and the evidence for it. Equal searches give equal findings: no times are recorded.

    Args:
        label: Label of the winner.
        loss: The winner, as the content of its loss file.
        theta: Its coordinates; None for cross-entropy, which is returned if no other loss keeps its guards.
        reward: The winner's mean reward over the seeds of the finals.
        seeds: The seeds of the finals, which no step has used.
        steps: The steps of the search.
        finals: Cross-entropy, the start of the search, then the candidates.
    """

    label: str
    loss: LossContent
    theta: Theta | None
    reward: float
    seeds: tuple[int, ...]
    steps: tuple[Step, ...]
    finals: tuple[Final, ...]

    @property
    def about_guards(self) -> str:
        """What became of the guards, in a sentence; empty without guards."""
        winner = next(final for final in self.finals if final.label == self.label)
        if not winner.guards:
            return ""
        passed = [final for final in self.finals if final.broken and final.reward is not None]
        best = max(passed, key=lambda final: final.reward or 0.0, default=None)
        if winner.theta is None and best is not None:
            return (
                f"no loss keeps its guards, so cross-entropy is returned instead; the best of them, {best.label} "
                f"(reward {best.reward:.4f}): {_sentence(best.broken)}."
            )
        kept = f"kept: {_sentence(winner.guards)}."
        if later := self._broken_later(winner):
            kept += f" But not on the validation set, which decides nothing: {_sentence(later)}."
        if best is not None and (best.reward or 0.0) > self.reward:
            kept += f" {best.label} has a higher reward, {best.reward:.4f}, but breaks them: {_sentence(best.broken)}."
        return kept

    def _broken_later(self, winner: Final) -> tuple[Check, ...]:
        """The guards that the winner does not keep on the validation set, among those measured there."""
        shares = {check.metric: check.share for check in winner.guards}
        later = checked(winner.validation, self.finals[0].validation, shares)
        return tuple(check for check in later if not check.kept)

    def to_json(self) -> str:
        """The findings as JSON; equal findings give equal bytes."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"


class Plan:
    """The steps of a search, in the order of the paper, then the finals.

    Every step also trains with the loss at the start, of which the algorithm is not told: it shows what the search has
    gained so far, with the same seed.

    Args:
        algorithm: The optimiser.
        loss_at: The loss at a point, as the content of its file.
        baseline: The loss to compare with, cross-entropy, likewise.
        steps: Number of steps.
        candidates: Number of distinct thetas in the finals, besides the start.
        finalist_seeds: Number of runs of each member of the finals.
        seed: Seed of the study, from which `seeds` derives those of the trials.
        guard: Shares of the baseline's metrics that a winner keeps on the mean over the finals; every step then trains
            with the baseline as well.
        lag: Number of steps that may be unfinished when the next one begins. The result depends on the lag, never on
            timing.
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
        guard: Mapping[str, float] | None = None,
        lag: int = 0,
    ) -> None:
        self._algorithm = algorithm
        self._loss_at = loss_at
        self._candidates = candidates
        self._finalist_seeds = finalist_seeds
        self._seed = seed
        self._baseline = baseline
        self._guard = dict(guard or {})
        self._extra = int(bool(self._guard))
        self._lag = lag

        self.step_count = steps
        """Number of steps of the search."""
        self.steps: list[Step] = []
        """The finished steps."""
        self.asked = len(algorithm.ask(algorithm.init()))
        """Number of points for which the algorithm asks in a step. Jobs of a step with this index or a higher one are
        beside them: the start, and the baseline if there is a guard."""
        self.total = steps * (self.asked + 1 + self._extra) + (2 + candidates) * finalist_seeds
        """Number of trials; reduced when thetas coincide or there are fewer candidates."""

    def course(self) -> Generator[list[list[Job]], list[Outcome], Findings]:
        """Run the search as a generator.

        The generator yields lists of jobs to start and is sent the outcomes of the oldest unfinished list, in the
        order of its jobs. It returns the findings.
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
                self.total -= len(points) + 1 + self._extra - len(jobs)
                asked.append((asking, points, jobs))
                new.append(jobs)
                begun += 1
            outcomes = yield new
            asked_state, points, jobs = asked.popleft()
            tried = [(job, each) for job, each in zip(jobs, outcomes, strict=True) if job.index < len(points)]
            by_theta = {job.theta: each for job, each in zip(jobs, outcomes, strict=True)}
            rewards = _failed_as_lowest([by_theta[theta] for theta in points])
            self.steps.append(
                Step(
                    step=step,
                    seed=jobs[0].seed,
                    mu=algorithm.answer(asked_state),
                    std=algorithm.spread(asked_state),
                    mean=fmean(rewards),
                    best=max(rewards),
                    failed=sum(outcome.reward is None for _, outcome in tried),
                    start=by_theta[algorithm.start].reward,
                )
            )
            trials += tried
            state = algorithm.tell(state, rewards, asked_state)

        members = [
            _Member("cross-entropy", self._baseline, None),
            *(
                _Member(label, self._loss_at(theta), theta)
                for label, theta in [("start", algorithm.start), *self._choose_candidates(trials)]
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
        """A job for each distinct point, the start among them, then one for the baseline if every step trains it."""
        seed = step_seed(self._seed, step)
        all_points = [*points, self._algorithm.start]
        first = {theta: index for index, theta in reversed(list(enumerate(all_points)))}
        jobs = [
            Job("search", step, index, self._loss_at(theta), seed, theta)
            for index, theta in enumerate(all_points)
            if first[theta] == index
        ]
        return [*jobs, Job("search", step, len(all_points), self._baseline, seed)] if self._extra else jobs

    def _choose_candidates(self, trials: Sequence[Trial]) -> list[tuple[str, Theta]]:
        """The best centres and the best samples in turn, distinct from each other and from the start.

        Centres come first: the mean reward of a step averages many trainings (the paper's choice), whereas the reward
        of the best sample is biased upwards by selection.
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
        """The findings: of the start and the candidates that keep the guards, the best by mean reward.

        If none keeps them, cross-entropy wins, which does by definition.
        """
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
                    guards=checked(
                        [run.metrics for run in own], [run.metrics for run in outcomes[:: len(members)]], self._guard
                    ),
                )
            )
        # `max` keeps the first of equals: the start wins a tie.
        rated = [(final.reward, final) for final in finals if final.reward is not None]
        keeping = [entry for entry in rated if entry[1].theta is not None and not entry[1].broken]
        reward, winner = max(keeping or rated[:1], key=lambda entry: entry[0])
        return Findings(winner.label, winner.loss, winner.theta, reward, tuple(seeds), tuple(self.steps), tuple(finals))


@dataclass(frozen=True)
class _Member:
    """A member of the finals before it is run."""

    label: str
    loss: LossContent
    theta: Theta | None


def _sentence(checks: Sequence[Check]) -> str:
    return ", ".join(map(str, checks))


def _failed_as_lowest(outcomes: Sequence[Outcome]) -> list[float]:
    """The rewards; a missing one is replaced by the lowest."""
    lowest = min(outcome.reward for outcome in outcomes if outcome.reward is not None)
    return [lowest if outcome.reward is None else outcome.reward for outcome in outcomes]


def _distinct(entries: Iterable[tuple[str, Theta | None]], taken: set[Theta]) -> list[tuple[str, Theta]]:
    """The entries whose theta is not in `taken`, to which their thetas are added."""
    chosen: list[tuple[str, Theta]] = []
    for label, theta in entries:
        if theta is not None and theta not in taken:
            taken.add(theta)
            chosen.append((label, theta))
    return chosen
