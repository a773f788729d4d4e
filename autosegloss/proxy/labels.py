"""The labels that proxies train on: each kind is a class whose fields are its options.

Soft labels are computed once per study, for all training images, and shared by its trials as an array.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from torch import nn

from autosegloss.errors import DataError, InputError, cut, did_you_mean, shown
from autosegloss.proxy.data import IGNORE_INDEX, Dataset, Split, check_options
from autosegloss.proxy.mean_teacher import Unlabelled
from autosegloss.proxy.networks import build_network
from autosegloss.proxy.networks.weights import check_finite, read_weights
from autosegloss.proxy.train import Weights, logits_of, one_thread

Soft = NDArray[np.float16]
"""Shares of the classes, (N, C, H, W): half precision, accurate to 0.0005."""


@dataclass(frozen=True)
class LabelTask:
    """The context of the labels: the data set, of which only `train` changes, the network and the seed of the study."""

    dataset: Dataset
    network: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the network."""


TrainTeacher = Callable[[int], nn.Module]
"""Trains a network like the proxies of the study, but with cross-entropy on hard labels, for a number of iterations."""


class LabelSource(ABC):
    """A source of training labels."""

    def divide(self, task: LabelTask) -> tuple[Split, Unlabelled | None]:
        """The labelled images, which pretraining uses too, and the unlabelled ones; trains nothing.

        Raises:
            DataError: The options don't fit the task.
        """
        return task.dataset.train, None

    @abstractmethod
    def soften(self, task: LabelTask, train_teacher: TrainTeacher) -> Soft | None:
        """Soft labels of the images of `task.dataset.train`, or None to use the hard labels.

        Args:
            task: The context, with the labelled images of `divide`.
            train_teacher: Trains a network, for labels that need one.
        """


@dataclass(frozen=True)
class Hard(LabelSource):
    """The hard labels, unchanged."""

    def soften(self, task: LabelTask, train_teacher: TrainTeacher) -> None:
        return None


@dataclass(frozen=True)
class Smoothed(LabelSource):
    """Label smoothing: a share of 1 - amount for the class of the label, plus amount / C for every class.

    Args:
        amount: In [0, 1].
        where: "everywhere", or "boundary" for pixels near another label only.
        radius: Chebyshev distance to another label up to which a pixel is near it, in pixels; used with "boundary".
            Neither the border of the image nor an ignored pixel is another label.

    Reference: Szegedy et al., Rethinking the Inception architecture, CVPR 2016; at boundaries: Wang et al., Jaccard
    metric losses, NeurIPS 2023.
    """

    amount: float = 0.1
    where: str = "everywhere"
    radius: int = 1

    def __post_init__(self) -> None:
        _check("smoothed", "amount", self.amount, 0, 1)
        if self.where not in ("everywhere", "boundary"):
            raise DataError(f"labels `smoothed`: where must be everywhere or boundary, got {shown(self.where)}.")
        _check("smoothed", "radius", self.radius, 1, whole=True)

    def soften(self, task: LabelTask, train_teacher: TrainTeacher) -> Soft:
        labels, classes = task.dataset.train.labels, len(task.dataset.classes)
        amount = np.full(labels.shape, self.amount)
        if self.where == "boundary":
            amount *= near_boundary(labels, self.radius)
        return _half(
            (1 - own) * hard + own / classes
            for own, hard in zip(amount[:, None], _one_hot(labels, classes), strict=True)
        )


@dataclass(frozen=True)
class Distilled(LabelSource):
    """Knowledge distillation: a share of 1 - share for the class of the label, plus share times the teacher's output.

    Args:
        teacher: Path of the teacher's weights, a state dictionary of the study's network as `torch.save` writes it.
            None trains a teacher at the start of the study, like the proxies but with cross-entropy and for longer.
            (From scratch it would be worse than students that start from a checkpoint: on `shapes` a mean IoU of 63
            after 600 iterations instead of 79.)
        iterations: Iterations of that training.
        temperature: The output of the teacher is softmax(logits / temperature).
        share: In [0, 1].

    Reference: Hinton et al., Distilling the knowledge in a neural network, 2015.
    """

    teacher: str | None = None
    iterations: int = 600
    temperature: float = 2.0
    share: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, str | None):
            raise DataError(f"labels `distilled`: teacher must be the path of a file, got {shown(self.teacher)}.")
        _check("distilled", "iterations", self.iterations, 1, whole=True)
        _check("distilled", "temperature", self.temperature, 0.01)  # below, the output is one-hot
        _check("distilled", "share", self.share, 0, 1)

    def divide(self, task: LabelTask) -> tuple[Split, None]:
        self._from_file(task)
        return task.dataset.train, None

    def soften(self, task: LabelTask, train_teacher: TrainTeacher) -> Soft:
        split, classes = task.dataset.train, len(task.dataset.classes)
        network = self._from_file(task) or train_teacher(self.iterations)
        said = (
            image
            for logits in logits_of(network, split.images)
            for image in (logits.cpu() / self.temperature).softmax(1).numpy()
        )
        with one_thread():  # the number of threads may change the last bit of a softmax
            return _half(
                (1 - self.share) * hard + self.share * soft
                for hard, soft in zip(_one_hot(split.labels, classes), said, strict=True)
            )

    def _from_file(self, task: LabelTask) -> nn.Module | None:
        if self.teacher is None:
            return None
        network = build_network(
            task.network, task.dataset.train.images.shape[1], len(task.dataset.classes), **task.options
        )
        network.load_state_dict(self._weights(network))
        return network

    def _weights(self, network: nn.Module) -> Weights:
        """The weights in the teacher's file, of the shapes that the network has."""
        try:
            state = read_weights(str(self.teacher))
            check_finite(state, str(self.teacher))
        except InputError as error:
            raise DataError(f"labels `distilled`: {error}") from None
        if _shapes(state) != _shapes(network.state_dict()):
            raise DataError(
                f"labels `distilled`: {self.teacher} must hold all weights of the study's network, as "
                "torch.save(network.state_dict(), path) writes them."
            )
        return state


@dataclass(frozen=True)
class Pseudo(LabelSource):
    """Semi-supervised: some images keep their labels; on the others the network learns from its own moving average.

    The seed of the study decides which images keep their labels; all training in the study, including pretraining, uses
    only these. Each iteration takes a batch of labelled and a batch of unlabelled images.

    Args:
        labelled: Share of the training images that keep their labels.
        weight: See `Unlabelled`.
        threshold: See `Unlabelled`; in [0, 1].
        momentum: See `Unlabelled`; in [0, 1].
    """

    labelled: float = 0.125
    weight: float = 1.0
    threshold: float = 0.8
    momentum: float = 0.99

    def __post_init__(self) -> None:
        for option in ("labelled", "threshold", "momentum"):
            _check("pseudo", option, getattr(self, option), 0, 1)
        _check("pseudo", "weight", self.weight, 0)

    def divide(self, task: LabelTask) -> tuple[Split, Unlabelled]:
        split = task.dataset.train
        number = round(self.labelled * len(split.images))
        if not 0 < number < len(split.images):
            raise DataError(
                f"labels `pseudo`: labelled must leave images with and without labels, got {self.labelled:g}: "
                f"{number} of {len(split.images)} images with labels."
            )
        drawn = np.random.default_rng((task.seed, 2)).permutation(len(split.images))
        kept, others = np.sort(drawn[:number]), np.sort(drawn[number:])
        without = Unlabelled(split.images[others], self.weight, self.threshold, self.momentum)
        return Split(split.images[kept], split.labels[kept]), without

    def soften(self, task: LabelTask, train_teacher: TrainTeacher) -> None:
        return None


@dataclass(frozen=True)
class Averaged(LabelSource):
    """Several annotators: the share of a class in a pixel is the share of annotators who chose it.

    Annotators who ignore a pixel are not counted there. Where all ignore it, the hard label takes their place.
    """

    def divide(self, task: LabelTask) -> tuple[Split, None]:
        if task.dataset.train.annotations is None:
            raise DataError(
                f"labels `averaged`: data set `{task.dataset.name}` has no annotators; "
                "for `shapes`, set proxy.data.annotators."
            )
        return task.dataset.train, None

    def soften(self, task: LabelTask, train_teacher: TrainTeacher) -> Soft:
        annotations = task.dataset.train.annotations
        assert annotations is not None  # checked by `divide`
        votes = (np.sum([*_one_hot(maps, len(task.dataset.classes))], axis=0) for maps in annotations)
        hard = _one_hot(task.dataset.train.labels, len(task.dataset.classes))
        return _half(
            np.where(each.sum(axis=0) > 0, each / np.maximum(each.sum(axis=0), 1), own)
            for each, own in zip(votes, hard, strict=True)
        )


LABELS: dict[str, type[LabelSource]] = {
    "hard": Hard,
    "smoothed": Smoothed,
    "distilled": Distilled,
    "pseudo": Pseudo,
    "averaged": Averaged,
}


def build_labels(name: str, **options: Any) -> LabelSource:
    """Build a label source by name.

    Args:
        name: One of `LABELS`.
        **options: The fields of the class.

    Raises:
        DataError: The name or an option is unknown or out of range.
    """
    if name not in LABELS:
        raise DataError(f"unknown labels `{cut(name)}`{did_you_mean(name, LABELS)}; known: {', '.join(LABELS)}.")
    check_options(f"labels `{name}`", LABELS[name], options)
    return LABELS[name](**options)


def near_boundary(labels: NDArray[np.uint8], radius: int) -> NDArray[np.bool_]:
    """Pixels of label maps (N, H, W) with another label within a Chebyshev distance; ignored pixels do not count."""
    size = (1, 2 * radius + 1, 2 * radius + 1)
    ignored = labels == IGNORE_INDEX
    # Either value loses against any label; beyond the image the nearest pixels are repeated, which are within reach.
    highest = scipy.ndimage.maximum_filter(np.where(ignored, -1, labels.astype(np.int16)), size, mode="nearest")
    lowest = scipy.ndimage.minimum_filter(np.where(ignored, 256, labels.astype(np.int16)), size, mode="nearest")
    near: NDArray[np.bool_] = (highest > lowest) & ~ignored
    return near


def _shapes(state: Weights) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in state.items()}


def _one_hot(labels: NDArray[np.uint8], classes: int) -> Iterator[NDArray[np.float64]]:
    """The one-hot maps (C, H, W) of each label map; all zero at ignored pixels."""
    return ((own[None] == np.arange(classes)[:, None, None]).astype(np.float64) for own in labels)


def _half(images: Iterable[NDArray[np.floating[Any]]]) -> Soft:
    return np.stack([image.astype(np.float16) for image in images])


def _check(name: str, option: str, value: object, least: float, most: float = math.inf, whole: bool = False) -> None:
    """Raise DataError unless the value of an option is a number in a range."""
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        kind = "an integer" if whole else "a number"
        limits = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise DataError(f"labels `{name}`: {option} must be {kind} {limits}, got {shown(value)}.")
