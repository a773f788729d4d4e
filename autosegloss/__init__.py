"""autosegloss: write a segmentation metric once; evaluate it exactly, relax it into a loss, search the loss's shape.

Metrics and losses need torch and numpy only. What a search needs besides is imported when it is first used.
"""

# ruff: noqa: E402

from autosegloss.startup import end_quietly_at_interrupts

end_quietly_at_interrupts()

from autosegloss.errors import (
    AutoseglossError,
    ConfigError,
    DataError,
    ExprError,
    InputError,
    InputTypeError,
    LossFileError,
    ParseError,
    RefusedError,
    SearchError,
    WriteError,
)
from autosegloss.loss import MixedLoss, SurrogateLoss, load_loss, presets, slots
from autosegloss.metric import (
    METRICS,
    Accumulator,
    Accumulators,
    CalibrationError,
    Expr,
    Offsets,
    any_class,
    band,
    boundary,
    class_mean,
    class_sum,
    dilate,
    erode,
    fit_offsets,
    image_mean,
    image_worst,
    load_offsets,
    metric,
    parse,
    per_image,
    pred,
    target,
    total,
)

# The function takes the place of the package of the same name for good: importing a module of a package that is
# imported already does not set the attribute again.
from autosegloss.search import load_config, search

__all__ = [
    "METRICS",
    "Accumulator",
    "Accumulators",
    "AutoseglossError",
    "CalibrationError",
    "ConfigError",
    "DataError",
    "Expr",
    "ExprError",
    "InputError",
    "InputTypeError",
    "LossFileError",
    "MixedLoss",
    "Offsets",
    "ParseError",
    "RefusedError",
    "SearchError",
    "SurrogateLoss",
    "WriteError",
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
    "load_config",
    "load_loss",
    "load_offsets",
    "metric",
    "parse",
    "per_image",
    "pred",
    "presets",
    "search",
    "slots",
    "target",
    "total",
]
