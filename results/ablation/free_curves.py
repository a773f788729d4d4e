"""Curves without one of their two constraints, and losses under them: for the ablation alone.

A curve of a `SurrogateLoss` has g(0) = 0 and g(1) = 1, so that the operators keep their truth tables, and never falls.
Here one of the two is given up. No option of the package asks for such a curve, and no file holds one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, cast

import torch
from torch import Tensor

from autosegloss.loss import SurrogateLoss
from autosegloss.loss.curve import Curve, Point, identity_theta, points_from_theta
from autosegloss.loss.relax import Slot, slots
from autosegloss.metric import Expr

Freedom = Literal["ends", "ordinates"]
"""What is given up: the truth table, by free ends, or monotonicity, by free ordinates between the fixed ends."""
Theta = tuple[float, ...]

MARGIN = 1e-8
"""How far from the border a search begins where the identity is on it: a policy wants to start inside."""


class FreeCurve:
    """A piecewise quadratic Bezier curve over [0, 1] with ordinates as they come.

    A Bezier curve is linear in its ordinates. So it is its first one, plus a monotone curve of what they rise, less one
    of what they fall, both over the same abscissae.

    Args:
        knots: All control points (u, v), those of the ends too; u rises from 0 to 1, v is in [0, 1].
    """

    def __init__(self, knots: Sequence[Point]) -> None:
        self.knots = tuple(knots)
        steps = [after - before for (_, before), (_, after) in pairwise(knots)]
        self._base = knots[0][1]
        self._terms: list[tuple[float, Curve]] = []
        for sign in (1, -1):
            *inner, total = accumulate(max(0.0, sign * step) for step in steps)
            if total > 0:
                points = ((u, v / total) for (u, _), v in zip(knots[1:-1], inner, strict=True))
                self._terms.append((sign * total, Curve("bezier", tuple(points))))

    def __call__(self, x: Tensor) -> Tensor:
        """Ordinates at abscissae in [0, 1], shaped like `x`."""
        y = torch.full_like(x, self._base)
        for factor, curve in self._terms:
            y = y + factor * curve(x)
        return y


class FreeLoss(SurrogateLoss):
    """A `SurrogateLoss` under free curves, by plain autograd.

    A hard target stays under no curve, as it is in the package and in the published code, whatever a free curve would
    make of its 0 and 1.

    Args:
        expr: The metric.
        curves: The curve of each slot in order.
        ignore_index: The label of ignored pixels.
    """

    fused = False  # which builds on the truth table

    def __init__(self, expr: Expr, curves: Sequence[FreeCurve], ignore_index: int = 255) -> None:
        super().__init__(expr, ignore_index=ignore_index)
        # The reference path does no more with a curve than call it.
        self.curves = cast("Mapping[Slot, Curve]", dict(zip(slots(expr), curves, strict=True)))


@dataclass(frozen=True)
class FreeSpace:
    """The coordinates in which free curves are searched, a curve for each operand, under the logic `product`.

    With free ends, two more coordinates of each curve come before those of the package: how far g(0) is from 0 to 1,
    and how far g(1) is from g(0) to 1; the package's place the points between the two, and the curve never falls. With
    free ordinates, there are as many coordinates as in the package, and each v of a point is its own.

    Args:
        expr: The metric.
        free: What is given up.
        pieces: Pieces of every curve.
    """

    expr: Expr
    free: Freedom
    pieces: int

    @property
    def identity(self) -> Theta:
        """The theta of identity curves, to within `MARGIN`: where a search starts."""
        plain = identity_theta("bezier", self.pieces)
        if self.free == "ends":
            curve = (MARGIN, 1 - MARGIN, *plain)
        else:
            curve = tuple(c for tu, (_, v) in zip(plain[::2], points_from_theta(plain), strict=True) for c in (tu, v))
        return curve * len(slots(self.expr))

    def loss(self, theta: Sequence[float], ignore_index: int = 255) -> FreeLoss:
        """The loss at a point of this space."""
        size = len(theta) // len(slots(self.expr))
        curves = [self._curve(theta[start : start + size]) for start in range(0, len(theta), size)]
        return FreeLoss(self.expr, curves, ignore_index)

    def _curve(self, theta: Sequence[float]) -> FreeCurve:
        if self.free == "ends":
            low, height, *inner = theta
            height *= 1 - low
            knots = ((0.0, 0.0), *points_from_theta(inner), (1.0, 1.0))
            return FreeCurve([(u, low + height * v) for u, v in knots])
        points = zip(points_from_theta(theta), theta[1::2], strict=True)
        return FreeCurve([(0.0, 0.0), *((u, v) for (u, _), v in points), (1.0, 1.0)])
