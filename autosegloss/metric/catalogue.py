"""The metrics people are judged by, each one expression.

Written I = total(pred & target), U = total(pred | target), T = total(target). A value that divides by zero is 0, and
`where=` says which classes a mean counts. To add a metric, add one function here: evaluation, loss, slots, files and
search follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from autosegloss.errors import InputError
from autosegloss.metric.expr import (
    Expr,
    any_class,
    boundary,
    class_mean,
    class_sum,
    dilate,
    image_mean,
    per_image,
    pred,
    target,
    total,
)

METRICS: Final[dict[str, Callable[..., Expr]]] = {}
"""The catalogue: name -> function that builds the expression from its options."""


def _entry(build: Callable[..., Expr]) -> Callable[..., Expr]:
    METRICS[build.__name__] = build
    return build


@_entry
def gacc() -> Expr:
    """Global (pixel) accuracy: the share of pixels labelled right."""
    return class_sum(total(pred & target)) / class_sum(total(target))


@_entry
def macc(background: bool = True) -> Expr:
    """Mean accuracy: recall of each class, averaged over the classes in the target."""
    return class_mean(total(pred & target) / total(target), where=total(target), background=background)


@_entry
def miou(background: bool = True) -> Expr:
    """Mean intersection over union, over the classes in the target or the prediction."""
    union = total(pred | target)
    return class_mean(total(pred & target) / union, where=union, background=background)


@_entry
def fwiou() -> Expr:
    """Frequency-weighted intersection over union: each class weighs as much as it has pixels in the target."""
    return class_sum(total(target) * total(pred & target) / total(pred | target)) / class_sum(total(target))


@_entry
def biou(radius: int = 5, background: bool = False) -> Expr:
    """Boundary IoU on the target's trimap: the mean IoU of the pixels within `radius` of a boundary between classes.

    `background` says whether the boundaries of class 0 are part of the trimap; the mean counts class 0 either way.
    Source: Li et al., Auto Seg-Loss, ICLR 2021; the trimap is that of Krähenbühl and Koltun, NeurIPS 2011.
    """
    trimap = dilate(any_class(boundary(target), background=background), radius)
    union = total(pred | target, within=trimap)
    return class_mean(total(pred & target, within=trimap) / union, where=union)


@_entry
def bf1(radius: int = 5, background: bool = False) -> Expr:
    """Boundary F1: harmonic mean of the boundaries' precision and recall at a tolerance, over classes with a boundary.

    A boundary pixel is right if the other map has a boundary of that class within `radius` pixels (Chebyshev distance).
    Ignored pixels count, and a class next to them has a boundary there, as in the published evaluation; `background`
    says whether the mean counts class 0.
    Source: Li et al., Auto Seg-Loss, ICLR 2021, after Csurka et al., BMVC 2013.
    """
    found, true = boundary(pred), boundary(target)
    precision = total(found * dilate(true, radius), void="keep") / total(found, void="keep")
    recall = total(true * dilate(found, radius), void="keep") / total(true, void="keep")
    return class_mean(
        2 * precision * recall / (precision + recall), where=total(true, void="keep"), background=background
    )


@_entry
def dice(background: bool = True) -> Expr:
    """Mean Dice coefficient (F1 of the pixels), 2 I / (I + U), over the classes in the target or the prediction."""
    intersection, union = total(pred & target), total(pred | target)
    return class_mean(2 * intersection / (intersection + union), where=union, background=background)


@_entry
def jaccard(background: bool = True) -> Expr:
    """Mean Jaccard index: `miou` by its other name."""
    return miou(background=background)


@_entry
def tversky(alpha: float = 0.3, beta: float = 0.7, background: bool = True) -> Expr:
    """Mean Tversky index, I / (I + alpha * false positives + beta * false negatives).

    Source: Salehi et al., MLMI 2017, whose best weights are the defaults.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise InputError(f"tversky: {name} is {value!r}; it is a weight of 0 or more.")
    intersection, union, size = total(pred & target), total(pred | target), total(target)
    errors = alpha * (union - size) + beta * (size - intersection)
    return class_mean(intersection / (intersection + errors), where=union, background=background)


@_entry
def miou_i() -> Expr:
    """Per-image mean IoU: in each image over the classes in its target, then over the images that have any.

    Source: Wang et al., Revisiting Evaluation Metrics for Semantic Segmentation, NeurIPS 2023 (mIoU^I).
    """
    size = per_image(target)
    iou = per_image(pred & target) / per_image(pred | target)
    return image_mean(class_mean(iou, where=size), where=class_sum(size))


@_entry
def miou_c() -> Expr:
    """Per-class mean IoU: of each class over the images whose target has it, then over the classes.

    Source: Wang et al., Revisiting Evaluation Metrics for Semantic Segmentation, NeurIPS 2023 (mIoU^C).
    """
    size = per_image(target)
    iou = per_image(pred & target) / per_image(pred | target)
    return class_mean(image_mean(iou, where=size), where=total(target))
