"""Fitted offsets: one number per class, added to the logits before the arg-max, that maximises an exact metric.

The arg-max of logits is the best decision for accuracy and for no other metric. The offsets that are best for a metric
on held-out data are found one class at a time. Where the metric follows from counts over the data set, one walk over
the data tells its value at every offset of a class, the others fixed: each pixel has one threshold, at which the class
takes it from the best other one.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from autosegloss.errors import AutoseglossError, InputError, InputTypeError, cut, listed, shown
from autosegloss.files import read_json, write_text
from autosegloss.metric import expr as e
from autosegloss.metric import interpret
from autosegloss.metric.accumulate import Accumulators
from autosegloss.metric.labels import check_labels, check_logits, check_num_classes
from autosegloss.metric.parse import metric

Batches: TypeAlias = Iterable[Sequence[Tensor]]

FORMAT = "autosegloss-offsets"
VERSION = 1
BOUND: Final = 10.0
"""The largest offset by default, in logits: between two classes at the opposite ends the odds change by e^20 = 5e8,
which is more than the ratio of their pixels in any data set."""

_LARGEST_BOUND = 1e6
_LARGEST_FILE = 4_000_000  # bytes: offsets of 65,536 classes take less
_KEYS = ("format", "version", "metric", "before", "after", "offsets")
_GAIN = 1e-5  # a smaller one is noise, and would cost further walks
_SWEEPS = 10  # over all classes; two to five are usual
_COARSE = 320  # steps from 0 to the bound
_FINEST = 2.0**-12  # logits
_RATIO = 2.0 ** (1 / 16)  # of the distances of neighbouring offsets from the present one
_ENTRIES = 2**24  # of a histogram, 128 MiB
_STEPS = (0.1, 0.05, 0.025, 0.0125)  # of the bound, where every offset takes an evaluation
_WALKS = 200  # with two evaluations each


@dataclass(frozen=True, eq=False)
class Offsets:
    """One offset per class, added to the logits before the arg-max; see `fit_offsets`.

    Args:
        values: The offsets in logits, (C,) float64 on the CPU. Their mean over the classes that the labels have is 0.
        metric: The text of the metric that they were fitted for.
        before: Its value on the data of the fit without offsets.
        after: Its value there with them.
    """

    values: Tensor
    metric: str
    before: float
    after: float

    def apply(self, logits: Tensor) -> Tensor:
        """The logits plus the offsets, whose arg-max is the decision.

        Args:
            logits: (N, C, *S), any floating type.

        Returns:
            Float64 for float64, else float32: half precision would round small offsets away.

        Raises:
            InputTypeError: The logits are no floating-point tensor.
            InputError: They have another number of classes.
        """
        dtype = check_logits(logits, None)
        if logits.shape[1] != len(self.values):
            raise InputError(
                f"logits must have shape (N, {len(self.values)}, *S), one map per offset, got {tuple(logits.shape)}."
            )
        values = self.values.to(dtype).to(logits.device)
        return logits.to(dtype) + values.view(-1, *[1] * (logits.ndim - 2))

    def to_json(self) -> str:
        """The offsets as JSON, which holds numbers and no code; `load_offsets` reads its file."""
        content = (FORMAT, VERSION, self.metric, self.before, self.after, self.values.tolist())
        return json.dumps(dict(zip(_KEYS, content, strict=True)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the offsets as JSON; the file is replaced as a whole or left unchanged.

        Raises:
            WriteError: The file can't be written.
        """
        write_text(Path(path), self.to_json())


def load_offsets(path: str | os.PathLike[str]) -> Offsets:
    """The offsets in a file of `Offsets.save`.

    Raises:
        InputError: The file is missing, damaged, of a newer version, or holds something else.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputTypeError(f"the offsets must be the path of their file, got {type(path).__name__}.")
    name = cut(os.fspath(path))
    try:
        file = Path(path)
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise InputError(f"{name}: not a regular file.")
        with file.open("rb") as opened:
            data = opened.read(_LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: can't be read: {getattr(error, 'strerror', None) or error}.") from None
    if len(data) > _LARGEST_FILE:
        raise InputError(f"{name}: more than {_LARGEST_FILE:,} bytes, and so no file of offsets.")
    try:
        content = read_json(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not a JSON file that can be read ({cut(str(error))}).") from None
    return _from_content(content, name)


def _from_content(content: Any, name: str) -> Offsets:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f'{name}: not a file of offsets; it has no "format": "{FORMAT}".')
    version = content.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InputError(f"{name}: version must be an integer of at least 1, got {shown(version)}.")
    if version > VERSION:
        raise InputError(
            f"{name}: version {shown(version)} is newer than what this package reads ({VERSION}); upgrade autosegloss."
        )
    if missing := [key for key in _KEYS if key not in content]:
        raise InputError(f"{name}: missing: {', '.join(missing)}.")
    if unknown := [key for key in content if key not in _KEYS]:
        raise InputError(f"{name}: unknown: {cut(', '.join(unknown))}; allowed: {', '.join(_KEYS)}.")
    if not isinstance(content["metric"], str):
        raise InputError(f"{name}: metric must be the text of an expression, got {shown(content['metric'])}.")
    try:
        metric(content["metric"])
    except AutoseglossError as error:
        raise InputError(f"{name}: metric: {error}") from None
    for key in ("before", "after"):
        if not _is_number(content[key]):
            raise InputError(f"{name}: {key} must be a finite number, got {shown(content[key])}.")
    values = content["offsets"]
    if not isinstance(values, list) or len(values) < 2:
        raise InputError(f"{name}: offsets must be a list of a number for each of two classes or more.")
    for number, value in enumerate(values):
        if not _is_number(value) or abs(value) > _LARGEST_BOUND:
            raise InputError(f"{name}: the offset of class {number} must be a finite number, got {shown(value)}.")
    tensor = torch.tensor(values, dtype=torch.float64)
    return Offsets(tensor, content["metric"], float(content["before"]), float(content["after"]))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


@torch.no_grad()
def fit_offsets(
    expr: e.Expr | str | Mapping[str, object],
    batches: Batches,
    num_classes: int,
    *,
    ignore_index: int = 255,
    guards: Mapping[e.Expr | str, float] | None = None,
    bound: float = BOUND,
) -> Offsets:
    """Fit one offset per class that maximises a metric of the arg-max, on data that was not trained on.

    The offsets of the classes that the labels have are found one at a time, until none improves. For a metric of counts
    over the data set (IoU, Dice, accuracy and others without `per_image` or neighbourhoods, and class means of them) a
    walk over the batches gives the exact value at some 1,800 offsets of a class: evenly spaced up to the bound, and
    ever closer around the present offset. For other metrics the offsets are tried in steps of 1, 1/2, 1/4 and 1/8
    (of a bound of 10), with 400 evaluations at most. An offset is taken only where the metric, evaluated with it, has
    risen: the result is never worse than no offsets on these data. It does not depend on the batches or their order.

    Args:
        expr: The metric: an expression, a name of the catalogue or a text.
        batches: Pairs of logits (N, C, *S) of any floating type and labels (N, *S) of an integer type. They are walked
            up to some 10 C times: a list, or a DataLoader without random changes, but no generator. Only one is in
            memory at a time.
        num_classes: C, at least 2.
        ignore_index: The label of ignored pixels.
        guards: Metrics, each with the least share in (0, 1] of its value without offsets that must remain.
        bound: The largest offset, in logits. The default suits logits whose softmax is a probability; scores of another
            scale need another bound.

    Returns:
        The offsets. Their mean over the classes that the labels have is 0; other classes stay at 0.

    Raises:
        InputError: The batches are empty or hold no label that counts, can be walked only once, or change from walk to
            walk; their logits are not finite; a guarded metric is negative; a shape, a label or an argument is wrong.

    Example:
        >>> import torch, autosegloss as asl
        >>> logits = torch.tensor([[[2.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]]])
        >>> offsets = asl.fit_offsets("miou", [(logits, torch.tensor([[0, 0, 1, 1]]))], num_classes=2)
        >>> round(offsets.before, 2), offsets.after, offsets.apply(logits).argmax(1).tolist()
        (0.25, 1.0, [[0, 0, 1, 1]])

    Reference: a rule for all pixels of a class, fitted on labels. RankSEG decides each image anew from its
    probabilities, for IoU and Dice: Dai and Li, RankSEG: A Consistent Ranking-based Framework for Segmentation, JMLR
    2023; RankSEG-RMA, NeurIPS 2025 (arXiv 2510.15362).
    """
    return _Fit(expr, batches, num_classes, ignore_index, guards or {}, bound).run()


class _Fit:
    """A fit: the metrics, the data, and the best offsets so far."""

    def __init__(
        self,
        expr: e.Expr | str | Mapping[str, object],
        batches: Batches,
        num_classes: int,
        ignore_index: int,
        guards: Mapping[e.Expr | str, float],
        bound: float,
    ) -> None:
        self.num_classes, self.ignore_index = check_num_classes(num_classes), ignore_index
        if self.num_classes < 2:
            raise InputError(f"num_classes must be at least 2, got {self.num_classes}: a single class needs no offset.")
        if not _is_number(bound) or not 0 < bound <= _LARGEST_BOUND:
            raise InputError(f"bound must be a number above 0 and at most {_LARGEST_BOUND:g}, got {shown(bound)}.")
        self.bound = float(bound)
        self.shares = _shares(guards)
        self.metrics = [metric(expr), *self.shares]
        self.counts = Accumulators(self._named(), self.num_classes, ignore_index)  # checks the arguments
        self.batches = _checked_batches(batches)
        self.sizes: Tensor | None = None
        none = torch.zeros(self.num_classes, dtype=torch.float64)
        self.predicted = torch.zeros(self.num_classes, dtype=torch.int64)
        (first,) = self.evaluated([none], self.predicted)
        if not self.seen:
            raise InputError(f"batches hold no label that counts: every pixel is {ignore_index}, which is ignored.")
        self.least = [self._least(*each) for each in zip(self.shares.items(), first[1:], strict=True)]
        self.before = first[0]
        self.best, self.value = none, first[0]

    def run(self) -> Offsets:
        """The best offsets."""
        if len(self.seen) > 1:
            if all(map(interpret.is_counted, self.metrics)):
                self._sweep()
            else:
                self._try_steps()
        self._warn()
        return Offsets(self.best, str(self.metrics[0]), self.before, self.value)

    @property
    def seen(self) -> list[int]:
        """The classes that the labels have."""
        return [] if self.sizes is None else self.sizes.nonzero().flatten().tolist()

    def _least(self, guard: tuple[e.Expr, float], value: float) -> float:
        """The least value of a guarded metric."""
        expr, share = guard
        if value < 0:
            raise InputError(
                f"guards: {cut(str(expr))} is {value:.4g} without offsets; a share of it means something for metrics "
                "that are never negative."
            )
        return share * value

    def _warn(self) -> None:
        """Say so where classes that the labels do not have take pixels, which offsets of the others can't change."""
        taken = {label: int(n) for label, n in enumerate(self.predicted) if n and label not in self.seen}
        if taken:
            share = sum(taken.values()) / int(self.predicted.sum())
            classes = ", ".join(listed([str(label) for label in taken]))
            logging.getLogger(__name__).warning(
                f"no label has class {classes}, yet {100 * share:.2g}% of the pixels are predicted so. Its offset is 0 "
                "all the same, which limits what the others can do; leave such classes out of the scores."
            )

    def evaluated(self, several: Sequence[Tensor], predicted: Tensor | None = None) -> list[list[float]]:
        """The exact value of each metric under several offsets, by one walk.

        Args:
            several: The offsets.
            predicted: To add the pixels of each class to that the logits themselves predict.
        """
        counts = [Accumulators(self._named(), self.num_classes, self.ignore_index) for _ in several]
        for logits, labels in self._walk():
            if predicted is not None:
                found = logits.argmax(1)[labels != self.ignore_index]
                predicted += torch.bincount(found, minlength=self.num_classes).cpu()
            for values, each in zip(several, counts, strict=True):
                each.update(Offsets(values, "", 0.0, 0.0).apply(logits), labels)
        return [list(each.values().values()) for each in counts]

    # A metric of counts: the values at all offsets of a class

    def _sweep(self) -> None:
        """Move one class after the other to where the metric is highest; a move counts once it has been evaluated."""
        grid, proposal, still = _grid(self.bound, self.num_classes), self.best, 0
        for label in self.seen * _SWEEPS:
            counts = self._counts_along(grid, proposal, label)
            if proposal is not self.best and not self._take(proposal, self._values_of(counts[len(grid) // 2])):
                counts = self._counts_along(grid, self.best, label)
            proposal = self._highest(grid, counts, label)
            still = still + 1 if proposal is self.best else 0
            if still == len(self.seen):
                return
        if proposal is not self.best:
            self._take(proposal, self.evaluated([proposal])[0])

    def _counts_along(self, grid: Tensor, offsets: Tensor, label: int) -> Tensor:
        """The counts of the arg-max at each step of one class from some offsets.

        Args:
            grid: The steps, (E,), ascending.
            offsets: (C,).
            label: The class that moves.

        Returns:
            Pixels of each class in neither map, in the target, in the prediction, in both: (E, C, 4) int64.
        """
        # Pixels by the number of steps at which the class does not have them, the class that has them there, and
        # whether the target is a third class, that class or the moving one.
        size, shape = self.num_classes, (len(grid) + 1, self.num_classes, 3)
        histogram = torch.zeros(shape, dtype=torch.int64)
        applied = Offsets(offsets, "", 0.0, 0.0)
        for logits, labels in self._walk():
            scores = applied.apply(logits)
            other, best = torch.cat([scores[:, :label], scores[:, label + 1 :]], 1).max(1)
            best = best + (best >= label)
            step = other - scores[:, label]
            # At its threshold itself a pixel is of the class with the lower number.
            step = torch.where(best < label, torch.nextafter(step, step.new_tensor(torch.inf)), step)
            place = torch.bucketize(step, grid.to(step))
            kind = 2 * (labels == label) + (labels == best)
            place = ((place * size + best) * 3 + kind)[labels != self.ignore_index]
            histogram += torch.bincount(place, minlength=histogram.numel()).view(shape).cpu()
        own, every = histogram.cumsum(0)[:-1], histogram.sum(0)
        target = self.sizes if self.sizes is not None else every.new_zeros(size)
        found = every.sum(1) - own.sum(2)
        found[:, label] = own.sum((1, 2))
        both = every[:, 1] - own[:, :, 1]
        both[:, label] = own[:, :, 2].sum(1)
        return torch.stack([target.sum() - target - found + both, target - both, found - both, both], 2)

    def _values_of(self, counts: Tensor) -> list[float]:
        """The value of each metric from counts (C, 4), the same to the last bit as that of an accumulator."""
        return [float(interpret.values(expr, counts[None])[0]) for expr in self.metrics]

    def _highest(self, grid: Tensor, counts: Tensor, label: int) -> Tensor:
        """The offsets after the step to the highest value, the nearest of several; the best ones if none is higher."""
        values, *guarded = (interpret.values(expr, counts) for expr in self.metrics)
        allowed = self._steps_within(grid, label) & ~values.isnan()
        for least, kept in zip(self.least, guarded, strict=True):
            allowed &= kept >= least
        values = values.where(allowed, -torch.inf)
        highest = values.max()
        if not highest > self.value + _GAIN:
            return self.best
        places = (values == highest).nonzero().flatten()
        return self._moved(float(grid[places[grid[places].abs().argmin()]]), label)

    def _steps_within(self, grid: Tensor, label: int) -> Tensor:
        """Which steps of a class keep all offsets within the bound."""
        rest = self.best[[each for each in self.seen if each != label]]
        shift = grid / len(self.seen)
        own = (self.best[label] + grid - shift).abs() <= self.bound
        return own & (rest.max() - shift <= self.bound) & (rest.min() - shift >= -self.bound)

    # Any metric: an evaluation for each offset

    def _try_steps(self) -> None:
        """Move one class after the other by shrinking steps, up and down, as long as the metric rises."""
        walks = 0
        for share in _STEPS:
            for label in self.seen:
                signs: tuple[int, ...] = (1, -1)
                while signs and walks < _WALKS:
                    step = self.bound * share
                    signs = tuple(s for s in signs if self._steps_within(torch.tensor([s * step]).double(), label)[0])
                    offsets = [self._moved(sign * step, label) for sign in signs]
                    found = self.evaluated(offsets) if offsets else []
                    walks += bool(offsets)
                    order = sorted(range(len(signs)), key=lambda i: -found[i][0])
                    signs = next(((signs[i],) for i in order if self._take(offsets[i], found[i])), ())

    # Both

    def _moved(self, step: float, label: int) -> Tensor:
        """The best offsets with one class moved, then all of those that the labels have shifted to a mean of 0."""
        offsets = self.best.clone()
        offsets[label] += step
        offsets[self.seen] -= offsets[self.seen].mean()
        return offsets

    def _take(self, offsets: Tensor, values: Sequence[float]) -> bool:
        """Keep offsets as the best ones if their metric is higher and they keep the guards; whether it was done."""
        kept = all(value >= least for value, least in zip(values[1:], self.least, strict=True))
        if not kept or not values[0] > self.value:
            return False
        self.best, self.value = offsets, values[0]
        return True

    def _named(self) -> dict[str, e.Expr]:
        return {str(number): expr for number, expr in enumerate(self.metrics)}

    def _walk(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, checked: logits and labels on one device."""
        sizes, number = torch.zeros(self.num_classes + 1, dtype=torch.int64), -1
        for number, batch in enumerate(self.batches):
            try:
                logits, labels = _checked(batch, self.num_classes, self.ignore_index)
            except InputError as error:
                raise type(error)(f"batch {number}: {error}") from None
            valid = labels.masked_fill(labels == self.ignore_index, self.num_classes)
            sizes += torch.bincount(valid.flatten(), minlength=len(sizes)).cpu()
            yield logits, labels
        if number < 0:
            what = "is empty" if self.sizes is None else "was empty on the second walk"
            raise InputError(f"batches {what}; give pairs of logits and labels, as a list or a DataLoader.")
        if self.sizes is not None and not sizes[:-1].equal(self.sizes):
            raise InputError(
                "batches held other labels on the second walk; a loader must give the same data each time, without "
                "random crops or subsets."
            )
        self.sizes = sizes[:-1]


def _grid(bound: float, num_classes: int) -> Tensor:
    """Steps of an offset, (E,) float64 ascending and symmetric about 0: evenly spaced, and ever closer towards 0."""
    most = 2 * bound
    number = int(math.log(most / _FINEST, _RATIO)) if most > _FINEST else 0
    near = [_FINEST * _RATIO**k for k in range(number + 1)]
    steps = sorted(
        {each for each in (*near, *(bound * k / _COARSE for k in range(1, 2 * _COARSE + 1))) if each <= most}
    )
    steps = steps[:: math.ceil(2 * 3 * num_classes * len(steps) / _ENTRIES)]
    return torch.tensor([*(-step for step in reversed(steps)), 0.0, *steps], dtype=torch.float64)


def _shares(guards: Mapping[e.Expr | str, float]) -> dict[e.Expr, float]:
    if not isinstance(guards, Mapping):
        raise InputTypeError(f"guards must be a mapping of metrics to shares, got {type(guards).__name__}.")
    found: dict[e.Expr, float] = {}
    for name, share in guards.items():
        if not _is_number(share) or not 0 < share <= 1:
            raise InputError(f"guards: the share of {cut(str(name))} must be a number in (0, 1], got {shown(share)}.")
        expr = metric(name)
        found[expr] = max(float(share), found.get(expr, 0.0))
    return found


def _checked_batches(batches: object) -> Batches:
    if isinstance(batches, Tensor | str | bytes | Mapping) or not isinstance(batches, Iterable):
        raise InputTypeError(
            f"batches must be an iterable of pairs (logits, labels), such as a list, got {type(batches).__name__}."
        )
    if isinstance(batches, Iterator):
        raise InputTypeError(
            f"batches is of type {type(batches).__name__}, which can be walked only once, and a fit walks them "
            "repeatedly; pass a list, a DataLoader, or an object whose __iter__ starts anew."
        )
    return batches


def _checked(batch: object, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputTypeError(f"must be a pair (logits, labels), got {type(batch).__name__}.")
    logits, labels = batch
    check_logits(logits, None)
    if logits.shape[1] != num_classes:
        raise InputError(f"logits must have shape (N, {num_classes}, *S), got {tuple(logits.shape)}.")
    if not isinstance(labels, Tensor):
        raise InputTypeError(f"labels must be a torch tensor of integers, got {type(labels).__name__}.")
    if wrong := int((~logits.isfinite()).sum()):
        raise InputError(
            f"logits are NaN or infinite at {wrong} of {logits.numel()} places; an offset can't mend them."
        )
    shape = (logits.shape[0], *logits.shape[2:])
    return logits, check_labels(labels.to(logits.device), shape, num_classes, ignore_index, "labels")
