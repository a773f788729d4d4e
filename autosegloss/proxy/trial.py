"""A trial, a pure function of data and training settings, loss and seed: train the proxy, measure every metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from types import MappingProxyType
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from autosegloss.errors import DataError, InputError, RefusedError, cut
from autosegloss.loss.base import Loss, LossContent
from autosegloss.loss.classic import CrossEntropy
from autosegloss.loss.file import build_loss
from autosegloss.metric import METRICS, Accumulator, Accumulators, CalibrationError, Expr, Offsets, fit_offsets
from autosegloss.metric.expr import with_class_names
from autosegloss.proxy.data import Dataset, Split, load_dataset
from autosegloss.proxy.imports import use_folder
from autosegloss.proxy.labels import LabelSource, LabelTask, build_labels
from autosegloss.proxy.mean_teacher import Unlabelled
from autosegloss.proxy.networks import build_network, check_network, encoder_prefix
from autosegloss.proxy.networks.weights import matching_weights, read_weights
from autosegloss.proxy.own_loss import is_own, own_loss
from autosegloss.proxy.settings import ProxyConfig
from autosegloss.proxy.train import (
    LossFunction,
    Training,
    Weights,
    advance_together,
    initial_network,
    logits_of,
    one_thread,
    pretrain,
)
from autosegloss.proxy.users_code import users_code

P = ParamSpec("P")
T = TypeVar("T")

_EVALUATION_BATCH = 64  # images; bounds memory, without effect on the result


@dataclass(frozen=True)
class Evaluation:
    """The scores of a trained proxy.

    Args:
        reward: The target metric on the held-out part of the training set; with `Proxy.offsets`, after offsets.
        metrics: Every metric of the catalogue, and the guarded ones, on the held-out part, by name.
        validation: The target metric (`TARGET`), every metric of the catalogue and the IoU of each class
            (`IoU of <class>`) on the validation set, and the target after offsets (`WITH_OFFSETS`) if the reward is so;
            empty unless requested.
    """

    reward: float
    metrics: dict[str, float]
    validation: dict[str, float]


TARGET = "target"
"""The key of the target metric among the metrics."""
CLASS_PREFIX = "IoU of "
"""The prefix of the keys of the IoU of a class."""
WITH_OFFSETS = "target with offsets"
"""The key of the target metric on the validation set after offsets that were fitted on the whole held-out part."""


@dataclass(frozen=True)
class Proxy:
    """Everything that the trials of a study share. Calling it runs a trial.

    A proxy holds plain arrays, so that it can be sent to a worker process once. The training split is the labelled part
    of the data; `prepare` adds the soft labels of the settings.

    Args:
        settings: The section `proxy` of the configuration.
        target: The metric whose value on the held-out part is the reward.
        seed: Seed of the study, for what is made once for all trials.
        gpus: GPUs per trial; above 0, networks train on a GPU.
        dataset: The data.
        unlabelled: Training images whose labels are hidden.
        pretrained: The weights that trials start from; from a file, or made by `prepare`.
        folder: The folder of the configuration, where `module:function` is found too; None leaves Python's path.
        guarded: Metrics that every trial measures besides the target and the catalogue, by name.
        offsets: Whether the reward is the target metric after offsets, see `reward`.
    """

    settings: ProxyConfig
    target: Expr
    seed: int
    gpus: float
    dataset: Dataset
    unlabelled: Unlabelled | None = None
    pretrained: Weights | None = None
    folder: str | None = None
    guarded: Mapping[str, Expr] = field(default_factory=dict)
    offsets: bool = False

    @classmethod
    def load(
        cls,
        settings: ProxyConfig,
        target: Expr,
        *,
        seed: int = 0,
        gpus: float = 0.0,
        dataset: Dataset | None = None,
        folder: str | None = None,
        guarded: Mapping[str, Expr] = MappingProxyType({}),
        offsets: bool = False,
    ) -> Proxy:
        """Load the data, separate the unlabelled images, and check that the network can be built and its weights fit.

        Args:
            settings: See the class.
            target: See the class; classes that it names become numbers.
            seed: See the class.
            gpus: See the class.
            dataset: The data; None loads those of the settings.
            folder: See the class.
            guarded: See the class; likewise.
            offsets: See the class.

        Raises:
            DataError: The data set or the kind of labels is unknown, missing or unsuitable; or offsets can't be fitted,
                since the held-out part has fewer than two images.
            InputError: The network is unknown, the weights file does not fit, or the data has no such class.
            RefusedError: Trials need a GPU and this process, which prepares them, has none.
        """
        device_of(gpus)
        if folder is not None:
            use_folder(folder)
        if dataset is None:
            dataset = load_dataset(settings.data.name, **settings.data.options)
        if offsets and len(dataset.heldout.images) < 2:
            raise DataError(
                f"search.offsets: the held-out part has {len(dataset.heldout.images)} of the two images that are "
                "needed: offsets are fitted on one half of it and scored on the other. Hold out more images, or set "
                "search.offsets=false."
            )
        target = with_class_names(target, dataset.classes)
        numbered = {}
        for name, expr in guarded.items():
            try:
                numbered[name] = with_class_names(expr, dataset.classes)
            except InputError as error:
                raise InputError(f"`{cut(name)}`: {error}") from error
        start, named = settings.start, settings.network
        network = build_network(named.name, dataset.train.images.shape[1], len(dataset.classes), **named.options)
        part = encoder_prefix(network) if start.regime == "encoder" else ""
        weights = None
        if start.weights is not None:
            weights = matching_weights(read_weights(start.weights), network, part, start.weights)
        proxy = cls(
            settings, target, seed, gpus, dataset, pretrained=weights, folder=folder, guarded=numbered, offsets=offsets
        )
        labelled, unlabelled = proxy._labels.divide(proxy._task)
        return replace(proxy, dataset=replace(dataset, train=labelled), unlabelled=unlabelled)

    def check(self) -> None:
        """Run the network once on an empty image; not where trials have a GPU, as it may be made for one alone.

        Raises:
            InputError: The network fails, or returns something else than logits.
        """
        if self.gpus:
            return
        named, images = self.settings.network, self.dataset.train.images
        network = build_network(named.name, images.shape[1], len(self.dataset.classes), **named.options)
        check_network(network, named.name, torch.zeros(1, *images.shape[1:]), len(self.dataset.classes))

    def prepare(self) -> Proxy:
        """This proxy with what is made once per study: the pretrained weights, then the soft labels."""
        network, start = self.settings.network, self.settings.start
        split, begun = self.dataset.train, self
        if start.regime != "scratch" and self.pretrained is None:
            with users_code(f"the pretraining of network `{cut(network.name)}` failed"):
                weights = pretrain(
                    network.name,
                    split,
                    len(self.dataset.classes),
                    seed=self.seed,
                    iterations=start.iterations,
                    options=network.options,
                    device=device_of(self.gpus),
                )
            begun = replace(self, pretrained=weights)

        def train_teacher(iterations: int) -> nn.Module:
            return begun.trained(CrossEntropy(ignore_index=self.dataset.ignore_index), self.seed, iterations)

        soft = self._labels.soften(self._task, train_teacher)
        return replace(begun, dataset=replace(self.dataset, train=replace(split, soft=soft)))

    def __call__(self, loss: LossContent, seed: int, validate: bool = False) -> Evaluation:
        """Train with a loss and evaluate.

        Args:
            loss: The content of a loss file.
            seed: Seed of the initial weights (unless pretrained), the order of the images and their flips.
            validate: Whether to evaluate on the validation set as well.

        Raises:
            TrainingDiverged: The loss or a weight is not finite.
        """
        (found,) = self.run_group([loss], seed, validate)
        if isinstance(found, Exception):
            raise found
        return found

    def run_group(
        self,
        losses: Sequence[LossContent],
        seed: int,
        validate: bool = False,
        rates: Sequence[float] | None = None,
        iterations: int | None = None,
    ) -> list[Evaluation | Exception]:
        """Run several trials of one seed side by side in this process, preparing each batch once for all of them.

        Args:
            losses: The content of a loss file for each trial.
            seed: See `__call__`.
            validate: See `__call__`.
            rates: The factor of the learning rate of each trial; None is 1 for all.
            iterations: Number of iterations; None takes that of the settings.

        Returns:
            The result of each trial as run alone, bit for bit on the CPU, or its exception.
        """
        factors = [1.0] * len(losses) if rates is None else rates
        begun = [_caught(self._begin, loss, seed, iterations, rate) for loss, rate in zip(losses, factors, strict=True)]
        trainings = [training for training in begun if isinstance(training, Training)]
        with one_thread():
            errors = iter(advance_together(trainings) if trainings else [])
        ended = [next(errors) or training if isinstance(training, Training) else training for training in begun]
        return [
            _caught(self.evaluation, each.network, validate) if isinstance(each, Training) else each for each in ended
        ]

    def _begin(self, loss: LossContent, seed: int, iterations: int | None, rate: float) -> Training:
        return self.training(self.loss(loss), seed, iterations, rate=rate)

    def loss(self, content: LossContent) -> Loss:
        """Build the loss of a loss file, or a user's own loss, for the labels of this data set."""
        self._find_modules()
        if is_own(content):
            return own_loss(content, self.dataset.ignore_index)
        return build_loss(content, self.dataset.ignore_index)

    def evaluation(
        self, network: nn.Module, validate: bool, more: Mapping[str, Expr] = MappingProxyType({})
    ) -> Evaluation:
        """Evaluate a network.

        Args:
            network: A trained network.
            validate: Whether to evaluate on the validation set as well.
            more: Further metrics on the validation set.
        """
        every = {**measured(self.target), **self.guarded}
        metrics = self._evaluate(network, self.dataset.heldout, every).values()
        reward = metrics.pop(TARGET)
        if self.offsets:
            reward = self.reward(network)
        if not validate:
            return Evaluation(reward, metrics, {})
        scores = self._evaluate(network, self.dataset.validation, {**every, **more})
        values = validation_values(scores, self.dataset.classes)
        if self.offsets:
            values = {TARGET: values[TARGET], WITH_OFFSETS: self.with_offsets(network)} | values
        return Evaluation(reward, metrics, values)

    def reward(self, network: nn.Module) -> float:
        """The target metric of a network on the held-out part.

        With `offsets`, each half of the images, those of even and those of odd index, is scored after offsets that were
        fitted on the other half, and the reward is the mean of both: no image is scored after offsets that it had a
        part in.
        """
        heldout = self.dataset.heldout
        if not self.offsets:
            return self._evaluate(network, heldout, {TARGET: self.target}).values()[TARGET]
        halves = [list(_with_labels(network, _part(heldout, slice(start, None, 2)))) for start in (0, 1)]
        fitted = [self._fitted(half) for half in halves]
        return fmean(self._target(*each) for each in zip(halves, reversed(fitted), strict=True))

    def offsets_of(self, network: nn.Module) -> Offsets:
        """The offsets that maximise the target metric of a network on the held-out part; see `fit_offsets`."""
        return self._fitted(list(_with_labels(network, self.dataset.heldout)))

    def with_offsets(self, network: nn.Module) -> float:
        """The target metric of a network on the validation set, after the offsets of the held-out part."""
        return self._target(_with_labels(network, self.dataset.validation), self.offsets_of(network))

    def _fitted(self, batches: Sequence[tuple[Tensor, Tensor]]) -> Offsets:
        with one_thread():  # other trials have the other cores
            return fit_offsets(self.target, batches, len(self.dataset.classes), ignore_index=self.dataset.ignore_index)

    def _target(self, batches: Iterable[tuple[Tensor, Tensor]], offsets: Offsets) -> float:
        accumulator = Accumulator(self.target, len(self.dataset.classes), self.dataset.ignore_index)
        for logits, labels in batches:
            accumulator.update(offsets.apply(logits), labels)
        return accumulator.compute()

    def trained(self, loss: LossFunction, seed: int, iterations: int | None = None, rate: float = 1.0) -> nn.Module:
        """Train a network with a loss; equal seeds give equal initial weights, images and flips for every loss.

        Args:
            loss: The loss.
            seed: See `__call__`.
            iterations: Number of iterations; None takes that of the settings.
            rate: A factor of the learning rate.

        Raises:
            TrainingDiverged: The loss or a weight is not finite.
            RefusedError: Trials need a GPU and this process has none.
        """
        training = self.training(loss, seed, iterations, rate=rate)
        with users_code(f"the training of network `{cut(self.settings.network.name)}` failed"), one_thread():
            training.advance()
        return training.network

    def training(
        self,
        loss: LossFunction,
        seed: int,
        iterations: int | None = None,
        device: torch.device | None = None,
        *,
        rate: float = 1.0,
        **more: bool,
    ) -> Training:
        """The training run of `trained`, before its first iteration.

        Args:
            loss: The loss.
            seed: See `__call__`.
            iterations: Number of iterations; None takes that of the settings.
            device: The device; None is the GPU if trials have one.
            rate: A factor of the learning rate.
            **more: `over_ranks` of `Training`.
        """
        self._find_modules()
        device = device_of(self.gpus) if device is None else device
        settings, dataset = self.settings, self.dataset
        if isinstance(loss, nn.Module):
            loss = loss.to(device)
        network = initial_network(
            settings.network.name,
            len(dataset.classes),
            settings.start.regime,
            self.pretrained,
            seed=seed,
            options=settings.network.options,
        )
        train = settings.train
        if iterations is not None:
            train = train.model_copy(update={"iterations": iterations})
        if rate != 1:
            train = train.model_copy(update={"learning_rate": rate * train.peak_learning_rate})
        return Training(network.to(device), dataset.train, loss, train, seed=seed, unlabelled=self.unlabelled, **more)

    def calibration_error(self, network: nn.Module) -> float:
        """The expected calibration error of a network on the validation set, for its most probable classes."""
        error = CalibrationError(len(self.dataset.classes), ignore_index=self.dataset.ignore_index)
        with one_thread():  # the number of threads may change the last bit of an exponential
            for logits, labels in _with_labels(network, self.dataset.validation):
                error.update(logits, labels)
        return error.compute()

    def _find_modules(self) -> None:
        """Let this process, which may be another than that which read the configuration, find the modules beside it."""
        if self.folder is not None:
            use_folder(self.folder)

    @property
    def _labels(self) -> LabelSource:
        return build_labels(self.settings.labels.name, **self.settings.labels.options)

    @property
    def _task(self) -> LabelTask:
        network = self.settings.network
        return LabelTask(self.dataset, network.name, self.seed, network.options)

    def _evaluate(self, network: nn.Module, split: Split, metrics: Mapping[str, Expr]) -> Accumulators:
        accumulators = Accumulators(metrics, len(self.dataset.classes), self.dataset.ignore_index)
        for logits, labels in _with_labels(network, split):
            accumulators.update(logits.argmax(dim=1), labels)
        return accumulators


def _caught(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | Exception:
    """The result of a function, or the exception that it raises."""
    try:
        return work(*arguments, **options)
    except Exception as error:
        return error


def _with_labels(network: nn.Module, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of logits (n, C, H, W) and labels (n, H, W), on the device of the network."""
    for number, logits in enumerate(logits_of(network, split.images, _EVALUATION_BATCH)):
        labels = split.labels[number * _EVALUATION_BATCH :][: len(logits)]
        yield logits, torch.from_numpy(labels).to(logits.device)


def _part(split: Split, images: slice) -> Split:
    """Some images of a split for evaluation, with their labels."""
    return Split(split.images[images], split.labels[images])


def device_of(gpus: float) -> torch.device:
    """The device that networks train on: the GPU if trials have one; Ray shows each worker its own.

    Args:
        gpus: GPUs per trial, `resources.gpus` of the configuration.

    Raises:
        RefusedError: Trials need a GPU and this process has none.
    """
    if gpus and not torch.cuda.is_available():
        raise RefusedError(
            f"resources.gpus is {gpus:g}, but torch {torch.__version__} finds no CUDA device in this process. Set "
            "resources.gpus=0, or run on a machine with a GPU and a CUDA build of torch."
        )
    return torch.device("cuda" if gpus else "cpu")


def validation_values(scores: Accumulators, classes: Sequence[str]) -> dict[str, float]:
    """The validation scores of a network, with the IoU of each class, from the accumulators of `measured`."""
    of_classes = zip(classes, scores.class_values("miou") or (), strict=True)
    return scores.values() | {CLASS_PREFIX + name: 0.0 if value is None else value for name, value in of_classes}


def measured(target: Expr) -> Mapping[str, Expr]:
    """The metrics of every trial: the target, and the catalogue with its default options."""
    return {TARGET: target, **{name: build() for name, build in METRICS.items()}}
