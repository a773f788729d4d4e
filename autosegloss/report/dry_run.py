"""`search --dry-run`: every part of a search is run once and its cost is estimated; nothing is written."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch

from autosegloss.errors import RefusedError
from autosegloss.loss import Loss
from autosegloss.proxy.data import Split
from autosegloss.proxy.settings import LabelsConfig, ProxyConfig, TrainConfig
from autosegloss.proxy.train import one_thread
from autosegloss.proxy.trial import Proxy, device_of
from autosegloss.report.environment import memory, peak_memory_so_far
from autosegloss.search.api import study_of
from autosegloss.search.folder import JOURNAL_FILE
from autosegloss.search.journal import Journal
from autosegloss.search.objective import proxy_of
from autosegloss.search.runners import choose_runner
from autosegloss.search.runners.serial import SerialRunner
from autosegloss.search.settings import StudyConfig
from autosegloss.search.space import LossFamily

_TIMED = 3  # iterations, after a first one that allocates memory
_EVALUATED = 64  # images: one batch of an evaluation


@dataclass(frozen=True)
class Forecast:
    """The cost of a search, estimated from a few iterations.

    Args:
        data: The data set in one line.
        network: The network in one line.
        iteration: Seconds per training iteration.
        trial: Seconds per trial, including its evaluation.
        trials: Number of trials, including the finals.
        workers: Number of parallel trials.
        preparation: Seconds spent once, before the trials.
        process: Peak memory of a process in MiB, including PyTorch and the data.
        gpu: Peak memory of a trial on a GPU in MiB; None on the CPU.
    """

    data: str
    network: str
    iteration: float
    trial: float
    trials: int
    workers: int
    preparation: float
    process: float
    gpu: float | None

    @property
    def wall(self) -> float:
        """Seconds of the whole search."""
        return self.preparation + math.ceil(self.trials / self.workers) * self.trial

    def to_text(self) -> str:
        """The forecast, one line per quantity."""
        lines = [
            f"data       {self.data}",
            f"network    {self.network}",
            f"iteration  {1000 * self.iteration:.0f} ms",
            f"trial      {self.trial:.1f} s",
            f"search     {self.trials} trials, {self.workers} in parallel: about {timedelta(seconds=round(self.wall))}",
            f"memory     {self.process:.0f} MiB per process at the peak",
        ]
        if self.gpu is not None:
            lines.append(f"GPU        {self.gpu:.0f} MiB per trial at the peak")
        return "\n".join(lines)


def dry_run(config: StudyConfig, runner: str = "ray", address: str | None = None) -> Forecast:
    """Run each part of a search once: data, resources, start, a few iterations of a trial, and an evaluation.

    Args:
        config: The configuration of the search.
        runner: "ray" or "serial"; Ray is started briefly to check that the workers fit.
        address: The address of a Ray cluster, as for `search`.

    Raises:
        AutoseglossError: The search would fail, for the reason given.
        RefusedError: The memory does not suffice for the workers.
    """
    family = LossFamily.of(config)
    family.check()
    chosen = choose_runner(runner, config.resources, address)
    with chosen.ready():
        pass  # the workers fit
    workers = 1 if isinstance(chosen, SerialRunner) else config.resources.workers
    proxy = proxy_of(config)
    whole = proxy.dataset
    network, gpu, iteration, evaluation = _tried(proxy, family.loss(family.start))
    settings = config.proxy.train
    once = config.proxy.start.iterations * TrainConfig().batch_size / settings.batch_size
    forecast = Forecast(
        data=f"{whole.name}: {len(whole.train.images)} training images and {len(whole.heldout.images)} held out, "
        f"{whole.train.images.shape[-2]}x{whole.train.images.shape[-1]}, {len(whole.classes)} classes",
        network=f"{config.proxy.network.name}: {network / 1e6:.2f} million parameters",
        iteration=iteration,
        trial=settings.iterations * iteration + evaluation * len(whole.heldout.images) / _EVALUATED,
        trials=_trials(config),
        workers=workers,
        preparation=0 if config.proxy.start.regime == "scratch" or proxy.pretrained else once * iteration,
        process=peak_memory_so_far(),
        gpu=gpu,
    )
    if workers * forecast.process > memory():
        raise RefusedError(
            f"{workers} workers of {forecast.process:.0f} MiB each do not fit in the {memory():.0f} MiB of this "
            "machine. Lower resources.workers or proxy.train.batch_size."
        )
    return forecast


def _tried(proxy: Proxy, loss: Loss) -> tuple[int, float | None, float, float]:
    """Number of parameters, MiB of GPU memory, and seconds of an iteration and of the evaluation of a batch."""
    dataset = proxy.dataset
    part = slice(0, _EVALUATED)
    few = replace(dataset, heldout=Split(dataset.heldout.images[part], dataset.heldout.labels[part]))
    tried = replace(proxy, settings=_shortened(proxy.settings), dataset=few).prepare()
    device = device_of(proxy.gpus)
    training = tried.training(loss, proxy.seed, iterations=1 + _TIMED)
    with one_thread():
        training.advance(1)
        begun = time.perf_counter()
        training.advance()
        iteration = (time.perf_counter() - begun) / _TIMED
    begun = time.perf_counter()
    tried.evaluation(training.network, validate=False)
    evaluation = (time.perf_counter() - begun) * _EVALUATED / len(few.heldout.images)
    weights = sum(weight.numel() for weight in training.network.parameters())
    gpu = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return weights, gpu, iteration, evaluation


def _shortened(settings: ProxyConfig) -> ProxyConfig:
    """The settings with one iteration for what is trained once per study."""
    labels, start = settings.labels, settings.start.model_copy(update={"iterations": 1})
    if labels.name == "distilled":
        labels = LabelsConfig(**{**labels.model_dump(), "iterations": 1})
    return settings.model_copy(update={"start": start, "labels": labels})


def _trials(config: StudyConfig) -> int:
    with (
        tempfile.TemporaryDirectory(prefix="autosegloss-dry-run-") as folder,
        Journal(Path(folder, JOURNAL_FILE)) as new,
    ):
        return study_of(config, new, None).total
