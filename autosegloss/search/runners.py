"""Who runs the trials of a study: the protocol, and the runner that needs nothing but this process."""

from __future__ import annotations

import time
from typing import Protocol

from autosegloss.search.study import Job, Objective, Outcome, Study


class Runner(Protocol):
    """Runs the trials of a study until it is finished."""

    def run(self, study: Study, objective: Objective) -> None:
        """Take jobs from the study, run the objective on each, and record the outcomes.

        Args:
            study: The study; finished when this returns.
            objective: A deterministic function of the job. What it raises becomes a failed outcome.

        Raises:
            SearchError: The study refuses to go on, or there is nothing to run the trials on.
            KeyboardInterrupt: The user stopped it. What was finished is in the journal.
        """


class SerialRunner:
    """Runs one trial after another in this process."""

    def run(self, study: Study, objective: Objective) -> None:
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
