"""Exact values of metrics over a data set, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from autosegloss.errors import InputError, InputTypeError
from autosegloss.metric import expr as e
from autosegloss.metric import interpret
from autosegloss.metric.labels import check_labels
from autosegloss.metric.parse import metric

_Self = TypeVar("_Self", bound="Accumulators")


class Accumulators:
    """Exact values of several metrics over one data set; what they share is counted once.

    The state is the sums of the expressions and nothing else: a count per class for the data set, a row per image for
    what is taken per image. Counts are int64, and the value then does not depend on the order of the images, on the
    size of the batches or on how they are sharded and merged. Where an expression weighs pixels by fractions the sums
    are float64, and the value depends on these by rounding.

    Args:
        metrics: Expressions (or names, or texts) by the name of their value.
        num_classes: C, at least 1.
        ignore_index: The target's label of ignored pixels.
    """

    def __init__(self, metrics: Mapping[str, e.Expr | str], num_classes: int, ignore_index: int = 255) -> None:
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise InputError(f"num_classes is {num_classes!r}; a whole number of 1 or more is wanted.")
        self.metrics = {name: metric(expr) for name, expr in metrics.items()}
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._nodes = tuple(dict.fromkeys(n for expr in self.metrics.values() for n in interpret.statistics(expr)))
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._totals: dict[e.Sum, Tensor] = {}
        self._rows: dict[e.Sum, list[Tensor]] = {node: [] for node in self._nodes if node.per_image}

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: Labels (N, *S) of an integer type, or scores (N, C, *S) of a floating type, whose arg-max
                counts.
            target: Labels (N, *S) of an integer type, 0..C-1 or `ignore_index`.

        Raises:
            InputError: Shapes or labels are wrong; nothing has been counted then.
        """
        if not isinstance(prediction, Tensor) or not isinstance(target, Tensor):
            raise InputTypeError("prediction and target are torch tensors.")
        if prediction.is_floating_point():
            if prediction.ndim < 2 or prediction.shape[1] != self.num_classes:
                raise InputError(
                    f"scores have shape {tuple(prediction.shape)}; (N, {self.num_classes}, *S) is wanted: "
                    "one map per class."
                )
            prediction = prediction.argmax(1)
        labels = check_labels(prediction, tuple(prediction.shape), self.num_classes, None, "prediction")
        truth = check_labels(target, tuple(labels.shape), self.num_classes, self.ignore_index, "target")
        maps = interpret.ExactMaps(labels, truth.to(labels.device), self.num_classes, self.ignore_index)
        for node, value in interpret.sums(self._nodes, maps).items():
            self._add(node, value.cpu())

    def merge(self: _Self, other: _Self) -> _Self:
        """Add what another accumulator of the same metrics has counted; returns this one.

        Raises:
            InputError: The other one counts something else.
        """
        same = type(other) is type(self) and other.metrics == self.metrics
        if not same or (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise InputError("only accumulators of the same metrics, num_classes and ignore_index can be merged.")
        for node, value in list(other._totals.items()):
            self._add(node, value)
        for node, rows in other._rows.items():
            self._rows[node].extend(list(rows))
        return self

    def values(self) -> dict[str, float]:
        """The value of each metric over everything counted; a metric of nothing is 0."""
        counted = self._counted()
        return {name: float(interpret.value(expr, counted)) for name, expr in self.metrics.items()}

    def class_values(self, name: str) -> list[float]:
        """The values whose mean over the classes is the metric of that name.

        Raises:
            InputError: The metric is not, in the end, a mean over classes.
        """
        expr = self.metrics[name]
        if not isinstance(expr, e.ClassMean) or "image" in expr.value.axes:
            raise InputError(f"{name} has no values per class: it is not a mean over classes in the end.")
        return interpret.class_values(expr, self._counted()).tolist()

    def _counted(self) -> interpret.Sums:
        counted = {
            node: self._totals[node].to(torch.float64) if node in self._totals else self._zeros(node, 1)
            for node in self._nodes
            if not node.per_image
        }
        return counted | self._images()

    def _zeros(self, node: e.Sum, images: int) -> Tensor:
        return torch.zeros(images, self.num_classes if "class" in node.axes else 1, dtype=torch.float64)

    def _add(self, node: e.Sum, value: Tensor) -> None:
        if node.per_image:
            self._rows[node].append(value)
        else:
            self._totals[node] = self._totals[node] + value if node in self._totals else value

    def _images(self) -> interpret.Sums:
        """The rows of all images, sorted by what they hold: a mean over images then has one order of summation."""
        if not self._rows:
            return {}
        rows = {node: torch.cat([self._zeros(node, 0), *parts]) for node, parts in self._rows.items()}
        keys = torch.cat(list(rows.values()), dim=1)
        order = torch.arange(len(keys))
        for column in reversed(range(keys.shape[1])):
            order = order[keys[order, column].sort(stable=True).indices]
        return {node: value[order] for node, value in rows.items()}


class Accumulator(Accumulators):
    """Exact value of one metric over a data set.

    Args:
        expr: The metric: an expression, a name of the catalogue or a text.
        num_classes: C, at least 1.
        ignore_index: The target's label of ignored pixels.

    Example:
        >>> import torch, autosegloss as asl
        >>> accumulator = asl.Accumulator(asl.metric("gacc"), num_classes=2)
        >>> accumulator.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 0]]))
        >>> round(accumulator.compute(), 4)
        0.6667
    """

    def __init__(self, expr: e.Expr | str, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__({"metric": expr}, num_classes, ignore_index)

    def compute(self) -> float:
        """The value over everything counted so far; 0 if that is nothing."""
        return self.values()["metric"]
