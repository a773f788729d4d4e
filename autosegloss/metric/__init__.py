"""The metric room: expressions over class maps, their text, the catalogue, exact values, calibration and offsets."""

from autosegloss.metric.accumulate import Accumulator, Accumulators
from autosegloss.metric.calibration import CalibrationError
from autosegloss.metric.catalogue import METRICS
from autosegloss.metric.decision import Offsets, fit_offsets, load_offsets
from autosegloss.metric.expr import (
    Expr,
    any_class,
    band,
    boundary,
    class_mean,
    class_sum,
    dilate,
    erode,
    image_mean,
    image_worst,
    per_image,
    pred,
    target,
    total,
)
from autosegloss.metric.parse import metric, parse

__all__ = [
    "METRICS",
    "Accumulator",
    "Accumulators",
    "CalibrationError",
    "Expr",
    "Offsets",
    "any_class",
    "band",
    "boundary",
    "class_mean",
    "class_sum",
    "dilate",
    "erode",
    "fit_offsets",
    "image_mean",
    "image_worst",
    "load_offsets",
    "metric",
    "parse",
    "per_image",
    "pred",
    "target",
    "total",
]
