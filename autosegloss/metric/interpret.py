"""One walk over an expression, for the exact value and for the relaxed one.

The walk has two halves. `sums` evaluates the pixel maps and reduces them to the statistics of the expression, its
`Sum` nodes; only here do the two readings differ, in what `pred` holds and in the logic (`Maps`). `value` takes the
statistics to the metric's value, and is the same for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, cast

import torch
from torch import Tensor
from typing_extensions import assert_never

from autosegloss.metric import expr as e
from autosegloss.metric.morphology import maximum_filter, minimum_filter

Sums = dict[e.Sum, Tensor]
"""The statistics of an expression: (1 or N, 1 or C), images before classes; an axis a node lacks has size 1."""
Classes = Literal["metric", "all", "present"]

PRESENT: dict[bool, e.Sum] = {
    False: cast("e.Sum", e.total(e.target)),
    True: cast("e.Sum", e.per_image(e.target)),
}
"""What says that the target has a class: in the batch (False), in each image (True)."""

_LARGEST_COUNT = 2**31  # a whole constant below this keeps sums over pixels within int64
_SMALLEST = 1e-12  # a sum of fewer pixels than this is 0: keeps 1 / x^2, which a gradient has, inside float32


class Maps(ABC):
    """What the leaves hold and what the logic means. Maps are (N, C, *S), or (N, 1, *S) without a class axis."""

    valid: Tensor | None
    """Pixels that are not ignored, (N, 1, *S) boolean; None if all are valid."""

    @abstractmethod
    def leaf(self, node: e.Leaf) -> Tensor:
        """The maps that a leaf stands for."""

    @abstractmethod
    def logic(self, node: e.Logic, left: Tensor, right: Tensor) -> Tensor:
        """The operator of a logic node applied to its operands."""


class ExactMaps(Maps):
    """Boolean maps: one-hot labels and plain logic.

    Args:
        pred: Labels, (N, *S) integer.
        target: Labels, (N, *S) integer; where it is `ignore_index` no class is set.
        num_classes: C.
        ignore_index: The label of ignored pixels.
    """

    def __init__(self, pred: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> None:
        valid = target != ignore_index
        classes = torch.arange(num_classes, device=target.device).view(-1, *[1] * (target.ndim - 1))
        self.valid = valid.unsqueeze(1)
        self._leaves = {
            e.pred: pred.unsqueeze(1) == classes,
            e.target: (target.unsqueeze(1) == classes) & self.valid,
        }

    def leaf(self, node: e.Leaf) -> Tensor:
        return self._leaves[node]

    def logic(self, node: e.Logic, left: Tensor, right: Tensor) -> Tensor:
        return left & right if node.op == "&" else left | right if node.op == "|" else left ^ right


def statistics(expr: e.Expr, classes: Classes = "metric") -> tuple[e.Sum, ...]:
    """The sums that the value of an expression is made of, in the order in which they are written."""
    nodes = [node for node in expr.walk() if isinstance(node, e.Sum)]
    if classes == "present":
        nodes += [node for node in PRESENT.values() if node not in nodes]
    return tuple(nodes)


def sums(nodes: tuple[e.Sum, ...], maps: Maps) -> Sums:
    """The values of the sums over a batch; shared parts are computed once."""
    done: dict[e.Expr, Tensor] = {}
    return {node: _sum(node, maps, done) for node in nodes}


def value(expr: e.Expr, statistics: Sums, classes: Classes = "metric") -> Tensor:
    """The value of an expression from its sums, a tensor without axes.

    Args:
        expr: An expression whose value is one number.
        statistics: Its sums, all of one floating dtype.
        classes: Which classes a class mean counts: those of its `where=` ("metric"), all, or those in the target
            ("present").
    """
    return _value(expr, statistics, classes, {}).reshape(())


def class_values(mean: e.ClassMean, statistics: Sums) -> Tensor:
    """What a class mean of the whole data set averages: a value for each class, (C,); 0 for one that does not count."""
    return _value(mean.value, statistics, "metric", {}).flatten()


def _sum(node: e.Sum, maps: Maps, done: dict[e.Expr, Tensor]) -> Tensor:
    x = _map(node.map, maps, done)
    if node.within is not None:
        x = _times(x, _map(node.within, maps, done))
    if node.void == "skip" and maps.valid is not None:
        x = _times(x, maps.valid)
    rows = x.unsqueeze(-1).flatten(2).sum(2)
    return rows if node.per_image else rows.sum(0, keepdim=True)


def _map(expr: e.Expr, maps: Maps, done: dict[e.Expr, Tensor]) -> Tensor:
    if expr in done:
        return done[expr]
    node = cast("e.MapNode", expr)
    match node:
        case e.Leaf():
            x = maps.leaf(node)
        case e.Logic():
            x = maps.logic(node, _map(node.left, maps, done), _map(node.right, maps, done))
        case e.Not():
            inner = _map(node.map, maps, done)
            x = ~inner if inner.dtype == torch.bool else 1 - inner
        case e.Erode():
            x = minimum_filter(_map(node.map, maps, done), radius=1)
        case e.Dilate():
            x = maximum_filter(_map(node.map, maps, done), node.radius)
        case e.AnyClass():
            inner = _map(node.map, maps, done)
            inner = inner if node.background else inner[:, 1:]
            x = inner.amax(1, keepdim=True) if inner.shape[1] else inner.new_zeros(inner.shape[0], 1, *inner.shape[2:])
        case e.Arithmetic():
            x = _map_arithmetic(node, maps, done)
        case e.Number():
            raise AssertionError("a number alone is no map")  # unreachable: builders refuse it
        case _:
            assert_never(node)
    done[expr] = x
    return x


def _map_arithmetic(node: e.Arithmetic, maps: Maps, done: dict[e.Expr, Tensor]) -> Tensor:
    sides: list[Tensor | float] = []
    for operand in (node.left, node.right):
        if isinstance(operand, e.Number):
            whole = operand.value.is_integer() and abs(operand.value) < _LARGEST_COUNT
            sides.append(int(operand.value) if whole else operand.value)
        else:
            sides.append(_map(operand, maps, done))
    if node.truth:
        return _times(cast("Tensor", sides[0]), cast("Tensor", sides[1]))
    left, right = (_countable(side, fraction=any(isinstance(s, float) for s in sides)) for side in sides)
    return cast("Tensor", left + right if node.op == "+" else left - right if node.op == "-" else left * right)


def _countable(x: Tensor | float, fraction: bool) -> Tensor | float:
    """Truth values as integers, and as float64 where a constant is no integer: exact counts stay exact."""
    if not isinstance(x, Tensor) or x.is_floating_point():
        return x
    return x.to(torch.float64 if fraction else torch.int64)


def _times(a: Tensor, b: Tensor) -> Tensor:
    return a & b if a.dtype == b.dtype == torch.bool else a * b


def _value(expr: e.Expr, given: Sums, classes: Classes, done: dict[e.Expr, Tensor]) -> Tensor:
    if expr in done:
        return done[expr]
    node = cast("e.ValueNode", expr)
    match node:
        case e.Sum():
            x = given[node]
        case e.Number():
            some = next(iter(given.values()))
            x = some.new_full((1, 1), node.value)
        case e.Arithmetic():
            left, right = _value(node.left, given, classes, done), _value(node.right, given, classes, done)
            x = (
                left + right
                if node.op == "+"
                else left - right
                if node.op == "-"
                else left * right
                if node.op == "*"
                else divide(left, right)
            )
        case e.ClassMean():
            inner = _value(node.value, given, classes, done)
            counted = _counted(node, inner, given, classes, done)
            if not node.background:
                counted = counted & (torch.arange(inner.shape[1], device=inner.device) > 0)
            x = _mean(inner, counted, axis=1)
        case e.ClassSum():
            x = _value(node.value, given, classes, done).sum(1, keepdim=True)
        case e.ImageMean():
            inner = _value(node.value, given, classes, done)
            x = _mean(inner, _where(node.where, inner, given, classes, done), axis=0)
        case e.ImageWorst():
            inner = _value(node.value, given, classes, done)
            x = _worst(inner, _where(node.where, inner, given, classes, done), node.fraction)
        case _:
            assert_never(node)
    done[expr] = x
    return x


def _counted(node: e.ClassMean, inner: Tensor, given: Sums, classes: Classes, done: dict[e.Expr, Tensor]) -> Tensor:
    if classes == "metric":
        return _where(node.where, inner, given, classes, done)
    if classes == "present":
        return (given[PRESENT["image" in node.value.axes]] > 0).expand_as(inner)
    return torch.ones_like(inner, dtype=torch.bool)


def _where(where: e.Expr | None, inner: Tensor, given: Sums, classes: Classes, done: dict[e.Expr, Tensor]) -> Tensor:
    if where is None:
        return torch.ones_like(inner, dtype=torch.bool)
    return (_value(where, given, classes, done) > 0).expand_as(inner)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """A / b, and 0 with a zero gradient where b is 0."""
    none = b.abs() < _SMALLEST
    return torch.where(none, 0.0, a / torch.where(none, 1.0, b))


def _mean(x: Tensor, counted: Tensor, axis: int) -> Tensor:
    number = counted.sum(axis, keepdim=True)
    return torch.where(counted, x, 0.0).sum(axis, keepdim=True) / number.clamp(min=1)


def _worst(x: Tensor, counted: Tensor, fraction: float) -> Tensor:
    number = counted.sum(0, keepdim=True)
    kept = torch.floor(fraction * number.to(torch.float64) + 1e-9).to(torch.int64).clamp(min=1).minimum(number)
    lowest = torch.where(counted, x, torch.inf).sort(0).values
    taken = torch.arange(x.shape[0], device=x.device).unsqueeze(1) < kept
    return torch.where(taken, lowest, 0.0).sum(0, keepdim=True) / kept.clamp(min=1)
