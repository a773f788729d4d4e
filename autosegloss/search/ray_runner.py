"""The runner on Ray: trials in long-lived worker processes, on this machine or on a cluster.

This is the only module that imports Ray, and nothing imports it before a search on Ray is asked for.

One `Tuner.fit` lasts as long as the study: Tune sees a searcher that runs out when the study is finished. Workers are
reused, and hold the objective from their start. Tune's own files are thrown away: the truth is the journal.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from autosegloss.errors import RefusedError, SearchError
from autosegloss.search.runners import attempt
from autosegloss.search.study import Job, Objective, Outcome, Study

# Ray reads these when it starts or runs; whoever has set them otherwise keeps their choice.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even when it is told to be silent
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a trial sees the paths the user sees
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}

OBJECT_STORE_BYTES = 256 * 2**20  # holds the objective with its data once; Ray spills more to disk
SEGMENTS_WITHOUT_PROGRESS = 3


class RayRunner:
    """Runs trials side by side in worker processes.

    It joins the cluster that `RAY_ADDRESS` names, or the Ray that this process has started already, or else starts one
    on this machine and shuts it down at the end. A worker that dies (killed, crashed, out of memory) is replaced and
    its trial tried once more; then the trial counts as failed.

    Args:
        workers: Trials at a time.
        cpus: Processor cores a trial; fractions share a core.
        gpus: GPUs a trial; fractions share a GPU, whose memory Ray does not divide.
    """

    def __init__(self, workers: int, cpus: float = 1, gpus: float = 0) -> None:
        """Remember the resources; Ray starts with `run`."""
        self.workers = workers
        self.cpus = cpus
        self.gpus = gpus

    def run(self, study: Study, objective: Objective) -> None:
        """Run the study to its end; see `Runner.run`."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        with _ray(), _quiet(), tempfile.TemporaryDirectory(prefix="autosegloss-ray-") as folder:
            self._check_room()
            # Shipped once, not with every trial.
            trainable = tune.with_parameters(_Worker, objective=objective)
            trainable = tune.with_resources(trainable, {"cpu": self.cpus, "gpu": self.gpus})
            idle_segments = 0
            while not study.finished:
                done = study.done
                stopped_by = self._run_segment(study, trainable, folder)
                idle_segments = 0 if study.done > done else idle_segments + 1
                if idle_segments == SEGMENTS_WITHOUT_PROGRESS:
                    raise SearchError(
                        f"Ray broke {idle_segments} times in a row without finishing a trial. Last: {stopped_by}\n"
                        "The journal is safe; continue with --resume."
                    ) from stopped_by

    def _run_segment(self, study: Study, trainable: Any, folder: str) -> Exception | None:
        """One `Tuner.fit`; ends with the study, or with what broke Tune (its memory monitor, a lost node)."""
        searcher = _StudySearcher(study, self.workers)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher, num_samples=-1, reuse_actors=True, max_concurrent_trials=self.workers
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[_FailureListener(searcher)],
            ),
        )
        try:
            tuner.fit()
        except Exception as error:
            if searcher.raised is not None:
                raise searcher.raised from None
            return error
        if searcher.raised is not None:
            raise searcher.raised
        if not study.finished:
            raise KeyboardInterrupt  # Tune takes Ctrl-C as a wish to end, and returns
        return None

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


class _Worker(tune.Trainable):
    """A worker process: holds the objective, runs one job after another."""

    def setup(self, config: dict[str, Any], objective: Objective) -> None:  # type: ignore[override]
        # `with_parameters` adds the objective.
        self._objective = objective
        self._job = _job_of(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._job = _job_of(new_config)
        return True

    def step(self) -> dict[str, Any]:
        # As text: Tune flattens dictionaries and looks into numbers.
        return {"outcome": json.dumps(asdict(attempt(self._objective, self._job)), default=float), "done": True}


def _job_of(config: dict[str, Any]) -> Job:
    job: Job = config["job"][0]
    return job


class _StudySearcher(Searcher):
    """Hands the study's jobs to Tune and takes their outcomes back.

    Tune swallows what `on_trial_complete` raises. It is kept in `raised`, and raised from `suggest`, which ends `fit`.
    """

    def __init__(self, study: Study, workers: int) -> None:
        super().__init__()
        self._study = study
        self._workers = workers
        self._running: dict[str, Job] = {}
        self.raised: BaseException | None = None

    def suggest(self, trial_id: str) -> Any:
        if self.raised is not None:
            raise self.raised
        if self._study.finished:
            return Searcher.FINISHED
        if len(self._running) >= self._workers:
            return None
        job = self._study.next_job(self._running.values())
        if job is None:
            return None
        self._running[trial_id] = job
        return {"job": [job]}  # in a list: Tune takes dictionaries and dataclasses apart

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if error or result is None or "outcome" not in result:
            return  # failures come with their reason through `on_trial_failed`, interrupts without a result
        self._record(trial_id, Outcome(**json.loads(result["outcome"])))

    def on_trial_failed(self, trial_id: str, error: str) -> None:
        self._record(trial_id, Outcome.failed(error, 0.0))

    def _record(self, trial_id: str, outcome: Outcome) -> None:
        if self.raised is None:
            try:
                self._study.record(self._running.pop(trial_id), outcome)
            except BaseException as error:
                self.raised = error

    def __getstate__(self) -> dict[str, Any]:
        """Nothing to pickle: Tune saves its arguments for a restore that the journal makes needless."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the journal has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a new segment has a new searcher."""


class _FailureListener(tune.Callback):
    """Tells the searcher why a trial failed for good, which Tune does not."""

    def __init__(self, searcher: _StudySearcher) -> None:
        self._searcher = searcher

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        # The last line of what Ray reports; its advice on a dead process is a page.
        report = Path(trial.error_file).read_text(errors="replace").strip().splitlines() or ["no reason given"]
        reason = report[-1].partition(" Worker exit type:")[0]
        self._searcher.on_trial_failed(trial.trial_id, f"the worker failed, and again when tried once more: {reason}")


@contextmanager
def _ray() -> Iterator[None]:
    """Ray as it is found, or a small quiet one of our own."""
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Tune's log, which advises to restore its own files."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
