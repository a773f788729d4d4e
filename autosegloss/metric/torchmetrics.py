"""Accumulators as metrics of torchmetrics, for Lightning and whatever else speaks it; needs the extra `torchmetrics`.

Nothing else in the package imports this module.
"""

from __future__ import annotations

import copy
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torchmetrics import Metric  # type: ignore[import-not-found, unused-ignore]
from torchmetrics.utilities import dim_zero_cat  # type: ignore[import-not-found, unused-ignore]

from autosegloss.errors import InputTypeError
from autosegloss.metric.accumulate import Accumulator, Counts
from autosegloss.metric.calibration import CalibrationError


class TorchMetric(Metric):  # type: ignore[misc, unused-ignore]
    """An accumulator as a `torchmetrics.Metric`: the same counts, kept, reset and synchronised by torchmetrics.

    `compute` gives the value of the accumulator over all batches (and processes), in PyTorch's default floating type.

    Args:
        accumulator: What to count. It is copied, without what it has counted so far.
        options: Those of `torchmetrics.Metric`, such as `sync_on_compute` or `process_group`.

    Example, in a `LightningModule`, which computes and resets what it logs::

        self.miou = TorchMetric(asl.Accumulator("miou", num_classes=21))  # in __init__
        self.miou.update(logits, labels)  # in validation_step
        self.log("val/miou", self.miou)
    """

    is_differentiable = False
    full_state_update = False  # counts add up: `forward` counts a batch once, not twice

    def __init__(self, accumulator: Accumulator | CalibrationError, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(accumulator, Accumulator | CalibrationError):
            raise InputTypeError(
                f"accumulator must be an Accumulator or a CalibrationError, got {type(accumulator).__name__}."
            )
        self._accumulator = copy.deepcopy(accumulator)
        self._accumulator.reset()
        self._none = self._accumulator.counts()
        for name, value in self._none.totals.items():
            self.add_state(self._state(name), value, dist_reduce_fx="sum")
        for name in self._none.rows:
            self.add_state(self._state(name), [], dist_reduce_fx="cat")

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override, unused-ignore]
        """Whether a higher value is a better one: yes of metrics, no of errors of calibration."""
        return isinstance(self._accumulator, Accumulator)

    def _state(self, name: str) -> str:
        # A MetricCollection lets metrics share states of equal names that are equal after the first batch. Metrics that
        # count different things agree on many a first batch, so a name says all of what is counted.
        return f"count_{crc32(f'{self._accumulator!r} {name}'.encode()):08x}"

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Count a batch; the arguments are those of the accumulator."""
        self._accumulator.reset()
        self._accumulator.update(prediction, target, mask)
        totals, rows = self._accumulator.counts()
        for name, value in totals.items():
            state = self._state(name)
            setattr(self, state, getattr(self, state) + value.to(self.device))
        for name, value in rows.items():
            getattr(self, self._state(name)).append(value.to(self.device))

    def compute(self) -> Tensor:
        """The value over everything counted so far; 0 if that is nothing."""
        self._accumulator.reset()
        rows = {name: getattr(self, self._state(name)) for name in self._none.rows}
        self._accumulator.add(
            Counts(
                {name: getattr(self, self._state(name)).cpu() for name in self._none.totals},
                {name: dim_zero_cat(parts).cpu() for name, parts in rows.items() if len(parts)},
            )
        )
        return torch.tensor(self._accumulator.compute(), device=self.device)

    def _sync_dist(self, *arguments: Any, **options: Any) -> None:
        # For a process without images torchmetrics would gather an empty vector of float32, which does not fit the
        # others' rows of counts.
        for name, value in self._none.rows.items():
            if not len(getattr(self, self._state(name))):
                setattr(self, self._state(name), [value.to(self.device)])
        super()._sync_dist(*arguments, **options)
