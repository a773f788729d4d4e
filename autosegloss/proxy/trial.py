"""A trial, a pure function of configuration, theta and seed: train the proxy with one loss, measure every metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from autosegloss.config import StudyConfig
from autosegloss.loss import MixedLoss, SearchSpace, SurrogateLoss
from autosegloss.metric import METRICS, Accumulators, Expr, metric
from autosegloss.proxy.data import Dataset, Split, load_dataset
from autosegloss.proxy.networks import build_network
from autosegloss.proxy.train import Loss, State, initial_network, predict, pretrain, train

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

    Calling it runs a trial. It holds plain arrays, so that it can be sent to a worker process once.
    """

    config: StudyConfig
    dataset: Dataset
    pretrained: State | None = None

    @classmethod
    def load(cls, config: StudyConfig) -> Proxy:
        """Load the data and see that there is such a network.

        Raises:
            DataError: The data set is unknown or missing.
            InputError: The network is unknown.
        """
        dataset = load_dataset(config.proxy.data.name, **config.proxy.data.options)
        build_network(config.proxy.network.name, dataset.train.images.shape[1], len(dataset.classes))
        return cls(config, dataset)

    def prepare(self) -> Proxy:
        """This proxy with pretrained weights, made once a study unless its regime is `scratch`."""
        start = self.config.proxy.start
        if start.regime == "scratch":
            return self
        network, classes = self.config.proxy.network.name, len(self.dataset.classes)
        seed, iterations = self.config.search.seed, start.iterations
        return replace(
            self, pretrained=pretrain(network, self.dataset.train, classes, seed=seed, iterations=iterations)
        )

    def __call__(self, theta: tuple[float, ...] | None, seed: int, validate: bool = False) -> Evaluation:
        """Train with the loss at `theta` and evaluate.

        Args:
            theta: Coordinates of the loss, see `search_space`; None is cross-entropy.
            seed: Decides the initial weights (of what is not pretrained), the order of the images and their flips.
            validate: Whether to evaluate on the validation set as well.

        Raises:
            TrainingDiverged: The loss or a weight is not finite.
        """
        proxy, dataset = self.config.proxy, self.dataset
        network = initial_network(
            proxy.network.name, len(dataset.classes), proxy.start.regime, self.pretrained, seed=seed
        )
        train(
            network,
            dataset.train,
            self.loss(theta),
            seed=seed,
            iterations=proxy.train.iterations,
            batch_size=proxy.train.batch_size,
            optimizer=proxy.train.optimizer,
            learning_rate=proxy.train.learning_rate,
        )
        metrics = self._evaluate(network, dataset.heldout).values()
        reward = metrics.pop(TARGET)
        if not validate:
            return Evaluation(reward, metrics, {})
        scores = self._evaluate(network, dataset.validation)
        of_classes = zip(dataset.classes, scores.class_values("miou") or (), strict=True)
        classes = {CLASS_PREFIX + name: 0.0 if value is None else value for name, value in of_classes}
        return Evaluation(reward, metrics, scores.values() | classes)

    def loss(self, theta: tuple[float, ...] | None) -> Loss:
        """The loss at a point of the search space; None is cross-entropy."""
        ignore_index = self.dataset.ignore_index
        if theta is None:

            def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
                return functional.cross_entropy(logits, target, ignore_index=ignore_index)

            return cross_entropy
        return surrogate(self.config, theta, ignore_index)

    def _evaluate(self, network: torch.nn.Module, split: Split) -> Accumulators:
        accumulators = Accumulators(measured(self.config), len(self.dataset.classes), self.dataset.ignore_index)
        labels = predict(network, split, _EVALUATION_BATCH)
        for start in range(0, len(labels), _EVALUATION_BATCH):
            part = slice(start, start + _EVALUATION_BATCH)
            accumulators.update(torch.from_numpy(labels[part]), torch.from_numpy(split.labels[part]))
        return accumulators


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


def measured(config: StudyConfig) -> Mapping[str, Expr]:
    """What every trial measures: the target metric, and the catalogue with its default options."""
    return {TARGET: metric(config.metric), **{name: build() for name, build in METRICS.items()}}
