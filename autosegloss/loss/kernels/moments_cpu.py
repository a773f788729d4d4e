"""The moments of `fuse` block by block, in memory that stays in the cache.

Nothing as large as the logits is kept for the backward pass, which makes the softmax again: that costs less than to
write it to fresh memory and to read it back.

What paid most, on a CPU: what concerns the label alone (a gather) is computed once for all pixels and not in each
block, and a curve takes few steps (`curves`). What did not: the threads of torch inside a block, which wait for one
another at each step. Blocks of 2^16 take a fifth less where a call of torch costs more than usual, and end in other
last bits. `autosegloss bench loss` measures the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autosegloss.loss.kernels.atoms import Atom, Atoms
from autosegloss.loss.kernels.curves import FastCurve
from autosegloss.loss.kernels.pixels import class_sums, in_threads, pixel_blocks, working_dtype


def moments(logits: Tensor, labels: Tensor, atoms: Atoms) -> tuple[Tensor, Tensor, Tensor]:
    """See `fuse.moments`."""
    pixels = class_sums(torch.ones_like(labels), labels, logits.shape[1]).to(working_dtype(logits))
    if not atoms.inside and not atoms.outside:
        return pixels.unsqueeze(2)[..., :0], pixels.unsqueeze(2)[..., :0], pixels
    inside, outside = _Moments.apply(logits, labels, atoms)  # type: ignore[no-untyped-call]
    return inside, outside, pixels


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, atoms: Atoms) -> tuple[Tensor, Tensor]:
        images, classes, _ = logits.shape
        dtype = working_dtype(logits)
        inside, outside = _functions(atoms.inside, logits), _functions(atoms.outside, logits)
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

        outside_sums = logits.new_zeros(images, classes, len(outside), dtype=torch.float64)
        blocks = pixel_blocks(logits)
        for (image, _), found in zip(blocks, in_threads(sums, blocks), strict=True):
            if outside:
                outside_sums[image] += found
        if not outside:
            own.exp_()
        own = own.squeeze(1)
        inside_sums = [class_sums(_values(function, own).double(), labels, classes) for function in inside]
        ctx.save_for_backward(logits, labels, own)
        ctx.atoms = atoms
        own_sums = torch.stack(inside_sums, 2) if inside_sums else outside_sums[..., :0]
        return own_sums.to(dtype), outside_sums.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_inside: Tensor, by_outside: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, own = ctx.saved_tensors
        dtype = working_dtype(logits)
        inside, outside = _functions(ctx.atoms.inside, logits), _functions(ctx.atoms.outside, logits)
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

        in_threads(write, pixel_blocks(logits))
        return gradient, None, None


_Function = Sequence[FastCurve]


def _functions(atoms: Sequence[Atom], like: Tensor) -> list[_Function]:
    return [[FastCurve(curve, like) for curve in atom] for atom in atoms]


def _values(function: _Function, x: Tensor) -> Tensor:
    for curve in function:
        x = curve.values(x)
    return x


def _slopes(function: _Function, x: Tensor) -> Tensor:
    if not function:
        return torch.ones_like(x)
    slope = function[-1].slopes(_values(function[:-1], x))
    return slope if len(function) == 1 else slope * _slopes(function[:-1], x)
