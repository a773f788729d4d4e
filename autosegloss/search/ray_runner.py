"""The runner on Ray: trials in long-lived worker processes, on this machine or on a cluster.

This is the only module that imports Ray, and nothing imports it before a search on Ray is asked for.

A worker is an actor that holds the objective from its start and runs one job after another; the driver hands a job to
whichever is free. Ray Tune is not used: it ends an actor that has nothing to do at the end of a step and starts another
one seconds later, and one trial that the memory monitor kills ends the whole run.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayError

from autosegloss.errors import RefusedError
from autosegloss.search.journal import Job, Outcome
from autosegloss.search.runners import Trials, attempt
from autosegloss.search.study import Objective

OBJECT_STORE_BYTES = 256 * 2**20  # holds the objective with its data once; Ray spills more to disk
TRIES = 2  # of a job whose worker died: the first death may be bad luck


class RayRunner:
    """Runs trials side by side in worker processes.

    It joins the cluster that `RAY_ADDRESS` names, or the Ray that this process has started already, or else starts one
    on this machine and shuts it down at the end. A worker that dies (killed, crashed, out of memory) or exceeds the
    time limit is replaced and its trial tried once more; then the trial counts as failed.

    Args:
        workers: Trials at a time.
        cpus: Processor cores a trial; fractions share a core.
        gpus: GPUs a trial; fractions share a GPU, whose memory Ray does not divide.
        time_limit: Seconds a trial may take, a worker's start included; None is no limit.
    """

    def __init__(self, workers: int, cpus: float = 1, gpus: float = 0, time_limit: float | None = None) -> None:
        """Remember the resources; Ray starts with `run`."""
        self.workers = workers
        self.cpus = cpus
        self.gpus = gpus
        self.time_limit = time_limit

    def check(self) -> None:
        """See that the workers have room; see `Runner.check`."""
        with _ray():
            self._check_room()

    def run(self, study: Trials, objective: Objective) -> None:
        """Run the study to its end; see `Runner.run`."""
        with _ray():
            self._check_room()
            worker_class: Any = ray.remote(_Worker)
            start_worker = worker_class.options(num_cpus=self.cpus, num_gpus=self.gpus).remote
            shipped = ray.put(objective)  # once, not with every worker
            workers: list[Any] = []
            try:
                workers += (start_worker(shipped) for _ in range(self.workers))
                idle = list(workers)
                running: dict[Any, _Run] = {}
                while not study.finished:
                    while idle and (job := study.next_job()) is not None:
                        worker = idle.pop()
                        running[worker.run.remote(job)] = _Run(worker, job, time.monotonic())
                    done = self._next(running)
                    worker, job, _, deaths = running.pop(done)
                    try:
                        outcome = ray.get(done, timeout=0)  # it is there, or its time is up
                    except RayError as error:
                        ray.kill(worker)  # it may be out of reach but alive
                        workers.remove(worker)
                        worker = start_worker(shipped)
                        workers.append(worker)
                        if deaths + 1 < TRIES:
                            running[worker.run.remote(job)] = _Run(worker, job, time.monotonic(), deaths + 1)
                            continue
                        outcome = Outcome.failed(self._why(error), 0.0)
                    idle.append(worker)
                    study.record(job, outcome)
            finally:
                for worker in workers:
                    ray.kill(worker)

    def _next(self, running: Mapping[Any, _Run]) -> Any:
        """The next run that ends, or the one whose time is up first."""
        oldest = min(running, key=lambda run: running[run].start)
        left = None
        if self.time_limit is not None:
            left = max(0.0, running[oldest].start + self.time_limit - time.monotonic())
        ended, _ = ray.wait(list(running), timeout=left)
        return ended[0] if ended else oldest

    def _why(self, error: RayError) -> str:
        """The last line of what Ray says; its advice on a dead process is a page."""
        if isinstance(error, GetTimeoutError):
            return f"the trial did not end within {self.time_limit:g} s, nor when tried once more"
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[-1].partition(" Worker exit type:")[0].strip()
        return f"the worker failed, and again when tried once more: {reason}"

    def _check_room(self) -> None:
        """Refuse what would wait for ever."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        room = sum(self._slots(node) for node in nodes)
        if room < self.workers:
            has = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise RefusedError(
                f"{self.workers} workers of {self.cpus:g} CPUs and {self.gpus:g} GPUs each do not fit: Ray has "
                f"{len(nodes)} node(s) with {has}, room for {room} such workers. Lower resources.workers, "
                "resources.cpus or resources.gpus."
            )

    def _slots(self, node: Mapping[str, float]) -> int:
        needs = {"CPU": self.cpus, "GPU": self.gpus}
        return min(
            (math.floor(node.get(kind, 0) / need + 1e-9) for kind, need in needs.items() if need > 0),
            default=self.workers,
        )


def tune_space(dimensions: int) -> dict[str, Any]:
    """The unit cube as a search space of Ray Tune."""
    try:
        from ray import tune
    except ImportError as error:
        raise RefusedError(
            'Ray is installed without Tune; install it with: pip install "autosegloss[algorithms]"'
        ) from error
    return {f"x{i}": tune.uniform(0, 1) for i in range(dimensions)}


class _Worker:
    """A worker process: holds the objective, runs one job after another."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def run(self, job: Job) -> Outcome:
        return attempt(self._objective, job)


class _Run(NamedTuple):
    """A job at work: since when, by the monotonic clock, and how many workers have died of it."""

    worker: Any
    job: Job
    start: float
    deaths: int = 0


@contextmanager
def _ray() -> Iterator[None]:
    """Ray as it is found, or a small quiet one of our own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        yield
    finally:
        ray.shutdown()
