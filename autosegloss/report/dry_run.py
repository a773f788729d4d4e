"""`search --dry-run`: everything a search needs is tried once, and its cost is estimated; nothing is written."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass, replace
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

_TIMED = 3  # iterations, after one that allocates
_EVALUATED = 64  # images, a batch of an evaluation


@dataclass(frozen=True)
class Forecast:
    """What a search will cost, as far as a few iterations tell.

    Args:
        data: The data set in a line.
        network: The network in a line.
        iteration: Seconds an iteration of training.
        trial: Seconds a trial, its evaluation included.
        trials: Number of trials, finals included.
        workers: Trials side by side.
        preparation: Seconds of what is done once.
        process: MiB that a process took at its peak, with PyTorch and the data.
        gpu: MiB of a GPU that a trial took at its peak; None on the CPU.
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
        """A line for each thing there is to say."""
        lines = [
            f"data       {self.data}",
            f"network    {self.network}",
            f"iteration  {1000 * self.iteration:.0f} ms",
            f"trial      {self.trial:.1f} s",
            f"search     {self.trials} trials, {self.workers} at a time: about {_duration(self.wall)}",
            f"memory     {self.process:.0f} MiB a process at its peak",
        ]
        if self.gpu is not None:
            lines.append(f"GPU        {self.gpu:.0f} MiB a trial at its peak")
        return "\n".join(lines)


def dry_run(config: StudyConfig, runner: str = "ray", address: str | None = None) -> Forecast:
    """Go once through what a search does: data, resources, start, a few iterations of a trial, and an evaluation.

    Args:
        config: Of the search.
        runner: "ray" or "serial"; Ray is started for a moment to see that the workers have room.
        address: As for `search`.

    Raises:
        AutoseglossError: Whatever would stop the search.
        RefusedError: The workers would not have the memory that they need.
    """
    family = LossFamily.of(config)
    family.check()
    chosen = choose_runner(runner, config.resources, address)
    with chosen.ready():
        pass  # there is room
    workers = 1 if isinstance(chosen, SerialRunner) else config.resources.workers
    proxy = proxy_of(config)
    whole = proxy.dataset
    network, gpu, iteration, evaluation = _tried(proxy, family.loss(family.start))
    settings = config.proxy.train
    once = config.proxy.start.iterations * TrainConfig().batch_size / settings.batch_size
    forecast = Forecast(
        data=f"{whole.name}: {len(whole.train.images)} training images and {len(whole.heldout.images)} held out, "
        f"{whole.train.images.shape[-2]}x{whole.train.images.shape[-1]}, {len(whole.classes)} classes",
        network=f"{config.proxy.network.name}: {network / 1e6:.2f} million weights",
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
    """Weights of the network, MiB of a GPU, and seconds of an iteration and of an evaluation of a batch."""
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
    """The same with what is trained once a study trained for one iteration."""
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


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
