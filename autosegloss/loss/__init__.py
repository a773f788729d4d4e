"""The loss room: curves, the relaxed reading of a metric, the loss module, and its file."""

from autosegloss.loss.file import load_loss, presets
from autosegloss.loss.relax import SearchSpace, Slot, slots
from autosegloss.loss.surrogate import SurrogateLoss

__all__ = ["SearchSpace", "Slot", "SurrogateLoss", "load_loss", "presets", "slots"]
