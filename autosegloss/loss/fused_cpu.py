"""The moments of `fuse` block by block, in memory that stays in the cache.

Nothing as large as the logits is kept for the backward pass, which makes the softmax again: that costs less than to
write it to fresh memory and to read it back.

What paid most, on a CPU: what concerns the label alone (a gather) is computed once for all pixels and not in each
block, and a curve takes about eight steps a piece, each in place, with constants that are tensors already. What did
not: the threads of torch inside a block, which wait for one another at each step; `where`, comparisons with a boolean
result, and `sqrt`, which takes longer than `rsqrt` and a product. `autosegloss bench loss` measures the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autosegloss.loss.curve import Curve

if TYPE_CHECKING:
    from autosegloss.loss.fuse import Atom, Moments

_BLOCK = 2**15  # logits: what torch does in one thread, and a few times that stays in the cache of a core
_STEEP = 1e-6  # a squared root below this may be rounded to less than 0
_TINY = 1e-12  # as in `curve`: where a curve starts vertically its slope is cut off at about 1e6


def moments(logits: Tensor, labels: Tensor, wanted: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """See `fuse.moments`."""
    pixels = _class_sums(torch.ones_like(labels), labels, logits.shape[1]).to(_dtype(logits))
    if not wanted.inside and not wanted.outside:
        return pixels.unsqueeze(2)[..., :0], pixels.unsqueeze(2)[..., :0], pixels
    inside, outside = _Moments.apply(logits, labels, wanted)  # type: ignore[no-untyped-call]
    return inside, outside, pixels


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, wanted: Moments) -> tuple[Tensor, Tensor]:
        images, classes, _ = logits.shape
        dtype = _dtype(logits)
        inside, outside = _functions(wanted.inside, logits), _functions(wanted.outside, logits)
        label, valid = labels.clamp(min=0).unsqueeze(1), (labels >= 0).to(dtype).unsqueeze(1)
        own = torch.empty_like(valid)  # the probability of the label

        def sums(image: slice, pixel: slice) -> Tensor:
            some, at = logits[image, :, pixel], label[image, :, pixel]
            if not outside:  # then log_softmax is the faster one
                torch.gather(torch.log_softmax(some, 1, dtype), 1, at, out=own[image, :, pixel])
                return some.new_empty(0)
            p = torch.softmax(some, 1, dtype)
            own[image, :, pixel] = p.gather(1, at)
            p.scatter_(1, at, 0).mul_(valid[image, :, pixel])
            return torch.stack([_values(function, p).sum(2) for function in outside], 2)

        beyond = logits.new_zeros(images, classes, len(outside), dtype=torch.float64)
        blocks = _blocks(logits)
        for (image, _), found in zip(blocks, _each(sums, blocks), strict=True):
            if outside:
                beyond[image] += found
        if not outside:
            own.exp_()
        own = own.squeeze(1)
        within = [_class_sums(_values(function, own).double(), labels, classes) for function in inside]
        ctx.save_for_backward(logits, labels, own)
        ctx.wanted = wanted
        return torch.stack(within, 2).to(dtype) if within else beyond[..., :0].to(dtype), beyond.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_inside: Tensor, by_outside: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, own = ctx.saved_tensors
        dtype = _dtype(logits)
        inside, outside = _functions(ctx.wanted.inside, logits), _functions(ctx.wanted.outside, logits)
        label, valid = labels.clamp(min=0), (labels >= 0).to(dtype).unsqueeze(1)
        by_own = torch.zeros_like(own)
        for by, function in zip(by_inside.unbind(2), inside, strict=True):
            by_own.addcmul_(by.gather(1, label), _slopes(function, own))
        label, by_own = label.unsqueeze(1), by_own.unsqueeze(1)
        gradient = torch.empty_like(logits)

        def write(image: slice, pixel: slice) -> None:
            """Where h is the derivative by the probabilities p, that by the logits is p (h - sum of p h)."""
            p = torch.softmax(logits[image, :, pixel], 1, dtype).mul_(valid[image, :, pixel])
            h = torch.zeros_like(p)
            for j, function in enumerate(outside):
                h.addcmul_(by_outside[image, :, j : j + 1], _slopes(function, p))
            h.scatter_(1, label[image, :, pixel], by_own[image, :, pixel]).mul_(p)
            torch.addcmul(h, p, h.sum(1, keepdim=True), value=-1, out=gradient[image, :, pixel])

        _each(write, _blocks(logits))
        return gradient, None, None


def _dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _class_sums(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Sums over the pixels of each class: (N, P) -> (N, C)."""
    sums = x.new_zeros(len(x), classes + 1)
    return sums.scatter_add_(1, labels.where(labels >= 0, classes), x)[:, :classes]


def _blocks(logits: Tensor) -> list[tuple[slice, slice]]:
    """Some pixels of an image at a time, or some small images; on a GPU, which has no such cache, all at once."""
    images, classes, pixels = logits.shape
    if logits.device.type != "cpu":
        return [(slice(None), slice(None))]
    some = max(1, _BLOCK // max(1, classes))
    together = max(1, some // max(1, pixels))
    return [
        (slice(image, image + together), slice(pixel, pixel + some))
        for image in range(0, images, together)
        for pixel in range(0, pixels, some)
    ]


def _each(task: Callable[[slice, slice], Any], blocks: list[tuple[slice, slice]]) -> list[Any]:
    """The results in order, in as many threads as torch may use, each with whole blocks of its own."""
    threads = torch.get_num_threads()
    if min(threads, len(blocks)) < 2:
        return [task(*block) for block in blocks]
    try:
        with ThreadPoolExecutor(min(threads, len(blocks)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(torch.no_grad()(task), *zip(*blocks, strict=True)))
    finally:
        torch.set_num_threads(threads)


class _Curve:
    """A curve whose constants are tensors: torch converts a number each time it meets one."""

    def __init__(self, curve: Curve, some: Tensor) -> None:
        self._pieces = []
        level = 0.0
        for i, piece in enumerate(curve._pieces):
            self._pieces.append(_Piece(piece, i == 0, piece.level - level, some))
            level = piece.level + piece.linear + piece.square
        self._last_jump = 1 - level if 1 - level > _TINY else 0.0

    def values(self, x: Tensor) -> Tensor:
        """The sum of how far each piece rises before x, and of the jumps between them."""
        y = torch.zeros_like(x)
        for piece in self._pieces:
            piece.add_rise(x, y)
        return y.add_(torch.ge(x, 1, out=torch.empty_like(x)), alpha=self._last_jump) if self._last_jump else y

    def slopes(self, x: Tensor) -> Tensor:
        """The slope of the piece that x is in; one without axes if it is the same everywhere."""
        slope = self._pieces[0].slopes(x)
        for piece in self._pieces[1:]:
            slope = torch.lerp(slope, piece.slopes(x), piece.begun(x))
        return slope


class _Piece:
    """As `curve._Piece`: with q = x - start, s = q / (m w + w r), where w r = sqrt((m w)^2 + (1 - 2 m) w q)."""

    def __init__(self, piece: Any, first: bool, jump: float, some: Tensor) -> None:
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
        self._start, self._middle, self._middle_squared, self._linear, self._half, self._slope = torch.tensor(
            constants, dtype=_dtype(some), device=some.device
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

    def _reached(self, x: Tensor) -> Tensor:
        q = x if self._first else x - self._start
        return q if self._first and self._width == 1 else q.clamp(0, self._width)

    def _solved(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """S, and 1 / w r."""
        q = self._reached(x)
        root = torch.add(self._middle_squared, q, alpha=self._bend)
        if self._least is not None:
            root.clamp_(min=self._least)
        inverse = root.rsqrt()  # faster than the root
        s = torch.div(q, root.mul_(inverse).add_(self._middle), out=root)
        return s, inverse


_Function = Sequence[_Curve]


def _functions(atoms: Sequence[Atom], some: Tensor) -> list[_Function]:
    return [[_Curve(curve, some) for curve in atom] for atom in atoms]


def _values(function: _Function, x: Tensor) -> Tensor:
    for curve in function:
        x = curve.values(x)
    return x


def _slopes(function: _Function, x: Tensor) -> Tensor:
    if not function:
        return torch.ones_like(x)
    slope = function[-1].slopes(_values(function[:-1], x))
    return slope if len(function) == 1 else slope * _slopes(function[:-1], x)
