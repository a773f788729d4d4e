"""A trial, a pure function of configuration, theta and seed: train the proxy with one loss, measure every metric."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from autosegloss.config import StudyConfig
from autosegloss.errors import RefusedError
from autosegloss.loss import MixedLoss, SearchSpace, SurrogateLoss
from autosegloss.loss.classic import CrossEntropy
from autosegloss.metric import METRICS, Accumulator, Accumulators, CalibrationError, Expr, metric
from autosegloss.proxy.data import Dataset, Split, load_dataset
from autosegloss.proxy.filter import IMAGES, descent
from autosegloss.proxy.labels import Labels, Task, build_labels
from autosegloss.proxy.networks import build_network, encoder_prefix
from autosegloss.proxy.networks.weights import fitting, read_weights
from autosegloss.proxy.pseudo import Unlabelled
from autosegloss.proxy.train import (
    Loss,
    Regime,
    Settings,
    State,
    Training,
    advance_together,
    initial_network,
    logits_of,
    one_thread,
    pretrain,
)

_EVALUATION_BATCH = 64  # images; bounds the memory of one evaluation step, without influence on its result


@dataclass(frozen=True)
class Evaluation:
    """What a trained proxy scores.

    Args:
        reward: The target metric on the held-out part of the training set.
        metrics: Every metric of the catalogue there, by name; none of a training that was given up.
        validation: On the validation set, the target metric, as `TARGET`, every metric of the catalogue, and the IoU of
            each class, as `IoU of <class>`; empty unless asked for.
        early: What was shown early, if it was looked at.
        pruned: Whether the trial was given up then; `reward` is `early`.
    """

    reward: float
    metrics: dict[str, float]
    validation: dict[str, float]
    early: float | None = None
    pruned: bool = False


EARLY = 0.3
"""Of the iterations, after which a trial may be given up for its metric."""
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

    def __call__(
        self, theta: tuple[float, ...] | None, seed: int, validate: bool = False, floor: float | None = None
    ) -> Evaluation:
        """Train with the loss at `theta` and evaluate.

        Args:
            theta: Coordinates of the loss, see `search_space`; None is cross-entropy.
            seed: Decides the initial weights (of what is not pretrained), the order of the images and their flips.
            validate: Whether to evaluate on the validation set as well.
            floor: If given, the trial is given up if what it shows early is below: as `search.prune_by` says, the
                target metric of a few training images whose pretrained logits descend the loss by themselves, or that
                of the network on the held-out part after a share `EARLY` of the iterations.

        Raises:
            TrainingDiverged: The loss or a weight is not finite.
        """
        (found,) = self.together([theta], seed, validate, floor)
        if isinstance(found, Exception):
            raise found
        return found

    def together(
        self,
        thetas: Sequence[tuple[float, ...] | None],
        seed: int,
        validate: bool = False,
        floor: float | None = None,
    ) -> list[Evaluation | Exception]:
        """Run several trials of one seed side by side in this process, each batch made once for all of them.

        Args:
            thetas: As for a trial, one each.
            seed: As for a trial.
            validate: As for a trial.
            floor: As for a trial.

        Returns:
            What each one gives by itself, on the CPU to the bit, or what it raises.
        """
        ended: dict[int, Evaluation | Exception] = {}
        running = {number: self._course(theta, seed, validate, floor) for number, theta in enumerate(thetas)}
        errors: dict[int, Exception | None] = dict.fromkeys(running)
        while running:
            asked: dict[int, tuple[Training, int | None]] = {}
            for number, course in running.items():
                if (broken := errors[number]) is not None:
                    ended[number] = broken
                    continue
                try:
                    asked[number] = next(course)
                except StopIteration as stop:
                    ended[number] = stop.value
                except Exception as error:
                    ended[number] = error
            running = {number: running[number] for number in asked}
            if running:
                trainings, (until, *_) = zip(*asked.values(), strict=True)  # all ask for the same
                with one_thread():
                    errors = dict(zip(running, advance_together(trainings, until), strict=True))
        return [ended[number] for number in range(len(thetas))]

    def _course(
        self, theta: tuple[float, ...] | None, seed: int, validate: bool, floor: float | None
    ) -> Generator[tuple[Training, int | None], None, Evaluation]:
        """A trial, that asks for its training to be advanced to an iteration."""
        loss, early = self.loss(theta), None
        training = self.training(loss, seed)
        if floor is not None:
            if self.config.search.prune_by == "logits":
                with one_thread():
                    early = self.descent(loss)[-1]
            else:
                yield training, max(1, round(EARLY * self.config.proxy.train.iterations))
                early = self.target(training.network)
            if early < floor:
                return Evaluation(early, {}, {}, early, pruned=True)
        yield training, None
        return replace(self.evaluation(training.network, validate), early=early)

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

    def descent(self, loss: Loss, regime: Regime = "checkpoint", seed: int = 0, **options: Any) -> list[float]:
        """The target metric of a few training images while their logits descend a loss by themselves, see `descent`.

        Args:
            loss: What they descend.
            regime: Of the network that gives the logits.
            seed: Of what is fresh in that network.
            options: Passed on.
        """
        labels = torch.from_numpy(self.dataset.train.labels[:IMAGES]).to(torch.int64)
        logits = next(logits_of(self._initial(regime, seed), self.dataset.train.images[:IMAGES]))
        exact = Accumulator(metric(self.config.metric), len(self.dataset.classes), self.dataset.ignore_index)
        return descent(loss, logits, labels, exact, **options)

    def _initial(self, regime: Regime, seed: int) -> nn.Module:
        named = self.config.proxy.network
        return initial_network(
            named.name, len(self.dataset.classes), regime, self.pretrained, seed=seed, options=named.options
        )

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
        network = self._initial(proxy.start.regime, seed)
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
