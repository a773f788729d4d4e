"""The runner that uses only this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from autosegloss.search.jobs import Job, Objective, Outcome
from autosegloss.search.runners.base import GroupObjective, JobQueue, attempt


class SerialRunner:
    """Runs trials in this process, one after another, or several of one seed side by side.

    Trials side by side share their batches and use a GPU better; a CPU gains little.

    Args:
        trials: Maximal number of trials side by side; more than one needs a `GroupObjective`.
    """

    def __init__(self, trials: int = 1) -> None:
        self._trials = trials

    def ready(self) -> AbstractContextManager[None]:
        """Nothing to prepare."""
        return nullcontext()

    def run(self, study: JobQueue, objective: Objective) -> None:
        """Run the study to its end; see `Runner.run`."""
        for jobs in _groups(study, self._trials if isinstance(objective, GroupObjective) else 1):
            for job, outcome in zip(jobs, _attempts(objective, jobs), strict=True):
                study.record(job, outcome)


def _groups(study: JobQueue, size: int) -> Iterator[list[Job]]:
    """The jobs of a study, in lists of at most `size` jobs of the same stage and seed."""
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
    if len(jobs) > 1 and isinstance(objective, GroupObjective):
        try:
            return objective.run_group(jobs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # of what they share; running each alone shows which one fails
            error.with_traceback(None)
    return [attempt(objective, job) for job in jobs]
