"""Plain NumPy oracles: metrics, curves and losses written from their definitions, slowly and in float64.

Nothing here imports the package or torch, so an agreement with the package is evidence. `test_reference_oracles.py`
holds these functions to the published figures in `tests/reference`.

Conventions: label maps are integer arrays (N, *S), or any sequence of N integer maps, each of its own shape (*S).
Scores and soft targets are (N, C, *S). An ignored pixel belongs to no class. Numerators and denominators are summed
over all images first. 0/0 is 0, and so is the mean over nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Labels: TypeAlias = npt.NDArray[np.integer] | Sequence[npt.NDArray[np.integer]]
Curve: TypeAlias = Callable[[Array], Array]

IGNORED = 255


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Array:
    """Quotient in which 0/0 is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(top, bottom, out=np.zeros(top.shape), where=bottom != 0)


def mean(values: npt.ArrayLike, counted: npt.ArrayLike) -> float:
    """Mean of the counted values; 0 when none is counted."""
    chosen = np.asarray(values, float)[np.asarray(counted, bool)]
    return float(chosen.mean()) if chosen.size else 0.0


def without_background(counted: npt.ArrayLike, background: bool) -> npt.NDArray[np.bool_]:
    """The counted classes, less class 0 unless `background`."""
    chosen = np.array(counted, bool)
    chosen[0] &= background
    return chosen


# Maps of pixels -------------------------------------------------------------------------------------------------------


def one_hot(labels: npt.NDArray[np.integer], num_classes: int) -> Array:
    """One map per class, (N, *S) -> (N, C, *S); a label outside 0..C-1 (an ignored pixel) is 0 in all of them."""
    return np.stack([labels == c for c in range(num_classes)], axis=1).astype(float)


def softmax(logits: Array) -> Array:
    """Probabilities over axis 1."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def window(maps: Array, radius: int, outside: float) -> Array:
    """All values in the square window around each pixel, on a new first axis; maps are (N, C, *S)."""
    sides = maps.shape[2:]
    padded = np.pad(maps, [(0, 0), (0, 0)] + [(radius, radius)] * len(sides), constant_values=outside)
    shifts = itertools.product(range(2 * radius + 1), repeat=len(sides))
    views = [tuple(slice(start, start + side) for start, side in zip(shift, sides, strict=True)) for shift in shifts]
    return np.stack([padded[(slice(None), slice(None), *view)] for view in views])


def relaxed_or(a: Array, b: Array) -> Array:
    """The relaxed OR, a + b - ab."""
    return a + b - a * b


def erode(maps: Array) -> Array:
    """3x3 minimum; outside the image counts as 1, so that the image border is no boundary."""
    return window(maps, 1, 1.0).min(axis=0)


def dilate(maps: Array, radius: int) -> Array:
    """(2 radius + 1) x (2 radius + 1) maximum; outside the image counts as 0."""
    return window(maps, radius, 0.0).max(axis=0)


def boundary(maps: Array) -> Array:
    """Pixels of a class with a pixel of another class, or an ignored one, in the 3x3 around them; maps hold 0 and 1."""
    return maps - erode(maps)


def near_boundary(target: Array, radius: int, background: bool) -> Array:
    """The trimap of BIoU, (N, 1, *S): within `radius` of a boundary of any class (of class 0 only if `background`).

    The boundaries against ignored pixels belong to it, and it reaches over ignored pixels; the sums leave those out.
    """
    edges = boundary(target) if background else boundary(target)[:, 1:]
    return dilate(edges.max(axis=1, keepdims=True, initial=0.0), radius)


# Exact metrics --------------------------------------------------------------------------------------------------------


class Counts:
    """Pixels of each image (rows) and class (columns): in both maps, in either, in the prediction, in the target."""

    def __init__(self, pred: Labels, target: Labels, num_classes: int, ignored: int = IGNORED) -> None:
        shape = (len(pred), num_classes)
        self.both, self.either, self.pred, self.target = (np.zeros(shape) for _ in range(4))
        for i, (image, truth) in enumerate(zip(pred, target, strict=True)):
            for c in range(num_classes):
                said, true = (image == c) & (truth != ignored), truth == c
                self.both[i, c] = (said & true).sum()
                self.either[i, c] = (said | true).sum()
                self.pred[i, c] = said.sum()
                self.target[i, c] = true.sum()


def gacc(pred: Labels, target: Labels, num_classes: int, ignored: int = IGNORED) -> float:
    """Share of the pixels labelled rightly."""
    n = Counts(pred, target, num_classes, ignored)
    return float(ratio(n.both.sum(), n.target.sum()))


def macc(pred: Labels, target: Labels, num_classes: int, ignored: int = IGNORED) -> float:
    """Share of each class's pixels labelled rightly, averaged over the classes in the target."""
    n = Counts(pred, target, num_classes, ignored)
    present = n.target.sum(0)
    return mean(ratio(n.both.sum(0), present), present > 0)


def miou(pred: Labels, target: Labels, num_classes: int, ignored: int = IGNORED) -> float:
    """Intersection over union of each class, averaged over the classes in the prediction or the target."""
    n = Counts(pred, target, num_classes, ignored)
    union = n.either.sum(0)
    return mean(ratio(n.both.sum(0), union), union > 0)


jaccard = miou


def fwiou(pred: Labels, target: Labels, num_classes: int, ignored: int = IGNORED) -> float:
    """Intersection over union of each class, weighted by the class's share of the target."""
    n = Counts(pred, target, num_classes, ignored)
    iou = ratio(n.both.sum(0), n.either.sum(0))
    return float(ratio((n.target.sum(0) * iou).sum(), n.target.sum()))


def tversky(pred: Labels, target: Labels, num_classes: int, alpha: float, beta: float, ignored: int = IGNORED) -> float:
    """tp / (tp + alpha fp + beta fn) of each class, averaged over the classes in the prediction or the target."""
    n = Counts(pred, target, num_classes, ignored)
    right = n.both.sum(0)
    false_positive, false_negative = n.pred.sum(0) - right, n.target.sum(0) - right
    index = ratio(right, right + alpha * false_positive + beta * false_negative)
    return mean(index, n.either.sum(0) > 0)


def dice(pred: Labels, target: Labels, num_classes: int, ignored: int = IGNORED) -> float:
    """2 |both| / (|pred| + |target|) of each class, averaged over the classes in the prediction or the target."""
    n = Counts(pred, target, num_classes, ignored)
    sizes = n.pred.sum(0) + n.target.sum(0)
    return mean(ratio(2 * n.both.sum(0), sizes), sizes > 0)


def miou_i(pred: Labels, target: Labels, num_classes: int, ignored: int = IGNORED) -> float:
    """Per image, mean IoU over the classes in its target; then over the images that have a class."""
    n = Counts(pred, target, num_classes, ignored)
    iou, present = ratio(n.both, n.either), n.target > 0
    images = [mean(iou[i], present[i]) for i in range(len(iou))]
    return mean(images, present.any(axis=1))


def miou_c(pred: Labels, target: Labels, num_classes: int, ignored: int = IGNORED) -> float:
    """Per class, mean IoU over the images whose target has it; then over the classes that some image has."""
    n = Counts(pred, target, num_classes, ignored)
    iou, present = ratio(n.both, n.either), n.target > 0
    classes = [mean(iou[:, c], present[:, c]) for c in range(num_classes)]
    return mean(classes, present.any(axis=0))


def biou(
    pred: Labels,
    target: Labels,
    num_classes: int,
    radius: int,
    background: bool = True,
    ignored: int = IGNORED,
) -> float:
    """mIoU over the valid pixels within `radius` of a boundary of the target.

    `background=False` leaves the boundaries of class 0 out of that region; class 0 still counts in the mean. A class in
    neither map within the region does not.
    """
    both, either = np.zeros(num_classes), np.zeros(num_classes)
    for image, truth in zip(pred, target, strict=True):
        region = near_boundary(one_hot(truth[None], num_classes), radius, background)[0, 0] > 0
        for c in range(num_classes):
            said, true = (image == c) & (truth != ignored) & region, (truth == c) & region
            both[c] += (said & true).sum()
            either[c] += (said | true).sum()
    return mean(ratio(both, either), either > 0)


def bf1(
    pred: Labels,
    target: Labels,
    num_classes: int,
    radius: int,
    background: bool = True,
) -> float:
    """F1 of the boundaries: precision and recall of boundary pixels, each matched within `radius` of the other's.

    Ignored pixels stay in: the prediction has its boundaries there too, and the target has none. Averaged over the
    classes whose target has a boundary; `background=False` leaves class 0 out of that mean.
    """
    said, true, said_right, true_found = (np.zeros(num_classes) for _ in range(4))
    for image, truth in zip(pred, target, strict=True):
        p, t = boundary(one_hot(image[None], num_classes)), boundary(one_hot(truth[None], num_classes))
        near_p, near_t = dilate(p, radius), dilate(t, radius)
        for c in range(num_classes):
            said[c] += (p[0, c] > 0).sum()
            true[c] += (t[0, c] > 0).sum()
            said_right[c] += ((p[0, c] > 0) & (near_t[0, c] > 0)).sum()
            true_found[c] += ((t[0, c] > 0) & (near_p[0, c] > 0)).sum()
    precision, recall = ratio(said_right, said), ratio(true_found, true)
    f1 = ratio(2 * precision * recall, precision + recall)
    return mean(f1, without_background(true > 0, background))


# Curves ---------------------------------------------------------------------------------------------------------------


def control_points(theta: npt.ArrayLike) -> Array:
    """Inner control points (n, 2) of the flat coordinates u1, v1, u2, v2, ... in [0, 1].

    On both axes each point lies theta_i of the way from the point before it to the end: B_i = B_{i-1} + theta_i (1 -
    B_{i-1}), from B_0 = 0 (Auto Seg-Loss, section 4.2).
    """
    points, last = [], np.zeros(2)
    for step in np.asarray(theta, float).reshape(-1, 2):
        last = last + step * (1.0 - last)
        points.append(last)
    return np.array(points).reshape(-1, 2)


def bezier(x: npt.ArrayLike, points: npt.ArrayLike) -> Array:
    """Piecewise quadratic Bezier curve from (0, 0) to (1, 1) with the inner points (2 * pieces - 1, 2)."""
    every = np.vstack([[0.0, 0.0], np.asarray(points, float).reshape(-1, 2), [1.0, 1.0]])
    pieces = (len(every) - 1) // 2

    def at(parameter: Array) -> tuple[Array, Array]:
        piece = np.minimum(parameter.astype(int), pieces - 1)
        t = (parameter - piece)[..., None]
        first, middle, last = every[2 * piece], every[2 * piece + 1], every[2 * piece + 2]
        point = (1 - t) ** 2 * first + 2 * t * (1 - t) * middle + t**2 * last
        return point[..., 0], point[..., 1]

    return _ordinate(x, at, pieces)


def linear(x: npt.ArrayLike, points: npt.ArrayLike) -> Array:
    """Polyline from (0, 0) to (1, 1) through the inner points (pieces - 1, 2)."""
    every = np.vstack([[0.0, 0.0], np.asarray(points, float).reshape(-1, 2), [1.0, 1.0]])
    pieces = len(every) - 1

    def at(parameter: Array) -> tuple[Array, Array]:
        piece = np.minimum(parameter.astype(int), pieces - 1)
        t = (parameter - piece)[..., None]
        point = (1 - t) * every[piece] + t * every[piece + 1]
        return point[..., 0], point[..., 1]

    return _ordinate(x, at, pieces)


def _ordinate(x: npt.ArrayLike, at: Callable[[Array], tuple[Array, Array]], pieces: int) -> Array:
    """The ordinate where the non-decreasing abscissa of `at(parameter)` reaches x, by bisection on the parameter.

    The ends are set, not searched: a class that is nowhere must sum to exactly 0 to be left out of a mean.
    """
    wanted = np.asarray(x, float)
    low, high = np.zeros(wanted.shape), np.full(wanted.shape, float(pieces))
    for _ in range(56):
        middle = (low + high) / 2
        short = at(middle)[0] < wanted
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.where(wanted <= 0, 0.0, np.where(wanted >= 1, 1.0, at(high)[1]))


# Losses ---------------------------------------------------------------------------------------------------------------

SLOTS = {"miou": 2, "fwiou": 2, "biou": 2, "gacc": 1, "macc": 1, "bf1": 4}


def surrogate_loss(
    metric: str,
    logits: Array,
    target: npt.NDArray[np.integer] | Array,
    curves: Sequence[Curve] | None = None,
    *,
    radius: int = 5,
    background: bool = True,
    classes: str = "metric",
    ignored: int = IGNORED,
) -> float:
    """1 - the metric with softmax for the arg-max, products for AND and a + b - ab for OR (Auto Seg-Loss).

    The curves sit on the predictions only, in the order intersection, union. BF1 has four, on the boundary of the
    prediction OR(p, e) - AND(p, e), e the erosion of p: AND of p, AND of e, OR of p, OR of e; its outer products carry
    none. The target's boundary is the exact one.

    Args:
        metric: One of `SLOTS`.
        logits: (N, C, *S).
        target: (N, *S) integer labels, or (N, C, *S) soft maps (then no pixel is ignored).
        curves: One a slot; None for identities.
        radius: Tolerance in pixels of biou and bf1.
        background: As in the exact biou and bf1.
        classes: Classes a mean counts: `metric` as the exact one, `all`, or `present` in the target. The published
            losses are `all` for macc and `metric` for the others (mIoU, BIoU: every union is positive under softmax).
        ignored: Label of the ignored pixels.
    """
    p = softmax(np.asarray(logits, float))
    t, valid = _target_maps(target, p.shape, ignored)
    g = list(curves) if curves is not None else [np.asarray] * SLOTS[metric]
    assert len(g) == SLOTS[metric]
    axes = (0, *range(2, p.ndim))
    size = (t * valid).sum(axes)

    def counted(where: Array) -> npt.NDArray[np.bool_]:
        return {"metric": where > 0, "all": np.ones(len(where), bool), "present": size > 0}[classes]

    if metric == "bf1":
        e = erode(p)
        edge = np.maximum(relaxed_or(g[2](p), g[3](e)) - g[0](p) * g[1](e), 0)  # curves may lift AND above OR
        true = boundary(t)
        precision = ratio((edge * dilate(true, radius)).sum(axes), edge.sum(axes))
        recall = ratio((true * dilate(edge, radius)).sum(axes), true.sum(axes))
        f1 = ratio(2 * precision * recall, precision + recall)
        return 1 - mean(f1, without_background(counted(true.sum(axes)), background))

    weight = valid * near_boundary(t, radius, background) if metric == "biou" else valid
    both = (g[0](p) * t * weight).sum(axes)
    if metric == "gacc":
        return float(1 - ratio(both.sum(), size.sum()))
    if metric == "macc":
        return 1 - mean(ratio(both, size), counted(size))
    union = (relaxed_or(g[1](p), t) * weight).sum(axes)
    if metric == "fwiou":
        return float(1 - ratio((size * ratio(both, union)).sum(), size.sum()))
    return 1 - mean(ratio(both, union), counted(union))


def jdt_loss(
    logits: Array,
    target: npt.NDArray[np.integer] | Array,
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    over: str = "batch",
    classes: str | None = None,
    ignored: int = IGNORED,
) -> float:
    """1 - the Tversky index with tp = (|x| + |y| - |x - y|) / 2, fp = |x| - tp, fn = |y| - tp (JDT losses).

    Reference: arXiv 2302.05666, 2303.16296 and 2310.19252.

    Args:
        logits: (N, C, *S).
        target: (N, *S) integer labels, or (N, C, *S) soft maps (then no pixel is ignored).
        alpha: Weight of the false positives; Jaccard has 1 and 1, Dice 0.5 and 0.5.
        beta: Weight of the false negatives.
        over: `batch` sums over it (D); `image` averages the classes of each image, then images (I); `class` averages
            the images of each class, then classes (C).
        classes: `present` in the target or `all`; by default `present` for labels and `all` for soft maps.
        ignored: Label of the ignored pixels.
    """
    p = softmax(np.asarray(logits, float))
    t, valid = _target_maps(target, p.shape, ignored)
    classes = classes or ("all" if np.ndim(target) == p.ndim else "present")
    pixels = tuple(range(2, p.ndim))
    x, y, apart = ((maps * valid).sum(pixels) for maps in (p, t, abs(p - t)))
    if over == "batch":
        x, y, apart = (rows.sum(axis=0, keepdims=True) for rows in (x, y, apart))
    tp = (x + y - apart) / 2
    index = ratio(tp, tp + alpha * (x - tp) + beta * (y - tp))
    counted = y > 0 if classes == "present" else np.ones(y.shape, bool)
    if over == "class":
        index, counted = index.T, counted.T
    rows = [mean(values, chosen) for values, chosen in zip(index, counted, strict=True)]
    return 1 - mean(rows, counted.any(axis=1))


def _target_maps(target: npt.NDArray[np.integer] | Array, shape: tuple[int, ...], ignored: int) -> tuple[Array, Array]:
    """The target as (N, C, *S) maps, and 1 for each pixel that counts, (N, 1, *S)."""
    if target.ndim == len(shape):
        return np.asarray(target, float), np.ones((shape[0], 1, *shape[2:]))
    return one_hot(target, shape[1]), (target != ignored)[:, None].astype(float)
