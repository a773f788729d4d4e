"""The protocols of runners, job queues and objectives, and running one trial safely."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import NoReturn, Protocol, runtime_checkable

from autosegloss.errors import AutoseglossError, SearchError
from autosegloss.proxy.users_code import where
from autosegloss.search.jobs import Job, Objective, Outcome


class JobQueue(Protocol):
    """Where a runner takes jobs from and records outcomes: a study or a comparison."""

    @property
    def finished(self) -> bool:
        """Whether all jobs are recorded."""

    def next_job(self) -> Job | None:
        """The next job to run, each handed out once; None if there is none now."""

    def record(self, job: Job, outcome: Outcome) -> None:
        """Record the outcome of a job."""


class Runner(Protocol):
    """Runs the trials of a study until it is finished."""

    def ready(self) -> AbstractContextManager[None]:
        """A context in which trials can run; entered before any expensive preparation.

        Raises:
            RefusedError: Resources are missing.
        """

    def run(self, study: JobQueue, objective: Objective) -> None:
        """Take jobs from the study, run the objective on each, and record the outcomes.

        Args:
            study: The study or comparison; finished when this returns.
            objective: A deterministic function of the job. An exception becomes a failed outcome.

        Raises:
            SearchError: The study can't continue, or all workers are lost.
            KeyboardInterrupt: The user interrupted the run; finished trials are in the journal.
        """


@runtime_checkable
class GroupObjective(Protocol):
    """An objective that can also run several trials side by side in one process."""

    def __call__(self, job: Job) -> Outcome:
        """Run one trial."""

    def run_group(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run trials of the same stage and seed, each with the outcome it would have alone."""


@contextmanager
def limited(seconds: float | None, what: str) -> Iterator[None]:
    """Limit the time of what is done once in this process, as workers' time is limited; in the main thread only.

    Args:
        seconds: The limit; None for no limit.
        what: What is done, for the message.

    Raises:
        SearchError: The limit is exceeded.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SearchError(
            f"{what} exceeded resources.time_limit, {seconds:g} s. Raise it, or lower proxy.start.iterations; then "
            "continue with --resume."
        )

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(objective: Objective, job: Job) -> Outcome:
    """Run one trial; whatever it raises becomes a failed outcome, also SystemExit, but not an interrupt."""
    start = time.perf_counter()
    try:
        return objective(job)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return failed(error, time.perf_counter() - start)


def failed(error: BaseException, seconds: float) -> Outcome:
    """The outcome of a trial that raised; an error that is none of this package has its place in the user's code."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, AutoseglossError) else where(error)
    return Outcome.failed(text, seconds)
