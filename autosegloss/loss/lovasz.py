"""The logic "lovasz": parts of a metric become their Lovász extensions.

A class's score f(I, U, T), of its intersection, union and target pixels, is a function of which pixels are wrong: f
wrong ones of the class leave I = T - f, and o wrong ones of other classes make U = T + o. The Lovász extension carries
f(no error) - f(errors) over from sets of wrong pixels to errors in [0, 1], here 1 - g_and(p) on the class and g_or(p)
off it. It sorts the pixels by their errors, largest first, and adds up error times what the pixel takes from the score.

Sorting is avoided: pixels whose errors lie in one of some thousand bins count as equal. What a bin takes from the score
follows from the counts of the bins above it, and is split between its pixels by the partial derivatives of the score at
the middle of the bin, which is near the mean over their orders. Counts and sums of errors add up over blocks and
processes.

Source: Berman et al., The Lovász-Softmax loss, CVPR 2018, for the IoU; the extension of other functions is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor

from autosegloss.errors import InputError, cut
from autosegloss.loss import fuse
from autosegloss.loss.curve import IDENTITY, Curve
from autosegloss.loss.kernels import histograms
from autosegloss.loss.kernels.pixels import working_dtype
from autosegloss.loss.relax import RelaxedMaps, Slot, one_hot
from autosegloss.metric import expr as e
from autosegloss.metric import interpret
from autosegloss.metric.interpret import Classes, Sums

_GRID: Final = (0, 1, 2, 3, 10, 100)  # pixels, on which a score is checked to fall with errors
_ROUNDING: Final = 1e-9


@dataclass(frozen=True)
class Errors:
    """Which pixels and which operators the errors of a class are of.

    Args:
        both: The AND of prediction and target that I sums; None if the score has no I.
        either: The OR that U sums, likewise.
        within: The mask that all sums have.
        per_image: Whether the sums are of each image.
    """

    both: e.Logic | None
    either: e.Logic | None
    within: e.Expr | None
    per_image: bool

    @property
    def slots(self) -> tuple[Slot | None, Slot | None]:
        """Where the curves on the prediction sit that bend the errors of the class and of other classes."""
        both, either = self.both, self.either
        return (
            None if both is None else Slot("and", both.operands.index(e.pred), both),
            None if either is None else Slot("or", either.operands.index(e.pred), either),
        )

    def sum_of(self, a_map: e.Expr | None) -> e.Sum | None:
        """The sum of a map that the score may be made of."""
        return None if a_map is None else _sum(a_map, self)

    def sums(self, counted: Tensor) -> Sums:
        """T, and I and U under the logic "product", which are linear in the errors: (rows, C).

        Args:
            counted: Of `histograms.of`.
        """
        size, found = counted[:, :, 0].sum(-1), cast("Sums", {})
        for node, x in ((self.both, -counted[:, :, 2].sum(-1)), (self.either, counted[:, :, 3].sum(-1))):
            if node is not None:
                found[_sum(node, self)] = size + x
        return found | {_sum(e.target, self): size}


@dataclass(frozen=True)
class Part:
    """A sub-expression that is extended."""

    node: e.Expr
    errors: Errors

    @property
    def per_image(self) -> bool:
        """Whether its value has an image axis."""
        return self.errors.per_image

    def value(self, counted: Tensor) -> Tensor:
        """The score at no error less its extension, (rows, C).

        Args:
            counted: Of `histograms.of`, (rows, C, 4, bins) float64: pixels of the class and of other classes in each
                bin, and the sums of their errors.
        """
        own, others = counted[:, :, 0].detach(), counted[:, :, 1].detach()
        size = own.sum(-1, keepdim=True)
        upto_own, upto_others = (x.flip(-1).cumsum(-1).flip(-1) for x in (own, others))  # in this bin or above it
        best, after = self._score(size, 0.0, 0.0), self._score(size, upto_own, upto_others)
        taken = torch.cat([after[..., 1:], best], -1) - after
        by_own, by_others = self._slopes(size, upto_own - own / 2, upto_others - others / 2)
        split = own * by_own + others * by_others
        # A score without a slope there falls by a jump, as where the last pixel of a class is lost: shared alike.
        flat = split < 1e-300
        share = taken / torch.where(flat, (own + others).clamp(min=1), split)
        fall = torch.where(flat, 1.0, by_own) * counted[:, :, 2] + torch.where(flat, 1.0, by_others) * counted[:, :, 3]
        return best.squeeze(-1) - (share * fall).sum(-1)

    def _score(self, size: Tensor, own: Tensor | float, others: Tensor | float) -> Tensor:
        """The score where so many pixels of the class and of other classes are wrong."""
        x, *_ = _dual(self.node, self._given(size, own, others, 0.0))
        return x + torch.zeros_like(size)

    def _slopes(self, size: Tensor, own: Tensor, others: Tensor) -> list[Tensor]:
        """How fast the score falls with both kinds of wrong pixels; at least 0."""
        _, *slopes = _dual(self.node, self._given(size, own, others, 1.0))
        return [(-torch.as_tensor(slope, dtype=size.dtype, device=size.device)).clamp(min=0) for slope in slopes]

    def _given(self, size: Tensor, own: Tensor | float, others: Tensor | float, slope: float) -> dict[e.Expr, _Dual]:
        """The sums where so many pixels are wrong, with derivatives by these numbers times `slope`."""
        given: dict[e.Expr, _Dual] = {_sum(e.target, self.errors): (size, 0.0, 0.0)}
        if self.errors.both is not None:
            given[_sum(self.errors.both, self.errors)] = (size - own, -slope, 0.0)
        if self.errors.either is not None:
            given[_sum(self.errors.either, self.errors)] = (size + others, 0.0, slope)
        return given


Statistics = dict[e.Sum | Errors | Part, Tensor]
"""Sums (rows, 1 or C), counts of errors (rows, C, 4, bins), and values of parts of each image (N, C)."""
_Number = Tensor | float
_Dual = tuple[_Number, _Number, _Number]
"""A value and its derivatives by the wrong pixels of the class and of the others; plain numbers cost nothing."""


class Extension:
    """What the logic "lovasz" makes of a metric.

    Args:
        expr: The metric.
        curves: The curve of each slot.
        classes: Which classes a class mean of the loss counts.

    Raises:
        InputError: No part of the metric can be extended; with the reason.
    """

    def __init__(self, expr: e.Expr, curves: Mapping[Slot, Curve], classes: Classes = "metric") -> None:
        self.parts: list[Part] = []
        """The maximal sub-expressions that are extended."""
        self.left: dict[e.Expr, str] = {}
        """The parts that depend on the prediction and keep the logic "product", each with the reason."""
        seen: set[e.Expr] = set()
        self._find(expr, seen)
        if not self.parts:
            reason = next(iter(self.left.values()), "it does not depend on the prediction")
            raise InputError(
                f"the logic lovasz has nothing to extend in the metric `{cut(str(expr))}`: {reason}. Use the logic "
                "product."
            )
        self._curves = curves
        self.errors = tuple(dict.fromkeys(part.errors for part in self.parts))
        """The errors that are counted."""
        self._bends = tuple(
            (IDENTITY if own is None else curves[own], IDENTITY if other is None else curves[other])
            for own, other in (errors.slots for errors in self.errors)
        )
        derived = {node for errors in self.errors for node in errors.sums(torch.zeros(1, 1, 4, 1))}
        self.rest = tuple(node for node in self._sums_outside(expr, classes) if node not in derived)
        """The sums that the value is made of besides, which the errors do not give."""

    def of_labels(self, logits: Tensor, labels: Tensor) -> Statistics:
        """The statistics of a batch, without its maps.

        Args:
            logits: Scores before the softmax, (N, C, *S) floating.
            labels: (N, *S) int64, 0..C-1, or negative where a pixel is ignored.
        """
        rows, dtype = logits.unsqueeze(-1).flatten(2), working_dtype(logits)
        found: Statistics = {}
        for errors, bends in zip(self.errors, self._bends, strict=True):
            if errors.within is not None and "class" in errors.within.axes:  # a class has pixels of its own
                truth = one_hot(labels, logits.shape[1], dtype)
                maps = RelaxedMaps(
                    logits.softmax(1, dtype),
                    truth,
                    (labels >= 0).unsqueeze(1),
                    self._curves,
                    "product",
                    hard_target=True,
                )
                found |= self._of_maps(errors, bends, maps)
                continue
            seen = labels if errors.within is None else fuse.within(errors.within, labels, logits.shape[1])
            asked = errors.both is not None, errors.either is not None
            counted = histograms.of(rows, seen.unsqueeze(-1).flatten(1), bends, errors.per_image, *asked)
            found |= self._statistics(errors, counted, dtype)
        return found

    def of_maps(self, maps: RelaxedMaps) -> Statistics:
        """The same from maps, by plain autograd."""
        found: Statistics = {}
        for errors, bends in zip(self.errors, self._bends, strict=True):
            found |= self._of_maps(errors, bends, maps)
        return found

    def _of_maps(self, errors: Errors, bends: tuple[Curve, Curve], maps: RelaxedMaps) -> Statistics:
        pred, valid = maps.leaf(e.pred), maps.valid
        if errors.within is not None:
            inside = interpret.pixel_map(errors.within, maps, {}) > 0
            valid = inside if valid is None else inside & valid
        counted = histograms.of_maps(pred, maps.leaf(e.target), valid, bends, errors.per_image)
        return self._statistics(errors, counted, pred.dtype)

    def _statistics(self, errors: Errors, counted: Tensor, dtype: torch.dtype) -> Statistics:
        """What of some errors adds up over processes: their counts; of images, what follows from each alone."""
        if not errors.per_image:
            return {errors: counted}
        sums: Statistics = {node: x.to(dtype) for node, x in errors.sums(counted).items()}
        return sums | {part: part.value(counted).to(dtype) for part in self.parts if part.errors == errors}

    def resolved(self, statistics: Statistics, dtype: torch.dtype) -> tuple[Sums, dict[e.Expr, Tensor]]:
        """The sums of a batch, and the values of the parts, from its statistics."""
        sums: Sums = {}
        known: dict[e.Expr, Tensor] = {}
        for key, x in statistics.items():
            if isinstance(key, Part):
                known[key.node] = x
            elif isinstance(key, Errors):
                sums |= {node: each.to(dtype) for node, each in key.sums(x).items()}
                known |= {part.node: part.value(x).to(dtype) for part in self.parts if part.errors == key}
            else:
                sums[key] = x
        return sums, known

    def _find(self, node: e.Expr, seen: set[e.Expr]) -> None:
        if not node.soft or node in seen:
            return
        seen.add(node)
        counts = _counts(node)
        if isinstance(counts, Errors):
            part = Part(node, counts)
            if _rises(part):
                self.left[node] = f"`{cut(str(node), 100)}` rises with an error"
            else:
                self.parts.append(part)
            return
        if _sums_pixels(node):
            self.left[node] = cast("str", counts)
            return
        for operand in (node.value,) if isinstance(node, _MEANS) else node.operands:
            self._find(operand, seen)

    def _sums_outside(self, expr: e.Expr, classes: Classes) -> list[e.Sum]:
        """The sums of the expression outside its parts, in the order in which they are written."""
        known, found = {part.node for part in self.parts}, dict[e.Sum, None]()
        stack, seen = [expr], set[e.Expr]()
        while stack:
            node = stack.pop()
            if node in known or node in seen:
                continue
            seen.add(node)
            if isinstance(node, e.Sum):
                found[node] = None
            elif isinstance(node, e.ClassMean) and classes != "metric":
                stack.append(node.value)
            else:
                stack.extend(reversed(node.operands))
        if classes == "present":
            found |= dict.fromkeys(interpret.PRESENT.values())
        return list(found)


def _sums_pixels(node: e.Expr) -> bool:
    """Whether a score of each class is made of sums of pixels of the prediction directly."""
    if isinstance(node, e.Arithmetic) and "class" in node.axes:
        return any(map(_sums_pixels, node.operands))
    return isinstance(node, e.Sum) and node.soft


_MEANS = (e.ClassMean, e.ImageMean, e.ImageWorst)


def _counts(node: e.Expr) -> Errors | str | None:
    """The errors that an expression is a function of: None if of no sum, a reason if not of the sums of one class."""
    match node:
        case e.Number():
            return None
        case e.Sum(map=a_map, per_image=per_image, within=within, void=void):
            joins = isinstance(a_map, e.Logic) and set(a_map.operands) == {e.pred, e.target} and a_map.op != "^"
            if not joins and a_map is not e.target:
                return f"`{cut(str(node), 100)}` sees pred outside `pred & target` and `pred | target`"
            if within is not None and within.soft:
                return f"the mask of `{cut(str(node), 100)}` depends on pred"
            if void != "skip":
                return f"`{cut(str(node), 100)}` counts ignored pixels"
            both, either = (a_map if isinstance(a_map, e.Logic) and a_map.op == op else None for op in "&|")
            return Errors(both, either, within, per_image)
        case e.Arithmetic():
            left, right = _counts(node.left), _counts(node.right)
            if isinstance(left, str) or isinstance(right, str):
                return left if isinstance(left, str) else right
            if left is None or right is None:
                return left or right
            return _merged(left, right) or f"`{cut(str(node), 100)}` joins sums of different pixels"
        case _:
            return "it is no function of the sums of one class"


def _merged(a: Errors, b: Errors) -> Errors | None:
    if (a.within, a.per_image) != (b.within, b.per_image):
        return None
    if any(x is not None and y is not None and x is not y for x, y in ((a.both, b.both), (a.either, b.either))):
        return None
    both, either = (
        next((node for node in nodes if node is not None), None) for nodes in ((a.both, b.both), (a.either, b.either))
    )
    return Errors(both, either, a.within, a.per_image)


def _rises(part: Part) -> bool:
    """Whether a score is higher somewhere with one more wrong pixel, on a grid of counts."""
    grid = torch.tensor(_GRID, dtype=torch.float64)
    size, own, others = (x.flatten() for x in torch.meshgrid(grid, grid, grid, indexing="ij"))
    possible = own < size
    here = part._score(size, own.minimum(size), others)
    more_own = part._score(size, (own + 1).minimum(size), others)
    more_others = part._score(size, own.minimum(size), others + 1)
    slack = _ROUNDING * (1 + here.abs())
    return bool(((more_own > here + slack) & possible).any() or (more_others > here + slack).any())


def _dual(node: e.Expr, given: Mapping[e.Expr, _Dual]) -> _Dual:
    match node:
        case e.Sum():
            return given[node]
        case e.Number():
            return node.value, 0.0, 0.0
        case e.Arithmetic():
            (a, *by_a), (b, *by_b) = _dual(node.left, given), _dual(node.right, given)
            if node.op in "+-":
                sign = 1.0 if node.op == "+" else -1.0
                x, *slopes = (
                    _plus(one, _times(sign, other)) for one, other in zip((a, *by_a), (b, *by_b), strict=True)
                )
            elif node.op == "*":
                x = _times(a, b)
                slopes = [_plus(_times(da, b), _times(a, db)) for da, db in zip(by_a, by_b, strict=True)]
            else:
                inverse = interpret.divide(torch.ones_like(b), b) if isinstance(b, Tensor) else 1 / b if b else 0.0
                x = _times(a, inverse)
                slopes = [
                    _times(_plus(da, _times(-1.0, _times(x, db))), inverse) for da, db in zip(by_a, by_b, strict=True)
                ]
            return x, slopes[0], slopes[1]
        case _:
            raise AssertionError("no function of sums")  # unreachable: `_counts` refuses it


def _plus(a: _Number, b: _Number) -> _Number:
    if not isinstance(a, Tensor) and a == 0:
        return b
    return a if not isinstance(b, Tensor) and b == 0 else a + b


def _times(a: _Number, b: _Number) -> _Number:
    for one, other in ((a, b), (b, a)):
        if not isinstance(one, Tensor) and one in (0, 1):
            return 0.0 if one == 0 else other
    return a * b


def _sum(a_map: e.Expr, errors: Errors) -> e.Sum:
    return cast("e.Sum", (e.per_image if errors.per_image else e.total)(a_map, within=errors.within))
