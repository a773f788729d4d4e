"""Hypothesis strategies: expressions of the language, curves, label maps and soft targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from torch import Tensor

from autosegloss.errors import ExprError, InputError
from autosegloss.loss import Loss, SearchSpace, SurrogateLoss
from autosegloss.loss.classic import BoundaryCrossEntropy, CrossEntropy, Focal
from autosegloss.loss.curve import Curve, points_from_theta
from autosegloss.metric import (
    Expr,
    any_class,
    boundary,
    class_mean,
    class_sum,
    dilate,
    erode,
    image_mean,
    image_worst,
    per_image,
    pred,
    target,
    total,
)
from autosegloss.metric.expr import ClassMean, band, rebuilt

IGNORED = 255
seeds = st.integers(0, 2**32 - 1)


# Expressions ----------------------------------------------------------------------------------------------------------

lengths = st.sampled_from([1, 1, 2, 3, 0.02, 0.2, 0.35])
"""Radii: of pixels, and shares of the image's diagonal."""


@lru_cache
def truth_maps(leaves: int = 4) -> st.SearchStrategy[Expr]:
    """Maps of truth values with a class axis."""
    return st.recursive(
        st.sampled_from([pred, target]),
        lambda inner: st.one_of(
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
            st.builds(lambda a, b: a ^ b, inner, inner),
            st.builds(lambda a, b: a * b, inner, inner),
            st.builds(lambda a: ~a, inner),
            st.builds(erode, inner, lengths, st.booleans()),
            st.builds(boundary, inner),
            st.builds(band, inner, lengths),
            st.builds(dilate, inner, st.just(0) | lengths, st.sampled_from(["square", "disk"])),
            # The same truth in every class: a map without a class axis, joined with one that has it.
            st.builds(lambda a, b, background: a & any_class(b, background), inner, inner, st.booleans()),
        ),
        max_leaves=leaves,
    )


@lru_cache
def pointwise_truth_maps() -> st.SearchStrategy[Expr]:
    """Maps of truth values in which each pixel stands for itself."""
    return st.recursive(
        st.sampled_from([pred, target]),
        lambda inner: st.one_of(
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
            st.builds(lambda a, b: a ^ b, inner, inner),
            st.builds(lambda a, b: a * b, inner, inner),
            st.builds(lambda a: ~a, inner),
        ),
        max_leaves=5,
    )


@lru_cache
def pointwise_maps() -> st.SearchStrategy[Expr]:
    """Maps in which each pixel stands for itself, with weights whose sums are exact in float64."""
    weights = st.sampled_from([2, -1, 0.5, 3.25, 1000])
    return st.recursive(
        pointwise_truth_maps(),
        lambda inner: st.one_of(
            st.builds(lambda a, b: a + b, inner, inner | weights),
            st.builds(lambda a, b: a - b, weights | inner, inner),
            st.builds(lambda a, b: a * b, inner, inner | weights),
        ),
        max_leaves=4,
    )


@lru_cache
def counting_maps() -> st.SearchStrategy[Expr]:
    """Maps that may leave 0..1."""
    a_map = truth_maps(3)
    return st.one_of(
        st.builds(lambda a, b: a + b, a_map, a_map),
        st.builds(lambda a, b: a - b, a_map, a_map),
        st.builds(lambda a, number: number * a, a_map, st.sampled_from([2, -1, 0.5, 3.25])),
        st.builds(lambda a, b: (a + b) * (1 - b), a_map, a_map),
    )


@st.composite
def metrics(draw: st.DrawFn) -> Expr:
    """Metrics (one number, depending on `pred`) that are well conditioned: only sums of truth values divide.

    A quotient whose denominator is a rounded difference may be anything; what is here has the same value in float32 and
    float64, to rounding.
    """
    maps = st.one_of(truth_maps(), truth_maps(), st.builds(any_class, truth_maps(2), st.booleans()))
    sum_of: dict[bool, Callable[..., Expr]] = {False: total, True: per_image}

    def statistic(each: bool, a_map: st.SearchStrategy[Expr]) -> Expr:
        within = draw(st.none() | maps)
        return sum_of[each](draw(a_map), within=within, void=draw(st.sampled_from(["skip", "skip", "keep"])))

    def with_class(each: bool) -> Expr:
        """A value per class, or per image and class."""
        kind = draw(st.sampled_from(["ratio", "ratio", "share", "harmonic", "sum"]))
        a = statistic(each, truth_maps())
        if kind == "sum":
            return statistic(each, counting_maps()) / 8
        b = statistic(draw(st.booleans()) and each, truth_maps(3))
        if kind == "ratio":
            return (a if draw(st.booleans()) else statistic(each, st.one_of(truth_maps(), counting_maps()))) / (a + b)
        if kind == "share":
            return a / class_sum(statistic(each, truth_maps(3)))
        p, r = a / statistic(each, maps), statistic(each, truth_maps(3)) / a
        return 2 * p * r / (p + r)

    def where(each: bool) -> Expr | None:
        return statistic(each, truth_maps(2)) if draw(st.booleans()) else None

    def over_classes(value: Expr, each: bool) -> Expr:
        if draw(st.booleans()):
            return class_mean(value, where=where(each), background=draw(st.booleans()))
        return class_sum(value)

    def over_images(value: Expr, counted: Expr | None) -> Expr:
        if draw(st.booleans()):
            return image_mean(value, where=counted)
        return image_worst(value, draw(st.sampled_from([0.05, 0.34, 0.5, 1])), where=counted)

    def number() -> Expr:
        kind = draw(st.sampled_from(["classes", "images, then classes", "classes, then images", "plain"]))
        if kind == "classes":
            return over_classes(with_class(False), False)
        if kind == "images, then classes":
            return over_classes(over_images(with_class(True), where(True)), False)
        if kind == "classes, then images":
            counted = class_sum(per_image(draw(truth_maps(2)))) if draw(st.booleans()) else None
            return over_images(over_classes(with_class(True), True), counted)
        one = any_class(draw(truth_maps(2)), draw(st.booleans()))
        return total(one) / (total(one) + class_sum(statistic(False, truth_maps(2))))

    expr = number()
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        other = number()
        expr = draw(st.sampled_from([expr + other, expr - other, expr * other, 0.25 * expr - 1, 1 - expr, -expr]))
    return expr if expr.soft else expr + class_sum(total(pred & target)) / class_sum(total(pred | target))


@st.composite
def selections(draw: st.DrawFn, expr: Expr, num_classes: int) -> Expr:
    """A metric with other class means in every second draw: of some classes, with weights, or both."""
    choices = st.sampled_from(["none", "none", "classes", "weights", "both"])
    weight = st.sampled_from([0, 1, 1, 2, 0.25, 1e-3])

    def change(node: Expr) -> Expr:
        if not isinstance(node, ClassMean) or (choice := draw(choices)) == "none":
            return node
        classes = None
        if choice != "weights":
            classes = draw(st.permutations(range(num_classes)))[: draw(st.integers(1, num_classes))]
        weights = None
        if choice != "classes":
            size = num_classes if classes is None else len(classes)
            weights = draw(st.lists(weight, min_size=size, max_size=size).filter(any))
        return class_mean(node.value, node.where, classes=classes, weights=weights)

    return rebuilt(expr, change)


@st.composite
def metrics_of_labels(draw: st.DrawFn) -> tuple[Expr, Labels]:
    """A metric, perhaps of some classes and with weights, and labels with these classes."""
    some = draw(labels())
    return draw(selections(draw(metrics()), some.num_classes)), some


@st.composite
def expressions(draw: st.DrawFn) -> Expr:
    """Any expression at all, with many shared parts: for what must hold of the text and of the nodes."""
    numbers = st.sampled_from([0, 1, -1, 2, 0.5, -2.5, 1e-300, 1e16, 123456789012345678, 0.1]) | st.floats(
        allow_nan=False, allow_infinity=False
    )
    shares = st.floats(0, 1, exclude_min=True, exclude_max=True)
    classes = st.lists(st.integers(0, 3) | st.sampled_from(["leaf", "grey matter"]) | st.text(max_size=3), max_size=3)
    weights = st.lists(st.just(0) | st.floats(1e-6, 1e6), max_size=3)
    pool: list[Any] = [pred, target, draw(numbers)]

    def pick() -> Any:
        return pool[draw(st.integers(0, len(pool) - 1))]

    def option() -> Any:
        return pick() if draw(st.booleans()) else None

    grow: list[Callable[[], Any]] = [
        lambda: pick() & pick(),
        lambda: pick() | pick(),
        lambda: pick() ^ pick(),
        lambda: ~pick(),
        lambda: pick() + pick(),
        lambda: pick() - pick(),
        lambda: pick() * pick(),
        lambda: pick() / pick(),
        lambda: -pick(),
        lambda: draw(numbers) * pick(),
        lambda: erode(pick()),
        lambda: erode(pick(), draw(st.integers(0, 9) | shares), draw(st.booleans())),
        lambda: boundary(pick()),
        lambda: band(pick(), draw(st.integers(1, 9) | shares)),
        lambda: dilate(pick(), draw(st.integers(0, 9) | shares), draw(st.sampled_from(["square", "disk"]))),
        lambda: any_class(pick(), draw(st.booleans())),
        lambda: total(pick(), option(), draw(st.sampled_from(["skip", "keep"]))),
        lambda: per_image(pick(), option(), draw(st.sampled_from(["skip", "keep"]))),
        lambda: class_mean(pick(), option(), draw(st.booleans())),
        lambda: class_mean(pick(), option(), draw(st.booleans()), classes=draw(classes)),
        lambda: class_mean(pick(), option(), weights=draw(weights)),
        lambda: class_mean(pick(), option(), classes=draw(classes), weights=draw(weights)),
        lambda: class_sum(pick()),
        lambda: image_mean(pick(), option()),
        lambda: image_worst(pick(), draw(st.floats(0, 1, exclude_min=True)), option()),
    ]
    for step in draw(st.lists(st.integers(0, len(grow) - 1), max_size=25)):
        try:
            pool.append(grow[step]())
        except (ExprError, InputError, TypeError, OverflowError, ZeroDivisionError):
            continue  # does not fit together; plain numbers have their own errors
    nodes = [node for node in pool if isinstance(node, Expr)]
    return nodes[-1 - draw(st.integers(0, min(3, len(nodes) - 1)))]


# Label maps and predictions -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """A prediction and a target, (N, *S) int64 each; 255 marks the target's ignored pixels."""

    pred: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    num_classes: int

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both as tensors."""
        return torch.from_numpy(self.pred), torch.from_numpy(self.target)

    def scores(self, dtype: torch.dtype = torch.float64, high: float = 1e4) -> Tensor:
        """Logits (N, C, *S) whose softmax is the one-hot prediction."""
        label = torch.from_numpy(self.pred).unsqueeze(1)
        classes = torch.arange(self.num_classes).view(-1, *[1] * (self.pred.ndim - 1))
        return torch.where(label == classes, high, -high).to(dtype)


@st.composite
def labels(draw: st.DrawFn, dimensions: tuple[int, int] = (1, 3), images: tuple[int, int] = (1, 4)) -> Labels:
    """A few small images; classes are often absent, pixels often ignored, a side is often 1."""
    random = np.random.default_rng(draw(seeds))
    num_classes = draw(st.integers(2, 5))
    spatial = draw(st.integers(*dimensions))
    longest = {1: 12, 2: 7, 3: 4}[spatial]
    shape = (draw(st.integers(*images)), *(draw(st.integers(1, longest)) for _ in range(spatial)))
    first = (shape[0], *[1] * spatial)
    highest = [random.integers(1, num_classes + 1, first) for _ in range(2)]  # each image has its own absent classes
    guess, truth = (random.integers(0, high, shape) for high in highest)
    agree = random.random(shape) < draw(st.sampled_from([0.0, 0.5, 0.9]))
    truth = np.where(agree, np.minimum(guess, highest[1] - 1), truth)
    truth = np.where(random.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.6])), IGNORED, truth)
    if draw(st.integers(0, 5)) == 0:
        truth[:1] = IGNORED
    return Labels(guess, truth, num_classes)


@st.composite
def soft_targets(draw: st.DrawFn) -> Tensor:
    """Soft labels (N, C, *S) float64 that sum to 1 at each pixel; sometimes most of them are 0."""
    random = np.random.default_rng(draw(seeds))
    shape = (
        draw(st.integers(1, 3)),
        draw(st.integers(2, 4)),
        *draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)),
    )
    sharpness = draw(st.sampled_from([0.3, 1.0, 3.0]))
    scores = random.normal(scale=sharpness, size=shape)
    if draw(st.booleans()):
        scores = np.where((random.random(shape) < 0.6) & (scores < scores.max(1, keepdims=True)), -np.inf, scores)
    return torch.from_numpy(scores).softmax(1)


# Curves ---------------------------------------------------------------------------------------------------------------

coordinates = st.one_of(
    st.floats(0, 1),
    st.floats(0.05, 0.95),
    st.sampled_from([0.0, 1.0, 0.5, 1e-3, 1e-6, 1e-9, 1e-300, 5e-324, 1 - 1e-12]),
)


CURVE_KINDS = ["bezier", "linear", "log"]


@dataclass(frozen=True)
class Shape:
    """A curve: its kind, its pieces and its search coordinates."""

    kind: Any
    pieces: int
    theta: tuple[float, ...]

    @property
    def curve(self) -> Curve:
        """The curve itself."""
        return Curve(self.kind, points_from_theta(self.theta, self.kind))


@st.composite
def shapes(draw: st.DrawFn, theta: st.SearchStrategy[float] = coordinates, kinds: Sequence[str] = CURVE_KINDS) -> Shape:
    """Curves of 1 to 4 pieces; coordinates of 0 and 1 make repeated points, and vertical and level pieces."""
    kind, pieces = draw(st.sampled_from(kinds)), draw(st.integers(1, 4))
    size = {"bezier": 4 * pieces - 2, "linear": 2 * pieces - 2, "log": 1}[kind]
    return Shape(kind, pieces, tuple(draw(st.lists(theta, min_size=size, max_size=size))))


@st.composite
def thetas(draw: st.DrawFn, space: SearchSpace, moderate: bool = False) -> list[float]:
    """A point of a search space; with extremes unless `moderate`."""
    random = np.random.default_rng(draw(seeds))
    theta = random.uniform(0.1, 0.9, space.dimension)
    if not moderate:
        extreme = random.random(space.dimension) < draw(st.sampled_from([0.0, 0.2, 1.0]))
        theta = np.where(extreme, random.choice([0.0, 1.0, 1e-6, 1e-12], space.dimension), theta)
    return [float(t) for t in theta]


def pixel_losses() -> st.SearchStrategy[Loss]:
    """Losses for 3 classes that are no surrogates; the label of ignored pixels is 7."""
    weights = st.none() | st.lists(st.floats(0, 100), min_size=3, max_size=3)
    ignored = st.just(7)
    return st.one_of(
        st.builds(CrossEntropy, weights, st.floats(0, 1), ignore_index=ignored),
        st.builds(Focal, st.floats(0, 5), weights, ignore_index=ignored),
        st.builds(BoundaryCrossEntropy, st.floats(0, 100), st.integers(0, 3), ignore_index=ignored),
    )


@st.composite
def losses(
    draw: st.DrawFn,
    exprs: st.SearchStrategy[Expr] | None = None,
    classes: st.SearchStrategy[Any] | None = None,
    moderate: bool = False,
) -> SurrogateLoss:
    """Losses of random metrics, curves and logic."""
    expr = draw(exprs if exprs is not None else metrics())
    space = SearchSpace(
        expr,
        draw(st.sampled_from(["bezier", "bezier", "linear", "log", "identity"])),
        draw(st.integers(1, 3)),
        draw(st.booleans()),
    )
    return SurrogateLoss.from_theta(
        expr,
        draw(thetas(space, moderate)),
        space.pieces,
        share_curves=space.share_curves,
        curve=space.curve,
        logic=draw(st.sampled_from(["product", "godel"])),
        classes=draw(classes) if classes is not None else "metric",
    )


@st.composite
def losses_of_labels(draw: st.DrawFn, **options: Any) -> tuple[SurrogateLoss, Labels]:
    """As `losses`, of metrics that may be of some classes and have weights; and labels with these classes."""
    expr, some = draw(metrics_of_labels())
    return draw(losses(st.just(expr), **options)), some
