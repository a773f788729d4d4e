"""Exact values of metrics over a data set, batch by batch."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from autosegloss.errors import InputError, InputTypeError, shown
from autosegloss.metric import expr as e
from autosegloss.metric import interpret
from autosegloss.metric.distributed import gather
from autosegloss.metric.labels import (
    best_class,
    check_ignore_index,
    check_ignored_class,
    check_labels,
    check_num_classes,
    check_tensors,
)
from autosegloss.metric.parse import metric

_Self = TypeVar("_Self", bound="Tally")


class Counts(NamedTuple):
    """What has been counted, as plain tensors by name: int64 or float64, on the CPU."""

    totals: dict[str, Tensor]
    """Sums over the data set; they add up."""
    rows: dict[str, Tensor]
    """One row per image, (images, columns); they follow one another."""


class Tally(ABC):
    """Counts of a data set, which add up over batches, over shards (`merge`) and over processes (`reduce`).

    Its `repr` says what it counts: two with the same `repr` can be added.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.num_classes = classes = check_num_classes(num_classes)
        self.ignore_index = check_ignore_index(ignore_index)
        check_ignored_class(self.ignore_index, classes)

    @abstractmethod
    def update(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Count a batch."""

    def reset(self) -> None:
        """Forget everything."""
        self._totals: dict[str, Tensor] = {}
        self._rows: dict[str, list[Tensor]] = {}
        # A batch of no images gives every count its shape and type: a process that gets no image has them too.
        self.update(torch.zeros(0, self.num_classes, 1), torch.zeros(0, 1, dtype=torch.int64))

    def counts(self) -> Counts:
        """Everything counted so far."""
        return Counts(dict(self._totals), {name: torch.cat(parts) for name, parts in self._rows.items()})

    def add(self, counts: Counts) -> None:
        """Add the counts of another tally of the same `repr`."""
        for name, value in counts.totals.items():
            self._totals[name] = self._totals[name] + value if name in self._totals else value
        for name, value in counts.rows.items():
            self._rows.setdefault(name, []).append(value)

    def merge(self: _Self, other: _Self) -> _Self:
        """Add what another one of the same arguments has counted; returns this one.

        Raises:
            InputError: The other one counts something else.
        """
        if not isinstance(other, Tally) or repr(other) != repr(self):
            raise InputError(
                f"only accumulators that count the same can be merged, got\n  {shown(other)}\nfor\n  {shown(self)}."
            )
        self.add(other.counts())
        return self

    def reduce(self: _Self) -> _Self:
        """A new one with the counts of all ranks of `torch.distributed`, the same on each; without it, a copy.

        This one keeps the counts of its own rank: it can go on counting and be reduced again, and no image counts
        twice. Every rank calls this, also one that has counted nothing; the ranks may have different numbers of images.
        Counts that are int64 give the value of one process to the last bit.

        `torch.utils.data.DistributedSampler` repeats images until all ranks have the same number, and a repeated image
        is counted again: give rank r of R the images r, r + R, r + 2 R, ... (`indices[r::R]`).

        Raises:
            InputError: The ranks count different things.
        """
        own = self.counts()
        whole = copy.copy(self)
        whole.reset()
        for tensors in gather([*own.totals.values(), *own.rows.values()], repr(self)):
            named = dict(zip([*own.totals, *own.rows], tensors, strict=True))
            whole.add(Counts({name: named[name] for name in own.totals}, {name: named[name] for name in own.rows}))
        return whole


class Accumulators(Tally):
    """Exact values of several metrics over one data set; what they share is counted once.

    The state is the sums of the expressions and nothing else: a count per class for the data set, a row per image for
    what is taken per image. Counts are int64, and the value then does not depend on the order of the images, on the
    size of the batches or on how they are sharded and merged. Where an expression weighs pixels by fractions the sums
    are float64, and the value depends on these by rounding.

    Args:
        metrics: Expressions (or names, or texts) by the name of their value.
        num_classes: C, 1 to 65,536.
        ignore_index: The target's label of ignored pixels. If it is a class, as torch allows too, that class does not
            count; for more than 255 classes the default is refused.
    """

    def __init__(self, metrics: Mapping[str, e.Expr | str], num_classes: int, ignore_index: int = 255) -> None:
        super().__init__(num_classes, ignore_index)
        if not isinstance(metrics, Mapping):
            raise InputTypeError(f"metrics must be a mapping of names to metrics, got {type(metrics).__name__}.")
        self.metrics = {name: metric(expr) for name, expr in metrics.items()}
        for expr in self.metrics.values():
            e.check_classes(expr, self.num_classes)
        nodes = dict.fromkeys(node for expr in self.metrics.values() for node in interpret.statistics(expr))
        self._nodes = {str(node): node for node in nodes}
        self.reset()

    def __repr__(self) -> str:
        metrics = {name: str(expr) for name, expr in self.metrics.items()}
        return f"{type(self).__name__}({metrics}, num_classes={self.num_classes}, ignore_index={self.ignore_index})"

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            prediction: Labels (N, *S) of an integer type, or scores (N, C, *S) of a floating type, whose arg-max
                counts: of two classes or more. An axis of length 1 in both, be it of channels, changes no metric.
            target: Labels (N, *S) or (N, 1, *S) of an integer type, 0..C-1 or `ignore_index`.
            mask: True where a pixel counts, boolean (N, *S) or (N, 1, *S); elsewhere the target is `ignore_index`.

        Raises:
            InputError: Shapes, labels or scores are wrong; nothing has been counted then.
        """
        check_tensors(prediction, target)
        if prediction.is_floating_point():
            _, labels = best_class(prediction, self.num_classes)
        else:
            labels = check_labels(prediction, tuple(prediction.shape), self.num_classes, None, "prediction")
        truth = check_labels(target, tuple(labels.shape), self.num_classes, self.ignore_index, "target", mask)
        maps = interpret.ExactMaps(labels, truth.to(labels.device), self.num_classes, self.ignore_index)
        sums = {node: value.cpu() for node, value in interpret.sums(tuple(self._nodes.values()), maps).items()}
        self.add(
            Counts(
                {name: sums[node] for name, node in self._nodes.items() if not node.per_image},
                {name: sums[node] for name, node in self._nodes.items() if node.per_image},
            )
        )

    def values(self) -> dict[str, float]:
        """The value of each metric over everything counted; a metric of nothing is 0."""
        sums = self.sums()
        return {name: float(interpret.value(expr, sums)) for name, expr in self.metrics.items()}

    def class_values(self, name: str) -> list[float | None] | None:
        """What a metric averages over the classes: a value per class, None for a class that does not count.

        Args:
            name: One of the metrics.

        Returns:
            None for a metric that does not end in a mean over classes. One that averages over images after it has, as
            the value of a class, the mean over the images in which the class counts.

        Raises:
            InputError: There is no such metric.
        """
        if name not in self.metrics:
            raise InputError(f"unknown metric `{name}`; known: {', '.join(self.metrics)}.")
        expr = self.metrics[name]
        mean = expr.value if isinstance(expr, e.ImageMean | e.ImageWorst) else expr
        if not isinstance(mean, e.ClassMean):
            return None
        value, where = mean.value, mean.where
        if "image" in value.axes:
            in_image = where is not None and "image" in where.axes
            value = e.image_mean(value, where if in_image else None)
            where = e.image_mean(where) if where is not None and in_image else where
        sums = self.sums()
        values: list[float] = interpret.class_values(value, sums).tolist()
        counts = interpret.class_values(where, sums).tolist() if where is not None else [1.0] * len(values)
        weights = mean.weights_of(len(values))
        counted = [count > 0 and weight > 0 for count, weight in zip(counts, weights, strict=True)]
        return [x if counts else None for x, counts in zip(values, counted, strict=True)]

    def sums(self) -> interpret.Sums:
        """The sums that the metrics are made of, in float64; the images are in the order in which they were counted."""
        totals, rows = self.counts()
        return {self._nodes[name]: value.to(torch.float64) for name, value in (totals | rows).items()}


class Accumulator(Accumulators):
    """Exact value of one metric over a data set.

    Args:
        expr: The metric: an expression, a name of the catalogue or a text.
        num_classes: C, 1 to 65,536.
        ignore_index: The target's label of ignored pixels. If it is a class, as torch allows too, that class does not
            count; for more than 255 classes the default is refused.

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
