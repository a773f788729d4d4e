"""The relaxed reading of an expression: softmax for `pred`, curves and a soft logic for the searched operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from autosegloss.errors import InputError, shown
from autosegloss.loss.curve import (
    IDENTITY,
    Curve,
    CurveKind,
    Point,
    identity_theta,
    number_of_coordinates,
    points_from_theta,
)
from autosegloss.metric import expr as e
from autosegloss.metric.interpret import Maps

PixelLogic = Literal["product", "godel"]
"""What reads each pixel by itself."""
LogicKind = Literal["product", "godel", "lovasz"]

ADVISED_WEIGHT = 0.25
"""The part of cross-entropy that the JDT papers advise in a mix (Wang et al., arXiv 2302.05666)."""


@dataclass(frozen=True)
class Slot:
    """A place where a curve sits: an operand that depends on `pred`, of `&` or `|`; `a ^ b` is `or - and` and has both.

    Its text names it in a loss file, as in `and[0] of pred & target`.
    """

    operator: Literal["and", "or"]
    operand: int
    node: e.Logic

    def __str__(self) -> str:
        return f"{self.operator}[{self.operand}] of {self.node}"


def slots(expr: e.Expr) -> tuple[Slot, ...]:
    """The slots of an expression in the order in which its operators are written; of `a ^ b` those of AND first.

    Example:
        >>> import autosegloss as asl
        >>> [str(slot) for slot in asl.slots(asl.metric("miou"))]
        ['and[0] of pred & target', 'or[0] of pred | target']
    """
    operators: dict[e.LogicOp, tuple[Literal["and", "or"], ...]] = {"&": ("and",), "|": ("or",), "^": ("and", "or")}
    return tuple(
        Slot(operator, i, node)
        for node in expr.walk()
        if isinstance(node, e.Logic)
        for operator in operators[node.op]
        for i, operand in enumerate((node.left, node.right))
        if operand.soft
    )


@dataclass(frozen=True)
class SearchSpace:
    """The coordinates theta in which the curves of an expression are searched.

    Args:
        expr: The metric.
        curve: The kind of every curve.
        pieces: Pieces of every curve, 1 to 64; a log curve has none.
        share_curves: One curve for both operands of an operator (the text of the paper) in place of one each (its
            code).

    Raises:
        InputError: There is no such kind of curve, or the number of pieces is out of range.
    """

    expr: e.Expr
    curve: CurveKind = "bezier"
    pieces: int = 2
    share_curves: bool = False

    def __post_init__(self) -> None:
        number_of_coordinates(self.curve, self.pieces)  # checks both

    @property
    def curves(self) -> tuple[tuple[Slot, ...], ...]:
        """The slots that each curve fills, curve by curve."""
        if not self.share_curves:
            return tuple((slot,) for slot in slots(self.expr))
        groups: dict[tuple[str, e.Logic], list[Slot]] = {}
        for slot in slots(self.expr):
            groups.setdefault((slot.operator, slot.node), []).append(slot)
        return tuple(tuple(group) for group in groups.values())

    @property
    def dimension(self) -> int:
        """The length of theta."""
        return len(self.identity)

    @property
    def identity(self) -> tuple[float, ...]:
        """The theta of identity curves: where a search starts."""
        return identity_theta(self.curve, self.pieces) * len(self.curves)

    def control_points(self, theta: Sequence[float]) -> list[tuple[Point, ...]]:
        """The control points of each slot, in the order of `slots`.

        Args:
            theta: `dimension` numbers in [0, 1], curve after curve.

        Raises:
            InputError: The length or a coordinate is wrong.
        """
        if len(theta) != self.dimension:
            pieces = "" if self.curve == "log" else f"of {self.pieces} piece(s) "
            raise InputError(
                f"theta has {len(theta)} coordinates; {len(self.curves)} {self.curve} curve(s) "
                f"{pieces}have {self.dimension}."
            )
        size = number_of_coordinates(self.curve, self.pieces)
        points = {
            slot: points_from_theta(theta[i * size : (i + 1) * size], self.curve)
            for i, group in enumerate(self.curves)
            for slot in group
        }
        return [points[slot] for slot in slots(self.expr)]


class RelaxedMaps(Maps):
    """Soft maps: probabilities for `pred`, and the logic of Auto Seg-Loss or of the JDT losses under curves.

    Args:
        pred: Probabilities, (N, C, *S) floating.
        target: One-hot or soft labels, shaped and typed like `pred`, 0 at ignored pixels.
        valid: Pixels that are not ignored, (N, 1, *S) boolean, or None.
        curves: The curve of each slot.
        logic: "product": and = g(a) g(b), or = g(a) + g(b) - g(a) g(b) (Li et al., ICLR 2021, section 4.1).
            "godel": and = min(g(a), g(b)), or = max(g(a), g(b)), written with |g(a) - g(b)| (Wang et al.,
            NeurIPS 2023).
        hard_target: Whether `target` holds only 0 and 1, where every curve leaves it as it is.
    """

    def __init__(
        self,
        pred: Tensor,
        target: Tensor,
        valid: Tensor | None,
        curves: Mapping[Slot, Curve],
        logic: PixelLogic,
        hard_target: bool,
    ) -> None:
        self.valid = valid
        self._leaves = {e.pred: pred, e.target: target}
        self._curves = curves
        self._logic = logic
        self._hard_target = hard_target

    def leaf(self, node: e.Leaf) -> Tensor:
        return self._leaves[node]

    def logic(self, node: e.Logic, left: Tensor, right: Tensor) -> Tensor:
        if node.op == "&":
            return self._and(*self._curved("and", node, left, right))
        if node.op == "|":
            return self._or(*self._curved("or", node, left, right))
        either = self._or(*self._curved("or", node, left, right))
        both = self._and(*self._curved("and", node, left, right))
        return torch.relu(either - both)  # curves of their own may lift AND above OR; a truth value stays in [0, 1]

    def _curved(
        self, operator: Literal["and", "or"], node: e.Logic, left: Tensor, right: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both operands under their curves; an operand without a slot of its own goes under its partner's.

        With g on both sides, min(g(p), g(t)) is largest and max(g(p), g(t)) smallest at p = t whatever the increasing
        curve: this is what keeps soft labels the optimum. A hard label is left as it is by every curve, which saves
        the work.
        """
        first = self._curves.get(Slot(operator, 0, node))
        second = self._curves.get(Slot(operator, 1, node))
        partner = IDENTITY if self._hard_target else first or second or IDENTITY
        return (first or partner)(left), (second or partner)(right)

    def _and(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b if self._logic == "product" else (a + b - (a - b).abs()) / 2

    def _or(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b - a * b if self._logic == "product" else (a + b + (a - b).abs()) / 2


def check_logic(logic: str) -> None:
    """Raise InputError unless there is such a logic."""
    if logic not in get_args(LogicKind):
        raise InputError(f"logic is {shown(logic)}; allowed: {', '.join(get_args(LogicKind))}.")


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Class maps (N, C, *S) of labels (N, *S); a label that is no class sets none."""
    classes = torch.arange(num_classes, device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    return (labels.unsqueeze(1) == classes).to(dtype)
