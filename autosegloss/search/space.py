"""The family of losses that a search explores: a loss for every point of the unit cube."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from autosegloss.errors import InputError
from autosegloss.loss import MixedLoss, SearchSpace, SurrogateLoss
from autosegloss.loss.base import Loss, LossContent
from autosegloss.loss.classic import CrossEntropy
from autosegloss.loss.settings import RelaxationConfig
from autosegloss.metric import metric
from autosegloss.search.settings import StudyConfig


@dataclass(frozen=True)
class LossFamily:
    """The losses of a configuration, indexed by theta.

    Args:
        space: The mapping from theta to curves.
        relaxation: The other settings of the losses.
    """

    space: SearchSpace
    relaxation: RelaxationConfig

    @classmethod
    def of(cls, config: StudyConfig) -> LossFamily:
        """The family that a configuration describes."""
        relaxation = config.relaxation
        space = SearchSpace(
            metric(config.metric),
            relaxation.curve,
            relaxation.pieces,
            relaxation.share_curves,
            cross_entropy=relaxation.cross_entropy == "searched",
        )
        return cls(space, relaxation)

    def check(self) -> None:
        """Raise InputError if there are no coordinates to search."""
        if not self.space.dimension:
            raise InputError(
                f"there is nothing to search: {self.relaxation.curve} curves of {self.relaxation.pieces} piece(s) on "
                f"{len(self.space.curves)} slot(s) have no coordinates. Increase relaxation.pieces."
            )

    @cached_property
    def start(self) -> tuple[float, ...]:
        """The theta at which a search starts: identity curves."""
        return self.space.identity

    def loss(self, theta: Sequence[float]) -> SurrogateLoss | MixedLoss:
        """The loss at a point.

        Args:
            theta: `space.dimension` numbers in [0, 1].
        """
        relaxation = self.relaxation
        surrogate = SurrogateLoss(
            self.space.expr,
            self.space.control_points(theta),
            logic=relaxation.logic,
            curve=relaxation.curve,
            classes=relaxation.classes,
        )
        if relaxation.cross_entropy == 0:
            return surrogate
        weight = theta[-1] if relaxation.cross_entropy == "searched" else relaxation.cross_entropy
        return MixedLoss(surrogate, weight)

    def content(self, theta: Sequence[float]) -> LossContent:
        """The loss at a point, as the content of its file."""
        return bare_content(self.loss(theta))


def bare_content(loss: Loss) -> LossContent:
    """The content of a loss's file without its provenance, and with lists for tuples: equal losses compare equal."""
    content: LossContent = json.loads(json.dumps(loss.content() | {"provenance": {}}))
    return content


CROSS_ENTROPY: LossContent = bare_content(CrossEntropy())
"""The content of cross-entropy, the baseline of every search."""
