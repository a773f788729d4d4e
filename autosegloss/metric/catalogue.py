"""The metrics people are judged by, each one expression.

Written I = total(pred & target), U = total(pred | target), T = total(target), of each class; then TP = I, FP = U - T,
FN = T - I. The scores of the pixels see `pred` through I and U only: so the relaxed ones are best where the prediction
is the soft target, under the logic "godel". With identity curves that holds for all of them; with other increasing
curves for those that still rise with I and fall with U, which are all but `precision`, `fbeta` of a beta below 1 and
`tversky` outside alpha <= beta <= 1. What all entries have in common:

- *Axes.* A name alone sums over all images, then averages over the classes (D). `..._i` averages over the classes of
  each image, then over the images (I). `..._c` averages over the images of each class, then over the classes (C).
- *Absent classes.* D: a class whose denominator is 0 does not count. I and C: a class counts in the images whose target
  has it, whatever is predicted; there 0 / 0 = 0. A mean over nothing is 0.
- *Void.* Ignored pixels belong to no class and are left out of every sum. Only `bf1` keeps them, as published.
- `background=False` leaves class 0 out of the mean over the classes; with two classes that is the binary metric, of the
  foreground alone.
- `classes=[1, 2]` takes these classes alone, `weights=[...]` weighs them (or all of the data); `iou(2)` is the IoU of
  one class. Of I, an image counts if its target has one of these classes. See `class_mean`.
- `worst=q`, of I and C: in place of all images the lowest share q in (0, 1] of them, max(1, floor(q n)) of n images; of
  I by the value of the image, of C of each class by its value there.

I, C and their worst shares are those of Wang et al., Revisiting Evaluation Metrics for Semantic Segmentation, NeurIPS
2023 (arXiv 2310.19252). Each entry's docstring says what of this holds for it.

To add a metric, add one function here: evaluation, loss, slots, files and search follow.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, Final, Literal

from autosegloss.errors import InputError, shown
from autosegloss.metric.classes import Class
from autosegloss.metric.expr import (
    BallShape,
    ClassMean,
    ClassSum,
    Expr,
    any_class,
    band,
    boundary,
    class_mean,
    class_sum,
    dilate,
    image_mean,
    image_worst,
    per_image,
    pred,
    rebuilt,
    target,
    total,
)

METRICS: Final[dict[str, Callable[..., Expr]]] = {}
"""The catalogue: name -> function that builds the expression from its options."""
OF_CLASSES: Final[dict[str, Callable[..., Expr]]] = {}
"""The metrics of classes that must be named, which have no value without them."""

Form = Literal["", "_i", "_c"]
Score = Callable[..., tuple[Expr, Expr]]
"""The value of each class and its denominator, from I, U, T and options."""

_VOID: Final = "Ignored pixels belong to no class and are left out of every sum."
_OPTIONS: Final = (
    "`background=False` leaves class 0 out of the mean over the classes: of two, the binary metric is left."
)
_WORST: Final = "`worst=q` takes the lowest max(1, floor(q n)) of n images in place of all."
_IN_TARGET: Final = "A class counts in the images whose target has it; there 0 / 0 = 0."
_WANG: Final = "Wang et al., Revisiting Evaluation Metrics for Semantic Segmentation, NeurIPS 2023"

_FORMS: Final[dict[Form, tuple[str, str, list[tuple[str, object]]]]] = {
    "": (
        "over all images, then over the classes (D)",
        f"A class whose denominator is 0 does not count. {_VOID}\n{_OPTIONS}",
        [("background", True)],
    ),
    "_i": (
        "over the classes of each image, then over the images (I)",
        f"{_IN_TARGET} {_VOID}\n{_OPTIONS}\n{_WORST}\nI: {_WANG}.",
        [("background", True), ("worst", None)],
    ),
    "_c": (
        "over the images of each class, then over the classes (C)",
        f"{_IN_TARGET} {_VOID}\n{_OPTIONS}\n{_WORST}\nC: {_WANG}.",
        [("background", True), ("worst", None)],
    ),
}


def _entry(build: Callable[..., Expr]) -> Callable[..., Expr]:
    METRICS[build.__name__] = build = _with_classes(build)
    return build


def _with_classes(build: Callable[..., Expr]) -> Callable[..., Expr]:
    """The builder of a mean over classes with the options `classes` and `weights`; another builder as it is."""
    if not any(isinstance(node, ClassMean) for node in build().walk()):
        return build

    @wraps(build)
    def selecting(
        *arguments: Any,
        classes: Class | Sequence[Class] | None = None,
        weights: Sequence[float] | None = None,
        **options: Any,
    ) -> Expr:
        expr = build(*arguments, **options)
        if classes is None and weights is None:
            return expr
        bound = own.bind(*arguments, **options).arguments

        def change(node: Expr) -> Expr:
            if isinstance(node, ClassSum):  # over the sizes of classes: which images count
                return class_mean(node.value, classes=classes, weights=weights)
            if not isinstance(node, ClassMean):
                return node
            background = node.background or (classes is not None and "background" not in bound)
            return class_mean(node.value, node.where, background, classes, weights)

        return rebuilt(expr, change)

    own = inspect.signature(build)
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(name, kind, default=None) for name in ("classes", "weights")]
    selecting.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # type: ignore[attr-defined]
    return selecting


def _alias(name: str) -> Callable[[Callable[..., Expr]], Callable[..., Expr]]:
    """Enters a metric under another name as well."""

    def enter(build: Callable[..., Expr]) -> Callable[..., Expr]:
        @wraps(build)
        def alias(*arguments: Any, **options: Any) -> Expr:
            return build(*arguments, **options)

        summary, _, rest = (inspect.getdoc(build) or "").partition("\n\n")
        alias.__name__ = alias.__qualname__ = name
        alias.__doc__ = f"{summary} `{build.__name__}` by its other name.\n\n{rest}"
        METRICS[name] = alias
        return build

    return enter


def _entries(*forms: Form, also: str | None = None) -> Callable[[Score], Score]:
    """Enters the mean of a score of each class under its name, in some of the forms D, I and C.

    Args:
        forms: The ends of the names.
        also: Another name for the same entries.
    """

    def enter(score: Score) -> Score:
        for name in filter(None, (score.__name__, also)):
            for form in forms:
                _entry(_builder(name + form, score, form, score.__name__ + form))
        return score

    return enter


def _builder(name: str, score: Score, form: Form, meaning: str) -> Callable[..., Expr]:
    how, rules, common = _FORMS[form]
    own = list(inspect.signature(score).parameters.values())[3:]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([*own, *(inspect.Parameter(n, kind, default=d) for n, d in common)])

    def build(*arguments: Any, **options: Any) -> Expr:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        given = bound.arguments
        return _mean(partial(score, **{p.name: given.pop(p.name) for p in own}), form, **given)

    summary, _, rest = (inspect.getdoc(score) or "").partition("\n\n")
    alias = f" `{meaning}` by its other name." if name != meaning else ""
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{summary.removesuffix('.')}, {how}.{alias}\n\n{rules}\n{rest}".strip()
    build.__signature__ = signature  # type: ignore[attr-defined]
    return build


def _mean(
    score: Score,
    form: Form,
    background: bool,
    worst: float | None = None,
    said: Expr = pred,
    true: Expr = target,
) -> Expr:
    """The mean of a score of each class in the form D, I or C, of two maps."""
    sums = per_image if form else total
    size = sums(true)
    value, denominator = score(sums(said & true), sums(said | true), size)
    if form == "":
        return class_mean(value, where=denominator, background=background)
    if form == "_i":
        return _over_classes_then_images(value, size, background, worst)
    return class_mean(_over_images(value, worst, size), where=total(true), background=background)


def _over_classes_then_images(value: Expr, size: Expr, background: bool, worst: float | None) -> Expr:
    counted = class_sum(size) if background else class_mean(size, background=False)  # both: is there any?
    return _over_images(class_mean(value, where=size, background=background), worst, counted)


def _over_images(value: Expr, worst: float | None, where: Expr) -> Expr:
    return image_mean(value, where=where) if worst is None else image_worst(value, worst, where=where)


def _boundary_f1(
    found: Expr, true: Expr, radius: float, shape: BallShape, sums: Callable[[Expr], Expr]
) -> tuple[Expr, Expr]:
    """The F1 of the boundaries of each class, and what its target has of them."""
    right = sums(found * dilate(true, radius, shape)) / sums(found)
    size = sums(true)
    reached = sums(true * dilate(found, radius, shape)) / size
    return 2 * right * reached / (right + reached), size


def _weight(name: str, option: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise InputError(f"{name}: {option} is {shown(value)}; it is a weight of 0 or more.")
    return value


@_entry
def gacc() -> Expr:
    """Global (pixel) accuracy, I / T: the share of pixels labelled right, over all images (D).

    Ignored pixels are left out. Classes are not told apart: one that is absent changes nothing; 0 without a pixel.
    Source: Long et al., Fully Convolutional Networks for Semantic Segmentation, CVPR 2015.
    """
    return class_sum(total(pred & target)) / class_sum(total(target))


@_entry
def gacc_i(worst: float | None = None) -> Expr:
    """Global (pixel) accuracy, I / T: the share of pixels labelled right in each image, then over the images (I).

    Ignored pixels are left out, and images of nothing else do not count. Classes are not told apart: one that is absent
    changes nothing. `worst=q` takes the lowest max(1, floor(q n)) of n images in place of all.
    Source: Wang et al., Revisiting Evaluation Metrics for Semantic Segmentation, NeurIPS 2023.
    """
    size = class_sum(per_image(target))
    return _over_images(class_sum(per_image(pred & target)) / size, worst, size)


@_entries("", "_i", "_c", also="recall")
def macc(both: Expr, either: Expr, size: Expr) -> tuple[Expr, Expr]:
    """Mean accuracy (recall), TP / (TP + FN) = I / T.

    Source: Long et al., Fully Convolutional Networks for Semantic Segmentation, CVPR 2015.
    """
    return both / size, size


@_entries("", "_i", "_c")
def precision(both: Expr, either: Expr, size: Expr) -> tuple[Expr, Expr]:
    """Mean precision, TP / (TP + FP) = I / (I + U - T).

    The denominator of a class that is never predicted is 0. As a loss for soft labels: with identity curves, since
    others may make U - T, a count of pixels, negative.
    Source: van Rijsbergen, Information Retrieval, 1979.
    """
    found = both + (either - size)
    return both / found, found


@_entries("", "_i", "_c", also="jaccard")
def miou(both: Expr, either: Expr, size: Expr) -> tuple[Expr, Expr]:
    """Mean intersection over union (Jaccard index), TP / (TP + FP + FN) = I / U.

    Source: Jaccard, New Phytologist 11, 1912; of segmentations Everingham et al., PASCAL VOC, IJCV 2010.
    """
    return both / either, either


def iou(classes: Class | Sequence[Class]) -> Expr:
    """Intersection over union (Jaccard index) of one class, I / U; of several the mean, as `miou(classes=[...])`.

    Over all images (D). 0 if no map has the class. Ignored pixels belong to no class and are left out of every sum.
    Source: as for `miou`.
    """
    if classes is None:
        raise InputError("iou: classes is None; give the number or the name of a class, as in iou(2).")
    return METRICS["miou"](classes=classes)


OF_CLASSES["iou"] = iou


@_entry
def fwiou() -> Expr:
    """Frequency-weighted intersection over union, sum of T I / U over the classes / sum of T, over all images (D).

    A class in neither map adds 0 to both sums, one that only the prediction has likewise. Ignored pixels are left out.
    Source: Long et al., Fully Convolutional Networks for Semantic Segmentation, CVPR 2015.
    """
    return class_sum(total(target) * total(pred & target) / total(pred | target)) / class_sum(total(target))


@_entries("", "_i", "_c")
def dice(both: Expr, either: Expr, size: Expr) -> tuple[Expr, Expr]:
    """Mean Dice coefficient (F1 of the pixels), 2 TP / (2 TP + FP + FN) = 2 I / (I + U).

    Source: Dice, Ecology 26, 1945.
    """
    return 2 * both / (both + either), either


@_entries("", "_i", "_c")
def fbeta(both: Expr, either: Expr, size: Expr, beta: float = 1) -> tuple[Expr, Expr]:
    """Mean F-beta of the pixels, (1 + b^2) TP / ((1 + b^2) TP + FP + b^2 FN) = (1 + b^2) I / (I + U - T + b^2 T).

    Recall counts `beta` times as much as precision; 1 is the Dice coefficient. As a loss for soft labels under other
    than identity curves: 1 or more.
    Source: van Rijsbergen, Information Retrieval, 1979.
    """
    weight = _weight("fbeta", "beta", beta) ** 2
    sizes = both + (either - size) + weight * size
    return (1 + weight) * both / sizes, sizes


@_entries("", "_i", "_c")
def tversky(both: Expr, either: Expr, size: Expr, alpha: float = 0.3, beta: float = 0.7) -> tuple[Expr, Expr]:
    """Mean Tversky index, TP / (TP + alpha FP + beta FN) = I / (I + alpha (U - T) + beta (T - I)).

    As a loss for soft labels under other than identity curves: alpha <= beta <= 1.
    Source: Salehi et al., MLMI 2017, whose best weights are the defaults.
    """
    errors = _weight("tversky", "alpha", alpha) * (either - size) + _weight("tversky", "beta", beta) * (size - both)
    return both / (both + errors), either


@_alias("biou")  # what Auto Seg-Loss calls it: files and configurations may use this name for ever
@_entry
def trimap_iou(radius: int = 5, background: bool = False) -> Expr:
    """Trimap IoU: mean I / U of the pixels within `radius` of a boundary in the target, over all images (D).

    A class in neither map there does not count. `background` says whether the boundaries of class 0 are part of the
    trimap; the mean counts class 0 either way. Ignored pixels are left out; a class next to them has a boundary there,
    whose trimap reaches over them. The image border is no boundary. Distances are Chebyshev's.
    Source: Li et al., Auto Seg-Loss, ICLR 2021; the trimap is that of Krähenbühl and Koltun, NeurIPS 2011.
    """
    trimap = dilate(any_class(boundary(target), background=background), radius)
    union = total(pred | target, within=trimap)
    return class_mean(total(pred & target, within=trimap) / union, where=union)


_seen = pred * any_class(target)  # ignored pixels belong to no class in both maps: a boundary there is in both


@_entry
def boundary_iou(width: float = 0.02, background: bool = True) -> Expr:
    """Boundary IoU: mean I / U of the bands inside the boundaries of both maps, over all images (D).

    A class in neither map does not count; `background=False` leaves class 0 out of the mean. A band is what `width`
    erosions by 3x3 take away: a share of the image's diagonal, or pixels. The image border is a boundary. Ignored
    pixels belong to no class in both maps, so what touches them has a band there.
    Source: Cheng et al., Boundary IoU, CVPR 2021.
    """
    return _mean(miou, "", background, None, band(_seen, width), band(target, width))


@_entry
def boundary_iou_i(width: float = 0.02, background: bool = True, worst: float | None = None) -> Expr:
    """Boundary IoU, over the classes of each image, then over the images (I); the bands are those of `boundary_iou`.

    The mean of I / U of the classes in the target of each image; `background=False` leaves class 0 out. Ignored pixels
    belong to no class in both maps. `worst=q` takes the lowest max(1, floor(q n)) of n images in place of all.
    Source: Cheng et al., Boundary IoU, CVPR 2021.
    """
    return _mean(miou, "_i", background, worst, band(_seen, width), band(target, width))


@_entry
def bf1(radius: float = 5, background: bool = False, shape: BallShape = "square") -> Expr:
    """Boundary F1, 2 P R / (P + R), of precision P and recall R of the boundaries at a tolerance, over all images (D).

    A boundary pixel is right if the other map has a boundary of that class within `radius`: by Chebyshev distance
    ("square") or Euclidean distance ("disk"). Ignored pixels count, and a class next to them has a boundary there, as
    in the published evaluation; the image border is none. Counts the classes with a boundary in the target;
    `background` says whether class 0 may be one of them.
    Source: Li et al., Auto Seg-Loss, ICLR 2021, after Csurka et al., BMVC 2013.
    """
    value, size = _boundary_f1(boundary(pred), boundary(target), radius, shape, partial(total, void="keep"))
    return class_mean(value, where=size, background=background)


@_entry
def bf1_i(radius: float = 5, background: bool = True, shape: BallShape = "square", worst: float | None = None) -> Expr:
    """Boundary F1, 2 P R / (P + R), over the classes with a boundary in each image, then over the images (I).

    As `bf1`, but ignored pixels belong to no class in both maps: what touches them has a boundary there in both.
    An image without a class that counts does not count; `background=False` leaves class 0 out. `radius` may be a share
    of the image's diagonal, which in the source is 0.0075. `worst=q` takes the lowest max(1, floor(q n)) of n images in
    place of all.
    Source: Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.
    """
    value, size = _boundary_f1(boundary(_seen), boundary(target), radius, shape, per_image)
    return _over_classes_then_images(value, size, background, worst)
