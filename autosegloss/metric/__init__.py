"""The metric room: expressions over class maps, their text, the catalogue, their exact values, and calibration."""

from autosegloss.metric.accumulate import Accumulator, Accumulators
from autosegloss.metric.calibration import CalibrationError
from autosegloss.metric.catalogue import METRICS
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
    "any_class",
    "band",
    "boundary",
    "class_mean",
    "class_sum",
    "dilate",
    "erode",
    "image_mean",
    "image_worst",
    "metric",
    "parse",
    "per_image",
    "pred",
    "target",
    "total",
]
