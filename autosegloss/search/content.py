"""Losses as the contents of their files, which jobs carry."""

from __future__ import annotations

import json

from autosegloss.loss import MixedLoss
from autosegloss.loss.base import Loss, LossContent
from autosegloss.loss.classic import CrossEntropy


def bare_content(loss: Loss) -> LossContent:
    """The content of a loss's file without its provenance, and with lists for tuples: equal losses compare equal."""
    content: LossContent = json.loads(json.dumps(loss.content() | {"provenance": {}}))
    return content


def parts_of(loss: Loss) -> tuple[Loss, ...]:
    """The parts of a sum, or the loss itself."""
    return loss.parts if isinstance(loss, MixedLoss) else (loss,)


CROSS_ENTROPY: LossContent = bare_content(CrossEntropy())
"""The content of cross-entropy, the baseline of every search."""
