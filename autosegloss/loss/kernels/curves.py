"""Curves in few steps: what the fused paths evaluate them with, where nothing is traced and no graph is kept.

The same curves as `curve.Curve`, whose evaluation every kind of autograd can follow. A curve takes about eight steps a
piece here, as many as a logarithm, each in place, with constants that are tensors already: torch converts a number each
time it meets one.
What costs most on a CPU and is avoided: `where` and comparisons with a boolean result (3 to 60 times the time of an
addition), and `sqrt`, which takes longer than `rsqrt` and a product. What did not pay: the later pieces for the few
large probabilities alone, which take as long to find as the pieces do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autosegloss.loss.curve import Curve, Logarithm, Piece

_STEEP = 1e-6  # a squared root below this may be rounded to less than 0
_TINY = 1e-12  # as in `curve`: where a curve starts vertically its slope is cut off at about 1e6


class FastCurve:
    """A curve, to be evaluated on maps in [0, 1] of the device and dtype of another tensor.

    Args:
        curve: The curve.
        like: A tensor on the device of the maps; float64 if they are, else they are float32.
    """

    def __init__(self, curve: Curve, like: Tensor) -> None:
        self._pieces: list[_FastPiece | _FastLogarithm] = []
        self._last_jump = 0.0
        if curve.logarithm:
            self._pieces.append(_FastLogarithm(curve.logarithm, like))
            return
        level = 0.0
        for i, piece in enumerate(curve.pieces):
            self._pieces.append(_FastPiece(piece, i == 0, piece.level - level, like))
            level = piece.level + piece.linear + piece.square
        self._last_jump = 1 - level if 1 - level > _TINY else 0.0

    def values(self, x: Tensor) -> Tensor:
        """How far the pieces rise before x, with the jumps between them; exactly 0 at 0, and not below 1 at 1."""
        y = torch.zeros_like(x)
        for piece in self._pieces:
            piece.add_rise(x, y)
        return torch.maximum(self._jumped(x, y), x.floor(), out=y)

    def slopes(self, x: Tensor) -> Tensor:
        """The slope of the piece that x is in; one without axes if it is the same everywhere."""
        slope = self._pieces[0].slopes(x)
        for piece in self._pieces[1:]:
            slope = torch.lerp(slope, piece.slopes(x), piece.begun(x))
        return slope

    def values_and_slopes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both in the steps of one and a few more; the values are exactly 0 at 0 and exactly 1 at 1."""
        y = torch.zeros_like(x)
        slope = self._pieces[0].add_rise_and_slopes(x, y)
        for piece in self._pieces[1:]:
            slope = torch.lerp(slope, piece.add_rise_and_slopes(x, y), piece.begun(x))
        # A map that is 1 all over an image may not be 1 but for rounding: an XOR of two such maps would not be empty.
        return torch.maximum(self._jumped(x, y).clamp_(max=1), x.floor(), out=y), slope

    def _jumped(self, x: Tensor, y: Tensor) -> Tensor:
        return y.add_(torch.ge(x, 1, out=torch.empty_like(x)), alpha=self._last_jump) if self._last_jump else y


class _FastPiece:
    """As `curve.Piece`: with q = x - start, s = q / (m w + w r), where w r = sqrt((m w)^2 + (1 - 2 m) w q)."""

    def __init__(self, piece: Piece, first: bool, jump: float, like: Tensor) -> None:
        self._first = first
        self._width = width = piece.width
        self._jump = jump if jump > _TINY else 0.0
        self._straight = piece.middle == 0.5 and piece.square == 0
        self._square = piece.square
        self._bend = (1 - 2 * piece.middle) * width
        self._rise = piece.linear / width
        least = min(piece.middle, 1 - piece.middle) ** 2
        self._least = max(least, _TINY) * width**2 if least < _STEEP else None
        constants = (
            0.0 if first else piece.start,
            piece.middle * width,
            (piece.middle * width) ** 2,
            piece.linear,
            piece.linear / 2,
            self._rise,
        )
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self._start, self._middle, self._middle_squared, self._linear, self._half, self._slope = torch.tensor(
            constants, dtype=dtype, device=like.device
        ).unbind()

    def begun(self, x: Tensor) -> Tensor:
        """1 where x is beyond the start, else 0."""
        return torch.gt(x, self._start, out=torch.empty_like(x))

    def add_rise(self, x: Tensor, y: Tensor) -> None:
        if self._jump:
            y.add_(self.begun(x), alpha=self._jump)
        if self._straight:
            y.add_(self._reached(x), alpha=self._rise)
        else:
            s, inverse = self._solved(x)
            y.addcmul_(s, torch.add(self._linear, s, alpha=self._square, out=inverse))

    def slopes(self, x: Tensor) -> Tensor:
        if self._straight:
            return self._slope
        s, inverse = self._solved(x)
        return torch.add(self._half, s, alpha=self._square, out=s).mul_(inverse)

    def add_rise_and_slopes(self, x: Tensor, y: Tensor) -> Tensor:
        if self._straight:
            self.add_rise(x, y)
            return self._slope
        if self._jump:
            y.add_(self.begun(x), alpha=self._jump)
        s, inverse = self._solved(x)
        y.addcmul_(s, torch.add(self._linear, s, alpha=self._square))
        return torch.add(self._half, s, alpha=self._square, out=s).mul_(inverse)

    def _reached(self, x: Tensor) -> Tensor:
        q = x if self._first else x - self._start
        return q if self._first and self._width == 1 else q.clamp(0, self._width)

    def _solved(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """S, and 1 / w r."""
        q = self._reached(x)
        root = torch.add(self._middle_squared, q, alpha=self._bend)
        if self._least is None:
            inverse = root.rsqrt()  # faster than the root
        elif self._bend > 0:  # steep at its start, where the root is what s is divided by
            inverse = root.clamp_(min=self._least).rsqrt()
        else:  # steep at its end, where s is to be 1 for all that is beyond
            inverse = root.clamp(min=self._least).rsqrt()
            root.clamp_(min=0)
        s = torch.div(q, root.mul_(inverse).add_(self._middle), out=root)
        return s, inverse


class _FastLogarithm:
    """As `curve.Logarithm`, in the place of a piece that is the only one."""

    def __init__(self, shape: Logarithm, like: Tensor) -> None:
        self._mirrored = shape.mirrored
        self._height = shape.height
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self._zero, self._one, self._e, self._end = torch.tensor(
            (0, 1, shape.e, shape.e * shape.height), dtype=dtype, device=like.device
        ).unbind()

    def begun(self, x: Tensor) -> Tensor:
        """1 where x is beyond the start, else 0."""
        return torch.gt(x, self._zero, out=torch.empty_like(x))

    def add_rise(self, x: Tensor, y: Tensor) -> None:
        self._add_rise(x, self._from_the_steep_end(x), y)

    def slopes(self, x: Tensor) -> Tensor:
        return self._slopes(self._from_the_steep_end(x))

    def add_rise_and_slopes(self, x: Tensor, y: Tensor) -> Tensor:
        q = self._from_the_steep_end(x)
        self._add_rise(x, q, y)
        return self._slopes(q)

    def _from_the_steep_end(self, x: Tensor) -> Tensor:
        return torch.sub(self._one, x).clamp_(min=0) if self._mirrored else x

    def _add_rise(self, x: Tensor, q: Tensor, y: Tensor) -> None:
        share = torch.div(x, q + self._e if self._mirrored else self._e)
        y.add_(share.log1p_(), alpha=1 / self._height)

    def _slopes(self, q: Tensor) -> Tensor:
        """0 at the steep end, as in `curve`: what is rounded to it may be far from it beside e."""
        slope = q.sign()
        return slope.div_(torch.add(self._end, q, alpha=self._height))
