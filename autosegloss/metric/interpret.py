"""One walk over an expression, for the exact value and for the relaxed one.

The walk has two halves. `sums` evaluates the pixel maps and reduces them to the statistics of the expression, its
`Sum` nodes; only here do the two readings differ, in what `pred` holds and in the logic (`Maps`). `value` takes the
statistics to the metric's value, and is the same for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Literal, cast

import torch
from torch import Tensor
from typing_extensions import assert_never

from autosegloss.metric import expr as e
from autosegloss.metric.morphology import ball_maximum_filter, in_pixels, maximum_filter, minimum_filter

Sums = dict[e.Sum, Tensor]
"""The statistics of an expression: (1 or N, 1 or C), images before classes; an axis a node lacks has size 1."""
Classes = Literal["metric", "all", "present"]

PRESENT: dict[bool, e.Sum] = {
    False: cast("e.Sum", e.total(e.target)),
    True: cast("e.Sum", e.per_image(e.target)),
}
"""What says that the target has a class: in the batch (False), in each image (True)."""

_PART = 2**20  # pixels of all maps of a part: a megabyte a map, which stays in the cache
_DENSE = 4  # entries of a confusion matrix for each pixel up to which it is the quicker way to count
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


class TruthMaps(Maps):
    """Boolean maps: one-hot labels of some classes, and plain logic.

    Args:
        pred: Labels, (N, *S) integer.
        target: Labels, (N, *S), of the same type.
        classes: The labels whose maps these are, (C,), of the same type.
        valid: Pixels that are not ignored, (N, *S) boolean, or None.
    """

    def __init__(self, pred: Tensor, target: Tensor, classes: Tensor, valid: Tensor | None = None) -> None:
        self.valid = None if valid is None else valid.unsqueeze(1)
        self._labels = {e.pred: pred.unsqueeze(1), e.target: target.unsqueeze(1)}
        self._classes = classes.view(-1, *[1] * (pred.ndim - 1))

    def leaf(self, node: e.Leaf) -> Tensor:
        return _equal(self._labels[node], self._classes)

    def logic(self, node: e.Logic, left: Tensor, right: Tensor) -> Tensor:
        return left & right if node.op == "&" else left | right if node.op == "|" else left ^ right


class ExactMaps:
    """The exact reading of label maps.

    Every sum is one of integer counts (of float64 where the expression has a constant that is no integer). In a map
    whose pixels stand for themselves a valid pixel has one of four values, by whether `pred` and `target` are of the
    class: such a map is read on these four alone, weighed by their counts. Any other map is made, for a few images and
    classes at a time.

    Notes:
        Memory, beside the labels given: 2 bytes a pixel for labels of up to 254 classes (8 for more), up to 32 bytes a
        pixel for the confusion matrices of a few images, 32 bytes for each image and class, and for the maps about a
        byte a pixel of a part for each step of the expressions. A part is 2^20 pixels of all its maps, or one map where
        that is larger.

    Args:
        pred: Labels, (N, *S) integer, 0..C-1.
        target: Labels, (N, *S) integer, 0..C-1 or `ignore_index`, where no class is set.
        num_classes: C.
        ignore_index: The label of ignored pixels.
    """

    def __init__(self, pred: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> None:
        small = torch.uint8 if num_classes < 255 else torch.int32
        self.num_classes = num_classes
        self.pred = pred.to(small)
        self.target = target.to(small).masked_fill(target == ignore_index, num_classes)
        """Labels, with C in place of `ignore_index`."""

    @cached_property
    def counts(self) -> Tensor:
        """Valid pixels of each image and class in neither map, in the target, in `pred`, in both: (N, C, 4) int64."""
        return self._counted[0]

    @cached_property
    def _counted(self) -> tuple[Tensor, Tensor]:
        """`counts`, and whether a map has the class at any pixel, (N, C) boolean."""
        size, pixels = self.num_classes, self.pred[:1].numel()
        few = (size + 1) * size <= _DENSE * pixels
        counts, present = [], []
        for pred, target in self._images((size + 1) * size if few else 4 * size + 1):
            in_target, in_pred, both, seen = (_confused if few else _tallied)(pred, target, size)
            neither = in_pred.sum(1, keepdim=True) - in_pred - in_target + both
            counts.append(torch.stack([neither, in_target - both, in_pred - both, both], dim=2))
            present.append(seen + in_target > 0)
        return torch.cat(counts), torch.cat(present)

    def parts(self) -> Iterator[tuple[list[TruthMaps], Tensor]]:
        """Maps of a few images at a time, in parts of a few classes each.

        A class that no map of these images has is like any other such class: one stands for all of them.

        Yields:
            The parts, and for each class which of their maps are its own, (C,).
        """
        pixels = max(1, self.pred[:1].numel())
        present = torch.split(self._counted[1], _step(pixels * self.num_classes))
        for (pred, target), has in zip(self._images(pixels * self.num_classes), present, strict=True):
            found = has.any(0)
            classes = found.nonzero().flatten()
            place = torch.where(found, found.cumsum(0) - 1, len(classes))
            if len(classes) < self.num_classes:
                classes = torch.cat([classes, classes.new_tensor([self.num_classes + 1])])  # a label of no pixel
            valid = ~_equal(target, target.new_tensor(self.num_classes))
            together = torch.split(classes.to(pred.dtype), _step(pixels * max(1, len(pred))))
            yield [TruthMaps(pred, target, some, valid) for some in together], place

    def _images(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Both label maps of a few images at a time, by the size of what is made of an image."""
        return zip(torch.split(self.pred, _step(size)), torch.split(self.target, _step(size)), strict=True)


def _confused(pred: Tensor, target: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels of each image and class in the target, in `pred`, in both, and in `pred` ignored or not, (N, C) each.

    From confusion matrices: quickest where these have no more entries than a few for each pixel.
    """
    matrix = _histograms(target, size + 1, pred, size)  # a row a label, the last of ignored
    valid = matrix[:, :size]
    return valid.sum(2), valid.sum(1), matrix.diagonal(dim1=1, dim2=2), matrix.sum(1)


def _tallied(pred: Tensor, target: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same without confusion matrices: `pred` is counted apart where it differs, agrees and is ignored."""
    state = (pred == target).to(torch.int32) + 2 * (target == size)
    differs, both, ignored = _histograms(state, 3, pred, size).unbind(1)
    in_target = _histograms(torch.zeros_like(state), 1, target, size + 1)[:, 0, :size]
    return in_target, differs + both, both, differs + both + ignored


def _histograms(row: Tensor, rows: int, column: Tensor, columns: int) -> Tensor:
    """How many pixels of each image have a row and a column: (N, rows, columns) int64."""
    image = torch.arange(len(row), device=row.device).to(torch.int32).view(-1, *[1] * (row.ndim - 1))
    place = (row.to(torch.int32) + image * rows) * columns + column
    return torch.bincount(place.flatten(), minlength=len(row) * rows * columns).view(len(row), rows, columns)


def _step(size: int) -> int:
    return max(1, _PART // size)


def _equal(labels: Tensor, label: Tensor) -> Tensor:
    """`labels == label` for small integers, which torch compares much faster into bytes."""
    if labels.dtype != torch.uint8:
        return labels == label
    return torch.eq(labels, label, out=labels.new_empty(0)).view(torch.bool)


def statistics(expr: e.Expr, classes: Classes = "metric") -> tuple[e.Sum, ...]:
    """The sums that the value of an expression is made of, in the order in which they are written."""
    nodes = [node for node in expr.walk() if isinstance(node, e.Sum)]
    if classes == "present":
        nodes += [node for node in PRESENT.values() if node not in nodes]
    return tuple(nodes)


def sums(nodes: tuple[e.Sum, ...], maps: Maps | ExactMaps) -> Sums:
    """The values of the sums over a batch; shared parts are computed once."""
    if isinstance(maps, Maps):
        done: dict[e.Expr, Tensor] = {}
        return {node: reduced(node, pixel_sums(node, maps, done)) for node in nodes}
    by_pixel = tuple(node for node in nodes if _is_pointwise(node))
    by_map = tuple(node for node in nodes if node not in by_pixel)
    rows = (counted_rows(by_pixel, maps.counts) if by_pixel else {}) | (_mapped_rows(by_map, maps) if by_map else {})
    return {node: reduced(node, rows[node]) for node in nodes}


def value(
    expr: e.Expr, statistics: Sums, classes: Classes = "metric", known: Mapping[e.Expr, Tensor] | None = None
) -> Tensor:
    """The value of an expression from its sums, a tensor without axes.

    Args:
        expr: An expression whose value is one number.
        statistics: Its sums, all of one floating dtype.
        classes: Which classes a class mean counts: those of its `where=` ("metric"), all, or those in the target
            ("present").
        known: Values of sub-expressions that are known already; of what they alone are made of, no sum is needed.
    """
    return _value(expr, statistics, classes, dict(known or {})).reshape(())


def values(expr: e.Expr, counts: Tensor) -> Tensor:
    """The values of an expression that `is_counted` over several data sets, (N,).

    Args:
        expr: The expression.
        counts: Pixels of each data set and class in neither map, in the target, in `pred`, in both: (N, C, 4) int64.
    """
    rows = counted_rows(statistics(expr), counts)
    found = _value(expr, {node: row.to(torch.float64) for node, row in rows.items()}, "metric", {})
    return found.flatten().expand(len(counts))


def class_values(expr: e.Expr, statistics: Sums) -> Tensor:
    """The values of an expression that has a class axis and no image axis, (C,)."""
    return _value(expr, statistics, "metric", {}).flatten()


def reduced(node: e.Sum, rows: Tensor) -> Tensor:
    """A sum from its rows, the sums over the pixels of each image, (N, C or 1)."""
    return rows if node.per_image else rows.sum(0, keepdim=True)


def pixel_sums(node: e.Sum, maps: Maps, done: dict[e.Expr, Tensor]) -> Tensor:
    """The sum over the pixels of each image, (N, C or 1); int64 of truth values.

    Args:
        node: A sum.
        maps: What its map is made of.
        done: Maps that are made already; those that it takes to make the summand are added.
    """
    return _over_pixels(_summand(node, maps, done))


def _summand(node: e.Sum, maps: Maps, done: dict[e.Expr, Tensor]) -> Tensor:
    x = pixel_map(node.map, maps, done)
    if node.within is not None:
        x = _times(x, pixel_map(node.within, maps, done))
    if node.void == "skip" and maps.valid is not None:
        x = _times(x, maps.valid)
    return x


def _over_pixels(x: Tensor) -> Tensor:
    """Sums over all pixels: (N, C, *S) -> (N, C), int64 of truth values."""
    x = x.unsqueeze(-1).flatten(2)
    if x.dtype != torch.bool:
        return x.sum(2)
    x, rows = x.view(torch.uint8), 255  # as many truth values as a byte can count: much faster than counting in int64
    whole = x.shape[2] // rows
    counted = x[..., : rows * whole].reshape(*x.shape[:2], rows, whole).sum(2, dtype=torch.uint8)
    return counted.sum(2) + x[..., rows * whole :].sum(2)


def _is_pointwise(node: e.Sum) -> bool:
    """Whether each valid pixel counts by its own truth values alone, and no other pixel."""
    return node.void == "skip" and all(
        isinstance(part, e.Leaf | e.Number | e.Logic | e.Not | e.Arithmetic) for part in node.walk() if part is not node
    )


def is_counted(expr: e.Expr) -> bool:
    """Whether the value follows from the counts of the pixels of the whole data set, see `ExactMaps.counts`."""
    return all(_is_pointwise(node) and not node.per_image for node in statistics(expr))


def counted_rows(nodes: tuple[e.Sum, ...], counts: Tensor) -> Sums:
    """The sums of each image from the counts of its pixels: maps of four pixels, one of each kind, say what each is.

    Args:
        nodes: Sums whose pixels stand for themselves.
        counts: As `ExactMaps.counts`, (N, C, 4).
    """
    kinds = torch.arange(4, device=counts.device).unsqueeze(0)  # in the order of the counts
    table = TruthMaps(kinds // 2, kinds % 2, classes=kinds.new_ones(1))
    done: dict[e.Expr, Tensor] = {}
    return {node: (_summand(node, table, done) * counts).sum(2) for node in nodes}


def _mapped_rows(nodes: tuple[e.Sum, ...], maps: ExactMaps) -> Sums:
    """The sums of each image from its maps, made for a few images and classes at a time."""
    walked = dict.fromkeys(part for node in nodes for part in node.walk())
    joins = [part for part in walked if isinstance(part, e.AnyClass)]
    rows: dict[e.Sum, list[Tensor]] = {node: [] for node in nodes}
    for parts, place in maps.parts():
        joined: dict[e.Expr, Tensor] = {}
        for join in joins:  # inner ones come first
            joined[join] = _joined(join, parts, place, joined)
        columns: dict[e.Sum, list[Tensor]] = {node: [] for node in nodes}
        for part in parts:
            done = dict(joined)
            for node in nodes:
                if "class" in node.axes or part is parts[0]:
                    columns[node].append(pixel_sums(node, part, done))
        for node, found in columns.items():
            rows[node].append(torch.cat(found, 1)[:, place] if "class" in node.axes else found[0])
    return {node: torch.cat(found) for node, found in rows.items()}


def _joined(node: e.AnyClass, parts: list[TruthMaps], place: Tensor, joined: dict[e.Expr, Tensor]) -> Tensor:
    """Whether any class counts at a pixel, without the maps of all classes at once."""
    counted = set(place[0 if node.background else 1 :].tolist())
    x, number = torch.zeros_like(parts[0].leaf(e.pred)[:, :1]), 0
    for part in parts:
        for column in torch.split(pixel_map(node.map, part, dict(joined)), 1, dim=1):
            if number in counted:
                x = x | column
            number += 1
    return x


def pixel_map(expr: e.Expr, maps: Maps, done: dict[e.Expr, Tensor]) -> Tensor:
    """A map (N, C or 1, *S); arguments as of `pixel_sums`."""
    if expr in done:
        return done[expr]
    node = cast("e.MapNode", expr)
    match node:
        case e.Leaf():
            x = maps.leaf(node)
        case e.Logic():
            x = maps.logic(node, pixel_map(node.left, maps, done), pixel_map(node.right, maps, done))
        case e.Not():
            inner = pixel_map(node.map, maps, done)
            x = ~inner if inner.dtype == torch.bool else 1 - inner
        case e.Erode():
            inner = pixel_map(node.map, maps, done)
            x = minimum_filter(inner, in_pixels(node.radius, inner.shape[2:]), node.border)
        case e.Dilate():
            inner = pixel_map(node.map, maps, done)
            widen = maximum_filter if node.shape == "square" else ball_maximum_filter
            x = widen(inner, in_pixels(node.radius, inner.shape[2:]))
        case e.AnyClass():
            inner = pixel_map(node.map, maps, done)
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
            sides.append(pixel_map(operand, maps, done))
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
            x = _selected_mean(node, inner, counted) if node.selects else _mean(inner, counted, axis=1)
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
    return (~(_value(where, given, classes, done) <= 0)).expand_as(inner)  # NaN counts: it must be seen


def divide(a: Tensor, b: Tensor) -> Tensor:
    """A / b, and 0 with a zero gradient where b is 0."""
    none = b.abs() < _SMALLEST
    return torch.where(none, 0.0, a / torch.where(none, 1.0, b))


def _mean(x: Tensor, counted: Tensor, axis: int) -> Tensor:
    number, kept = counted.sum(axis, keepdim=True), torch.where(counted, x, 0.0)
    if axis == 0:
        kept = kept.sort(0).values  # one order of summation: the mean does not depend on the order of the images
    return kept.sum(axis, keepdim=True) / number.clamp(min=1)


def _selected_mean(node: e.ClassMean, x: Tensor, counted: Tensor) -> Tensor:
    """The mean over some classes, weighted where the node has weights; 0 if none of them counts."""
    weights = x.new_tensor(node.weights_of(x.shape[1]))
    counted = counted & (weights > 0)
    if node.weights is None:
        return _mean(x, counted, axis=1)
    weight = (counted * weights).sum(1, keepdim=True)
    return (torch.where(counted, x, 0.0) * weights).sum(1, keepdim=True) / torch.where(weight > 0, weight, 1.0)


def _worst(x: Tensor, counted: Tensor, fraction: float) -> Tensor:
    number = counted.sum(0, keepdim=True)
    kept = torch.floor(fraction * number.to(torch.float64) + 1e-9).to(torch.int64).clamp(min=1).minimum(number)
    lowest = torch.where(counted, x, torch.inf).sort(0).values
    taken = torch.arange(x.shape[0], device=x.device).unsqueeze(1) < kept
    undefined = (counted & x.isnan()).any(0, keepdim=True)  # sorted last, but to be seen
    mean = torch.where(taken, lowest, 0.0).sum(0, keepdim=True) / kept.clamp(min=1)
    return torch.where(undefined, torch.nan, mean)
