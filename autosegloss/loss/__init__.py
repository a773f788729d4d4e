"""The loss room: curves, the relaxed reading of a metric, the loss module and its file; mixes, and the classics."""

from autosegloss.loss.base import Loss
from autosegloss.loss.file import build_loss, presets
from autosegloss.loss.mixed import MixedLoss
from autosegloss.loss.named import load_loss, loss_names, named_loss
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
    "loss_names",
    "named_loss",
    "presets",
    "slots",
]
