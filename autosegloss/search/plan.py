"""The plan of a search: screening of the rivals, steps, finals.

The plan is a deterministic function of the outcomes; when and where trials run does not matter.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from statistics import fmean
from typing import Any, Protocol

from autosegloss.loss.base import LossContent
from autosegloss.search.algorithms import Algorithm
from autosegloss.search.algorithms.state import Theta
from autosegloss.search.finals import Finals, Member, Schedule, failed_as_lowest
from autosegloss.search.findings import Findings, Screen, Step
from autosegloss.search.gates import FIDELITY_RIVALS, Fidelity, Headroom
from autosegloss.search.guard import Baseline, Guard
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.rivals import BASELINE, Screened, Screening, best_of_each
from autosegloss.search.seeds import screening_seeds, step_seed

Trial = tuple[Job, Outcome]
Batches = Generator[list[list[Job]], list[Outcome], None]


class Losses(Protocol):
    """The losses at the points of a search."""

    def content(self, theta: Theta) -> LossContent:
        """The loss at a point, as the content of its file."""

    def rate(self, theta: Theta) -> float:
        """The factor of the learning rate with which it trains."""


Begin = Callable[[Screened | None], tuple[Algorithm[Any], Losses]]
"""Makes the optimiser and its losses, from the screening if there was one."""


def without_rivals(algorithm: Algorithm[Any], losses: Losses) -> Begin:
    """Begins with this optimiser whatever the screening finds."""
    return lambda _: (algorithm, losses)


class Plan:
    """The course of a study.

    1. The screening of the rivals, if there are any, and its gates.
    2. The steps of the search, in the order of the paper. Every step also trains with the loss at the start and with
       that at the centre, of which the algorithm is not told: they show what the search has gained so far, with the
       same seed.
    3. The finals, in which candidates of the search race the best rivals.

    Args:
        begin: See `Begin`.
        baseline: The loss to compare with, cross-entropy, as the content of its file.
        schedule: The numbers.
        screening: The screening; None without rivals.
        guard: Shares of the baseline's metrics that a winner keeps on the mean over the finals; every step then trains
            with the baseline as well.
        guard_rivals: Whether the guards compare with the rival that is best on their metric in the screening instead.
    """

    def __init__(
        self,
        begin: Begin,
        baseline: LossContent,
        schedule: Schedule,
        screening: Screening | None = None,
        guard: Mapping[str, float] | None = None,
        guard_rivals: bool = False,
    ) -> None:
        self._begin = begin
        self._baseline = baseline
        self._schedule = schedule
        self._screening = screening
        self.guards = [Guard(name, share, Baseline(BASELINE, baseline)) for name, share in (guard or {}).items()]
        """The guards; those that compare with rivals do so once the screening is finished."""
        self._guard_rivals = guard_rivals
        self._algorithm, self._losses = begin(None)

        self.step_count = schedule.steps
        """Number of steps of the search."""
        self.steps: list[Step] = []
        """The finished steps."""
        self._end: Theta | None = None  # the answer after the last step
        self.screen: Screen | None = None
        """The screening, once it is finished."""
        self.asked = len(self._algorithm.ask(self._algorithm.init()))
        """Number of points for which the algorithm asks in a step. Jobs of a step with this index or a higher one are
        beside them: the start, the centre, and the baseline if there is a guard."""
        self._finals = Finals(baseline, schedule)
        self._started = 0
        self._most = {
            "screen": 0 if screening is None else screening.total + (screening.rounds if self.guards else 0),
            "fidelity": FIDELITY_RIVALS if screening is not None and schedule.longer else 0,
            "search": self.search_total,
            **self._finals.most(screening is not None, schedule.steps > 0, self._most_compared),
        }

    @property
    def total(self) -> int:
        """Number of trials: of what has begun as it is, of the rest the most that there can be."""
        return self._started + sum(self._most.values())

    @property
    def search_total(self) -> int:
        """The most trials of all steps."""
        return self.step_count * self._of_step()

    @property
    def losses(self) -> Losses:
        """The losses at the points of the search."""
        return self._losses

    def course(self) -> Generator[list[list[Job]], list[Outcome], Findings]:
        """Run the study as a generator.

        The generator yields lists of jobs to start and is sent the outcomes of the oldest unfinished list, in the
        order of its jobs. It returns the findings.
        """
        course = self._course()
        batches = next(course)
        while True:
            jobs = [job for batch in batches for job in batch]
            self._started += len(jobs)
            if any(job.stage == "final" and job.step >= self._schedule.finalist_seeds for job in jobs):
                self._most["test"] = 0
            outcomes = yield batches
            try:
                batches = course.send(outcomes)
            except StopIteration as stop:
                self._most = {}
                found: Findings = stop.value
                return found

    def _course(self) -> Generator[list[list[Job]], list[Outcome], Findings]:
        if self._screening is not None:
            yield from self._screen(self._screening)
        trials: list[Trial] = []
        yield from self._search(trials)
        candidates, used = self._candidates(trials), {step.seed for step in self.steps}
        self._most["heats"] = 0
        if not candidates:
            self._most["test"] = 0
        if self.screen is None:
            start = self._member("start", self._algorithm.start)
            return (yield from self._finals.plain(start, candidates, used, self.steps, self.guards))
        return (yield from self._finals.race(candidates, used, self.steps, self.screen, self.guards))

    # The screening.

    def _screen(self, screening: Screening) -> Batches:
        """Run the screening and its gates, and make the optimiser."""
        seeds = screening_seeds(self._schedule.seed, screening.seeds)
        course, number = screening.course(), 0
        runs = next(course)
        metrics: dict[str, list[Mapping[str, float]]] = {}
        while runs:
            jobs = [
                Job("screen", number, index, run.arm.loss, seeds[run.seed], rate=run.arm.rate)
                for index, run in enumerate(runs)
            ]
            if self.guards and number and all(run.seed == 0 for run in runs):
                jobs.append(Job("screen", number, len(runs), self._baseline, seeds[0]))
            self._most["screen"] = max(0, self._most["screen"] - len(jobs))
            outcomes = yield [jobs]
            number += 1
            for run, outcome in zip(runs, outcomes, strict=False):
                metrics.setdefault(run.arm.name, []).append(outcome.metrics)
            try:
                runs = course.send([outcome.reward for outcome in outcomes[: len(runs)]])
            except StopIteration as stop:
                screened: Screened = stop.value
                break
        self._most["screen"] = 0
        if self._guard_rivals:
            self.guards = [_of_best_rival(guard, screened, metrics) for guard in self.guards]
        fidelity = yield from self._fidelity(screened, seeds[0])
        best = [each for each in screened.best if None not in each.rewards]
        headroom = Headroom.of(
            [each.arm.name for each in best], [[x for x in each.rewards if x is not None] for each in best]
        )
        schedule = self._schedule
        searched = schedule.steps > 0 and (headroom is None or headroom.told_apart or schedule.always)
        if not searched:
            self.step_count = 0
            self._most |= {"search": 0, **self._finals.most(True, False, self._most_compared)}
        self._algorithm, self._losses = self._begin(screened)
        self.screen = Screen(screened, tuple(seeds), headroom, fidelity, searched)

    def _fidelity(self, screened: Screened, seed: int) -> Generator[list[list[Job]], list[Outcome], Fidelity | None]:
        """Train rivals at the schedule of the finals too, where that is longer."""
        if not self._schedule.longer:
            return None
        chosen = best_of_each([each for each in screened.tried if each.rewards[0] is not None])[:FIDELITY_RIVALS]
        self._most["fidelity"] = 0
        if not chosen:
            return None
        jobs = [Job("fidelity", 0, index, each.arm.loss, seed, rate=each.arm.rate) for index, each in enumerate(chosen)]
        present = [(job.loss, job.rate) for job in jobs]
        others = [each for each in self._compared if (each.loss, each.rate) not in present]
        jobs += [
            Job("fidelity", 0, index, each.loss, seed, rate=each.rate) for index, each in enumerate(others, len(jobs))
        ]
        outcomes = yield [jobs]
        pairs = [
            (each.arm.name, each.rewards[0], outcome.reward)
            for each, outcome in zip(chosen, outcomes, strict=False)
            if each.rewards[0] is not None and outcome.reward is not None
        ]
        return Fidelity.of(*map(list, zip(*pairs, strict=True))) if pairs else None

    # The search.

    def _of_step(self) -> int:
        """The most trials of a step."""
        centre = self._algorithm.answer(self._algorithm.init()) is not None
        return self.asked + 1 + centre + self._most_compared

    @property
    def _compared(self) -> list[Baseline]:
        """The losses that the guards compare with."""
        return list({guard.of.label: guard.of for guard in self.guards}.values())

    @property
    def _most_compared(self) -> int:
        return len(self.guards) if self._guard_rivals else bool(self.guards)

    def _search(self, trials: list[Trial]) -> Batches:
        """Run the steps; `trials` takes the samples of all of them."""
        algorithm, state = self._algorithm, self._algorithm.init()
        asked: deque[tuple[Any, list[Theta], list[Job]]] = deque()
        begun = 0
        for step in range(self.step_count):
            new: list[list[Job]] = []
            while begun < min(step + self._schedule.lag + 1, self.step_count):
                asking = state
                for _ in range(begun - step):
                    asking = algorithm.skip(asking)
                points = algorithm.ask(asking)
                jobs = self._jobs(begun, points, algorithm.answer(asking))
                self._most["search"] -= self._of_step()
                asked.append((asking, points, jobs))
                new.append(jobs)
                begun += 1
            outcomes = yield new
            asked_state, points, jobs = asked.popleft()
            tried = [(job, each) for job, each in zip(jobs, outcomes, strict=True) if job.index < len(points)]
            by_theta = {job.theta: each for job, each in zip(jobs, outcomes, strict=True)}
            rewards = failed_as_lowest([by_theta[theta] for theta in points])
            mu = algorithm.answer(asked_state)
            self.steps.append(
                Step(
                    step=step,
                    seed=jobs[0].seed,
                    mu=mu,
                    std=algorithm.spread(asked_state),
                    mean=fmean(rewards),
                    best=max(rewards),
                    failed=sum(outcome.reward is None for _, outcome in tried),
                    start=by_theta[algorithm.start].reward,
                    centre=None if mu is None else by_theta[mu].reward,
                )
            )
            trials += tried
            state = algorithm.tell(state, rewards, asked_state)
        self._end = algorithm.answer(state) if self.steps else None

    def _jobs(self, step: int, points: Sequence[Theta], centre: Theta | None) -> list[Job]:
        """A job for each distinct point, start and centre among them, then one for each loss of the guards."""
        seed = step_seed(self._schedule.seed, step)
        all_points = [*points, self._algorithm.start, *([] if centre is None else [centre])]
        first = {theta: index for index, theta in reversed(list(enumerate(all_points)))}
        jobs = [
            Job("search", step, index, self._losses.content(theta), seed, theta, self._losses.rate(theta))
            for index, theta in enumerate(all_points)
            if first[theta] == index
        ]
        beside = enumerate(self._compared, len(all_points))
        return [*jobs, *(Job("search", step, index, each.loss, seed, rate=each.rate) for index, each in beside)]

    def _candidates(self, trials: Sequence[Trial]) -> list[Member]:
        """The centre at the end, after rivals the start, then the best samples and the best centres in turn, distinct.

        The centre comes first: it averages many trainings, whereas the reward of the best sample is biased upwards by
        selection. So does a start between the best rivals, which a short search may not improve. Rewards of different
        steps, which have different seeds, are compared by their lead over the start.
        """
        starts = {step.step: step.start for step in self.steps}

        def lead(step: int, reward: float) -> float:
            start = starts[step]
            return reward if start is None else reward - start

        by_centre = sorted(
            (step for step in self.steps if step.centre is not None),
            key=lambda step: -lead(step.step, step.centre or 0.0),
        )  # stable: of equals, the earlier first
        by_reward = sorted(
            ((job, outcome.reward) for job, outcome in trials if outcome.reward is not None),
            key=lambda trial: -lead(trial[0].step, trial[1]),
        )
        start, raced = self._algorithm.start, self._screening is not None
        taken: set[Theta] = set() if raced else {start}
        ends = [(f"mu after step {self.step_count - 1}", self._end), ("start", start if raced and self.steps else None)]
        end = _distinct(ends, taken)
        samples = _distinct(((f"sample {job.index} of step {job.step}", job.theta) for job, _ in by_reward), taken)
        centres = _distinct(((f"mu of step {step.step}", step.mu) for step in by_centre), taken)
        in_turn = [entry for pair in zip_longest(samples, centres) for entry in pair if entry is not None]
        chosen = [*end, *in_turn][: self._schedule.candidates]
        return [self._member(label, theta) for label, theta in chosen]

    def _member(self, label: str, theta: Theta) -> Member:
        return Member(label, self._losses.content(theta), theta, self._losses.rate(theta))


def _of_best_rival(guard: Guard, screened: Screened, metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Guard:
    """The guard with the rival that is best on its metric; with cross-entropy where no rival is better."""

    def mean(name: str) -> float:
        return fmean(run.get(guard.metric, -math.inf) for run in metrics[name])

    best = max((each.arm for each in screened.finalists), key=lambda arm: mean(arm.name), default=None)
    if best is None or mean(best.name) <= mean(BASELINE) or (best.loss, best.rate) == (guard.of.loss, guard.of.rate):
        return guard
    return replace(guard, of=Baseline(best.name, best.loss, best.rate))


def _distinct(entries: Iterable[tuple[str, Theta | None]], taken: set[Theta]) -> list[tuple[str, Theta]]:
    """The entries whose theta is not in `taken`, to which their thetas are added."""
    chosen: list[tuple[str, Theta]] = []
    for label, theta in entries:
        if theta is not None and theta not in taken:
            taken.add(theta)
            chosen.append((label, theta))
    return chosen
