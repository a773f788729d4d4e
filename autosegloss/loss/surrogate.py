"""A metric as a differentiable loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor

from autosegloss.errors import InputError, InputTypeError, shown
from autosegloss.loss import fuse
from autosegloss.loss.base import FORMAT, Loss, check_flag, check_scale
from autosegloss.loss.curve import IDENTITY, Curve, CurveKind, Point, check_kind
from autosegloss.loss.kernels import blocks
from autosegloss.loss.lovasz import Extension, Statistics
from autosegloss.loss.ranks import batch_sums
from autosegloss.loss.relax import LogicKind, PixelLogic, RelaxedMaps, SearchSpace, Slot, check_logic, one_hot, slots
from autosegloss.metric import Expr, interpret, metric
from autosegloss.metric.expr import ClassMean, check_classes
from autosegloss.metric.interpret import Classes, Sums
from autosegloss.metric.labels import (
    check_ignore_index,
    check_labels,
    check_logits,
    check_soft_labels,
    is_traced,
)

NEWER = frozenset({"log", "lovasz"})
"""The curves and logics that loss files hold from version 3 on."""


class SurrogateLoss(Loss):
    """`scale` * (1 - the relaxed value of a metric over a batch).

    `pred` becomes the softmax of the logits and each AND, OR and XOR a differentiable operator under monotone curves
    with fixed ends. On one-hot predictions the loss is therefore `scale` * (1 - the exact metric of the batch),
    whatever the curves. It has no parameters and no buffers: it follows the logits' device, and computes in float32
    (float64 for float64 logits) whatever their precision, also under autocast.

    Args:
        expr: The metric: an expression, a name of the catalogue or a text.
        control_points: For each slot in order (see `slots`), the inner control points (u, v) of its curve; None for
            identity curves everywhere.
        logic: "product" (Auto Seg-Loss) or "godel" (min and max: the JDT losses). With hard labels the two are equal,
            unless `pred` meets a map of its own, as in a boundary. For soft labels only "godel" is right: it is
            smallest where the softmax is the target, under any strictly increasing curves, for a metric that rises with
            each AND, falls with each OR and sees `pred` nowhere else; `tversky` does so for alpha <= beta <= 1, `fbeta`
            for a beta of 1 or more, `precision` with identity curves only. With "product" and curves an AND of
            soft maps may exceed their OR: the loss of soft labels then falls below 0, far below for some presets.
        curve: "bezier" (piecewise quadratic), "linear", "log" (one point (0.5, v), v from 0.02 to 0.98) or "identity".
        classes: Which classes a class mean counts: those of its `where=` in the metric ("metric"), "all" (one that is
            absent scores 0), or those in the target ("present": of the batch for `total`, of each image for
            `per_image`).
        ignore_index: The label of ignored pixels in integer targets. A batch without any other is scored 0 by every
            metric of the catalogue: the loss is then `scale`, and its gradient 0.
        reduce_over_ranks: Whether the sums are those of the batches of all ranks of `torch.distributed`: k ranks of n
            images have the loss of one process of k n images. Without it each rank scores its own batch, and the
            average is another loss, nearer to a mean over images. The gradient by a rank's logits is then k times that
            of the one process, and DistributedDataParallel, which averages over the ranks, gives the parameters the
            gradients of the one process. Every rank calls the loss and its `backward`, also one that has no image
            (logits (0, C, *S)). The losses of a step need not be averaged: they are equal. A setting of the training
            run, like `ignore_index`: loss files do not hold it.
        scale: The factor of the loss, above 0 and at most a million. Under plain SGD it multiplies the step size.

    Raises:
        InputError: An argument is out of range, or the metric has a class by name; curves are checked when they are
            given.
        ExprError: `expr` is no metric.

    Example:
        >>> loss = SurrogateLoss("miou", curve="identity")
        >>> logits = torch.tensor([[[9.0, -9.0], [-9.0, 9.0]]])  # (N, C, pixels)
        >>> round(loss(logits, torch.tensor([[0, 1]])).item(), 6)
        0.0
        >>> round(loss(logits, torch.tensor([[0, 255]])).item(), 6)  # class 1 is in neither map
        0.5
    """

    fused: bool = True
    """Whether sums over hard labels are made without the maps of a whole batch (several times faster, and with less
    memory), or by plain autograd: the reference, which the other equals to rounding. What torch traces (`compile`,
    `export`, `torch.func`) is always the reference."""

    def __init__(
        self,
        expr: Expr | str,
        control_points: Sequence[Sequence[Sequence[float]]] | None = None,
        logic: LogicKind = "product",
        curve: CurveKind = "bezier",
        classes: Classes = "metric",
        ignore_index: int = 255,
        reduce_over_ranks: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_kind(curve)
        check_logic(logic)
        if classes not in get_args(Classes):
            raise InputError(f"classes is {shown(classes)}; allowed: {', '.join(get_args(Classes))}.")
        self.expr = metric(expr)
        check_classes(self.expr)
        self.logic: LogicKind = logic
        self.curve: CurveKind = curve
        self.classes: Classes = classes
        self.ignore_index = check_ignore_index(ignore_index)
        self.reduce_over_ranks = check_flag("reduce_over_ranks", reduce_over_ranks)
        self.scale = check_scale("scale", scale)
        self.curves = _curves(slots(self.expr), control_points, curve)
        self.provenance: dict[str, object] = {}
        self._means = tuple(node for node in self.expr.walk() if isinstance(node, ClassMean) and node.selects)
        self._extension = Extension(self.expr, self.curves, classes) if logic == "lovasz" else None
        self._pixel_logic: PixelLogic = "product" if logic == "lovasz" else logic
        self._nodes = self._extension.rest if self._extension else interpret.statistics(self.expr, classes)
        self._walks = fuse.plan(self._nodes, self.curves)

    @classmethod
    def from_theta(
        cls,
        expr: Expr | str,
        theta: Sequence[float],
        pieces: int = 2,
        *,
        share_curves: bool = False,
        logic: LogicKind = "product",
        curve: CurveKind = "bezier",
        classes: Classes = "metric",
        ignore_index: int = 255,
        reduce_over_ranks: bool = False,
        scale: float = 1.0,
    ) -> SurrogateLoss:
        """The loss at a point of the search space.

        Args:
            expr: As for the class.
            theta: Coordinates in [0, 1], see `SearchSpace`.
            pieces: Pieces of every curve, 1 to 64; a log curve has none.
            share_curves: Whether both operands of an operator have one curve.
            logic: As for the class.
            curve: As for the class.
            classes: As for the class.
            ignore_index: As for the class.
            reduce_over_ranks: As for the class.
            scale: As for the class.
        """
        points = SearchSpace(metric(expr), curve, pieces, share_curves).control_points(theta)
        return cls(expr, points, logic, curve, classes, ignore_index, reduce_over_ranks, scale)

    @property
    def control_points(self) -> list[list[Point]]:
        """The inner control points of each slot, in order."""
        return [list(curve.points) for curve in self.curves.values()]

    @property
    def extension(self) -> Extension | None:
        """Which parts of the metric the logic "lovasz" extends, and which stay "product"; None for other logics."""
        return self._extension

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            logits: Scores before the softmax, (N, C, *S), floating.
            target: Labels (N, *S) or (N, 1, *S) of an integer type, 0..C-1 or `ignore_index`; or soft labels (N, C,
                *S), of any floating type: shares of the classes, which sum to 1 at each pixel (within 0.02).
            mask: True where a pixel counts, boolean (N, *S) or (N, 1, *S); with either kind of target. Elsewhere it is
                ignored, whatever the target holds there.

        Returns:
            A scalar tensor: float64 for float64 logits, else float32.

        Raises:
            InputTypeError: The logits, the target or the mask have the wrong type.
            InputError: Shapes do not match, there is one channel of logits, a label is outside the classes, or soft
                labels are no shares; the metric is of a class that the logits do not have; there are more than 255
                classes, and `ignore_index` is 255; or ranks whose sums are added have different numbers of classes or
                dtypes.
        """
        dtype = check_logits(logits, target)
        for mean in self._means:
            mean.weights_of(logits.shape[1])  # raises before any work if the data has no such class
        checked, valid = self._checked(logits, target, mask, dtype)  # what raises in a graph would not end an autocast
        with torch.autocast(logits.device.type, enabled=False):
            found = self._statistics(logits, checked, valid, dtype)
            if self.reduce_over_ranks:
                found = batch_sums(found, *logits.shape[:2])
            sums, known = self._extension.resolved(found, dtype) if self._extension else (cast("Sums", found), None)
            return self.scale * (1 - interpret.value(self.expr, sums, self.classes, known))

    def _checked(
        self, logits: Tensor, target: Tensor, mask: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """Labels (N, *S) or soft labels (N, C, *S), and where these count, (N, 1, *S)."""
        if isinstance(target, Tensor) and target.is_floating_point():
            if self._extension:
                raise InputTypeError(
                    "the logic lovasz is not defined for soft labels: the target must have an integer dtype, got "
                    f"{target.dtype}. Use the logic godel."
                )
            return check_soft_labels(target, tuple(logits.shape), dtype, mask)
        shape = (logits.shape[0], *logits.shape[2:])
        return check_labels(target, shape, logits.shape[1], self.ignore_index, "target", mask), None

    def _statistics(self, logits: Tensor, target: Tensor, valid: Tensor | None, dtype: torch.dtype) -> Statistics:
        hard_target, truth = not target.is_floating_point(), target
        if hard_target:
            counted = target != self.ignore_index
            if self.fused and not is_traced(target, logits):  # blocks look at values, and are differentiable once
                labels = target.masked_fill(~counted, -1)
                fused = fuse.sums(self._walks, logits, labels)
                others = tuple(node for node in self._nodes if node not in fused)
                found = fused | blocks.sums(others, logits, labels, self.curves, self._pixel_logic)
                extended = self._extension.of_labels(logits, labels) if self._extension else {}
                return {**cast("Statistics", {node: found[node] for node in self._nodes}), **extended}
            valid = counted.unsqueeze(1)
            truth = one_hot(target, logits.shape[1], dtype) * valid
        probability = logits.to(dtype).softmax(1)
        maps = RelaxedMaps(probability, truth, valid, self.curves, self._pixel_logic, hard_target)
        extended = self._extension.of_maps(maps) if self._extension else {}
        return {**cast("Statistics", interpret.sums(self._nodes, maps)), **extended}

    def content(self) -> dict[str, Any]:
        old = self.scale == 1 and self.curve not in NEWER and self.logic not in NEWER
        return {
            "format": FORMAT,
            **({"version": 1} if old else {"version": 3, "scale": self.scale}),
            "metric": str(self.expr),
            "logic": self.logic,
            "classes": self.classes,
            "curve": self.curve,
            "slots": {str(slot): [list(point) for point in curve.points] for slot, curve in self.curves.items()},
            "provenance": self.provenance,
        }

    def extra_repr(self) -> str:
        """The options, for `print(loss)`."""
        options = ("logic", "curve", "classes", "ignore_index", "reduce_over_ranks", "scale")
        return f"{self.expr}, " + ", ".join(f"{name}={getattr(self, name)!r}" for name in options)


def _curves(
    places: Sequence[Slot], control_points: Sequence[Sequence[Sequence[float]]] | None, kind: CurveKind
) -> Mapping[Slot, Curve]:
    if control_points is None:
        return dict.fromkeys(places, IDENTITY)
    if not isinstance(control_points, Iterable) or not all(isinstance(points, Iterable) for points in control_points):
        raise InputTypeError(
            f"control_points must be a list of (u, v) pairs for each slot, got {shown(control_points)}."
        )
    if len(control_points) != len(places):
        names = "; ".join(map(str, places))
        raise InputError(f"control points for {len(control_points)} slots; the metric has {len(places)}: {names}.")
    curves = {}
    for slot, points in zip(places, control_points, strict=True):
        try:
            curves[slot] = Curve(kind, tuple(points))  # type: ignore[arg-type]  # Curve checks and converts them
        except InputError as error:
            raise type(error)(f"slot `{slot}`: {error}") from None
    return curves
