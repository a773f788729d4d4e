"""Who runs trials, and of what: the protocols, and the runner that needs nothing but this process."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

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


class SerialRunner:
    """Runs one trial after another in this process."""

    def ready(self) -> AbstractContextManager[None]:
        """This process is there."""
        return nullcontext()

    def run(self, study: Trials, objective: Objective) -> None:
        """Run the study to its end; see `Runner.run`."""
        while (job := study.next_job()) is not None:
            study.record(job, attempt(objective, job))


def attempt(objective: Objective, job: Job) -> Outcome:
    """Run one trial; an exception is an outcome, an interrupt is not."""
    start = time.perf_counter()
    try:
        return objective(job)
    except Exception as error:
        return Outcome.failed(f"{type(error).__name__}: {error}", time.perf_counter() - start)
