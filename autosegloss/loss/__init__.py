"""The loss room: curves, the relaxed reading of a metric, the loss module and its file; mixes, and the classics."""

from autosegloss.loss.base import Loss
from autosegloss.loss.file import build_loss, load_loss, presets
from autosegloss.loss.mixed import MixedLoss
from autosegloss.loss.named import named_loss
from autosegloss.loss.relax import SearchSpace, Slot, slots
from autosegloss.loss.surrogate import SurrogateLoss

__all__ = [
    "Loss",
    "MixedLoss",
    "SearchSpace",
    "Slot",
    "SurrogateLoss",
    "build_loss",
    "load_loss",
    "named_loss",
    "presets",
    "slots",
]
