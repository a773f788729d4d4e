"""The proxy as the study and its workers call it: a job in, an outcome out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from autosegloss.errors import TrainingDiverged
from autosegloss.metric import metric
from autosegloss.proxy.data import Dataset
from autosegloss.proxy.trial import Evaluation, Proxy
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.runners.base import attempt, failed
from autosegloss.search.settings import StudyConfig


def proxy_of(config: StudyConfig, dataset: Dataset | None = None) -> Proxy:
    """The proxy that a configuration describes, with a data set that is loaded already if one is given.

    Raises:
        DataError: The data set or the kind of labels is unknown, missing or does not fit.
        InputError: The network is unknown, or the file of its weights does not fit.
        RefusedError: Trials are to train on GPUs, and this process, which prepares them, has none.
    """
    target, seed = metric(config.metric), config.search.seed
    return Proxy.load(config.proxy, target, seed=seed, gpus=config.resources.gpus, dataset=dataset)


@dataclass(frozen=True)
class ProxyObjective:
    """The proxy as the study and its workers call it: a job in, an outcome out."""

    proxy: Proxy

    def __call__(self, job: Job) -> Outcome:
        """Run a trial; a final is measured on the validation set too."""
        start = time.perf_counter()
        (found,) = self._found([job])
        if isinstance(found, Exception):
            raise found
        return _outcome(found, time.perf_counter() - start)

    def run_group(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run trials side by side; see `GroupObjective.run_group`.

        What fails other than by diverging is run once more alone: it may have lacked the memory that the others had.
        """
        start = time.perf_counter()
        found = self._found(jobs)
        seconds = (time.perf_counter() - start) / len(jobs)
        outcomes = []
        for job, each in zip(jobs, found, strict=True):
            if isinstance(each, Evaluation):
                outcomes.append(_outcome(each, seconds))
            elif isinstance(each, TrainingDiverged):
                outcomes.append(failed(each, seconds))
            else:
                outcomes.append(attempt(self, job))
        return outcomes

    def _found(self, jobs: Sequence[Job]) -> list[Evaluation | Exception]:
        first = jobs[0]
        return self.proxy.run_group([job.loss for job in jobs], first.seed, first.stage == "final")


def _outcome(evaluation: Evaluation, seconds: float) -> Outcome:
    return Outcome(evaluation.reward, evaluation.metrics, evaluation.validation, error=None, seconds=seconds)
