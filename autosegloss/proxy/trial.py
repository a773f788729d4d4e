"""A trial, a pure function of configuration, theta and seed: train the proxy with one loss, measure every metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from autosegloss.config import StudyConfig
from autosegloss.errors import RefusedError
from autosegloss.loss import MixedLoss, SearchSpace, SurrogateLoss
from autosegloss.loss.classic import CrossEntropy
from autosegloss.metric import METRICS, Accumulators, CalibrationError, Expr, metric
from autosegloss.proxy.data import Dataset, Split, load_dataset
from autosegloss.proxy.labels import Labels, Task, build_labels
from autosegloss.proxy.networks import build_network, encoder_prefix
from autosegloss.proxy.networks.weights import fitting, read_weights
from autosegloss.proxy.pseudo import Unlabelled
from autosegloss.proxy.train import (
    Loss,
    Settings,
    State,
    Training,
    advance_together,
    initial_network,
    logits_of,
    one_thread,
    pretrain,
)

P = ParamSpec("P")
T = TypeVar("T")

_EVALUATION_BATCH = 64  # images; bounds the memory of one evaluation step, without influence on its result


@dataclass(frozen=True)
class Evaluation:
    """What a trained proxy scores.

    Args:
        reward: The target metric on the held-out part of the training set.
        metrics: Every metric of the catalogue there, by name.
        validation: On the validation set, the target metric, as `TARGET`, every metric of the catalogue, and the IoU of
            each class, as `IoU of <class>`; empty unless asked for.
    """

    reward: float
    metrics: dict[str, float]
    validation: dict[str, float]


TARGET = "target"
"""The name under which the metric of the study stands among the others."""
CLASS_PREFIX = "IoU of "
"""What the name of a class's IoU begins with."""


@dataclass(frozen=True)
class Proxy:
    """All that the trials of a study share: the configuration, the data and the pretrained weights.

    Calling it runs a trial. It holds plain arrays, so that it can be sent to a worker process once. The training split
    of its data is the labelled part only, with the soft labels that the configuration asks for once it is prepared.
    """

    config: StudyConfig
    dataset: Dataset
    unlabelled: Unlabelled | None = None
    pretrained: State | None = None

    @classmethod
    def load(cls, config: StudyConfig) -> Proxy:
        """Load the data, put aside what is to be unlabelled, and see that there is such a network.

        Raises:
            DataError: The data set or the kind of labels is unknown, missing or does not fit.
            InputError: The network is unknown, or the file of its weights does not fit.
            RefusedError: Trials are to train on GPUs, and this process, which prepares them, has none.
        """
        device_of(config)
        return cls.of(config, load_dataset(config.proxy.data.name, **config.proxy.data.options))

    @classmethod
    def of(cls, config: StudyConfig, dataset: Dataset) -> Proxy:
        """The same with a data set that is loaded."""
        start, named = config.proxy.start, config.proxy.network
        network = build_network(named.name, dataset.train.images.shape[1], len(dataset.classes), **named.options)
        part = encoder_prefix(network) if start.regime == "encoder" else ""
        weights = None
        if start.weights is not None:
            weights = fitting(read_weights(start.weights), network, part, start.weights)
        labelled, unlabelled = _labels(config).divide(_task(config, dataset))
        return cls(config, replace(dataset, train=labelled), unlabelled, weights)

    def prepare(self) -> Proxy:
        """This proxy with what is made once a study: the weights that its regime starts from, then soft labels."""
        network, start, seed = self.config.proxy.network, self.config.proxy.start, self.config.search.seed
        split, begun = self.dataset.train, self
        if start.regime != "scratch" and self.pretrained is None:
            classes = len(self.dataset.classes)
            weights = pretrain(
                network.name,
                split,
                classes,
                seed=seed,
                iterations=start.iterations,
                options=network.options,
                device=device_of(self.config),
            )
            begun = replace(self, pretrained=weights)

        def teach(iterations: int) -> nn.Module:
            return begun.trained(self.loss(None), seed, iterations)

        soft = _labels(self.config).soften(_task(self.config, self.dataset), teach)
        return replace(begun, dataset=replace(self.dataset, train=replace(split, soft=soft)))

    def __call__(self, theta: tuple[float, ...] | None, seed: int, validate: bool = False) -> Evaluation:
        """Train with the loss at `theta` and evaluate.

        Args:
            theta: Coordinates of the loss, see `search_space`; None is cross-entropy.
            seed: Decides the initial weights (of what is not pretrained), the order of the images and their flips.
            validate: Whether to evaluate on the validation set as well.

        Raises:
            TrainingDiverged: The loss or a weight is not finite.
        """
        (found,) = self.together([theta], seed, validate)
        if isinstance(found, Exception):
            raise found
        return found

    def together(
        self,
        thetas: Sequence[tuple[float, ...] | None],
        seed: int,
        validate: bool = False,
    ) -> list[Evaluation | Exception]:
        """Run several trials of one seed side by side in this process, each batch made once for all of them.

        Args:
            thetas: As for a trial, one each.
            seed: As for a trial.
            validate: As for a trial.

        Returns:
            What each one gives by itself, on the CPU to the bit, or what it raises.
        """
        begun = [_caught(self._begun, theta, seed) for theta in thetas]
        trainings = [training for training in begun if isinstance(training, Training)]
        with one_thread():
            errors = iter(advance_together(trainings) if trainings else [])
        ended = [next(errors) or training if isinstance(training, Training) else training for training in begun]
        return [
            _caught(self.evaluation, each.network, validate) if isinstance(each, Training) else each for each in ended
        ]

    def _begun(self, theta: tuple[float, ...] | None, seed: int) -> Training:
        return self.training(self.loss(theta), seed)

    def evaluation(
        self, network: nn.Module, validate: bool, more: Mapping[str, Expr] = MappingProxyType({})
    ) -> Evaluation:
        """What a network scores.

        Args:
            network: A trained one.
            validate: Whether to evaluate on the validation set as well.
            more: What to measure there beside the metrics of every trial.
        """
        metrics = self._evaluate(network, self.dataset.heldout, measured(self.config)).values()
        reward = metrics.pop(TARGET)
        if not validate:
            return Evaluation(reward, metrics, {})
        scores = self._evaluate(network, self.dataset.validation, {**measured(self.config), **more})
        return Evaluation(reward, metrics, validation_values(scores, self.dataset.classes))

    def target(self, network: nn.Module) -> float:
        """The target metric of a network on the held-out part, which of a trained one is the reward."""
        return self._evaluate(network, self.dataset.heldout, {TARGET: metric(self.config.metric)}).values()[TARGET]

    def trained(self, loss: Loss, seed: int, iterations: int | None = None) -> nn.Module:
        """A network trained with a loss; equal seeds give equal initial weights, images and flips, whatever the loss.

        Args:
            loss: What to train with.
            seed: As for a trial.
            iterations: Steps; None is what the configuration says.

        Raises:
            TrainingDiverged: The loss or a weight is not finite.
            RefusedError: It is to train on a GPU, and this process has none.
        """
        training = self.training(loss, seed, iterations)
        with one_thread():
            training.advance()
        return training.network

    def training(
        self, loss: Loss, seed: int, iterations: int | None = None, device: torch.device | None = None, **more: bool
    ) -> Training:
        """The training that `trained` goes through, before its first step.

        Args:
            loss: What to train with.
            seed: As for a trial.
            iterations: Steps; None is what the configuration says.
            device: Where to train; None is the GPU if the configuration gives trials one.
            **more: `over_ranks` of `Training`.
        """
        device = device_of(self.config) if device is None else device
        proxy, dataset = self.config.proxy, self.dataset
        network = initial_network(
            proxy.network.name,
            len(dataset.classes),
            proxy.start.regime,
            self.pretrained,
            seed=seed,
            options=proxy.network.options,
        )
        settings = proxy.train.model_dump(include={field.name for field in fields(Settings)})
        if iterations is not None:
            settings["iterations"] = iterations
        return Training(
            network.to(device), dataset.train, loss, Settings(**settings), seed=seed, unlabelled=self.unlabelled, **more
        )

    def calibration_error(self, network: nn.Module) -> float:
        """The expected calibration error of a network on the validation set, of its most probable classes."""
        error = CalibrationError(len(self.dataset.classes), ignore_index=self.dataset.ignore_index)
        with one_thread():  # the number of threads may change the last bit of an exponential
            for logits, labels in _with_labels(network, self.dataset.validation):
                error.update(logits, labels)
        return error.compute()

    def loss(self, theta: tuple[float, ...] | None) -> Loss:
        """The loss at a point of the search space; None is cross-entropy."""
        ignore_index = self.dataset.ignore_index
        return CrossEntropy(ignore_index=ignore_index) if theta is None else surrogate(self.config, theta, ignore_index)

    def _evaluate(self, network: nn.Module, split: Split, metrics: Mapping[str, Expr]) -> Accumulators:
        accumulators = Accumulators(metrics, len(self.dataset.classes), self.dataset.ignore_index)
        for logits, labels in _with_labels(network, split):
            accumulators.update(logits.argmax(dim=1), labels)
        return accumulators


def _caught(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | Exception:
    """What some work gives, or what it raises."""
    try:
        return work(*arguments, **options)
    except Exception as error:
        return error


def _with_labels(network: nn.Module, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (n, C, H, W) and labels (n, H, W), batch by batch, on the device that the network is on."""
    for number, logits in enumerate(logits_of(network, split.images, _EVALUATION_BATCH)):
        labels = split.labels[number * _EVALUATION_BATCH :][: len(logits)]
        yield logits, torch.from_numpy(labels).to(logits.device)


def device_of(config: StudyConfig) -> torch.device:
    """Where networks train: the GPU, of which Ray shows each worker its own, if `resources.gpus` asks for one."""
    gpus = config.resources.gpus
    if gpus and not torch.cuda.is_available():
        raise RefusedError(
            f"resources.gpus is {gpus:g}, but torch {torch.__version__} finds no CUDA device in this process. Set "
            "resources.gpus=0, or run where there is a GPU and a torch built for it."
        )
    return torch.device("cuda" if gpus else "cpu")


def _task(config: StudyConfig, dataset: Dataset) -> Task:
    network = config.proxy.network
    return Task(dataset, network.name, config.search.seed, network.options)


def _labels(config: StudyConfig) -> Labels:
    return build_labels(config.proxy.labels.name, **config.proxy.labels.options)


def search_space(config: StudyConfig) -> SearchSpace:
    """The space of losses that a configuration describes."""
    relaxation = config.relaxation
    return SearchSpace(
        metric(config.metric),
        relaxation.curve,
        relaxation.pieces,
        relaxation.share_curves,
        cross_entropy=relaxation.cross_entropy == "searched",
    )


def surrogate(config: StudyConfig, theta: tuple[float, ...], ignore_index: int = 255) -> SurrogateLoss | MixedLoss:
    """The loss at a point of a configuration's search space."""
    space, relaxation = search_space(config), config.relaxation
    loss = SurrogateLoss(
        space.expr,
        space.control_points(theta),
        logic=relaxation.logic,
        curve=relaxation.curve,
        classes=relaxation.classes,
        ignore_index=ignore_index,
    )
    if relaxation.cross_entropy == 0:
        return loss
    return MixedLoss(loss, theta[-1] if relaxation.cross_entropy == "searched" else relaxation.cross_entropy)


def validation_values(scores: Accumulators, classes: Sequence[str]) -> dict[str, float]:
    """All that is said of a network on the validation set, from what was counted there of the metrics of `measured`."""
    of_classes = zip(classes, scores.class_values("miou") or (), strict=True)
    return scores.values() | {CLASS_PREFIX + name: 0.0 if value is None else value for name, value in of_classes}


def measured(config: StudyConfig) -> Mapping[str, Expr]:
    """What every trial measures: the target metric, and the catalogue with its default options."""
    return {TARGET: metric(config.metric), **{name: build() for name, build in METRICS.items()}}
