"""The study: a plan and its journal, driven by a runner.

A study killed at any point is rebuilt by replaying the journal, and gives the same result.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from autosegloss.errors import InputError, RefusedError, SearchError, cut
from autosegloss.loss.base import LossContent
from autosegloss.search.finals import Schedule
from autosegloss.search.findings import Findings, Screen, Step
from autosegloss.search.guard import Baseline, Guard, guarded
from autosegloss.search.jobs import Job, Outcome, Place
from autosegloss.search.journal import Journal
from autosegloss.search.plan import Begin, Losses, Plan, Trial
from autosegloss.search.rivals import BASELINE, Screening
from autosegloss.search.seeds import screening_seeds

# The last bits may differ between processors when a journal is moved to another machine.
THETA_TOLERANCE = 1e-9
_STAGES: Mapping[str, Literal["screening", "search", "finals"]] = {
    "screen": "screening",
    "fidelity": "screening",
    "search": "search",
    "final": "finals",
}


class Study:
    """A search in progress: hands out jobs and records their outcomes.

    A runner takes jobs from `next_job`, runs them anywhere and in any order, and passes each outcome to `record` until
    the study is `finished`; `findings` then returns the result. The constructor replays the journal.

    Args:
        begin: See `Plan`.
        journal: The journal, with the trials finished so far.
        baseline: See `Plan`.
        schedule: See `Plan`.
        screening: See `Plan`.
        guard: See `Plan`; a reward is reduced by it (see `guarded`).
        guard_rivals: See `Plan`.
        observer: Called with the study after each record, for a display.
        advice: What to do once too many trials have failed.

    Raises:
        RefusedError: The journal does not fit the plan.
    """

    def __init__(
        self,
        begin: Begin,
        journal: Journal,
        baseline: LossContent,
        schedule: Schedule,
        *,
        screening: Screening | None = None,
        guard: Mapping[str, float] | None = None,
        guard_rivals: bool = False,
        observer: Callable[[Study], None] | None = None,
        advice: str = "continue with --resume",
    ) -> None:
        self._journal = journal
        self._guard = dict(guard or {})
        self._baseline = baseline
        self._observer = observer
        self._advice = advice
        self.screening = screening
        """The screening, finished or not; None without rivals."""
        self._first_seed = screening_seeds(schedule.seed, 1)[0]
        self._plan = Plan(begin, baseline, schedule, screening, self._guard, guard_rivals)

        self.done = 0
        """Number of finished trials, failed ones included."""
        self.failed = 0
        """Number of failed trials."""
        self.best: Trial | None = None
        """The sample of the search with the highest reward so far; with a guard, among the finished steps."""
        self.last: Trial | None = None
        """The trial recorded last; None if there is none since the study began or was resumed."""
        self.seconds = 0.0
        """Total time of the finished trials, over all workers."""

        self._best_reward = -math.inf
        self._findings: Findings | None = None
        self._running: set[Place] = set()
        self._course = self._plan.course()
        self._batches = deque(map(_Batch, next(self._course)))
        self._replay()

    @property
    def step_count(self) -> int:
        """Number of steps of the search."""
        return self._plan.step_count

    @property
    def steps(self) -> Sequence[Step]:
        """The finished steps."""
        return self._plan.steps

    @property
    def screen(self) -> Screen | None:
        """The screening, once it is finished; None without rivals."""
        return self._plan.screen

    @property
    def guards(self) -> Sequence[Guard]:
        """The guards."""
        return self._plan.guards

    @property
    def losses(self) -> Losses:
        """The losses at the points of the search; before the screening is finished, those without one."""
        return self._plan.losses

    @property
    def stage(self) -> Literal["screening", "search", "finals", "finished"]:
        """What the oldest unfinished jobs belong to."""
        if not self._batches:
            return "finished"
        return _STAGES[next(iter(self._batches[0].jobs.values())).stage]

    @property
    def total(self) -> int:
        """Number of trials of the study; see `Plan.total`."""
        return self._plan.total

    @property
    def asked(self) -> int:
        """Number of points for which the algorithm asks in a step; see `Plan.asked`."""
        return self._plan.asked

    @property
    def running(self) -> int:
        """Number of jobs handed out and not yet recorded."""
        return len(self._running)

    @property
    def finished(self) -> bool:
        """Whether the winner is known."""
        return self._findings is not None

    def findings(self) -> Findings:
        """The result of the search.

        Raises:
            SearchError: The study is not finished.
        """
        if self._findings is None:
            raise SearchError(f"the search is not finished: {self.done} of {self.total} trials are done.")
        return self._findings

    def next_job(self) -> Job | None:
        """The next job to run; each is handed out once.

        Returns:
            A job, or None if the study is finished or waits for running jobs.
        """
        for batch in self._batches:
            for place in batch.waiting:
                self._running.add(place)
                return batch.waiting.pop(place)
        return None

    def record(self, job: Job, outcome: Outcome) -> None:
        """Record the outcome of a job, and continue with the plan if a step is complete.

        Args:
            job: A job from `next_job`.
            outcome: Its outcome; an outcome with a number that is not finite counts as failed.

        Raises:
            InputError: The job was not handed out, or is already recorded.
            SearchError: Too many trials of the step failed, or the journal can't be written.
        """
        batch = self._batch_of(job.place)
        if batch is None or job.place not in self._running or batch.jobs[job.place] != job:
            raise InputError(f"{job} is not due; record each job that next_job returns once.")
        outcome = outcome.checked()
        self._journal.append(job, outcome)
        self._running.remove(job.place)
        self.last = job, outcome
        refusal = self._take(batch, job, outcome)
        if refusal is not None:
            raise SearchError(f"{refusal}\nThe journal is safe; {self._advice}.")
        if self._observer is not None:
            self._observer(self)

    def _batch_of(self, place: Place) -> _Batch | None:
        return next((batch for batch in self._batches if place in batch.jobs), None)

    def _replay(self) -> None:
        """Record the trials of the journal in order, which repeats every earlier decision.

        The failed trials of a step that was refused are due again; no error is raised.
        """
        for line, (written, outcome) in zip(self._journal.line_numbers, self._journal.trials, strict=True):
            batch = self._batch_of(written.place)
            job = None if batch is None else batch.waiting.pop(written.place, None)
            if batch is None or job is None or not _same_content(job, written) or not self._is_usable(outcome):
                raise RefusedError(
                    f"{cut(str(self._journal.path))}:{line}: trial {written.index} of {written.stage} step "
                    f"{written.step} is not what this search would run here. {self._cause(line)}"
                )
            self._take(batch, job, outcome)

    def _is_usable(self, outcome: Outcome) -> bool:
        """Whether an outcome has the metrics of the guard, or failed."""
        return outcome.reward is None or self._guard.keys() <= outcome.metrics.keys()

    def _cause(self, line: int) -> str:
        """Why a journal does not fit, and what to do."""
        if self._journal.changes:
            return (
                f"The journal was written in another environment: {cut(self._journal.changes)}. Continue in that "
                "environment, or choose another folder."
            )
        return (
            "Lines before it were removed, repeated or moved, or the configuration in the folder was changed. Restore "
            f"the files from a copy, or delete line {line} and all later lines to run their trials again."
        )

    def _take(self, batch: _Batch, job: Job, outcome: Outcome) -> str | None:
        """Count an outcome and send complete batches to the plan; returns why the oldest can't be used, if so."""
        batch.outcomes[job.place] = outcome
        self.done += 1
        self.seconds += outcome.seconds
        if outcome.reward is None:
            self.failed += 1
        elif not self._guard:
            self._notice(job, outcome)
        while self._batches and self._batches[0].complete:
            oldest = self._batches[0]
            refusal = oldest.refusal(self.asked, self._baseline, self._plan.guards, self._first_seed)
            if refusal is not None:
                dropped = oldest.retry_failed()
                self.done -= dropped
                self.failed -= dropped
                return refusal
            self._go_on(self._batches.popleft())
        return None

    def _go_on(self, batch: _Batch) -> None:
        decided = guarded(dict(batch.pairs()), self._plan.guards)
        for job, outcome in decided.items():
            self._notice(job, outcome)
        try:
            self._batches.extend(map(_Batch, self._course.send(list(decided.values()))))
        except StopIteration as stop:
            self._findings = stop.value

    def _notice(self, job: Job, outcome: Outcome) -> None:
        """Update the best sample of the search."""
        sampled = job.stage == "search" and job.index < self.asked
        if sampled and outcome.reward is not None and outcome.reward > self._best_reward:
            self.best, self._best_reward = (job, outcome), outcome.reward


class _Batch:
    """The jobs of a step or of the finals, whose outcomes the plan takes together."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = {job.place: job for job in jobs}
        self.waiting = dict(self.jobs)
        self.outcomes: dict[Place, Outcome] = {}

    @property
    def complete(self) -> bool:
        return len(self.outcomes) == len(self.jobs)

    def pairs(self) -> list[Trial]:
        """Jobs and outcomes of a complete batch, in the order of the jobs."""
        return [(job, self.outcomes[place]) for place, job in self.jobs.items()]

    def retry_failed(self) -> int:
        """Make the failed jobs of a complete batch due again; returns their number."""
        self.waiting = {job.place: job for job, outcome in self.pairs() if outcome.reward is None}
        for place in self.waiting:
            del self.outcomes[place]
        return len(self.waiting)

    def refusal(self, asked: int, baseline: LossContent, guards: Sequence[Guard], first_seed: int) -> str | None:
        """Why a complete batch can't be used, or None.

        Args:
            asked: Number of points of a step.
            baseline: The content of cross-entropy.
            guards: The guards of the trials of the study.
            first_seed: The first seed of the screening, on which rivals climb: a step that is too large for all of
                them is no fault.
        """
        failed = [trial for trial in self.pairs() if trial[1].reward is None]
        if not failed:
            return None
        first, outcome = failed[0]
        of_baseline = Baseline(BASELINE, baseline)
        in_contest = [trial for trial in self.pairs() if not of_baseline.runs(trial[0])] or self.pairs()
        none_left = all(outcome.reward is None for _, outcome in in_contest)
        on_first = all(job.seed == first_seed for job in self.jobs.values())
        climbs = first.stage == "screen" and first.step > 0 and on_first
        if first.stage in ("screen", "fidelity") and none_left and not climbs:
            first, outcome = in_contest[0]
            what = "at the schedule of the finals" if first.stage == "fidelity" else f"of round {first.step}"
            return (
                f"screening: all {len(in_contest)} trials of other losses than cross-entropy {what} failed. First: "
                f"trial {first.index} (seed {first.seed}): {_reason(outcome)}."
            )
        samples = sum(job.index < asked for job in self.jobs.values())
        lost = sum(job.index < asked for job, _ in failed)
        if first.stage == "search" and 2 * lost > samples:
            return (
                f"step {first.step}: {lost} of {samples} trials failed; the policy was not updated. "
                f"First: trial {first.index} (seed {first.seed}): {_reason(outcome)}."
            )
        for job, outcome in failed:
            if label := next((guard.of.label for guard in guards if guard.of.runs(job)), None):
                return (
                    f"step {job.step}: the trial of {label}, which the guard compares with, failed (seed {job.seed}): "
                    f"{_reason(outcome)}."
                )
        if first.stage == "final" and none_left:
            return (
                f"finals: all {len(in_contest)} trials of other losses than cross-entropy failed; nothing can be "
                f"chosen. First: trial {first.index} (seed {first.seed}): {_reason(outcome)}."
            )
        return None


def _reason(outcome: Outcome) -> str:
    return cut((outcome.error or "").rstrip("."))


def _same_content(a: Job, b: Job) -> bool:
    if a.seed != b.seed or a.theta is None or b.theta is None:
        return a == b
    return len(a.theta) == len(b.theta) and all(
        abs(x - y) <= THETA_TOLERANCE for x, y in zip(a.theta, b.theta, strict=True)
    )
