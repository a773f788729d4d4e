"""A weighted sum of losses, such as a surrogate with a share of cross-entropy."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from autosegloss.errors import InputError, InputTypeError, shown
from autosegloss.loss.base import FORMAT, Loss, check_scale
from autosegloss.loss.classic import CrossEntropy, check_number
from autosegloss.loss.relax import ADVISED_WEIGHT
from autosegloss.loss.surrogate import SurrogateLoss

MOST_PARTS = 16
SUM_TOLERANCE = 1e-9
"""How far the sum of shares may be from 1."""
_OF_ITSELF = ("format", "version", "provenance", "scale")  # keys of a loss that a part of a sum has not


class MixedLoss(Loss):
    """A weighted sum of losses of the same logits and target: `scale` times the sum of `shares` times `parts`.

    A surrogate in which pixels of a small weight hardly count trains better with some cross-entropy, which has a
    gradient at every pixel from the first iteration on: `MixedLoss(surrogate, 0.25)` is 0.25 * cross-entropy + 0.75 *
    surrogate.

    A part that is a sum itself is replaced by its parts, and a surrogate of another scale than 1 by one of scale 1,
    which weighs as much more.

    Args:
        losses: The parts with their weights, 1 to 16 pairs (weight, loss), the weights above 0 and together at most a
            million; or one surrogate, with cross-entropy for the other part. All have one `ignore_index`; each has its
            own `reduce_over_ranks`.
        cross_entropy: The weight of the cross-entropy beside one surrogate, from 0 to 1, where that of the surrogate is
            1 - `cross_entropy`; None is 0.25. The cross-entropy has the surrogate's `ignore_index` and
            `reduce_over_ranks`, and the sum its provenance.

    Raises:
        InputError: A weight is out of range, there are too many parts, or their `ignore_index` differ.
        InputTypeError: A part is no pair of a weight and a `Loss`.

    Example:
        >>> surrogate = SurrogateLoss("miou", curve="identity")
        >>> MixedLoss(surrogate).cross_entropy
        0.25
        >>> loss = MixedLoss([(2, surrogate), (6, CrossEntropy(label_smoothing=0.1))])
        >>> loss.scale, loss.shares
        (8.0, (0.25, 0.75))
    """

    provenance: dict[str, object]

    def __init__(
        self, losses: SurrogateLoss | Sequence[tuple[float, Loss]], cross_entropy: float | None = None
    ) -> None:
        super().__init__()
        self.provenance = {}
        if isinstance(losses, SurrogateLoss):
            share = check_number("cross_entropy", ADVISED_WEIGHT if cross_entropy is None else cross_entropy, 1)
            plain = CrossEntropy(ignore_index=losses.ignore_index, reduce_over_ranks=losses.reduce_over_ranks)
            self.provenance = losses.provenance
            terms = [(share, plain), *_taken_apart(1 - share, losses)]
            if losses.scale != 1:
                terms = [term for term in terms if term[0]]
        elif cross_entropy is not None:
            raise InputError("cross_entropy is for one surrogate; in a list of parts, give its weight as a pair.")
        else:
            terms = _checked(losses)
        weights, parts = zip(*terms, strict=True)
        self._parts = nn.ModuleList(parts)
        self.scale: float = check_scale("the sum of the weights", math.fsum(weights))
        """The sum of the weights."""
        self.shares: tuple[float, ...] = tuple(weight / self.scale for weight in weights)
        """The weights divided by their sum, in the order of the parts."""
        place = _place_of_cross_entropy(self.parts)
        if place is not None and abs(self.scale - 1) <= SUM_TOLERANCE:  # as version 2 of a loss file holds it
            self.scale = 1.0
            self.shares = tuple(weights[place] if i == place else 1 - weights[place] for i in (0, 1))
        elif not all(self.shares):
            raise InputError(f"the weight {min(weights):g} is too small beside a sum of {self.scale:g}.")

    @classmethod
    def of_shares(cls, scale: float, shares: Sequence[tuple[float, Loss]]) -> MixedLoss:
        """The sum of parts with their shares, which sum to 1, times `scale`: to the last bit, as a loss file has it."""
        loss = cls(shares)
        if not (loss._has_old_form and abs(scale - 1) <= SUM_TOLERANCE):
            loss.scale, loss.shares = check_scale("scale", scale), tuple(share for share, _ in shares)
        return loss

    @property
    def parts(self) -> tuple[Loss, ...]:
        """The losses that are summed."""
        return tuple(self._parts)  # type: ignore[arg-type]  # a ModuleList of losses

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights of the parts: `scale` times `shares`."""
        return tuple(self.scale * share for share in self.shares)

    @property
    def _has_old_form(self) -> bool:
        """Whether it is one surrogate and plain cross-entropy, of weights that sum to 1."""
        return self.scale == 1 and _place_of_cross_entropy(self.parts) is not None

    @property
    def cross_entropy(self) -> float:
        """The weight of cross-entropy beside one surrogate; an attribute of sums of that form only, of weight 1."""
        return self.shares[self._place()]

    @property
    def surrogate(self) -> SurrogateLoss:
        """The surrogate beside cross-entropy; an attribute of sums of that form only, of weight 1."""
        surrogate = self.parts[1 - self._place()]
        assert isinstance(surrogate, SurrogateLoss)
        return surrogate

    def _place(self) -> int:
        place = _place_of_cross_entropy(self.parts) if self.scale == 1 else None
        if place is None:
            raise AttributeError
        return place

    @property
    def ignore_index(self) -> int:
        """The label of ignored pixels in integer targets: that of all parts."""
        return self.parts[0].ignore_index

    @ignore_index.setter
    def ignore_index(self, ignore_index: int) -> None:
        for part in self.parts:
            part.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of a batch; arguments as for `SurrogateLoss`. Soft labels, if each part takes them."""
        value: Tensor | None = None
        for weight, part in zip(self.weights, self._parts, strict=True):
            weighted = weight * part(logits, target, mask)
            value = weighted if value is None else value + weighted
        assert value is not None
        return value

    def content(self) -> dict[str, Any]:
        contents = [part.content() for part in self.parts]
        if odd := [part for part, content in zip(self.parts, contents, strict=True) if content["format"] != FORMAT]:
            raise InputTypeError(f"a loss file can't hold a part that is a {type(odd[0]).__name__}.")
        if self._has_old_form and self.surrogate.content()["version"] == 1:
            head = {"format": FORMAT, "version": 2, "cross_entropy": self.cross_entropy}
            return head | _part(self.surrogate.content()) | {"provenance": self.provenance}
        parts = [{"share": share, **_part(content)} for share, content in zip(self.shares, contents, strict=True)]
        return {"format": FORMAT, "version": 3, "scale": self.scale, "parts": parts, "provenance": self.provenance}

    def extra_repr(self) -> str:
        """The weights, for `print(loss)`."""
        if self._has_old_form:
            return f"cross_entropy={self.cross_entropy!r}"
        return f"weights=({', '.join(f'{weight:.6g}' for weight in self.weights)})"


def _part(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a loss within that of a sum."""
    return {key: value for key, value in content.items() if key not in _OF_ITSELF}


def _place_of_cross_entropy(parts: Sequence[Loss]) -> int | None:
    """Which of two parts is plain cross-entropy, if the other is a surrogate."""
    if sorted(map(_is_plain, parts)) != [False, True] or not any(isinstance(part, SurrogateLoss) for part in parts):
        return None
    return [*map(_is_plain, parts)].index(True)


def _is_plain(loss: Loss) -> bool:
    return isinstance(loss, CrossEntropy) and loss.options == CrossEntropy().options


def _checked(losses: object) -> list[tuple[float, Loss]]:
    """The parts of a sum, taken apart; all checked but their total."""
    if not isinstance(losses, Iterable) or isinstance(losses, str | nn.Module):
        raise InputTypeError(
            f"a sum must be a list of pairs (weight, loss), or one SurrogateLoss, got {_kind(losses)}."
        )
    terms: list[tuple[float, Loss]] = []
    for i, pair in enumerate(losses):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[1], Loss):
            given = (
                f"({_kind(pair[0])}, {_kind(pair[1])})" if isinstance(pair, tuple) and len(pair) == 2 else _kind(pair)
            )
            raise InputTypeError(f"part {i} must be a pair (weight, Loss), got {given}.")
        terms += _taken_apart(check_scale(f"the weight of part {i}", pair[0]), pair[1])
        if len(terms) > MOST_PARTS:
            break
    if not 1 <= len(terms) <= MOST_PARTS:
        raise InputError(f"a sum must have 1 to {MOST_PARTS} parts, got {'more' if terms else 'none'}.")
    if len(indices := {part.ignore_index for _, part in terms}) > 1:
        raise InputError(f"the parts of a sum must have one ignore_index, got {', '.join(map(str, sorted(indices)))}.")
    return terms


def _taken_apart(weight: float, loss: Loss) -> Iterator[tuple[float, Loss]]:
    """A part as parts that are neither sums nor scaled."""
    if isinstance(loss, MixedLoss):
        for own, part in zip(loss.weights, loss.parts, strict=True):
            if own:
                yield weight * own, part
    elif isinstance(loss, SurrogateLoss) and loss.scale != 1:
        unscaled = copy.copy(loss)
        unscaled.scale = 1.0
        yield weight * loss.scale, unscaled
    else:
        yield weight, loss


def _kind(value: object) -> str:
    return shown(value) if isinstance(value, int | float | str) else type(value).__name__
