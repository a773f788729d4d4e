"""The study: the plan of a search, from the first sample to the winner, driven by whoever runs the trials.

The plan is deterministic given the outcomes, and the outcomes are in the journal: a study that was killed anywhere is
rebuilt by replaying its journal, and ends with the same result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from statistics import fmean
from typing import Any

import numpy as np

from autosegloss.errors import InputError, RefusedError, SearchError
from autosegloss.search.algorithms import Algorithm
from autosegloss.search.guard import guarded
from autosegloss.search.journal import Job, Journal, Outcome

__all__ = ["Final", "Findings", "Job", "Objective", "Outcome", "Step", "Study"]

Objective = Callable[[Job], Outcome]
Theta = tuple[float, ...]
Trial = tuple[Job, Outcome]

# Bits of the last place may differ between processors when a journal moves; nothing larger may.
THETA_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Step:
    """One step of the search, done.

    Args:
        step: Its number.
        seed: The seed all its trials shared.
        mu: The algorithm's answer before the step, if it has one.
        mean: Mean reward, a failed trial counting as the lowest.
        best: Highest reward.
        failed: Number of trials without a reward.
    """

    step: int
    seed: int
    mu: Theta | None
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


class Study:
    """A search in progress: it says what to run next, and takes what came of it.

    A runner asks `next_job` for work, runs it anywhere and in any order, and hands each outcome to `record`, until the
    study is `finished`; `findings` then says what was found. The journal is replayed at construction.

    Args:
        algorithm: The optimiser.
        journal: Where finished trials are written, and what was finished before.
        steps: Steps of the search.
        candidates: Distinct thetas that enter the finals beside the identity curves.
        finalist_seeds: Fresh seeds each member of the finals is run on.
        seed: Source of every trial's seed.
        guard: Shares of cross-entropy's metrics below which a reward is reduced (see `guarded`); every step then
            trains with cross-entropy as well.
        observer: Called with the study after each record, for a display.

    Raises:
        RefusedError: The journal does not fit the plan.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any],
        journal: Journal,
        *,
        steps: int,
        candidates: int,
        finalist_seeds: int,
        seed: int,
        guard: Mapping[str, float] | None = None,
        observer: Callable[[Study], None] | None = None,
    ) -> None:
        """Begin the plan, and replay the journal."""
        self._algorithm = algorithm
        self._journal = journal
        self._candidates = candidates
        self._finalist_seeds = finalist_seeds
        self._seed = seed
        self._guard = dict(guard or {})
        self._observer = observer

        self.step_count = steps
        """Steps of the search, done or not."""
        self.steps: list[Step] = []
        """The steps done."""
        self.done = 0
        """Trials that are finished, failed ones included."""
        self.failed = 0
        """Trials that ended without a reward."""
        self.best: Trial | None = None
        """The trial of the search with the highest reward so far; with a guard, of the steps done."""
        self.seconds = 0.0
        """Time the finished trials took, added up over workers."""
        step_size = len(algorithm.ask(algorithm.init())) + bool(self._guard)
        self.total = steps * step_size + (2 + candidates) * finalist_seeds
        """Trials of the whole study; a few fewer if the search yields fewer candidates."""

        self._best_reward = -math.inf
        self._findings: Findings | None = None
        self._jobs: list[Job] = []
        self._outcomes: dict[Job, Outcome] = {}
        self._plan = self._begin()
        self._jobs = next(self._plan)
        self._replay()

    # The plan, in the order of the paper.

    def _begin(self) -> Generator[list[Job], list[Outcome], Findings]:
        algorithm = self._algorithm
        state = algorithm.init()
        trials: list[Trial] = []
        for step in range(self.step_count):
            # One seed for all trials of a step: they differ by their losses, not by their luck.
            seed = self._seed_of("search", step)
            jobs = [Job("search", step, index, theta, seed) for index, theta in enumerate(algorithm.ask(state))]
            baseline = [Job("search", step, len(jobs), None, seed)] if self._guard else []
            outcomes = (yield jobs + baseline)[: len(jobs)]
            rewards = _failed_as_lowest(outcomes)
            self.steps.append(
                Step(
                    step=step,
                    seed=seed,
                    mu=algorithm.answer(state),
                    mean=fmean(rewards),
                    best=max(rewards),
                    failed=sum(outcome.reward is None for outcome in outcomes),
                )
            )
            trials += zip(jobs, outcomes, strict=True)
            state = algorithm.tell(state, rewards)

        members: list[tuple[str, Theta | None]] = [
            ("cross-entropy", None),
            ("identity", algorithm.start),
            *self._choose_candidates(trials),
        ]
        seeds = self._fresh_seeds()
        self.total = self.done + len(seeds) * len(members)
        jobs = [
            Job("final", ordinal, index, theta, seed)
            for ordinal, seed in enumerate(seeds)
            for index, (_, theta) in enumerate(members)
        ]
        outcomes = yield jobs
        return self._decide(members, seeds, outcomes)

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

    # The drive.

    @property
    def finished(self) -> bool:
        """Whether the winner is known."""
        return self._findings is not None

    def findings(self) -> Findings:
        """What the search found.

        Raises:
            SearchError: The study is not finished.
        """
        if self._findings is None:
            raise SearchError(f"the search is not finished: {self.done} of {self.total} trials are done.")
        return self._findings

    def next_job(self, running: Collection[Job] = ()) -> Job | None:
        """A job that waits to be run.

        Args:
            running: Jobs that are being run already.

        Returns:
            The first job that is neither done nor running; None if there is none now, because the study is finished or
            the step waits for what is running.
        """
        return next((job for job in self._jobs if job not in self._outcomes and job not in running), None)

    def record(self, job: Job, outcome: Outcome) -> None:
        """Take the outcome of a job: write it down, and go on with the plan if the step is complete.

        Args:
            job: A job from `next_job`.
            outcome: What came of it. One with a number that is not finite counts as failed.

        Raises:
            InputError: The job is not due.
            SearchError: Too many trials of the step failed, or the journal cannot be written.
        """
        if job not in self._jobs or job in self._outcomes:
            raise InputError(f"{job} is not due; record the jobs that next_job hands out, each once.")
        outcome = outcome.checked()
        self._journal.append(job, outcome)
        refusal = self._take(job, outcome)
        if refusal is not None:
            raise SearchError(f"{refusal}\nThe journal is safe; continue with --resume.")
        if self._observer is not None:
            self._observer(self)

    def _replay(self) -> None:
        """Take the journal's trials in their order, which repeats every decision of the runs before.

        A step that was refused then is refused again, but in place of an error its failed trials become due once more.
        """
        for line, (written, outcome) in enumerate(self._journal.trials, start=1):
            due = (job for job in self._jobs if job not in self._outcomes)
            job = next((job for job in due if _same_place(job, written)), None)
            if job is None or not _same_content(job, written):
                raise RefusedError(
                    f"{self._journal.path}:{line}: trial {written.index} of {written.stage} step {written.step} is not "
                    "what this search would run here: the journal was written by another version of autosegloss or "
                    "numpy. Continue with that version, or choose another folder."
                )
            self._take(job, outcome)

    def _take(self, job: Job, outcome: Outcome) -> str | None:
        """Count one outcome, and send a complete step to the plan; or say why the step cannot be used."""
        self._outcomes[job] = outcome
        self.done += 1
        self.seconds += outcome.seconds
        if outcome.reward is None:
            self.failed += 1
        elif not self._guard:
            self._notice(job, outcome)
        if len(self._outcomes) < len(self._jobs):
            return None

        refusal = self._refusal()
        if refusal is not None:
            failed = [job for job, outcome in self._outcomes.items() if outcome.reward is None]
            self.done -= len(failed)
            self.failed -= len(failed)
            for job in failed:
                del self._outcomes[job]
            return refusal
        decided = guarded(self._outcomes, self._guard)
        outcomes = [decided[job] for job in self._jobs]
        for job, outcome in zip(self._jobs, outcomes, strict=True):
            self._notice(job, outcome)
        self._outcomes = {}
        try:
            self._jobs = self._plan.send(outcomes)
        except StopIteration as stop:
            self._jobs = []
            self._findings = stop.value
        return None

    def _notice(self, job: Job, outcome: Outcome) -> None:
        """Remember the best trial of the search."""
        sampled = job.stage == "search" and job.theta is not None
        if sampled and outcome.reward is not None and outcome.reward > self._best_reward:
            self.best, self._best_reward = (job, outcome), outcome.reward

    def _refusal(self) -> str | None:
        """Why the complete step cannot be used, if so."""
        failed = [job for job in self._jobs if self._outcomes[job].reward is None]
        if not failed:
            return None
        first = failed[0]
        error = (self._outcomes[first].error or "").rstrip(".")
        if first.stage == "search" and 2 * len(failed) > len(self._jobs):
            return (
                f"step {first.step}: {len(failed)} of {len(self._jobs)} trials failed; the policy was not updated. "
                f"First: trial {first.index} (seed {first.seed}): {error}."
            )
        compared = next((job for job in failed if job.theta is None and self._guard), None)
        if compared is not None:
            return (
                f"step {compared.step}: the trial of cross-entropy, which the guard compares with, failed "
                f"(seed {compared.seed}): {(self._outcomes[compared].error or '').rstrip('.')}."
            )
        in_contest = [job for job in self._jobs if job.theta is not None]
        if first.stage == "final" and all(self._outcomes[job].reward is None for job in in_contest):
            return (
                f"finals: all {len(in_contest)} trials of the candidates and of the identity curves failed; nothing "
                f"can be chosen. First: trial {first.index} (seed {first.seed}): {error}."
            )
        return None


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


def _same_place(a: Job, b: Job) -> bool:
    return (a.stage, a.step, a.index) == (b.stage, b.step, b.index)


def _same_content(a: Job, b: Job) -> bool:
    if a.seed != b.seed or a.theta is None or b.theta is None:
        return a == b
    return len(a.theta) == len(b.theta) and all(
        abs(x - y) <= THETA_TOLERANCE for x, y in zip(a.theta, b.theta, strict=True)
    )
