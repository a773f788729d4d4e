"""Who runs trials, and of what: the protocols, and how one trial is run whatever it raises."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from autosegloss.search.jobs import Job, Objective, Outcome


class JobQueue(Protocol):
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

    def run(self, study: JobQueue, objective: Objective) -> None:
        """Take jobs from the study, run the objective on each, and record the outcomes.

        Args:
            study: The study, or whatever has trials; finished when this returns.
            objective: A deterministic function of the job. What it raises becomes a failed outcome.

        Raises:
            SearchError: The study refuses to go on, or there is nothing to run the trials on.
            KeyboardInterrupt: The user stopped it. What was finished is in the journal.
        """


@runtime_checkable
class GroupObjective(Protocol):
    """An objective that can run several trials side by side in one process."""

    def __call__(self, job: Job) -> Outcome:
        """Run one trial."""

    def run_group(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run trials of one stage and seed, with the outcomes that each would have alone."""


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
