"""`search --dry-run`: every part of a search is run once and its cost is estimated; nothing is written."""

from __future__ import annotations

import math
import tempfile
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch

from autosegloss.config.reading import read_mapping
from autosegloss.errors import AutoseglossError, ConfigError, InputError, RefusedError, listed
from autosegloss.loss import Loss
from autosegloss.loss.named import loss_for_data
from autosegloss.metric import metric
from autosegloss.metric.settings import CALIBRATION, spec_label
from autosegloss.proxy.data import Dataset, Split, load_dataset, reader
from autosegloss.proxy.imports import use_folder
from autosegloss.proxy.labels import build_labels
from autosegloss.proxy.networks import build_network, encoder_prefix
from autosegloss.proxy.networks.weights import matching_weights, read_weights
from autosegloss.proxy.settings import LabelsConfig, ProxyConfig, TrainConfig
from autosegloss.proxy.train import one_thread
from autosegloss.proxy.trial import Proxy, device_of
from autosegloss.proxy.users_code import users_code
from autosegloss.report.data import classes_text, images_text
from autosegloss.report.environment import memory, peak_memory_so_far
from autosegloss.search.api import algorithm_of, has_longer_finals, study_of
from autosegloss.search.comparison import losses_of
from autosegloss.search.folder import JOURNAL_FILE
from autosegloss.search.gates import FIDELITY_RIVALS
from autosegloss.search.journal import Journal
from autosegloss.search.objective import proxy_of
from autosegloss.search.own_trial import TrialObjective
from autosegloss.search.rivals import rivals_of
from autosegloss.search.runners import choose_runner
from autosegloss.search.runners.serial import SerialRunner
from autosegloss.search.settings import StudyConfig
from autosegloss.search.space import LossFamily
from autosegloss.search.study import Study

T = TypeVar("T")

_TIMED = 3  # iterations, after a first one that allocates memory
_EVALUATED = 64  # images: one batch of an evaluation


@dataclass(frozen=True)
class Trials:
    """The numbers of trials of a search, which are upper bounds where there are rivals.

    Args:
        total: All, including the finals.
        screening: Those of the screening and its gates; 0 without rivals.
        recommending: All trials of `autosegloss recommend`; None if those are no fewer.
    """

    total: int
    screening: int
    recommending: int | None

    def __str__(self) -> str:
        if not self.screening:
            return f"{self.total} trials"
        return f"at most {self.total} trials, {self.screening} of them to screen the rivals"

    @property
    def advice(self) -> list[str]:
        """What to do before the search, as a line of a forecast; without rivals nothing."""
        if self.recommending is None:
            return []
        return [
            f"advice     autosegloss recommend CONFIG tells in at most {self.recommending} trials which loss to take, "
            "and whether a search has headroom"
        ]


@dataclass(frozen=True)
class Forecast:
    """The cost of a search, estimated from a few iterations.

    Args:
        data: The data set in one line.
        classes: A table of the share of the pixels of each class in each part.
        warnings: What is probably a mistake in the data.
        network: The network in one line.
        space: The coordinates that are searched.
        iteration: Seconds per training iteration.
        trial: Seconds per trial, including its evaluation.
        trials: The numbers of trials.
        workers: Number of parallel trials.
        preparation: Seconds spent once, before the trials.
        process: Peak memory of a process in MiB, including PyTorch and the data.
        gpu: Peak memory of a trial on a GPU in MiB; None on the CPU.
    """

    data: str
    classes: str
    warnings: tuple[str, ...]
    network: str
    space: str
    iteration: float
    trial: float
    trials: Trials
    workers: int
    preparation: float
    process: float
    gpu: float | None

    @property
    def wall(self) -> float:
        """Seconds of the whole search."""
        return self.preparation + math.ceil(self.trials.total / self.workers) * self.trial

    def to_text(self) -> str:
        """The forecast, one line per quantity, and one per class."""
        lines = [
            f"data       {self.data}",
            textwrap.indent(self.classes, " " * 11),
            f"network    {self.network}",
            f"space      {self.space}",
            f"iteration  {1000 * self.iteration:.0f} ms",
            f"trial      {self.trial:.1f} s",
            f"search     {self.trials}, {self.workers} in parallel: about {timedelta(seconds=round(self.wall))}",
            f"memory     {self.process:.0f} MiB per process at the peak",
        ]
        if self.gpu is not None:
            lines.append(f"GPU        {self.gpu:.0f} MiB per trial at the peak")
        return "\n".join([*lines, *self.trials.advice])


@dataclass(frozen=True)
class OwnForecast:
    """What is known of a search with a trial of the user's own before any trial.

    Args:
        trial: The function, as "module:function".
        reward: The number that is maximised.
        space: The coordinates that are searched.
        trials: The numbers of trials.
        workers: Number of parallel trials.
    """

    trial: str
    reward: str
    space: str
    trials: Trials
    workers: int
    warnings: tuple[str, ...] = ()

    def to_text(self) -> str:
        """The forecast, one line per quantity."""
        return "\n".join(
            [
                f"trial      {self.trial}: not run, since one call is a whole trial; its time is not known",
                f"reward     {self.reward}",
                f"space      {self.space}",
                f"search     {self.trials}, {self.workers} in parallel",
                *self.trials.advice,
            ]
        )


def dry_run(config: StudyConfig, runner: str = "ray", address: str | None = None) -> Forecast | OwnForecast:
    """Run each part of a search once: data, resources, start, a few iterations of a trial, and an evaluation.

    A trial of the user's own is imported, but not called.

    Args:
        config: The configuration of the search.
        runner: "ray" or "serial"; Ray is started briefly to check that the workers fit.
        address: The address of a Ray cluster, as for `search`.

    Raises:
        AutoseglossError: The search would fail, for the reason given.
        RefusedError: The memory does not suffice for the workers.
    """
    chosen = choose_runner(runner, config.resources, address)
    checks = _Checks()
    proxy = checks.proxy(config)
    if checks.mistakes:
        raise checks.error
    with chosen.ready():
        pass  # the workers fit
    workers = 1 if isinstance(chosen, SerialRunner) else config.resources.workers
    if proxy is None:
        space = LossFamily.of(config).text
        return OwnForecast(config.trial or "", spec_label(config.goal), space, _trials(config), workers)
    whole = proxy.dataset
    config = config.with_class_numbers(whole.classes)
    family = LossFamily.of(config)
    with users_code("a trial fails"):
        network, gpu, iteration, evaluation = _tried(proxy, family.loss(family.start))
    settings = config.proxy.train
    once = config.proxy.start.iterations * TrainConfig().batch_size / settings.batch_size
    forecast = Forecast(
        data=images_text(whole),
        classes=classes_text(whole),
        warnings=whole.warnings,
        network=f"{config.proxy.network.name}: {network / 1e6:.2f} million parameters",
        space=family.text + _narrowing(config),
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


def check_rest(error: ConfigError, path: str) -> None:
    """Raise an error of the mistakes that reading a configuration found and of all others in what can be used of it.

    Args:
        error: The error of reading it.
        path: The file.
    """
    if error.rest is None:
        return
    checks = _Checks(list(error.mistakes))
    with suppress(ConfigError):  # what is left can't be used either
        config = read_mapping(StudyConfig, {"metric": "miou", **error.rest})
        checks.proxy(config, folder=str(Path(path).resolve().parent))
    if len(checks.mistakes) > len(error.mistakes):
        raise checks.error


@dataclass
class _Checks:
    """Checks of everything that a configuration names, also for `compare` and `retrain`.

    Args:
        mistakes: The mistakes found so far, each as its text.
    """

    mistakes: list[str] = field(default_factory=list)
    first: AutoseglossError | None = None

    @property
    def error(self) -> AutoseglossError:
        """The error of all mistakes."""
        if self.first is not None and len(self.mistakes) == 1:
            return self.first
        return InputError("\n- ".join((f"{len(self.mistakes)} mistakes:", *listed(self.mistakes))))

    def tried(self, work: Callable[..., T], *arguments: object, **options: object) -> T | None:
        """What a function returns; None if it raises, which is noted."""
        try:
            return work(*arguments, **options)
        except AutoseglossError as error:
            text = f"{type(error).__name__}: {error}"
            if text not in self.mistakes:
                self.mistakes.append(text)
            self.first = self.first or error
        return None

    def proxy(self, config: StudyConfig, folder: str | None = None) -> Proxy | None:
        """The proxy of a configuration; None if there are mistakes, or a trial of the user's own replaces it.

        Args:
            config: The configuration.
            folder: Where its modules are found too; by default its own folder.
        """
        data, tried = config.proxy.data, self.tried
        use_folder(config.folder if folder is None else folder)
        tried(_check_search, config)
        if config.trial is not None:
            tried(TrialObjective.of, config)
            return None
        dataset = tried(load_dataset, data.name, **data.options)
        proxies = [config.proxy, *(config.in_setting(name).proxy for name in config.compare.settings)]
        for proxy in proxies:
            if proxy.data != data:
                tried(reader, proxy.data.name, proxy.data.options)
            self._check_network(proxy, dataset if proxy.data == data else None)
            tried(build_labels, proxy.labels.name, **proxy.labels.options)
        if config.retrain.data:
            tried(reader, data.name, data.options | config.retrain.data)
        for name in config.compare.losses:
            if dataset is not None:
                tried(losses_of, [name], dataset)
            elif ":" not in name:  # a user's own loss may need the data
                tried(loss_for_data, name, [1, 1])
        if dataset is not None:
            if (numbered := tried(config.with_class_numbers, dataset.classes)) is not None:
                tried(rivals_of, numbered)
            for spec in config.compare.metrics or ():
                if spec != CALIBRATION and any(proxy.data == data for proxy in proxies):
                    tried(metric, spec, class_names=dataset.classes)
        return None if self.mistakes else tried(proxy_of, config, dataset)

    def _check_network(self, proxy: ProxyConfig, dataset: Dataset | None) -> None:
        """Check a network and its weights, and whether they fit if the classes are known."""
        classes, start = 2 if dataset is None else len(dataset.classes), proxy.start
        network = self.tried(build_network, proxy.network.name, 3, classes, **proxy.network.options)
        weights = None if start.weights is None else self.tried(read_weights, start.weights)
        if network is None:
            return
        part = self.tried(encoder_prefix, network) if start.regime == "encoder" else ""
        if weights is not None and part is not None and dataset is not None:
            self.tried(matching_weights, weights, network, part, start.weights)


def _narrowing(config: StudyConfig) -> str:
    """What the rivals may change in the space."""
    narrowed = "auto" in (config.relaxation.curve, config.relaxation.logic) and config.rivals.losses != []
    return "; the best rivals decide what of it is searched" if narrowed and config.search.steps else ""


def _check_search(config: StudyConfig) -> None:
    LossFamily.of(config).check()
    algorithm_of(config)
    if not config.names_classes:
        rivals_of(config)


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


def _trials(config: StudyConfig) -> Trials:
    study = _new_study(config)
    if study.screening is None:
        return Trials(study.total, 0, None)
    screening = study.screening.total + (study.screening.rounds if config.guard else 0)
    screening += FIDELITY_RIVALS if has_longer_finals(config) else 0
    if not config.search.steps:
        return Trials(study.total, screening, None)
    alone = config.model_copy(update={"search": config.search.model_copy(update={"steps": 0})})
    recommending = _new_study(alone).total
    return Trials(study.total, screening, recommending if recommending < study.total else None)


def _new_study(config: StudyConfig) -> Study:
    with (
        tempfile.TemporaryDirectory(prefix="autosegloss-dry-run-") as folder,
        Journal(Path(folder, JOURNAL_FILE)) as new,
    ):
        return study_of(config, new, None)
