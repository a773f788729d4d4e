"""Monotone curves from [0, 1] onto [0, 1], and the coordinates in which they are searched.

A curve g has g(0) = 0 and g(1) = 1, which keeps a relaxed metric exact on one-hot predictions, and never falls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autosegloss.errors import InputError, InputTypeError, shown

CurveKind = Literal["identity", "bezier", "linear", "log"]
Point = tuple[float, float]

MOST_PIECES: Final = 64
"""The largest number of pieces of a curve."""
LOWEST: Final = 0.02
"""A log curve goes through (1/2, v) with v from here to 1 - LOWEST: there e is 2^-50, about 1e-15."""

_STRAIGHT = 1e-12  # of v - 1/2: below, a log curve is the identity to rounding
_NARROW = 1e-9  # of a piece's width: below, the piece is a jump
_TINY = 1e-12  # of a squared slope: where a curve starts vertically its slope is cut off at about 1e6


def check_kind(kind: str) -> None:
    """Raise InputError unless there is such a kind of curve."""
    if kind not in get_args(CurveKind):
        raise InputError(f"curve is {shown(kind)}; allowed: {', '.join(get_args(CurveKind))}.")


@dataclass(frozen=True)
class Curve:
    """A monotone curve; calling it gives its ordinates.

    The ends (0, 0) and (1, 1) are fixed and not listed. Without points the curve is the identity.

    Args:
        kind: "identity", "bezier" (piecewise quadratic), "linear" (piecewise linear) or "log" (see `Logarithm`).
        points: Inner control points (u, v) in [0, 1], non-decreasing in u and in v: `2 * pieces - 1` of them for
            "bezier", `pieces - 1` for "linear", one for "log", which is (0.5, v) with v in [0.02, 0.98], none for
            "identity".

    Raises:
        InputError: The points are too many or too few, out of range, or break monotonicity; naming them.

    Reference: Li et al., Auto Seg-Loss, ICLR 2021, section 4.2 (the piecewise curves).

    Example:
        >>> import torch
        >>> Curve("linear", ((0.5, 0.8),))(torch.tensor([0.0, 0.25, 0.5, 1.0]))
        tensor([0.0000, 0.4000, 0.8000, 1.0000])
    """

    kind: CurveKind
    points: tuple[Point, ...] = ()
    pieces: tuple[Piece, ...] = field(init=False, repr=False, compare=False)
    """From left to right; none if the curve has a `logarithm`."""
    logarithm: Logarithm | None = field(init=False, repr=False, compare=False)
    """The function of a log curve that is not the identity."""

    def __post_init__(self) -> None:
        check_kind(self.kind)
        count, most = len(self.points), number_of_points(self.kind, MOST_PIECES)
        if self.kind == "log" and count > 1:
            raise InputError(f"{count} control points; a log curve has one, (0.5, v).")
        if count > most > 0:
            raise InputError(f"{count} control points; a {self.kind} of at most {MOST_PIECES} pieces has {most}.")
        object.__setattr__(self, "points", tuple(_point(p, i) for i, p in enumerate(self.points)))
        if self.kind == "identity" and count:
            raise InputError(f"{count} control points; an identity curve has none.")
        if self.kind == "bezier" and count and count % 2 == 0:
            raise InputError(f"{count} control points; a bezier of n pieces has 2 n - 1 (1, 3, 5, ...).")
        for i, ((u0, v0), (u1, v1)) in enumerate(pairwise(self.points)):
            if u1 < u0 or v1 < v0:
                raise InputError(
                    f"control point {i + 1} ({u1:g}, {v1:g}) falls below control point {i} ({u0:g}, {v0:g}); "
                    "a curve must not fall."
                )
        logarithm = _logarithm(*self.points[0]) if self.kind == "log" and count else None
        object.__setattr__(self, "logarithm", logarithm)
        object.__setattr__(self, "pieces", () if logarithm else _quadratics(self.kind, self.points))

    @property
    def is_identity(self) -> bool:
        """True if the curve is the identity: it has no control points, or is a log curve through (1/2, 1/2)."""
        return not self.points or (self.kind == "log" and not self.logarithm)

    @property
    def mirrored(self) -> Curve:
        """The curve turned about (1/2, 1/2): 1 - g(1 - x)."""
        return Curve(self.kind, tuple((1 - u, 1 - v) for u, v in reversed(self.points)))

    def __call__(self, x: Tensor) -> Tensor:
        """Ordinates at abscissae in [0, 1] (values beyond are cut off), shaped like `x`; differentiable once."""
        if self.is_identity:
            return x
        y: Tensor = _EvaluateCurve.apply(x, self.logarithm or self.pieces)[0]  # type: ignore[no-untyped-call]
        return y


def number_of_points(kind: CurveKind, pieces: int) -> int:
    """Inner control points of a curve of so many pieces; of a log curve, which has no pieces, always 1."""
    check_kind(kind)
    if isinstance(pieces, bool) or not isinstance(pieces, int) or not 1 <= pieces <= MOST_PIECES:
        raise InputError(f"pieces must be an integer from 1 to {MOST_PIECES}, got {shown(pieces)}.")
    return {"identity": 0, "bezier": 2 * pieces - 1, "linear": pieces - 1, "log": 1}[kind]


def number_of_coordinates(kind: CurveKind, pieces: int) -> int:
    """Search coordinates of a curve of so many pieces: u and v of each control point; of a log curve v alone."""
    return number_of_points(kind, pieces) * (1 if kind == "log" else 2)


def points_from_theta(theta: Sequence[float], kind: CurveKind = "bezier") -> tuple[Point, ...]:
    """Control points of one curve from its search coordinates.

    Each coordinate says how far a point goes from the one before towards (1, 1), on each axis by itself, so that every
    theta gives a curve that never falls: `B_i = B_(i-1) + theta_i (B_end - B_(i-1))`. The one coordinate of a log curve
    is its v, cut to [0.02, 0.98].

    Args:
        theta: Numbers in [0, 1]: u then v of the first point, of the second, and so on.
        kind: The kind of the curve.

    Returns:
        The inner control points (u, v).

    Raises:
        InputError: A coordinate is outside [0, 1], or there is a wrong number of them.

    Reference: Li et al., Auto Seg-Loss, ICLR 2021, section 4.2.

    Example:
        >>> points_from_theta([0.5, 0.8, 0.5, 0.5])
        ((0.5, 0.8), (0.75, 0.9))
    """
    if kind == "log" and len(theta) != 1:
        raise InputError(f"theta has {len(theta)} coordinates; a log curve has one.")
    if kind != "log" and len(theta) % 2:
        raise InputError(f"theta has {len(theta)} coordinates; a curve has two for each control point.")
    for i, t in enumerate(theta):
        if isinstance(t, str) or not 0 <= t <= 1:
            raise InputError(f"theta[{i}] must be in [0, 1], got {shown(t)}.")
    if kind == "log":
        return ((0.5, min(max(float(theta[0]), LOWEST), 1 - LOWEST)),)
    points: list[Point] = []
    u = v = 0.0
    for tu, tv in zip(theta[::2], theta[1::2], strict=True):
        u, v = min(u + float(tu) * (1 - u), 1.0), min(v + float(tv) * (1 - v), 1.0)
        points.append((u, v))
    return tuple(points)


def identity_theta(kind: CurveKind, pieces: int) -> tuple[float, ...]:
    """Search coordinates of the straight line: control points evenly spaced on the diagonal.

    Example:
        >>> identity_theta("bezier", 1)
        (0.5, 0.5)
        >>> identity_theta("log", 1)
        (0.5,)
    """
    if kind == "log":
        return (0.5,) * number_of_coordinates(kind, pieces)
    steps = number_of_points(kind, pieces) + 1
    return tuple(1 / (steps - i) for i in range(steps - 1) for _ in "uv")


class Piece(NamedTuple):
    """x(s) = start + width (2 middle s (1 - s) + s^2), y(s) = level + s (linear + square s), for s in [0, 1]."""

    start: float
    width: float
    middle: float
    level: float
    linear: float
    square: float

    @property
    def first(self) -> float:
        """The square of dx/ds / (2 width) at s = 0."""
        return self.middle**2

    @property
    def last(self) -> float:
        """The square of dx/ds / (2 width) at s = 1."""
        return (1 - self.middle) ** 2

    @classmethod
    def straight(cls, p0: Point, p1: Point) -> Piece:
        return cls(p0[0], p1[0] - p0[0], 0.5, p0[1], p1[1] - p0[1], 0.0)

    @classmethod
    def quadratic(cls, p0: Point, p1: Point, p2: Point) -> Piece:
        width = p2[0] - p0[0]
        middle = (p1[0] - p0[0]) / width if width >= _NARROW else 0.5
        return cls(p0[0], width, middle, p0[1], 2 * (p1[1] - p0[1]), p0[1] - 2 * p1[1] + p2[1])


class Logarithm(NamedTuple):
    """y(x) = log(1 + x / e) / log(1 + 1 / e), steep at 0; or its mirror image 1 - y(1 - x), steep at 1."""

    e: float
    height: float
    """log(1 + 1 / e)"""
    mirrored: bool


def _logarithm(u: float, v: float) -> Logarithm | None:
    """The logarithm through (1/2, v); None if that is the identity."""
    if u != 0.5 or not LOWEST <= v <= 1 - LOWEST:
        raise InputError(
            f"the control point of a log curve must be (0.5, v), v from {LOWEST} to {1 - LOWEST}, got ({u:g}, {v:g})."
        )
    rise = 2 * abs(v - 0.5)
    if rise < 2 * _STRAIGHT:
        return None
    # With height = 2 t, y(1/2) = 1/2 + log(cosh t) / 2 t: Newton's steps from the right on a convex function.
    t, last = math.log(2) / (1 - rise), math.inf
    while t < last:
        last = t
        t -= (math.log1p(2 * math.sinh(t / 2) ** 2) - rise * t) / (math.tanh(t) - rise)
    return Logarithm(1 / math.expm1(2 * last), 2 * last, v < 0.5)


def _quadratics(kind: CurveKind, points: tuple[Point, ...]) -> tuple[Piece, ...]:
    """The pieces of a curve from left to right; a straight one is a quadratic too."""
    knots = [(0.0, 0.0), *points, (1.0, 1.0)]
    if kind != "bezier" or not points:
        pieces = [Piece.straight(*ends) for ends in pairwise(knots)]
    else:
        pieces = [Piece.quadratic(*knots[i : i + 3]) for i in range(0, len(knots) - 1, 2)]
    # A narrow piece contains almost no x, and its slope would be unbounded.
    return tuple(piece for piece in pieces if piece.width >= _NARROW)


class _EvaluateCurve(torch.autograd.Function):
    """Ordinates and slopes together: the backward pass multiplies by a slope in place of retracing a dozen steps."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, shape: Logarithm | Sequence[Piece]) -> tuple[Tensor, Tensor]:
        # No step is in place: an exported program differentiates each of them by itself.
        x = x.clamp(0, 1)
        y, slope = _evaluate_logarithm(x, shape) if isinstance(shape, Logarithm) else _evaluate_pieces(x, shape)
        # Exactly 0 and 1 at the ends, also where rounding or a jump would leave something.
        above, one = x.sign(), x.floor()
        return torch.maximum(y.clamp(0, 1) * above, one), slope * (above - one)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


def _evaluate_logarithm(x: Tensor, shape: Logarithm) -> tuple[Tensor, Tensor]:
    if not shape.mirrored:
        return (x / shape.e).log1p() / shape.height, 1 / ((x + shape.e) * shape.height)
    # 1 - log(1 + (1 - x) / e) / height, with no cancellation at 0; at 1 the curve sees what 1 - x is rounded to.
    rest = 1 - x + shape.e
    return (x / rest).log1p() / shape.height, 1 / (rest * shape.height)


def _evaluate_pieces(x: Tensor, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    of = _Coefficients(x, pieces)
    t = ((x - of("start")) / of("width")).clamp(0, 1)
    # Solve x(s) = x for s; this form of the root has no branch at middle = 1/2 and no cancellation.
    root = ((1 - t) * of("first") + t * of("last")).clamp(min=_TINY).sqrt()
    s = t / (root + of("middle"))
    bend = s * of("square")
    slope = bend + of("linear")
    return slope * s + of("level"), (slope + bend) / (2 * of("width") * root)  # dx/ds = 2 width root


class _Coefficients:
    """The coefficients of the piece that each abscissa lies in; an abscissa between two lies in the left one.

    Each is made where it is needed, and dropped: what few maps there are stay in the cache.
    """

    def __init__(self, x: Tensor, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._inside = [torch.ones_like(x)] if len(pieces) > 1 else []
        for piece in pieces[1:]:
            beyond = (x - piece.start).sign().clamp(min=0)
            self._inside[-1] = self._inside[-1] - beyond
            self._inside.append(beyond)

    def __call__(self, name: str) -> Tensor | float:
        value, *others = (float(getattr(piece, name)) for piece in self._pieces)
        if not others:
            return value
        # A sum with one weight of 1 and others of 0 picks exactly, and many times faster than `where` or `lerp`.
        picked = self._inside[0] * value
        for inside, other in zip(self._inside[1:], others, strict=True):
            picked = picked + inside * other
        return picked


def _point(point: Sequence[float], index: int) -> Point:
    try:
        if any(isinstance(c, str | bool) for c in point):
            raise TypeError
        u, v = (float(c) for c in point)
    except (TypeError, ValueError, OverflowError):
        raise InputTypeError(f"control point {index} must be a pair of numbers (u, v), got {shown(point)}.") from None
    if not (math.isfinite(u) and math.isfinite(v) and 0 <= u <= 1 and 0 <= v <= 1):
        raise InputError(f"control point {index} must have both coordinates in [0, 1], got ({u:g}, {v:g}).")
    return u, v


IDENTITY = Curve("identity")
