"""The study: a plan and its journal, driven by whoever runs the trials.

The outcomes are in the journal: a study that was killed anywhere is rebuilt by replaying it, and ends with the same
result.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autosegloss.errors import InputError, RefusedError, SearchError
from autosegloss.loss.base import LossContent
from autosegloss.search.algorithms import Algorithm
from autosegloss.search.guard import guarded
from autosegloss.search.jobs import Job, Outcome, Place
from autosegloss.search.journal import Journal
from autosegloss.search.plan import Findings, Plan, Step, Theta, Trial

# Bits of the last place may differ between processors when a journal moves; nothing larger may.
THETA_TOLERANCE = 1e-9


class Study:
    """A search in progress: it says what to run next, and takes what came of it.

    A runner asks `next_job` for work, runs it anywhere and in any order, and hands each outcome to `record`, until the
    study is `finished`; `findings` then says what was found. The journal is replayed at construction.

    Args:
        algorithm: The optimiser.
        journal: Where finished trials are written, and what was finished before.
        loss_at: The loss at a point, as the content of its file.
        baseline: The loss to compare with, cross-entropy.
        steps: Steps of the search.
        candidates: Distinct thetas that enter the finals beside the identity curves.
        finalist_seeds: Fresh seeds each member of the finals is run on.
        seed: Source of every trial's seed.
        guard: Shares of cross-entropy's metrics below which a reward is reduced (see `guarded`); every step then
            trains with cross-entropy as well.
        lag: Steps that may be unfinished when the next one begins. The result depends on it, never on timing.
        observer: Called with the study after each record, for a display.

    Raises:
        RefusedError: The journal does not fit the plan.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any],
        journal: Journal,
        loss_at: Callable[[Theta], LossContent],
        baseline: LossContent,
        *,
        steps: int,
        candidates: int,
        finalist_seeds: int,
        seed: int,
        guard: Mapping[str, float] | None = None,
        lag: int = 0,
        observer: Callable[[Study], None] | None = None,
    ) -> None:
        """Begin the plan, and replay the journal."""
        self._journal = journal
        self._guard = dict(guard or {})
        self._baseline = baseline
        self._observer = observer
        self._plan = Plan(
            algorithm,
            loss_at,
            baseline,
            steps=steps,
            candidates=candidates,
            finalist_seeds=finalist_seeds,
            seed=seed,
            compare_each_step=bool(self._guard),
            lag=lag,
        )

        self.done = 0
        """Trials that are finished, failed ones included."""
        self.failed = 0
        """Trials that ended without a reward."""
        self.best: Trial | None = None
        """The trial of the search with the highest reward so far; with a guard, of the steps done."""
        self.last: Trial | None = None
        """The trial recorded last; None if there was none since the study began or was resumed."""
        self.seconds = 0.0
        """Time the finished trials took, added up over workers."""

        self._best_reward = -math.inf
        self._findings: Findings | None = None
        self._running: set[Place] = set()
        self._course = self._plan.course()
        self._batches = deque(map(_Batch, next(self._course)))
        self._replay()

    @property
    def step_count(self) -> int:
        """Steps of the search, done or not."""
        return self._plan.step_count

    @property
    def steps(self) -> Sequence[Step]:
        """The steps done."""
        return self._plan.steps

    @property
    def total(self) -> int:
        """Trials of the whole study; corrected downwards where the search yields fewer."""
        return self._plan.total

    @property
    def running(self) -> int:
        """Trials handed out and not yet recorded."""
        return len(self._running)

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

    def next_job(self) -> Job | None:
        """A job to be run; each is handed out once.

        Returns:
            None if there is none now, because the study is finished or waits for what is running.
        """
        for batch in self._batches:
            for place in batch.waiting:
                self._running.add(place)
                return batch.waiting.pop(place)
        return None

    def record(self, job: Job, outcome: Outcome) -> None:
        """Take the outcome of a job: write it down, and go on with the plan if a step is complete.

        Args:
            job: A job from `next_job`.
            outcome: What came of it. One with a number that is not finite counts as failed.

        Raises:
            InputError: The job is not due.
            SearchError: Too many trials of the step failed, or the journal cannot be written.
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
            raise SearchError(f"{refusal}\nThe journal is safe; continue with --resume.")
        if self._observer is not None:
            self._observer(self)

    def _batch_of(self, place: Place) -> _Batch | None:
        return next((batch for batch in self._batches if place in batch.jobs), None)

    def _replay(self) -> None:
        """Take the journal's trials in their order, which repeats every decision of the runs before.

        A step that was refused then is refused again, but in place of an error its failed trials become due once more.
        """
        for line, (written, outcome) in enumerate(self._journal.trials, start=1):
            batch = self._batch_of(written.place)
            job = None if batch is None else batch.waiting.pop(written.place, None)
            if batch is None or job is None or not _same_content(job, written):
                raise RefusedError(
                    f"{self._journal.path}:{line}: trial {written.index} of {written.stage} step {written.step} is not "
                    "what this search would run here: the journal was written by another version of autosegloss or "
                    "numpy. Continue with that version, or choose another folder."
                )
            self._take(batch, job, outcome)

    def _take(self, batch: _Batch, job: Job, outcome: Outcome) -> str | None:
        """Count one outcome, and send complete batches to the plan; or say why the oldest cannot be used."""
        batch.outcomes[job.place] = outcome
        self.done += 1
        self.seconds += outcome.seconds
        if outcome.reward is None:
            self.failed += 1
        elif not self._guard:
            self._notice(job, outcome)
        while self._batches and self._batches[0].complete:
            oldest = self._batches[0]
            refusal = oldest.refusal(self._baseline, bool(self._guard))
            if refusal is not None:
                dropped = oldest.retry_failed()
                self.done -= dropped
                self.failed -= dropped
                return refusal
            self._go_on(self._batches.popleft())
        return None

    def _go_on(self, batch: _Batch) -> None:
        decided = guarded(dict(batch.pairs()), self._guard, self._baseline)
        for job, outcome in decided.items():
            self._notice(job, outcome)
        try:
            self._batches.extend(map(_Batch, self._course.send(list(decided.values()))))
        except StopIteration as stop:
            self._findings = stop.value

    def _notice(self, job: Job, outcome: Outcome) -> None:
        """Remember the best trial of the search."""
        sampled = job.stage == "search" and job.theta is not None
        if sampled and outcome.reward is not None and outcome.reward > self._best_reward:
            self.best, self._best_reward = (job, outcome), outcome.reward


class _Batch:
    """Jobs whose outcomes the plan wants together: of a step, or of the finals."""

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
        """Let the failed jobs of a complete batch wait once more; their number."""
        self.waiting = {job.place: job for job, outcome in self.pairs() if outcome.reward is None}
        for place in self.waiting:
            del self.outcomes[place]
        return len(self.waiting)

    def refusal(self, baseline: LossContent, guarded: bool) -> str | None:
        """Why a complete batch cannot be used, if so."""
        failed = [trial for trial in self.pairs() if trial[1].reward is None]
        if not failed:
            return None
        first, outcome = failed[0]
        if first.stage == "search" and 2 * len(failed) > len(self.jobs):
            return (
                f"step {first.step}: {len(failed)} of {len(self.jobs)} trials failed; the policy was not updated. "
                f"First: trial {first.index} (seed {first.seed}): {_reason(outcome)}."
            )
        compared = next(((job, outcome) for job, outcome in failed if job.loss == baseline and guarded), None)
        if compared is not None:
            return (
                f"step {compared[0].step}: the trial of cross-entropy, which the guard compares with, failed "
                f"(seed {compared[0].seed}): {_reason(compared[1])}."
            )
        in_contest = [outcome for job, outcome in self.pairs() if job.loss != baseline]
        if first.stage == "final" and all(outcome.reward is None for outcome in in_contest):
            return (
                f"finals: all {len(in_contest)} trials of the candidates and of the identity curves failed; nothing "
                f"can be chosen. First: trial {first.index} (seed {first.seed}): {_reason(outcome)}."
            )
        return None


def _reason(outcome: Outcome) -> str:
    return (outcome.error or "").rstrip(".")


def _same_content(a: Job, b: Job) -> bool:
    if a.seed != b.seed or a.theta is None or b.theta is None:
        return a == b
    return len(a.theta) == len(b.theta) and all(
        abs(x - y) <= THETA_TOLERANCE for x, y in zip(a.theta, b.theta, strict=True)
    )
