"""The steps at which a loss is tried: its scale under SGD, a factor of the learning rate under AdamW.

A scale is the step size of SGD but for the weight decay. AdamW divides it out, so that the learning rate is the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autosegloss.loss import MixedLoss, SurrogateLoss
from autosegloss.loss.base import Loss, LossContent
from autosegloss.loss.file import build_loss
from autosegloss.proxy.own_loss import is_own
from autosegloss.proxy.settings import Optimizer
from autosegloss.search.content import bare_content

LADDERS: Mapping[Optimizer, tuple[float, ...]] = {"sgd": (1.0, 2.0, 4.0, 8.0, 16.0), "adamw": (1 / 3, 1.0, 3.0)}
"""The steps by default."""


class Stepped(NamedTuple):
    """A loss at a step.

    Args:
        loss: The content of its file, with the scale.
        rate: The factor of the learning rate.
    """

    loss: LossContent
    rate: float = 1.0


def at_step(loss: LossContent, step: float, optimizer: Optimizer) -> Stepped:
    """A loss at a step; one of the user's own, whose scale nobody can set, at a factor of the learning rate."""
    if optimizer == "adamw" or is_own(loss):
        return Stepped(loss, step)
    return Stepped(bare_content(_scaled(build_loss(loss), step)))


def _scaled(loss: Loss, factor: float) -> Loss:
    if factor == 1:
        return loss
    if isinstance(loss, SurrogateLoss):
        loss.scale *= factor
        return loss
    return MixedLoss([(factor, loss)])


def step_name(name: str, step: float, optimizer: Optimizer, own: bool = False) -> str:
    """What a loss at a step is called, as `load_loss` takes it where the step is a scale.

    Example:
        >>> step_name("lovasz", 8, "sgd"), step_name("lovasz", 3, "adamw")
        ('8*lovasz', 'lovasz (learning rate x 3)')
        >>> step_name("0.75*lovasz + 0.25*cross_entropy", 4, "sgd")
        '3*lovasz + 1*cross_entropy'
    """
    if step == 1:
        return name
    if optimizer == "adamw" or own:
        return f"{name} (learning rate x {step:.3g})"
    return " + ".join(_times(term.strip(), step) for term in name.split(" + "))


def _times(term: str, step: float) -> str:
    weight, star, rest = term.partition("*")
    return f"{step * float(weight):.4g}*{rest}" if star and _is_number(weight) else f"{step:.4g}*{term}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def middle(steps: Sequence[float]) -> int:
    """The place of the step with which a climb begins."""
    return len(steps) // 2
