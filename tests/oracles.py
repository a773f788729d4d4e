"""Plain NumPy oracles: metrics, curves and losses written from their definitions, slowly and in float64.

Distances are those of scipy's transforms. Nothing here imports the package or torch, so an agreement with the package
is evidence. `test_reference_oracles.py` holds these functions to the published figures in `tests/reference`.

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
from scipy import ndimage

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
    margins = [(0, 0), (0, 0)] + [(radius, radius)] * len(sides)
    alone = [margin if length == 1 else (0, 0) for margin, length in zip(margins, maps.shape, strict=True)]
    around = [(0, 0) if length == 1 else margin for margin, length in zip(margins, maps.shape, strict=True)]
    # An axis of length 1 is none: nothing is outside.
    padded = np.pad(np.pad(maps, alone, mode="edge"), around, constant_values=outside)
    shifts = itertools.product(range(2 * radius + 1), repeat=len(sides))
    views = [tuple(slice(start, start + side) for start, side in zip(shift, sides, strict=True)) for shift in shifts]
    return np.stack([padded[(slice(None), slice(None), *view)] for view in views])


def relaxed_or(a: Array, b: Array) -> Array:
    """The relaxed OR, a + b - ab."""
    return a + b - a * b


def in_pixels(radius: float, sides: Sequence[int]) -> int:
    """A whole number is pixels; a fraction is a share of the image's diagonal, rounded to at least 1."""
    if radius == int(radius):
        return int(radius)
    return max(1, int(np.round(radius * np.sqrt(float(np.sum(np.square([side for side in sides if side > 1])))))))


def erode(maps: Array, radius: float = 1, border: bool = False) -> Array:
    """3x3 minimum, `radius` times; outside the image counts as 1, so that its border is no boundary, else as 0."""
    for _ in range(in_pixels(radius, maps.shape[2:])):
        maps = window(maps, 1, 0.0 if border else 1.0).min(axis=0)
    return maps


def dilate(maps: Array, radius: float, shape: str = "square") -> Array:
    """1 within `radius` of a pixel of the map, in the square around it or by Euclidean distance; maps hold 0 and 1."""
    pixels = in_pixels(radius, maps.shape[2:])
    if shape == "square":
        return window(maps, pixels, 0.0).max(axis=0)
    return np.array([[within(m > 0, pixels, "disk") for m in image] for image in maps], float).reshape(maps.shape)


def within(edge: npt.NDArray[np.bool_], radius: int, shape: str) -> npt.NDArray[np.bool_]:
    """The pixels of a map (*S) within a distance of its set pixels: Chebyshev ("square") or Euclidean ("disk")."""
    if not edge.any():
        return np.zeros_like(edge)
    if shape == "square":
        return np.asarray(ndimage.distance_transform_cdt(~edge, metric="chessboard")) <= radius
    return np.asarray(ndimage.distance_transform_edt(~edge)) <= radius + 1e-9


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


def gacc_i(pred: Labels, target: Labels, num_classes: int, worst: float | None = None) -> float:
    """Share of the pixels of each image labelled rightly, then over the images with a pixel that counts."""
    n = Counts(pred, target, num_classes)
    return lowest(ratio(n.both.sum(1), n.target.sum(1)), n.target.sum(1) > 0, worst)


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


# The scores of a class in an image or in all of them: value and denominator, from pixel counts.


def precision_score(n: Counts) -> tuple[Array, Array]:
    """Share of what is labelled so that is so."""
    return n.both, n.pred


def macc_score(n: Counts) -> tuple[Array, Array]:
    """Share of what is so that is labelled so."""
    return n.both, n.target


def miou_score(n: Counts) -> tuple[Array, Array]:
    """Intersection over union."""
    return n.both, n.either


def dice_score(n: Counts) -> tuple[Array, Array]:
    """Twice the intersection over the sum of the sizes."""
    return 2 * n.both, n.pred + n.target


def fbeta_score(n: Counts, beta: float = 1) -> tuple[Array, Array]:
    """(1 + b^2) tp / ((1 + b^2) tp + b^2 fn + fp)."""
    right, fp, fn = n.both, n.pred - n.both, n.target - n.both
    return (1 + beta**2) * right, (1 + beta**2) * right + beta**2 * fn + fp


def tversky_score(n: Counts, alpha: float = 0.3, beta: float = 0.7) -> tuple[Array, Array]:
    """Tp / (tp + alpha fp + beta fn)."""
    return n.both, n.both + alpha * (n.pred - n.both) + beta * (n.target - n.both)


Score: TypeAlias = Callable[..., tuple[Array, Array]]


def lowest(values: npt.ArrayLike, counted: npt.ArrayLike, worst: float | None) -> float:
    """Mean of the lowest max(1, floor(worst n)) of the n counted values; of all of them without `worst`."""
    chosen = np.sort(np.asarray(values, float)[np.asarray(counted, bool)])
    number = len(chosen) if worst is None else max(1, int(np.floor(worst * len(chosen) + 1e-9)))
    return float(chosen[:number].mean()) if chosen.size else 0.0


def over_data_set(score: Score, n: Counts, background: bool = True, **options: float) -> float:
    """Sum over all images, then the mean over the classes whose denominator is not 0."""
    top, bottom = (rows.sum(0) for rows in score(n, **options))
    return mean(ratio(top, bottom), without_background(bottom > 0, background))


def over_images(
    score: Score, n: Counts, background: bool = True, worst: float | None = None, **options: float
) -> float:
    """Per image the mean over the classes in its target, then over the images that have such a class."""
    values, present = ratio(*score(n, **options)), n.target > 0
    present[:, 0] &= background
    images = [mean(*row) for row in zip(values, present, strict=True)]
    return lowest(images, present.any(axis=1), worst)


def over_classes(
    score: Score, n: Counts, background: bool = True, worst: float | None = None, **options: float
) -> float:
    """Per class the mean over the images whose target has it, then over the classes that some image has."""
    values, present = ratio(*score(n, **options)), n.target > 0
    classes = [lowest(*column, worst) for column in zip(values.T, present.T, strict=True)]
    return mean(classes, without_background(present.any(axis=0), background))


def of(score: Score, form: Callable[..., float]) -> Callable[..., float]:
    """A metric of label maps, (pred, target, num_classes, ignored, **options) -> value."""

    def metric(pred: Labels, target: Labels, num_classes: int, ignored: int = IGNORED, **options: float) -> float:
        return form(score, Counts(pred, target, num_classes, ignored), **options)

    return metric


precision, precision_i, precision_c = (of(precision_score, form) for form in (over_data_set, over_images, over_classes))
macc, macc_i, macc_c = (of(macc_score, form) for form in (over_data_set, over_images, over_classes))
miou, miou_i, miou_c = (of(miou_score, form) for form in (over_data_set, over_images, over_classes))
dice, dice_i, dice_c = (of(dice_score, form) for form in (over_data_set, over_images, over_classes))
fbeta, fbeta_i, fbeta_c = (of(fbeta_score, form) for form in (over_data_set, over_images, over_classes))
tversky_i, tversky_c = (of(tversky_score, form) for form in (over_images, over_classes))
recall, recall_i, recall_c = macc, macc_i, macc_c
jaccard, jaccard_i, jaccard_c = miou, miou_i, miou_c


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
    radius: float,
    background: bool = True,
    shape: str = "square",
) -> float:
    """F1 of the boundaries: precision and recall of boundary pixels, each matched within `radius` of the other's.

    Ignored pixels stay in: the prediction has its boundaries there too, and the target has none. Averaged over the
    classes whose target has a boundary; `background=False` leaves class 0 out of that mean.
    """
    said, true, said_right, true_found = (np.zeros(num_classes) for _ in range(4))
    for image, truth in zip(pred, target, strict=True):
        p, t = boundary(one_hot(image[None], num_classes)), boundary(one_hot(truth[None], num_classes))
        near_p, near_t = dilate(p, radius, shape), dilate(t, radius, shape)
        for c in range(num_classes):
            said[c] += (p[0, c] > 0).sum()
            true[c] += (t[0, c] > 0).sum()
            said_right[c] += ((p[0, c] > 0) & (near_t[0, c] > 0)).sum()
            true_found[c] += ((t[0, c] > 0) & (near_p[0, c] > 0)).sum()
    precision, recall = ratio(said_right, said), ratio(true_found, true)
    f1 = ratio(2 * precision * recall, precision + recall)
    return mean(f1, without_background(true > 0, background))


def per_class_maps(
    pred: npt.NDArray[np.integer], truth: npt.NDArray[np.integer], num_classes: int, ignored: int = IGNORED
) -> list[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
    """The maps (*S) of each class in one image, an ignored pixel being of no class in both."""
    return [((pred == c) & (truth != ignored), truth == c) for c in range(num_classes)]


def mask_to_band(mask: npt.NDArray[np.bool_], width: float) -> npt.NDArray[np.bool_]:
    """The pixels of a mask within `width` of its boundary, after Cheng et al.: a mask ends at the image's border."""
    pixels, shape, mask = in_pixels(width, mask.shape), mask.shape, mask.squeeze()
    padded = np.pad(mask, 1)
    for _ in range(pixels):
        padded = ndimage.binary_erosion(padded, np.ones([3] * mask.ndim), border_value=0)
    return (mask & ~padded[(slice(1, -1),) * mask.ndim]).reshape(shape)


def boundary_counts(pred: Labels, target: Labels, num_classes: int, width: float) -> Counts:
    """The counts of the bands in place of the classes' pixels."""
    counts = Counts([], [], num_classes)
    rows = []
    for image, truth in zip(pred, target, strict=True):
        bands = [[mask_to_band(m, width) for m in pair] for pair in per_class_maps(image, truth, num_classes)]
        rows.append([[(a & b).sum(), (a | b).sum(), a.sum(), b.sum()] for a, b in bands])
    of = np.array(rows, float).reshape(-1, num_classes, 4)
    counts.both, counts.either, counts.pred, counts.target = np.moveaxis(of, 2, 0)
    return counts


def boundary_iou(pred: Labels, target: Labels, num_classes: int, width: float = 0.02, background: bool = True) -> float:
    """IoU of the bands of both maps over all images, averaged over the classes in either."""
    return over_data_set(miou_score, boundary_counts(pred, target, num_classes, width), background)


def boundary_iou_i(
    pred: Labels,
    target: Labels,
    num_classes: int,
    width: float = 0.02,
    background: bool = True,
    worst: float | None = None,
) -> float:
    """IoU of the bands, over the classes in the target of each image, then over the images."""
    return over_images(miou_score, boundary_counts(pred, target, num_classes, width), background, worst)


def bf1_i(
    pred: Labels,
    target: Labels,
    num_classes: int,
    radius: float = 5,
    background: bool = True,
    shape: str = "square",
    worst: float | None = None,
) -> float:
    """F1 of the boundaries of each class and image, over the classes with a boundary, then over the images."""
    images, counted = [], []
    for image, truth in zip(pred, target, strict=True):
        scores, present = [], []
        for maps in per_class_maps(image, truth, num_classes):
            p, t = (boundary(m[None, None].astype(float))[0, 0] > 0 for m in maps)
            near_p, near_t = (within(edge, in_pixels(radius, edge.shape), shape) for edge in (p, t))
            precision, recall = ratio((p & near_t).sum(), p.sum()), ratio((t & near_p).sum(), t.sum())
            scores.append(float(ratio(2 * precision * recall, precision + recall)))
            present.append(bool(t.any()))
        present[0] &= background
        images.append(mean(scores, present))
        counted.append(any(present))
    return lowest(images, counted, worst)


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


def log(x: npt.ArrayLike, points: npt.ArrayLike) -> Array:
    """log(1 + k x) / log(1 + k) through (1/2, v), k by bisection; below 1/2 its image under a half turn."""
    ((_, v),) = np.asarray(points, float).reshape(-1, 2)
    x = np.clip(np.asarray(x, float), 0, 1)
    if v < 0.5:
        return 1 - log(1 - x, [(0.5, 1 - v)])
    low, high = 1e-9, 64.0  # of log(1 + k)
    for _ in range(100):
        k = np.expm1((low + high) / 2)
        low, high = (low, np.log1p(k)) if np.log1p(k / 2) / np.log1p(k) > v else (np.log1p(k), high)
    return np.asarray(np.log1p(k * x) / np.log1p(k))


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


# The classics ---------------------------------------------------------------------------------------------------------


def counted_pixels(
    logits: Array, target: npt.NDArray[np.integer], ignored: int
) -> list[tuple[Array, int, tuple[int, ...]]]:
    """The pixels that count, one by one: probabilities (C,), label, place (image, *S)."""
    p = softmax(np.asarray(logits, float))
    return [
        (p[(at[0], slice(None), *at[1:])], int(target[at]), at)
        for at in np.ndindex(*target.shape)
        if target[at] != ignored
    ]


def weighted_pixel_loss(
    logits: Array,
    target: npt.NDArray[np.integer],
    value: Callable[[float], float],
    weight: Callable[[int, tuple[int, ...]], float],
    ignored: int = IGNORED,
) -> float:
    """The weighted mean over the pixels that count of a value of the true class's probability; 0 over none."""
    pixels = counted_pixels(logits, target, ignored)
    weights = [weight(label, at) for _, label, at in pixels]
    values = [value(p[label]) for p, label, _ in pixels]
    return float(ratio(np.dot(weights, values), np.sum(weights)))


def has_other_class_near(target: npt.NDArray[np.integer], at: tuple[int, ...], radius: int, ignored: int) -> bool:
    """Whether a pixel of another class lies within a Chebyshev distance of the pixel `at` (image, *S)."""
    ranges = [
        range(max(0, x - radius), min(side, x + radius + 1)) for x, side in zip(at[1:], target.shape[1:], strict=True)
    ]
    return any(target[(at[0], *q)] not in (ignored, target[at]) for q in itertools.product(*ranges))


def lovasz_softmax(
    logits: Array, target: npt.NDArray[np.integer], per_image: bool = False, ignored: int = IGNORED
) -> float:
    """Lovász-softmax by its definition, over the classes in the target; 0 where no pixel counts.

    The Lovász extension of a set function D at a vector of errors m: with the pixels in an order of falling m, the sum
    over i of m_i (D(first i pixels) - D(first i - 1)). For class c, D(wrong) = |wrong| / |{y = c} or wrong|, the
    Jaccard loss if the pixels in `wrong` are mislabelled, and m = |[y = c] - p_c|.

    Reference: Berman et al., CVPR 2018, definition 1, equations 6 and 8.
    """
    pixels = counted_pixels(logits, target, ignored)
    images = [[pixel for pixel in pixels if pixel[2][0] == n] for n in range(len(target))] if per_image else [pixels]
    values = []
    for image in images:
        of_classes = []
        for c in sorted({label for _, label, _ in image}):
            mine = {i for i, (_, label, _) in enumerate(image) if label == c}
            errors = [abs(float(label == c) - p[c]) for p, label, _ in image]
            wrong: set[int] = set()
            value = before = 0.0
            for i in sorted(range(len(image)), key=lambda i: -errors[i]):
                wrong.add(i)
                now = len(wrong) / len(mine | wrong)
                value += errors[i] * (now - before)
                before = now
            of_classes.append(value)
        if of_classes:
            values.append(float(np.mean(of_classes)))
    return float(np.mean(values)) if values else 0.0


def generalized_dice_loss(logits: Array, target: npt.NDArray[np.integer] | Array, ignored: int = IGNORED) -> float:
    """1 - 2 sum_c w_c sum(r p) / sum_c w_c sum(r + p) with w_c = 1 / (sum r)^2, and 0 where a class has no r.

    Reference: Sudre et al., DLMIA 2017.
    """
    p = softmax(np.asarray(logits, float))
    r, valid = _target_maps(target, p.shape, ignored)
    axes = (0, *range(2, p.ndim))
    size = (r * valid).sum(axes)
    weight = ratio(np.ones_like(size), size**2) * (size > 0)
    both, sizes = (r * p * valid).sum(axes), ((r + p) * valid).sum(axes)
    return 1 - float(ratio(2 * (weight * both).sum(), (weight * sizes).sum()))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, as closed testing with Bonferroni: the largest of all subsets that have the value."""
    places = range(len(values))
    subsets = [set(each) for size in range(1, len(values) + 1) for each in itertools.combinations(places, size)]
    bonferroni = [(each, min(1.0, len(each) * min(values[place] for place in each))) for each in subsets]
    return [max(p for each, p in bonferroni if place in each) for place in places]
