"""A surrogate with a share of cross-entropy."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from autosegloss.errors import InputTypeError
from autosegloss.loss.base import Loss
from autosegloss.loss.classic import CrossEntropy, check_number
from autosegloss.loss.relax import ADVISED_WEIGHT
from autosegloss.loss.surrogate import SurrogateLoss


class MixedLoss(Loss):
    """`cross_entropy` * cross-entropy + (1 - `cross_entropy`) * surrogate.

    Cross-entropy has a gradient at every pixel from the first iteration on, which a metric's surrogate has not.

    Args:
        surrogate: The other part; the cross-entropy has its `ignore_index` and `reduce_over_ranks`.
        cross_entropy: The weight of the cross-entropy, from 0 to 1.

    Raises:
        InputError: The weight is out of range.
        InputTypeError: The surrogate is no SurrogateLoss.

    Example:
        >>> MixedLoss(SurrogateLoss("miou", curve="identity")).cross_entropy
        0.25
    """

    def __init__(self, surrogate: SurrogateLoss, cross_entropy: float = ADVISED_WEIGHT) -> None:
        super().__init__()
        if not isinstance(surrogate, SurrogateLoss):
            raise InputTypeError(f"surrogate must be a SurrogateLoss, got {type(surrogate).__name__}.")
        self.cross_entropy = check_number("cross_entropy", cross_entropy, 1)
        self.surrogate = surrogate
        self._cross_entropy = CrossEntropy(
            ignore_index=surrogate.ignore_index, reduce_over_ranks=surrogate.reduce_over_ranks
        )

    @property
    def ignore_index(self) -> int:
        """The label of ignored pixels in integer targets: that of both parts."""
        return self.surrogate.ignore_index

    @ignore_index.setter
    def ignore_index(self, ignore_index: int) -> None:
        self.surrogate.ignore_index = self._cross_entropy.ignore_index = ignore_index

    @property
    def provenance(self) -> dict[str, object]:
        """Where the loss comes from: that of the surrogate."""
        return self.surrogate.provenance

    @provenance.setter
    def provenance(self, provenance: dict[str, object]) -> None:
        self.surrogate.provenance = provenance

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of a batch; arguments as for `SurrogateLoss`."""
        plain, surrogate = self._cross_entropy(logits, target, mask), self.surrogate(logits, target, mask)
        mixed: Tensor = self.cross_entropy * plain + (1 - self.cross_entropy) * surrogate
        return mixed

    def content(self) -> dict[str, Any]:
        surrogate = self.surrogate.content()
        head = {"format": surrogate.pop("format"), "version": 2, "cross_entropy": self.cross_entropy}
        return head | {key: value for key, value in surrogate.items() if key != "version"}

    def extra_repr(self) -> str:
        """The weight, for `print(loss)`."""
        return f"cross_entropy={self.cross_entropy!r}"
