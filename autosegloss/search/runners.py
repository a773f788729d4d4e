"""Who runs trials, and of what: the protocols, and the runner that needs nothing but this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

from autosegloss.search.journal import Job, Outcome
from autosegloss.search.study import Objective


class Trials(Protocol):
    """What a runner works through: a study, or a comparison."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""

    def next_job(self) -> Job | None:
        """A job to be run, each handed out once; None if there is none now."""

    def record(self, job: Job, outcome: Outcome) -> None:
        """Take the outcome of a job."""


class Runner(Protocol):
    """Runs the trials of a study until it is finished."""

    def ready(self) -> AbstractContextManager[None]:
        """A context in which there is something to run trials on: what is missing is said before work is done for it.

        Raises:
            RefusedError: There is nothing, or too little.
        """

    def run(self, study: Trials, objective: Objective) -> None:
        """Take jobs from the study, run the objective on each, and record the outcomes.

        Args:
            study: The study, or whatever has trials; finished when this returns.
            objective: A deterministic function of the job. What it raises becomes a failed outcome.

        Raises:
            SearchError: The study refuses to go on, or there is nothing to run the trials on.
            KeyboardInterrupt: The user stopped it. What was finished is in the journal.
        """


@runtime_checkable
class Joint(Protocol):
    """An objective that can run several trials side by side in one process."""

    def __call__(self, job: Job) -> Outcome:
        """Run one trial."""

    def together(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run trials of one stage and seed, with the outcomes that each would have alone."""


class SerialRunner:
    """Runs trials in this process, one after another, or several of one seed side by side.

    Side by side they share the work of making batches, and a GPU has more to do at a time; a CPU gains little.

    Args:
        trials: Side by side, where the objective is `Joint` and so many of a seed are due.
    """

    def __init__(self, trials: int = 1) -> None:
        self._trials = trials

    def ready(self) -> AbstractContextManager[None]:
        """This process is there."""
        return nullcontext()

    def run(self, study: Trials, objective: Objective) -> None:
        """Run the study to its end; see `Runner.run`."""
        for jobs in _groups(study, self._trials if isinstance(objective, Joint) else 1):
            for job, outcome in zip(jobs, _attempts(objective, jobs), strict=True):
                study.record(job, outcome)


def _groups(study: Trials, size: int) -> Iterator[list[Job]]:
    """The jobs of a study, in lists of at most so many whose stage and seed are the same."""
    group: list[Job] = []
    while (job := study.next_job()) is not None or group:
        if job is not None and (not group or _kind(job) == _kind(group[0])):
            group.append(job)
            if len(group) < size:
                continue
            job = None
        yield group
        group = [] if job is None else [job]


def _kind(job: Job) -> tuple[object, ...]:
    return job.stage, job.seed


def _attempts(objective: Objective, jobs: Sequence[Job]) -> list[Outcome]:
    """The outcomes of a group of jobs; see `attempt`."""
    if len(jobs) > 1 and isinstance(objective, Joint):
        try:
            return objective.together(jobs)
        except Exception as error:  # of what they share; who is to blame shows when each is alone
            error.with_traceback(None)
    return [attempt(objective, job) for job in jobs]


def attempt(objective: Objective, job: Job) -> Outcome:
    """Run one trial; an exception is an outcome, an interrupt is not."""
    start = time.perf_counter()
    try:
        return objective(job)
    except Exception as error:
        return failed(error, time.perf_counter() - start)


def failed(error: Exception, seconds: float) -> Outcome:
    """The outcome of a trial that raised."""
    return Outcome.failed(f"{type(error).__name__}: {error}", seconds)
