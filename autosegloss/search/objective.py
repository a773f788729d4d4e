"""The objective of a search: trains a proxy with the loss of a job and returns the outcome."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autosegloss.errors import TrainingDiverged
from autosegloss.metric import METRICS, metric
from autosegloss.metric.settings import guard_metrics, spec_label
from autosegloss.proxy.data import Dataset
from autosegloss.proxy.trial import Evaluation, Proxy
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.runners.base import attempt, failed, limited
from autosegloss.search.settings import StudyConfig


def proxy_of(config: StudyConfig, dataset: Dataset | None = None) -> Proxy:
    """The proxy that a configuration describes, with its data set unless one is given; its network has run once.

    Raises:
        DataError, InputError, RefusedError: See `Proxy.load` and `Proxy.check`.
        SearchError: The network takes longer than a trial may.
    """
    relaxed = {spec_label(config.metric): metric(config.metric)} if config.reward is not None else {}
    proxy = Proxy.load(
        config.proxy,
        metric(config.goal),
        seed=config.search.seed,
        gpus=config.resources.gpus,
        dataset=dataset,
        guarded={name: expr for name, expr in relaxed.items() if name not in METRICS} | guard_metrics(config.guard),
        folder=config.folder,
        offsets=config.search.offsets,
    )
    with limited(config.resources.time_limit, "the network, on a single image,"):
        proxy.check()
    return proxy


def announce(dataset: Dataset, on_data: Callable[[Dataset], None] | None) -> None:
    """Pass a data set to who shows it; by default, only its warnings are logged."""
    if on_data is not None:
        on_data(dataset)
        return
    for text in dataset.warnings:
        logging.getLogger(__name__).warning(text)


@dataclass(frozen=True)
class ProxyObjective:
    """Trains the proxy with the loss of a job.

    Args:
        proxy: The proxy.
        final_iterations: The iterations of the finals; None: those of the proxy.
    """

    proxy: Proxy
    final_iterations: int | None = None

    def __call__(self, job: Job) -> Outcome:
        """Run a trial; finals are also evaluated on the validation set."""
        start = time.perf_counter()
        (found,) = self._found([job])
        if isinstance(found, Exception):
            raise found
        return _outcome(found, time.perf_counter() - start)

    def run_group(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run trials side by side; see `GroupObjective.run_group`.

        A trial that fails without diverging is run again on its own: the others may have left it too little memory.
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
        rates = [job.rate for job in jobs]
        iterations = self.final_iterations if first.stage in ("final", "fidelity") else None
        return self.proxy.run_group([job.loss for job in jobs], first.seed, first.stage == "final", rates, iterations)


def _outcome(evaluation: Evaluation, seconds: float) -> Outcome:
    return Outcome(evaluation.reward, evaluation.metrics, evaluation.validation, error=None, seconds=seconds)
