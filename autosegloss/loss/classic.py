"""The losses people compare with: cross-entropy and its variants, focal and generalised Dice.

Each is called like `SurrogateLoss`: `loss(logits, target, mask=None)`. What they share:

- It runs in float32 (float64 for float64 logits), also under autocast. A scalar comes out.
- Pixels that are ignored, by `ignore_index` or where `mask` is False, do not count. If none counts the loss is 0 with a
  zero gradient (1 for `generalized_dice` and `log_miou`, whose score of nothing is 0).
- A loss that has no meaning for soft labels refuses them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, ClassVar, Final, Literal, get_args, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from autosegloss.errors import InputError, InputTypeError, shown
from autosegloss.loss.balance import balance
from autosegloss.loss.base import FORMAT, Loss, check_flag
from autosegloss.loss.ranks import sum_over_ranks
from autosegloss.loss.surrogate import SurrogateLoss
from autosegloss.metric import class_sum, pred, target, total
from autosegloss.metric.interpret import divide
from autosegloss.metric.labels import (
    check_ignore_index,
    check_labels,
    check_logits,
    check_num_classes,
    check_soft_labels,
    whole,
)
from autosegloss.metric.morphology import maximum_filter

Weighting = Literal["inverse", "sqrt_inverse", "uniform"]
Builder = Callable[[int, "Sequence[int] | None"], Loss]
LabelMap = npt.NDArray[np.integer] | Tensor


LOG_AT_HALF: Final = math.log1p(0.5 / 0.1) / math.log1p(1 / 0.1)
"""The height at 1/2 of the log curve of e = 0.1."""


class PixelLoss(Loss):
    """A loss of checked pixels, computed in full precision."""

    name: ClassVar[str]
    """What a loss file calls it; see `PIXEL_LOSSES`."""

    def __init__(self, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = check_ignore_index(ignore_index)
        self.provenance = {}

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The arguments of the class that make an equal loss, as plain JSON values."""

    def content(self) -> dict[str, Any]:
        head = {"format": FORMAT, "version": 3, "loss": self.name}
        return {**head, "options": self.options, "provenance": self.provenance}

    def extra_repr(self) -> str:
        """The options, for `print(loss)`."""
        options = {**self.options, "ignore_index": self.ignore_index}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            logits: Scores before the softmax, (N, C, *S), floating.
            target: Labels (N, *S) or (N, 1, *S) of an integer type, 0..C-1 or `ignore_index`; or soft labels (N, C,
                *S), of any floating type, which sum to 1 over C (within 0.02), where the loss has a meaning for them.
            mask: True where a pixel counts, boolean (N, *S) or (N, 1, *S); with either kind of target.

        Returns:
            A scalar tensor: float64 for float64 logits, else float32.

        Raises:
            InputTypeError: The logits, the target or the mask have the wrong type; or soft labels have no meaning here.
            InputError: Shapes do not match, there is one channel of logits, a label is outside the classes, or soft
                labels are no shares; or there are more than 255 classes, and `ignore_index` is 255.
        """
        dtype = check_logits(logits, target)
        scores = logits.to(dtype)
        # Checks come first: what raises in a compiled graph would not end an autocast.
        if isinstance(target, Tensor) and target.is_floating_point():
            shares, _ = check_soft_labels(target, tuple(scores.shape), scores.dtype, mask)
            with torch.autocast(logits.device.type, enabled=False):
                return self._soft(scores, shares)
        shape = (scores.shape[0], *scores.shape[2:])
        labels = check_labels(target, shape, scores.shape[1], self.ignore_index, "target", mask)
        with torch.autocast(logits.device.type, enabled=False):
            return self._hard(scores, labels, labels != self.ignore_index)

    @abstractmethod
    def _hard(self, scores: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """The loss of scores (N, C, *S) and labels (N, *S), of which those that count are `valid`."""

    def _soft(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of scores and soft labels, (N, C, *S) each; a pixel that does not count is 0 in every class."""
        raise InputTypeError(
            f"{type(self).__name__} is not defined for soft labels: the target must have an integer dtype, got "
            f"{target.dtype}."
        )


class CrossEntropy(PixelLoss):
    """Cross-entropy, the mean over the pixels that count: torch's, for masks, soft labels and several ranks as well.

    A pixel weighs as much as its class, and the mean is divided by the sum of these weights, as torch does for integer
    labels. A soft label weighs the sum of its shares, each times the weight of its class: a one-hot soft label is the
    same as an integer one. (torch divides by the number of pixels there, which is the same without class weights.)

    With a `class_power` p, a pixel of class c weighs n_c^-p, where n_c is the number of pixels of this class in the
    batch (of all ranks with `reduce_over_ranks`), at least 1; of soft labels, the sum of its shares. The weights are
    normalised to mean 1 over the pixels, so p moves nothing but the balance of the classes: 0 is plain cross-entropy, 1
    the mean over the classes present of the mean over each class's pixels. With label smoothing, a pixel still weighs
    as much as its label; with `weight`, torch lets each class that it is smoothed to weigh for itself.

    Args:
        weight: The weight of each class, (C,), 0 or more; None weighs all alike.
        label_smoothing: Share of each label that is spread evenly over all classes, in [0, 1].
        ignore_index: The label of ignored pixels in integer targets.
        reduce_over_ranks: Whether the mean is that over the pixels of all ranks of torch.distributed.
        class_power: How much less a pixel of a frequent class weighs, from -2 to 2; without `weight`.
        counts: The pixels of each class, (C,), 0 or more, or shares of them, in place of those of the batch; with a
            `class_power` other than 0 only. A class of 0 pixels weighs the mean of the others.

    Raises:
        InputError: An argument is out of range, or two exclude each other.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])  # (N, C, pixels)
        >>> round(CrossEntropy()(logits, torch.tensor([[0, 255]])).item(), 6)
        0.126928
    """

    name = "cross_entropy"
    weight: Tensor | None
    _balance: Tensor | None

    def __init__(
        self,
        weight: Sequence[float] | Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = 255,
        reduce_over_ranks: bool = False,
        class_power: float = 0.0,
        counts: Sequence[float] | None = None,
    ) -> None:
        super().__init__(ignore_index)
        self.register_buffer("weight", _weights(weight), persistent=False)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, 1)
        self.reduce_over_ranks = check_flag("reduce_over_ranks", reduce_over_ranks)
        self.class_power = check_number("class_power", class_power, 2, lowest=-2)
        self.counts = None if counts is None else _counts(counts)
        if weight is not None and (self.class_power or counts is not None):
            raise InputError("weight excludes class_power and counts, which make weights of their own.")
        if counts is not None and not self.class_power:
            raise InputError("counts are for a class_power other than 0; give both, or neither.")
        weights = None if self.counts is None else balance(self.counts, self.class_power)
        self.register_buffer("_balance", _weights(weights), persistent=False)

    @property
    def options(self) -> dict[str, Any]:
        options = {"weight": _numbers(self.weight), "label_smoothing": self.label_smoothing}
        if self.class_power:
            options |= {"class_power": self.class_power, "counts": self.counts}
        return options

    def _hard(self, scores: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        if self.class_power:
            values = functional.cross_entropy(
                scores, labels, ignore_index=self.ignore_index, reduction="none", label_smoothing=self.label_smoothing
            )
            pixels = torch.zeros(scores.shape[1], dtype=torch.int64, device=labels.device)
            pixels = pixels.scatter_add(0, torch.where(valid, labels, 0).flatten(), valid.flatten().to(torch.int64))
            weights = _of_labels(self._class_weights(pixels, scores), labels, valid, scores)
            return self._mean((values * weights).sum(), weights.sum())
        weight = _for_classes(self.weight, scores)
        summed = functional.cross_entropy(
            scores,
            labels,
            weight,
            ignore_index=self.ignore_index,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return self._mean(summed, _of_labels(weight, labels, valid, scores).sum())

    def _soft(self, scores: Tensor, target: Tensor) -> Tensor:
        if self.class_power:
            pixels = target.detach().movedim(1, -1).flatten(0, -2).sum(0)
            target = (target.movedim(1, -1) * self._class_weights(pixels, scores)).movedim(-1, 1)
        weight = _for_classes(self.weight, scores)
        mass = target.sum(1, keepdim=True)
        smooth = (1 - self.label_smoothing) * target + self.label_smoothing / target.shape[1] * mass
        summed = functional.cross_entropy(scores, smooth, weight, reduction="sum")
        return self._mean(summed, (mass if weight is None else target.movedim(1, -1) @ weight).sum())

    def _class_weights(self, pixels: Tensor, scores: Tensor) -> Tensor:
        """The weight of each class by `class_power`: of the counts given, else of the pixels of this batch."""
        if self._balance is not None:
            return _for_classes(self._balance, scores, "counts")
        pixels = sum_over_ranks(pixels) if self.reduce_over_ranks else pixels
        shares = pixels.clamp(min=1).to(scores.dtype) / pixels.sum().clamp(min=1).to(scores.dtype)
        return shares**-self.class_power

    def _mean(self, summed: Tensor, weight: Tensor) -> Tensor:
        """The mean of what has this sum and this weight: 0 where the weight is."""
        if self.reduce_over_ranks:
            summed, weight = sum_over_ranks(torch.stack([summed, weight]))
        return divide(summed, weight)


class Focal(PixelLoss):
    """Focal loss, -(1 - p)^gamma log p of the probability p of the true class: easy pixels count less.

    The mean over the pixels that count is weighted like that of `CrossEntropy`, which is the focal loss of gamma 0.
    (The source sums over anchors of a detector and divides by the number of those with an object.) Integer labels only:
    for gamma above 0 a prediction equal to the soft label does not have the smallest loss.

    Args:
        gamma: How much less easy pixels count, 0 or more; 2 is the source's choice.
        weight: The weight of each class, (C,), 0 or more (the source's alpha); None weighs all alike.
        ignore_index: The label of ignored pixels.

    Raises:
        InputError: An argument is out of range.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 5.
    """

    name = "focal"
    weight: Tensor | None

    def __init__(
        self, gamma: float = 2.0, weight: Sequence[float] | Tensor | None = None, ignore_index: int = 255
    ) -> None:
        super().__init__(ignore_index)
        self.gamma = check_number("gamma", gamma)
        self.register_buffer("weight", _weights(weight), persistent=False)

    @property
    def options(self) -> dict[str, Any]:
        return {"gamma": self.gamma, "weight": _numbers(self.weight)}

    def _hard(self, scores: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        values = functional.cross_entropy(scores, labels, ignore_index=self.ignore_index, reduction="none")
        # 1 - p without cancellation; the bound keeps the slope of a power below 1 finite at p = 1.
        easiness = (-torch.expm1(-values)).clamp(min=1e-12) ** self.gamma
        weights = _of_labels(_for_classes(self.weight, scores), labels, valid, scores)
        return _weighted_mean(easiness * values, weights)


class BoundaryCrossEntropy(PixelLoss):
    """Cross-entropy in which pixels near a boundary of the target weigh more.

    A pixel is near a boundary if a pixel of another class lies within `radius`, by Chebyshev distance. Ignored pixels
    are of no class and make no boundary; nor does the image border. Integer labels only.

    This is a plain form of an old idea, not a published loss: U-Net's weight map rises smoothly, to 1 + 10 with a
    length of 5 pixels, in the gaps between touching cells; here the weight is one step. The defaults are that 10 and
    that 5, for images of 500 pixels; on small ones 5 pixels are near to everything.

    Args:
        factor: The weight of a pixel near a boundary; that of others is 1.
        radius: How near, in pixels, 0 or more.
        ignore_index: The label of ignored pixels.

    Raises:
        InputError: An argument is out of range.

    Source of the idea: Ronneberger et al., U-Net, MICCAI 2015, equation 2.
    """

    name = "boundary_cross_entropy"

    def __init__(self, factor: float = 10.0, radius: int = 5, ignore_index: int = 255) -> None:
        super().__init__(ignore_index)
        pixels = whole(radius)
        if pixels is None or pixels < 0:
            raise InputError(f"radius must be an integer of at least 0 pixels, got {shown(radius)}.")
        self.factor = check_number("factor", factor)
        self.radius = pixels

    @property
    def options(self) -> dict[str, Any]:
        return {"factor": self.factor, "radius": self.radius}

    def _hard(self, scores: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        values = functional.cross_entropy(scores, labels, ignore_index=self.ignore_index, reduction="none")
        highest = maximum_filter(torch.where(valid, labels, -1).unsqueeze(1), self.radius)
        lowest = -maximum_filter(torch.where(valid, -labels, -scores.shape[1]).unsqueeze(1), self.radius)
        at_boundary = (highest > lowest).squeeze(1) & valid
        return _weighted_mean(values, torch.where(at_boundary, self.factor, 1.0).to(values.dtype) * valid)


PIXEL_LOSSES: Final[dict[str, type[PixelLoss]]] = {
    kind.name: kind for kind in (CrossEntropy, Focal, BoundaryCrossEntropy)
}
"""The losses that a file holds by name and options."""


def generalized_dice(ignore_index: int = 255) -> SurrogateLoss:
    """Generalised Dice loss: one Dice ratio of sums over the classes, a class weighing 1 / |target|^2.

    A class that is absent from the target weighs 0. (With the source's formula it weighs infinitely; libraries differ
    in what they put there.) If no pixel counts the loss is 1, with a zero gradient.

    Args:
        ignore_index: The label of ignored pixels in integer targets.

    Source: Sudre et al., Generalised Dice overlap as a deep learning loss function, DLMIA 2017.
    """
    weight = total(target) * total(target)
    both, sizes = total(pred & target), total(pred & target) + total(pred | target)
    dice = 2 * class_sum(both / weight) / class_sum(sizes / weight)
    return SurrogateLoss(dice, curve="identity", ignore_index=ignore_index)


def log_miou(ignore_index: int = 255) -> SurrogateLoss:
    """Mean IoU whose intersection has a log curve of e = 0.1: log(1 + x / e) / log(1 + 1 / e).

    At e -> 0 a log curve on accuracy is cross-entropy. For hard labels.

    Args:
        ignore_index: The label of ignored pixels in integer targets.
    """
    return SurrogateLoss("miou", [[(0.5, LOG_AT_HALF)], []], curve="log", ignore_index=ignore_index)


def class_counts(labels: Iterable[LabelMap], num_classes: int, ignore_index: int = 255) -> list[int]:
    """The pixels of each class in label maps, such as some images of a data set.

    Args:
        labels: Integer label maps, each of its own shape, from NumPy or torch.
        num_classes: C, 1 to 65,536; labels are 0..C-1 or `ignore_index`.
        ignore_index: The label of pixels that do not count.

    Raises:
        InputError: C is out of range, a label is outside the classes, or a map is not of an integer type.

    Example:
        >>> class_counts([np.array([[0, 0], [2, 255]]), np.array([0, 2])], num_classes=4)
        [3, 0, 2, 0]
    """
    counts = torch.zeros(check_num_classes(num_classes), dtype=torch.int64)
    for i, given in enumerate(labels):
        try:
            one = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputTypeError(
                f"label map {i} can't be converted to a tensor, got {type(given).__name__}: {error}."
            ) from None
        checked = check_labels(one, tuple(one.shape), num_classes, ignore_index, f"label map {i}")
        counts += torch.bincount(checked[checked != ignore_index], minlength=num_classes).cpu()
    return [int(count) for count in counts]


def class_weights(
    labels: Iterable[LabelMap], num_classes: int, kind: Weighting = "inverse", ignore_index: int = 255
) -> Tensor:
    """Weights for `CrossEntropy` and `Focal` from how often each class occurs in label maps.

    Args:
        labels: Integer label maps, as for `class_counts`; a few hundred images of a data set are enough.
        num_classes: C.
        kind: A class weighs the inverse of its share of the pixels ("inverse"), the square root of that
            ("sqrt_inverse"), or as much as any other ("uniform").
        ignore_index: The label of pixels that do not count.

    Returns:
        (C,) float32, with mean 1 over the classes that occur; one that does not occur, of which nothing is known,
        weighs 1.

    Raises:
        InputError: As for `class_counts`; or the kind is unknown.

    Example:
        >>> class_weights([np.array([0, 0, 0, 1])], num_classes=3)
        tensor([0.5000, 1.5000, 1.0000])
    """
    return weights_of_counts(class_counts(labels, num_classes, ignore_index), kind)


def weights_of_counts(given: Sequence[float], kind: Weighting) -> Tensor:
    """`class_weights` of pixels that are counted already."""
    if kind not in get_args(Weighting):
        raise InputError(f"kind is {shown(kind)}; allowed: {', '.join(get_args(Weighting))}.")
    counts = _counts(given)
    occurs = [count for count in counts if count > 0]
    power = {"inverse": -1.0, "sqrt_inverse": -0.5, "uniform": 0.0}[kind]
    mean = math.fsum(count**power for count in occurs) / max(1, len(occurs))
    return torch.tensor([count**power / mean if count > 0 else 1.0 for count in counts], dtype=torch.float32)


def _counts(given: Sequence[float]) -> list[float]:
    """The pixels of each class, checked."""
    try:
        some = [*given]
        odd = any(isinstance(count, bool | str) for count in some)
        counts = [] if odd else [float(count) for count in some]
    except (TypeError, ValueError, OverflowError):
        counts = []
    if not counts or not all(0 <= count < math.inf for count in counts):
        raise InputError(f"counts must be the pixels of each class, numbers of at least 0, got {shown(given)}.")
    return counts


def _weighted(kind: Weighting) -> Builder:
    def build(ignore_index: int, counts: Sequence[int] | None) -> Loss:
        if counts is None:
            raise InputError(
                "a weighted cross-entropy needs `counts`, the pixels of each class; class_counts of "
                "autosegloss.loss.classic finds them."
            )
        return CrossEntropy(weights_of_counts(counts, kind), ignore_index=ignore_index)

    return build


CLASSICS: Final[dict[str, Builder]] = {
    "cross_entropy": lambda ignore_index, _: CrossEntropy(ignore_index=ignore_index),
    "weighted_cross_entropy": _weighted("sqrt_inverse"),
    "inverse_weighted_cross_entropy": _weighted("inverse"),
    # 0.1 is the choice of Szegedy et al., Rethinking the Inception architecture, CVPR 2016.
    "label_smoothing": lambda ignore_index, _: CrossEntropy(label_smoothing=0.1, ignore_index=ignore_index),
    "focal": lambda ignore_index, _: Focal(ignore_index=ignore_index),
    "boundary_cross_entropy": lambda ignore_index, _: BoundaryCrossEntropy(ignore_index=ignore_index),
    "generalized_dice": lambda ignore_index, _: generalized_dice(ignore_index),
    "log_miou": lambda ignore_index, _: log_miou(ignore_index),
}
"""The classics by name: each builds its loss from `ignore_index` and the pixels of each class, or None."""


def _weights(weight: Sequence[float] | Tensor | None) -> Tensor | None:
    if weight is None:
        return None
    try:
        if isinstance(weight, Iterable) and any(isinstance(each, bool) for each in weight):
            raise TypeError
        given = torch.as_tensor(weight, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputTypeError(f"weight must be a list of numbers, one for each class, got {shown(weight)}.") from None
    if given.ndim != 1 or not bool((given.isfinite() & (given >= 0)).all()):
        raise InputError(f"weight must be finite and at least 0 for each class, got {given.tolist()}.")
    return given


def _numbers(weight: Tensor | None) -> list[float] | None:
    return None if weight is None else weight.tolist()


@overload
def _for_classes(weight: Tensor, scores: Tensor, name: str = ...) -> Tensor: ...
@overload
def _for_classes(weight: Tensor | None, scores: Tensor, name: str = ...) -> Tensor | None: ...
def _for_classes(weight: Tensor | None, scores: Tensor, name: str = "weight") -> Tensor | None:
    if weight is None:
        return None
    if len(weight) != scores.shape[1]:
        raise InputError(f"{name} has {len(weight)} numbers; the logits have {scores.shape[1]} classes.")
    return weight.to(scores)


def _of_labels(weight: Tensor | None, labels: Tensor, valid: Tensor, like: Tensor) -> Tensor:
    """The weight of each pixel, 0 where it does not count."""
    if weight is None:
        return valid.to(like.dtype)
    return weight[torch.where(valid, labels, 0)] * valid


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return divide((values * weights).sum(), weights.sum())


def check_number(name: str, value: float, highest: float = math.inf, lowest: float = 0) -> float:
    """A finite number from `lowest` to `highest`, or InputError."""
    if isinstance(value, bool) or not isinstance(value, Real) or not lowest <= value <= highest or value == math.inf:
        allowed = f"from {lowest:g} to {highest:g}" if highest < math.inf else f"of at least {lowest:g}"
        raise InputError(f"{name} must be a number {allowed}, got {shown(value)}.")
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{name} must be a finite number, got an integer too large for a float.") from None
